"""Calls that make no sense are refused, before anything is read, asked or changed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import click
import pytest

from llm_kvbranch.cli import kvbranch

from ..support.logged import Log, Parrot
from .test_groups import command as find
from .test_groups import everything, run

# What is refused: a call -> words of the message
REFUSED = {
    "branch last Hi --context-window 10": "--context-window needs --mode fresh",
    "branch last Hi --mode reuse_kv --context-window 0": "needs --mode fresh",
    "branch last Hi --occurrence 1": "--occurrence needs an --excerpt",
    "branch last Hi --range 0:1 --occurrence 1": "--occurrence needs an --excerpt",
    "branch last Hi --excerpt a --occurrence 0": "0 is not in the range",
    "branch last Hi --excerpt a --occurrence -1": "-1 is not in the range",
    "branch last Hi --excerpt a --range 0:1": "not both",
    "branch last Hi --extract --json": "not both",
    "branch last Hi -n 0": "0 is not in the range",
    "branch last Hi --no-server": "--no-server does not apply to parrot",
    "branch last Hi -m kvllama --no-server -o server 1": "not both",
    "last Hi --context-window 10": "--context-window needs --mode fresh",
    "focus last Hi --occurrence 1": "--occurrence needs an --excerpt",
    "focus last Hi --excerpt a --occurrence 0": "0 is not in the range",
    "focus last Hi --excerpt a --range 0:1": "not both",
    "focus last Hi --excerpt a --extract --json": "not both",
    "focus last Hi --excerpt Be --no-server": "--no-server does not apply",
    "continue last Hi --extract --json": "not both",
    "continue last Hi --no-server": "--no-server does not apply",
    "retry last --extract --json": "not both",
    "retry last --no-server": "--no-server does not apply",
    "retry last -n -1": "-1 is not in the range",
    "tree last -n 3": "Give an ID or --count, not both",
    "tree -n 0": "0 is not in the range",
    "tree -n -3": "-3 is not in the range",
    "note last Words --remove": "not both",
    "prune last -y": "--yes needs --log",
    "models --remove a --json": "not both",
    "models download --list qwen3-8b": "--list takes neither a model nor",
    "models download --list qwen3-8b Q4_K_M": "--list takes neither a model nor",
    "models download --list --revision main": "--list takes neither a model nor",
    "models download qwen3-8b --json": "--json needs --list",
    "models settings --default": "--default needs a model and a setting",
    "models settings kvllama n_ctx 5 --default": "--default needs a model and",
    "store budget 5GB --default": "Give a SIZE or --default, not both",
}
# Options that apply to every call of a command, but for the calls above
ALWAYS = {
    "branch focus continue retry": "model system option no-stream usage database "
    "hide-reasoning",
    "branch focus": "excerpt range",
    "branch retry": "count",
    "branch": "mode",
    "tree": "database json",
    "show diff": "database json",
    "star": "database remove",
    "note": "database",
    "prune": "database log dry-run json",
    "export": "database force json",
    "import": "database trust json",
    "serve": "port host allow-host token new-token open model slots ctx queue no-log "
    "database max-pause",
    "doctor": "exact json",
    "models settings": "json",
    "store status": "database json",
    "store budget": "json",
    "store gc": "max-size dry-run json",
    "store verify": "repair json",
    "store pin": "database",
    "store unpin": "database",
}


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    log.begin("Why?", "Because.")
    yield log
    log.close()


class TestOptions:
    "Fails if an option that does not apply to a call is silently ignored"

    @pytest.mark.parametrize("call", REFUSED)
    def test_refused(self, call: str, log, monkeypatch) -> None:
        import llm

        known = llm.get_model
        monkeypatch.setattr(
            llm, "get_model", lambda id: Parrot() if id == "parrot" else known(id)
        )
        before = list(log.db["turns"].rows)
        done = run(*call.split())
        assert done.exit_code == 2
        *usage, line = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert REFUSED[call] in line
        assert usage[0].startswith("Usage: llm kvbranch ")
        assert done.stdout == ""
        assert list(log.db["turns"].rows) == before

    def test_every_option_is_in_a_table(self) -> None:
        refused = {word for call in REFUSED for word in call.split()}
        for names in everything():
            command = find(*names)
            if isinstance(command, click.Group):
                continue
            always = {
                f"--{option}"
                for commands, options in ALWAYS.items()
                if " ".join(names)
                in ([commands] if " " in " ".join(names) else commands.split())
                for option in options.split()
            }
            for each in command.params:
                if isinstance(each, click.Option):
                    assert {*each.opts} & (always | refused), (names, each.opts)


class TestMisspelt:
    "Fails if a typo waits for standard input, or only says that it is no id"

    @pytest.mark.parametrize(
        ("call", "meant"),
        [
            ("tre", "tree"),
            ("Tree", "tree"),
            ("pinn last", "pin"),
            ("exprot last file.kvbranch --force", "export"),
            ("vrify --repair", "verify"),
            ("stauts", "status"),
            ("-d {log} retri last", "retry"),
            ("continu last Why?", "continue"),
            ("store vrify", "verify"),
            ("models setings kvllama", "settings"),
        ],
    )
    @pytest.mark.parametrize("is_log", [True, False])
    def test_the_nearest_command_is_named(self, user_path, call, meant, is_log):
        if is_log:
            Log(user_path / "logs.db").close()
        done = run(*call.format(log=user_path / "logs.db").split())
        assert done.exit_code == 2
        typo = next(
            word
            for word in call.split()
            if word not in ("store", "models", "-d", "{log}")
        )
        assert f"No such command '{typo}'. Did you mean '{meant}'?" in done.stderr

    def test_it_is_said_that_no_response_has_that_id(self, log):
        assert "no response with that id" in run("pinn", "last").stderr

    @pytest.mark.parametrize(
        "call", ["01abc Hi", "zzz Hi", "branch tre Hi", "show tre"]
    )
    def test_an_unknown_id_is_no_misspelt_command(self, log, call):
        done = run(*call.split())
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: No response with id")

    def test_an_id_like_a_command_is_a_response(self, log):
        log.db.execute("update turns set id = 'tre1'")
        log.db.conn.commit()
        done = run("tre", "Hi")
        assert "made by the model parrot" in done.stderr


# Calls without a prompt -> words of the message
UNREAD = {
    "tre": "Did you mean 'tree'?",
    "01zzz": "No response with id '01zzz'",
    "continue 01zzz": "No response with id '01zzz'",
    "focus 01zzz --excerpt a": "No response with id '01zzz'",
    "focus last": "focus needs an excerpt",
    "last --excerpt whale": "does not contain that excerpt",
    "last --range 5:900": "is not in the answer",
    "last": "made by the model parrot, which is not installed",
    "last -m nope": "Unknown model: nope",
    "last -m kvllama -o wings 2": "wings",
}


class TestStandardInput:
    "Fails if a call waits for input that cannot change what is wrong with it"

    @pytest.mark.parametrize("call", UNREAD)
    def test_a_terminal_is_not_read(self, log, user_path, call):
        ours, theirs = pty.openpty()
        try:
            done = llm(user_path, call, theirs)
        finally:
            os.close(ours)
            os.close(theirs)
        assert UNREAD[call] in done.stderr
        assert done.returncode in (1, 2)

    def test_a_pipe_is_not_read_for_an_unknown_id(self, log, user_path):
        reading, writing = os.pipe()
        try:
            done = llm(user_path, "01zzz", reading)
        finally:
            os.close(reading)
            os.close(writing)
        assert "No response with id '01zzz'" in done.stderr

    def test_last_is_what_the_pipe_has_logged(self, log, monkeypatch):
        "As in: llm 'Write a poem' | llm kvbranch last 'Translate it'"
        import llm

        from llm_kvbranch.log import History

        class Pipe:
            def isatty(self) -> bool:
                return False

            def read(self) -> str:
                self.id = log.begin("A poem", "Roses")
                return "Roses"

        pipe = Pipe()
        monkeypatch.setattr(sys, "stdin", pipe)
        monkeypatch.setattr(llm, "get_model", lambda id: Parrot())
        kvbranch.main(["last", "Go on"], standalone_mode=False)
        newest = History(log.db).resolve("last")
        assert History(log.db).branch(newest)["from_response"] == pipe.id


def llm(user_path, call: str, stdin: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm", "kvbranch", *call.split()],
        stdin=stdin,
        env={
            **os.environ,
            "LLM_USER_PATH": str(user_path),
            "LLM_LOAD_PLUGINS": "llm-kvbranch",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestNothingToDo:
    "Fails if a job that keeps the store tidy fails where there is nothing to do"

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            ("store gc", "Nothing is stored yet"),
            ("store gc --dry-run", "Nothing is stored yet"),
            ("store verify", "0 states checked, no problem found"),
            ("store verify --repair", "0 states checked, no problem found"),
            ("store budget", "A fifth of the free disk"),
            ("store status", "none yet"),
            ("tree", "There are no responses yet"),
        ],
    )
    def test_without_log_or_store(self, user_path, call, words) -> None:
        for _ in range(2):
            done = run(*call.split())
            assert (done.exit_code, done.stderr) == (0, "")
            assert words in done.stdout
            Log(user_path / "logs.db").close()  # the second time it is an empty one

    def test_without_a_store(self, log) -> None:
        (id,) = (row["id"] for row in log.db["turns"].rows)
        assert said("store", "unpin", "last") == f"{id} is not pinned\n"
        assert "Removed 0 states" in said("prune", "last")
        for call in (["store", "pin", "last"], ["export", "last", "file"]):
            done = run(*call)
            assert done.exit_code == 1
            assert "Nothing is stored yet" in done.stderr

    @pytest.mark.parametrize("call", ["store status", "tree"])
    def test_a_log_that_was_named_must_exist(self, call, tmp_path) -> None:
        done = run(*call.split(), "-d", str(tmp_path / "none.db"))
        assert done.exit_code == 1
        assert "There is no log" in done.stderr


class TestMarks:
    "Fails if star or note do their work, or do not, without saying so"

    def test_star(self, log) -> None:
        (id,) = (row["id"] for row in log.db["turns"].rows)
        assert said("star", "last", "--remove") == f"{id} is not starred\n"
        assert said("star", "last") == f"Starred {id}\n"
        assert said("star", id) == f"{id} is already starred\n"
        assert said("star", "last", "--remove") == f"Removed the star from {id}\n"

    def test_note(self, log) -> None:
        (id,) = (row["id"] for row in log.db["turns"].rows)
        done = run("note", "last")
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == f"{id} has no note\n"
        assert said("note", "last", "Good") == f"Added a note to {id}\n"
        assert said("note", "last") == "Good\n"
        assert said("note", "last", "Bad") == f"Replaced the note on {id}\n"
        assert said("note", "last", "--remove") == f"Removed the note from {id}\n"
        assert said("note", "last", "--remove") == f"{id} has no note\n"


def said(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_version() -> None:
    from importlib.metadata import version

    expected = f"llm-kvbranch, version {version('llm-kvbranch')}\n"
    assert said("--version") == expected


class TestSettings:
    "Fails if a setting is prose once and JSON the next time"

    def test_a_value_is_plain_and_json_on_demand(self, user_path) -> None:
        assert said("models", "settings", "kvllama", "n_ctx") == "default\n"
        assert said("models", "settings", "kvllama", "n_ctx", "--json") == "null\n"
        for value in ("n_ctx", "4096"), ("kv_type", "q8_0"):
            said("models", "settings", "kvllama", *value)
        assert said("models", "settings", "kvllama", "n_ctx") == "4096\n"
        assert said("models", "settings", "kvllama", "kv_type") == "q8_0\n"
        shown = said("models", "settings", "kvllama", "kv_type", "--json")
        assert json.loads(shown) == "q8_0"
