"""README says what there is: commands, options, modules, and how to run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_kvbranch.cli import kvbranch
from llm_kvbranch.model import KVLlama

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "README.md"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", kvbranch.commands)
def test_every_command_is_documented_and_has_help(name):
    assert f"### `llm kvbranch {name}`" in README
    assert kvbranch.commands[name].help


@pytest.mark.parametrize("name", KVLlama.Options.model_fields)
def test_every_option_is_documented(name):
    assert f"| `{name}` |" in README


def test_ci_runs_what_readme_says():
    "The test command is the one that a reader would copy"
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[test]'" in README
    assert "'.[test]'" in script
    assert "/pytest" in script
