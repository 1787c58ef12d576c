"""``llm chat`` with kvllama: an error is one line, and the chat continues."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import llm
import pytest
from click.testing import CliRunner
from llm import cli as llm_cli
from llm.plugins import pm

from llm_kvbranch import model

from ..support.serving import Serving
from ..support.shell import Shell
from ..support.terminal import Terminal

pytestmark = pytest.mark.model

PROMPT = "\n> "
SHORT = ("-o", "temperature", "0", "-o", "max_tokens", "10")
LONG = ("-o", "temperature", "0", "-o", "max_tokens", "300")


class Images:
    "A plugin whose fragments are attachments"

    @llm.hookimpl
    def register_fragment_loaders(self, register) -> None:
        register("image", self.load)

    @staticmethod
    def load(argument: str) -> list[llm.Attachment]:
        return [llm.Attachment(type="image/png", content=b"PNG")]


@pytest.fixture
def images() -> Iterator[None]:
    plugin = Images()
    pm.register(plugin)
    yield
    pm.unregister(plugin)


def chat(shell: Shell, *arguments: str, **env: str) -> Terminal:
    started = Terminal("chat", "-m", "kvllama", *arguments, env={**shell.env, **env})
    started.read_until(PROMPT)
    return started


def ask(chat: Terminal, prompt: str) -> str:
    "What a chat prints about a prompt"
    chat.type(prompt)
    return chat.read_until(PROMPT).partition("\n")[2].removesuffix(PROMPT).strip()


def one_error(said: str) -> str:
    (line,) = said.splitlines()
    assert line.startswith("Error: ")
    return line


def inside(*prompts: str) -> list[str]:
    "What a chat in this process prints about prompts, each up to the next one"
    lines = "\n".join([*prompts, "quit", ""])
    arguments = ["chat", "-m", "kvllama", *SHORT]
    with mock.patch.object(model, "_sessions", {}):
        done = CliRunner().invoke(llm_cli.cli, arguments, input=lines)
    assert done.exit_code == 0, done.output
    said = [part.partition("\n")[2].strip() for part in done.output.split(PROMPT)[1:]]
    return said[: len(prompts)]


def logged(home: Path) -> list[str]:
    "The ids of the responses in the log"
    with sqlite3.connect(home / "logs.db") as db:
        return [row[0] for row in db.execute("select id from turns order by id")]


class TestErrors:
    "A traceback that ends the chat, and a conversation that is lost with it"

    def test_a_prompt_that_does_not_fit(self, user_path) -> None:
        shell = Shell(user_path)
        with chat(shell, *SHORT, "-o", "n_ctx", "80", "-s", "Be a pirate.") as one:
            assert "80 with the answer" in one_error(ask(one, "word " * 90))
            first = ask(one, "Hi")
            assert "Error" not in first
            assert "80 with the answer" in one_error(ask(one, "word " * 90))
            second = ask(one, "And you?")
            assert "Error" not in second
            one.type("quit")
            one.read_all()
            assert one.process.returncode == 0
        ids = logged(user_path)
        assert len(ids) == 2
        # The same conversation as without the errors, with its system prompt
        asked = llm_log(user_path, ids[1])
        assert [role for role, _ in asked] == ["system", "user", "assistant", "user"]
        assert [text for _, text in asked] == ["Be a pirate.", "Hi", first, "And you?"]
        with chat(shell, *SHORT, "-c") as again:
            assert "Error" not in ask(again, "Bye")
        assert len(llm_log(user_path, logged(user_path)[-1])) == 6

    def test_a_server_that_dies_while_it_answers(self, user_path, tmp_path) -> None:
        shell = Shell(user_path)
        with Serving(tmp_path, "--port", "0") as server, chat(shell, *LONG) as one:
            first = ask(one, "Hi")
            one.type("la " * 12)  # and so the model does, up to its limit
            one.read_until("\n")
            one.read_until(" ")  # the answer has begun
            server.kill()
            said = one.read_until(PROMPT)
            (line,) = [x for x in said.splitlines() if x.startswith("Error: ")]
            assert "llm kvbranch serve" in line
            assert "Error" not in ask(one, "And you?")
        texts = [text for _, text in llm_log(user_path, logged(user_path)[-1])]
        assert texts == ["Hi", first, "And you?"]

    def test_a_model_whose_file_is_missing(self, user_path) -> None:
        shell = Shell(user_path)
        with chat(shell, LLM_KVBRANCH_MODEL="/nowhere/x.gguf") as one:
            for _ in range(2):
                assert "/nowhere/x.gguf" in one_error(ask(one, "Hi"))

    def test_options(self, user_path) -> None:
        shell = Shell(user_path)
        assert "temperature" in "".join(
            shell.run("chat", "-m", "kvllama", "-o", "temperature", "hot").stderr
        )
        with chat(shell, *SHORT, "-o", "grammar", "root ::= nothing") as one:
            assert "grammar" in one_error(ask(one, "Hi"))

    def test_an_attachment(self, user_path, images) -> None:
        said = inside("Hi", "!fragment image:x", "And you?")
        assert "attachment" in one_error(said[1])
        assert not [text for text in (said[0], said[2]) if "Error" in text]
        assert len(logged(user_path)) == 2

    def test_a_log_that_is_full(self, user_path, monkeypatch) -> None:
        failed = []

        def log_to_db(self, db) -> None:
            if not failed:
                failed.append(self.id)
                raise sqlite3.OperationalError("database or disk is full")
            log(self, db)

        log = llm.Response.log_to_db
        monkeypatch.setattr(llm.Response, "log_to_db", log_to_db)
        one, two = inside("Hi", "And you?")
        (line,) = [x for x in one.splitlines() if x.startswith("Error: ")]
        assert line.endswith("The answer is not logged: database or disk is full")
        assert "Error" not in two
        texts = [text for _, text in llm_log(user_path, logged(user_path)[0])]
        assert texts[0] == "Hi"
        assert texts[2] == "And you?"

    def test_raise_errors_still_raises(self, user_path, monkeypatch) -> None:
        monkeypatch.setenv("LLM_RAISE_ERRORS", "1")
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", "/nowhere/x.gguf")
        done = CliRunner().invoke(
            llm_cli.cli, ["chat", "-m", "kvllama"], input="Hi\nquit\n"
        )
        assert isinstance(done.exception, llm.ModelError)


class TestOutsideOfChat:
    "An error that Python code, or llm prompt, is not told of"

    def test_python(self, user_path, monkeypatch) -> None:
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", "/nowhere/x.gguf")
        with pytest.raises(llm.ModelError):
            llm.get_model("kvllama").prompt("Hi").text()

    def test_bytes_that_are_no_text(self, user_path) -> None:
        shell = Shell(user_path)
        line = shell.fail("-m", "kvllama", os.fsdecode(b"caf\xe9"))
        assert "not valid UTF-8" in line
        assert "iconv" in line

    @pytest.mark.parametrize("more", [(), ("--no-stream",), ("--async",)])
    def test_a_reader_that_leaves(self, user_path, more) -> None:
        shell = Shell(user_path)
        asked = shlex.join(["-m", "kvllama", *SHORT, *more, "Why is the sky blue?"])
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m llm {asked} | :"],
            env=shell.env,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        facts = shell.show()
        assert facts["generated_tokens"] > 5
        assert facts["state_file"]


def llm_log(home: Path, response_id: str) -> list[tuple[str, str]]:
    "What a response was asked, as (role, text)"
    from llm_kvbranch.log import History, message_text, open_log

    history = History(open_log(str(home / "logs.db")))
    messages = history.response(response_id).sent
    return [(m.role, message_text(m).strip()) for m in messages]
