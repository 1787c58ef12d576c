"""What llm imports because this plugin is installed: every llm command pays for it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest

# Prints the modules at the end, whichever way the command ends
PROGRAM = """
import atexit, json, sys
from llm.cli import cli
atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))
cli.main(sys.argv[1:], prog_name="llm")
"""
HOOKS = {"llm_kvbranch", "llm_kvbranch.cli", "llm_kvbranch.cli.groups"}
MODELS = {
    *("llm_kvbranch.errors", "llm_kvbranch.settings", "llm_kvbranch.model"),
    *("llm_kvbranch.models", "llm_kvbranch.models.catalog"),
    "llm_kvbranch.models.discovery",
}
COMMANDS = {
    f"llm_kvbranch.cli.{name}"
    for name in (
        *("ask", "doctor", "keep", "models", "options", "serve", "share", "show"),
        *("store", "text", "answers", "outline", "streams"),
    )
}


@functools.cache
def run(*arguments: str, plugins: str = "llm-kvbranch", words: str = ""):
    "What a command prints, and the names of the modules that it imported"
    environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins}
    if words:
        environment |= {
            "_LLM_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


def on_our_account(*arguments: str, **options: str) -> set[str]:
    "The modules that are imported only because this plugin is installed"
    with_us = run(*arguments, **options)[1]
    without_us = run(*arguments, plugins="", **options)[1]
    return with_us - without_us


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("logs", "path"),
        ("models", "--help"),
        ("keys", "path"),
    ],
)
def test_a_command_without_models(arguments: tuple[str, ...]) -> None:
    assert on_our_account(*arguments) == HOOKS


def test_help_names_our_group() -> None:
    assert "kvbranch" in run("--help")[0]


@pytest.mark.parametrize("arguments", [("models",), ("-m", "another", "Hi")])
def test_a_command_that_looks_for_a_model(arguments: tuple[str, ...]) -> None:
    assert on_our_account(*arguments) == HOOKS | MODELS


def test_help_of_our_group_imports_the_commands_but_not_what_they_do() -> None:
    ours = HOOKS | COMMANDS | {"llm_kvbranch.errors", "llm_kvbranch.settings"}
    others = run("kvbranch", "--help")[1] - run("--help", plugins="")[1] - ours
    assert run("kvbranch", "--help")[1] >= ours
    assert {name.partition(".")[0] for name in others} <= sys.stdlib_module_names


def test_completing_other_commands_imports_none_of_ours() -> None:
    assert on_our_account(words="llm mod") == HOOKS


def test_commands_are_completed_but_not_by_their_older_names() -> None:
    assert run(words="llm kvbranch st")[0].split() == ["plain,star", "plain,store"]
    assert run(words="llm kvbranch store p")[0].split() == ["plain,pin"]
    assert "plain,--repair" in run(words="llm kvbranch store verify --")[0]


def test_a_command_of_ours_imports_only_its_own_module() -> None:
    imported = run("kvbranch", "store", "budget")[1]
    assert imported & COMMANDS == {
        f"llm_kvbranch.cli.{name}" for name in ("options", "store", "streams", "text")
    }


def test_options_are_imported_when_they_are_asked_for() -> None:
    from llm_kvbranch.model import AsyncKVLlama, KVLlama
    from llm_kvbranch.models import KVLlamaOptions

    assert KVLlama.Options is KVLlama().Options is AsyncKVLlama.Options
    assert KVLlama.Options is KVLlamaOptions
