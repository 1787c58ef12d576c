"""Processes forked from one that has a model in memory.

libgomp's threads are not in the child, and it would wait for them forever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_kvbranch.engine import Engine, Settings, threads
from llm_kvbranch.errors import KVBranchError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SCRIPT = """
import os, sys, time, warnings

import llm, sqlite_utils
from llm.migrations import migrate

warnings.simplefilter("always")
model = llm.get_model("kvllama")
db = sqlite_utils.Database(memory=False, filename_or_conn=sys.argv[1])
migrate(db)

def ask(n_threads=2):
    options = dict(temperature=0, max_tokens=4, n_threads=n_threads, server=False)
    return model.prompt("Hello", **options)

def child(work):
    "What a function does in a child, in one line"
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writing, repr(work()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + 20
    while not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hung"
    return os.read(reading, 10_000).decode()

def log(response):
    with warnings.catch_warnings(record=True) as caught:
        response.log_to_db(db)
    return [str(each.message) for each in caught]
"""


def run(toys, home: Path, steps: str) -> list[str]:
    "The lines that a script prints, in a process of its own"
    # With a limit of one thread there is nothing to wait for
    env = {k: v for k, v in os.environ.items() if k != "OMP_THREAD_LIMIT"}
    env |= {
        "LLM_USER_PATH": str(home),
        "LLM_KVBRANCH_MODEL": str(toys("llama").load.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + steps, str(home / "logs.db")],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestForked:
    "Fails if a child hangs, or is refused where it would work"

    def test_what_does_not_work_says_so(self, toys, user_path):
        "And an answer of the parent goes on, while its copy in a child can be closed"
        again, on, closed, same, logged, n = run(
            toys,
            user_path,
            """
alone = ask().text()
print(child(lambda: ask().text()))
pieces = iter(ask())
text = next(pieces)
print(child(lambda: next(pieces)))
print(child(pieces.close))
print("".join([text, *pieces]) == alone)
response = ask()
response.text()
print(child(lambda: log(response)))
print(db["turns"].count)
""",
        )
        for error in (again, on):
            assert error.startswith("KVBranchError: kvllama cannot run in a process")
            assert '"spawn" or "forkserver"' in error
        assert (closed, same) == ("None", "True")
        assert "its state is not stored" in logged
        assert n == "1"

    def test_what_works(self, toys, user_path):
        "Before the parent has computed, and after it has with one thread"
        lines = run(
            toys,
            user_path,
            """
first = child(lambda: ask().text())
alone = repr(ask(1).text())
print(first == alone)
print(child(lambda: ask(1).text()) == alone)
print(child(lambda: ask(2).text()) == alone)
""",
        )
        assert lines == ["True"] * 3


class TestOnAGPU:
    "Fails if a child calls the driver, which ends it"

    def test_a_child_frees_nothing(self, toys, monkeypatch):
        weights = toys("llama").weights
        engine = Engine(weights, Settings(n_threads=1, n_seq=1))
        engine.reserve(256)
        monkeypatch.setattr(weights, "gpu_layers", 1)
        monkeypatch.setattr(threads, "_owner", os.getpid() + 1)
        with pytest.raises(KVBranchError, match="forked"):
            Engine(weights, Settings(n_threads=1, n_seq=1))
        monkeypatch.setattr(engine, "_llama", None)
        engine.close()
