"""The programs in examples/ run, and say what they are there to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import synth
from ..support.serving import Serving, environment

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A home whose default model is a toy"
    home = tmp_path_factory.mktemp("home")
    models = home / "llm" / "kvbranch" / "models"
    models.mkdir(parents=True)
    synth.write("llama", models / "toy.gguf")
    return home


def run(home: Path, program: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / program, *arguments],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_branch_from_python(home):
    reused, read = re.search(
        r"(\d+) tokens reused, (\d+) read", run(home, "branch.py", "Why?")
    ).groups()
    assert int(reused) > 5
    assert int(read) > 0


def test_an_openai_client_branches_and_the_log_says_what_that_cost(home):
    with Serving(home, "--port", "0") as server:
        printed = run(
            home,
            "openai_client.py",
            OPENAI_BASE_URL=f"{server.url}/v1",
            OPENAI_API_KEY=server.token,
        )
    reused, tokens = map(
        int, re.search(r"(\d+) of (\d+) tokens reused", printed).groups()
    )
    assert 5 < reused < tokens
    first, branch = [
        line for line in run(home, "read_log.py").splitlines() if " reused " in line
    ]
    assert "Why is the sky blue?" in first
    assert re.search(rf" {reused} reused +{tokens - reused} read ", branch)


def test_every_example_is_run():
    source = Path(__file__).read_text()
    named = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in source
        assert f"[{path.name}]" in named
