"""The ``llm`` command with a home of its own: in new processes, or in this one.

A call in this process (``Inside``) is about a second faster, and has no model in
memory from the call before either. Tests of the process itself, such as its standard
error or its end, need ``Shell``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import traceback
from unittest import mock

from click.testing import CliRunner
from llm import cli as llm_cli

from llm_kvbranch import model

# An answer that repeats itself only stops at the limit
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "40")
WORDS = "harbour lantern copper meadow violin glacier pepper thunder walnut orbit"


def document(n_words: int, seed: int = 7) -> str:
    "Random text, different for every seed"
    words = random.Random(seed).choices(WORDS.split(), k=n_words)
    return f"List {seed}: {' '.join(words)}."


class Shell:
    "Runs llm in a new process"

    def __init__(self, home):
        self.home = home
        self.env = {
            **os.environ,
            "LLM_USER_PATH": str(home),
            "LLM_LOAD_PLUGINS": "llm-kvbranch",
        }
        for name in ("LLM_MODEL", "LLM_RAISE_ERRORS"):
            self.env.pop(name, None)

    def run(self, *arguments, stdin: str = "", **env):
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**self.env, **env},
            timeout=240,
            check=False,
        )

    def ok(self, *arguments, **options) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def ask(self, *arguments, **options) -> str:
        "Prompt kvllama; returns the answer without its newline"
        output = self.ok("-m", "kvllama", *GREEDY, *arguments, **options)
        return output.removesuffix("\n")

    def show(self, response_id: str = "last") -> dict:
        return json.loads(self.ok("kvbranch", "show", response_id, "--json"))

    def states(self) -> list:
        return sorted((self.home / "kvbranch" / "states").glob("*/*"))

    def fail(self, *arguments, **options) -> str:
        "The one line that a failing command prints"
        done = self.run(*arguments, **options)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("Error: ")
        return line


class Inside(Shell):
    "Runs llm in this process, each time with a new session"

    def run(self, *arguments, stdin: str = "", **env):
        env = {**dict.fromkeys(os.environ), **self.env, **env}
        with mock.patch.object(model, "_sessions", {}):
            done = CliRunner(env=env).invoke(llm_cli.cli, [*arguments], input=stdin)
        stderr = done.stderr
        if done.exception and not isinstance(done.exception, SystemExit):
            stderr += "".join(traceback.format_exception(done.exception))
        return subprocess.CompletedProcess(
            arguments, done.exit_code, done.stdout, stderr
        )
