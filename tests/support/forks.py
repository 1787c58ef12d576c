"""Many commands of ``llm``, each in a fork of one process that has imported everything.

A command has its own standard streams and its own copy of the home, and ends as Python
ends: what a flush at the exit says is part of its standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FULL, BROKEN, CLOSED = "full", "broken", "closed"
"Standard output that is /dev/full, a pipe that nobody reads, or not there"


@dataclass
class Done:
    "How a command ended"

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def error(self) -> str:
        return self.stderr.decode("utf-8", "replace")


def run(
    home: Path,
    commands: Sequence[Sequence[str | bytes]],
    stdout: str | None = None,
    stdin: bytes = b"",
    **environment: str,
) -> list[Done]:
    "Run each command in its own fork and its own copy of a home"
    asked = {
        "home": str(home),
        "stdout": stdout,
        "stdin": stdin.decode("latin-1"),
        "commands": [[os.fsencode(a).decode("latin-1") for a in c] for c in commands],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asked, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", __name__, file.name],
            capture_output=True,
            env={**os.environ, **environment},
            timeout=300,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    return [
        Done(code, out.encode("latin-1"), err.encode("latin-1"))
        for code, out, err in json.loads(done.stdout)
    ]


def _main() -> None:
    import llm.cli  # noqa: F401

    from llm_kvbranch import log, model  # noqa: F401
    from llm_kvbranch import store as states  # noqa: F401
    from llm_kvbranch.cli import ask, doctor, keep, models, share, show, store  # noqa: F401

    asked = json.loads(Path(sys.argv[1]).read_text())
    found: list[Any] = []
    for words in asked["commands"]:
        folder = Path(tempfile.mkdtemp())
        home = folder / "home"
        shutil.copytree(asked["home"], home)
        files = [folder / name for name in ("in", "out", "err")]
        files[0].write_bytes(asked["stdin"].encode("latin-1"))
        pid = os.fork()
        if pid == 0:
            arguments = [os.fsdecode(word.encode("latin-1")) for word in words]
            _become(home, arguments, asked["stdout"], files)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out = files[1].read_bytes() if files[1].exists() else b""
        found.append([code, out.decode("latin-1"), files[2].read_text("latin-1")])
        shutil.rmtree(folder)
    sys.stdout.write(json.dumps(found))


def _become(
    home: Path, arguments: list[str], stdout: str | None, files: list[Path]
) -> None:
    "Run a command in this process, which is a fork"
    os.environ["LLM_USER_PATH"] = str(home)
    os.dup2(os.open(files[0], os.O_RDONLY), 0)
    os.dup2(os.open(files[2], os.O_WRONLY | os.O_CREAT), 2)
    if stdout == BROKEN:
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
        os.close(reading)
    elif stdout == CLOSED:
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]
    else:
        path = "/dev/full" if stdout == FULL else files[1]
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = ["llm", *arguments]
    from llm.cli import cli

    cli(prog_name="llm")


if __name__ == "__main__":
    _main()
