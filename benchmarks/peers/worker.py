"""A process that does one thing again and again when told to, and says what it found.

The idea: what is timed inside a process is timed in one that does nothing else, and
that has loaded its model already. Worker and benchmark exchange lines of JSON.

``serve`` is the worker's side, ``Worker`` the benchmark's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def plain() -> dict[str, str]:
    "The environment without settings of what is measured, but for where modules are"
    settings = ("LLM_", "PYTHON", "GOMP_", "OMP_")
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYTHONPATH" or not name.startswith(settings)
    }


def serve(do: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    "Answer every line on standard input; what else is printed goes elsewhere"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print("{}", file=answers)  # ready
    for line in sys.stdin:
        print(json.dumps(do(json.loads(line))), file=answers)


class Worker:
    "A running worker"

    def __init__(self, command: Sequence[str], log: Path, **more: str):
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        ours = {**plain(), "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
        self._log = log
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=ours,
            )
        self._receive()

    def do(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"a worker ended: {' '.join(last)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def python(module: str, *arguments: object) -> list[str]:
    "The command of a worker that is a module of ours"
    return [sys.executable, "-m", f"benchmarks.peers.{module}", *map(str, arguments)]
