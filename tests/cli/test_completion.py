"""Completion as a shell asks for it: in a new process, by click's protocol."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
import unicodedata

import pytest

from ..support.logged import HOSTILE, Log
from .test_groups import command as find
from .test_groups import everything

# Fails if a module that takes long to import, or may print, is imported
PROGRAM = """
import atexit, sys
from llm.cli import cli
def end():
    for name in ("llama_cpp", "uvicorn", "llm_kvbranch.web", "huggingface_hub"):
        if name in sys.modules:
            print("heavy", name)
atexit.register(end)
cli.main([], prog_name="llm")
"""


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    yield log
    log.close()


@pytest.fixture
def complete(user_path):
    def complete(words: str, shell: str = "zsh") -> list[tuple[str, str]]:
        "(completion, help) of the last word"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                **os.environ,
                "LLM_USER_PATH": str(user_path),
                "LLM_LOAD_PLUGINS": "llm-kvbranch",
                "_LLM_COMPLETE": f"{shell}_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert "heavy" not in done.stdout
        lines = done.stdout.removesuffix("\n").split("\n")
        if lines == [""]:
            return []
        if shell == "bash":
            return [(line.partition(",")[2], line.partition(",")[0]) for line in lines]
        assert len(lines) % 3 == 0, lines
        return list(zip(lines[1::3], lines[2::3], strict=True))

    return complete


def names(items: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in items]


class TestResponses:
    "Fails if ids must be copied by hand, or Tab prints an error over the prompt"

    @pytest.mark.parametrize(
        "words",
        [
            *("continue", "tree", "diff", "diff last", "star", "export", "store pin"),
            "branch --excerpt so -n 3",
        ],
    )
    def test_newest_first_with_their_prompts(self, log, complete, words):
        first = log.begin("Why is the sky blue?\nTell me", "Because.")
        second = log.as_llm(first, "And the sea?", "So.")
        assert complete(f"llm kvbranch {words} ") == [
            ("last", "the newest response"),
            (second, "And the sea?"),
            (first, "Why is the sky blue? Tell me"),
        ]

    def test_the_beginning_of_one(self, log, complete):
        for id in ("01aa", "01ab", "02"):
            one = log.begin("Why?", "So.")
            log.db.execute("update turns set id = ? where id = ?", [id, one])
            log.db.conn.commit()
        assert names(complete("llm kvbranch show 01a")) == ["01ab", "01aa"]
        assert names(complete("llm kvbranch show la", "bash")) == ["last"]
        assert names(complete("llm kvbranch show %")) == []
        assert names(complete("llm kvbranch 01a")) == ["01ab", "01aa"]
        assert names(complete("llm kvbranch la", "bash")) == ["last"]
        assert "01ab" not in names(complete("llm kvbranch "))

    def test_not_more_than_some_tens(self, log, complete):
        ids = [log.begin(f"Question {i}", "So.") for i in range(40)]
        assert names(complete("llm kvbranch show ", "bash"))[1:] == ids[:9:-1]

    def test_of_another_log(self, log, complete, tmp_path):
        log.begin("Here", "So.")
        other = Log(tmp_path / "other.db")
        id = other.begin("There", "So.")
        other.close()
        items = complete(f"llm kvbranch show -d {tmp_path}/other.db ")
        assert items[1:] == [(id, "There")]

    def test_what_a_log_says_stays_on_its_line(self, log, complete):
        ids = [log.begin(text, "So.") for text in HOSTILE.values()]
        items = complete("llm kvbranch show ")[1:]
        assert names(items) == ids[::-1]
        for _, about in items:
            assert not {unicodedata.category(c) for c in about} & {"Cc", "Zl", "Zp"}
            assert len(about) <= 60

    @pytest.mark.parametrize("damage", ["none", "text", "empty", "old", "locked"])
    def test_a_log_that_cannot_be_read(self, user_path, complete, damage):
        path = user_path / "logs.db"
        if damage in ("text", "empty"):
            path.write_text("no database" * 100 if damage == "text" else "")
        elif damage != "none":
            db = sqlite3.connect(path)
            db.execute("create table responses (id text)")
            if damage == "locked":
                db.commit()
                db.execute("begin exclusive")
        before = {*user_path.iterdir()}
        began = time.monotonic()
        assert names(complete("llm kvbranch show ")) == ["last"]
        assert time.monotonic() - began < 10
        assert {*user_path.iterdir()} == before


def test_every_response_is_completed():
    "Fails if a command takes the id of a response, and Tab does not offer one"
    said = set()
    for names in everything():
        for each in find(*names).params:
            if each.name in ("response_id", "reference", "one", "other"):
                assert each._custom_shell_complete, names
                said.add(names[-1])
    assert len(said) == 13


class TestOthers:
    "Fails if names of models and settings must be looked up"

    def test_models(self, user_path, complete):
        folder = user_path / "kvbranch" / "models"
        folder.mkdir(parents=True)
        (folder / "tern.gguf").touch()
        assert names(complete("llm kvbranch models settings te")) == ["tern"]
        assert names(complete("llm kvbranch models remove te")) == ["tern"]
        assert names(complete("llm kvbranch use te")) == ["tern"]
        assert names(complete("llm kvbranch serve -m te")) == ["tern"]
        ours = names(complete("llm kvbranch retry last -m kv"))
        assert {"kvllama", "kvllama/tern"} <= {*ours}
        assert complete("llm kvbranch use ./x", "bash") == [("./x", "file")]

    def test_settings(self, complete):
        assert "n_ctx" in names(complete("llm kvbranch models settings kvllama n_"))
        assert names(complete("llm kvbranch models download qwen3-8")) == ["qwen3-8b"]

    def test_broken_settings(self, user_path, complete):
        (user_path / "kvbranch").mkdir()
        (user_path / "kvbranch" / "settings.json").write_text("{")
        assert complete("llm kvbranch models settings te") == []
