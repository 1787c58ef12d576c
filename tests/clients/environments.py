"""Clients of other projects, each installed in an environment of its own.

The idea: a program beside this file uses one client as its documentation shows. It
runs in that client's environment, where a runner calls its functions by name.

Environments are kept in the user's cache, outside the repository, by their
requirements: ``LLM_KVBRANCH_CLIENTS`` names another directory.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# As it is before each test gets a home of its own
ENVIRONMENT = dict(os.environ)
_CACHE = ENVIRONMENT.get("XDG_CACHE_HOME") or Path.home() / ".cache"
CACHE = Path(
    ENVIRONMENT.get("LLM_KVBRANCH_CLIENTS") or Path(_CACHE) / "llm-kvbranch-clients"
)


class NotInstalledError(Exception):
    "A client cannot be installed here"


@dataclass(frozen=True)
class Client:
    "A program in programs/, and what to install for it"

    program: str
    requirements: tuple[str, ...]

    @property
    def path(self) -> Path:
        return HERE / "programs" / self.program

    @property
    def is_node(self) -> bool:
        return self.path.suffix == ".mjs"

    def cases(self) -> list[str]:
        "The functions of the program, each of which is a test"
        text = self.path.read_text()
        if self.is_node:
            return re.findall(r"^export async function (\w+)", text, re.MULTILINE)
        found = (
            node.name
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.decorator_list
        )
        return [name for name in found if not name.startswith("_")]

    def installed(self) -> Path:
        "The client's environment, installed on first use; raises NotInstalledError"
        version = "node" if self.is_node else sys.version.split()[0]
        key = hashlib.sha256(json.dumps([version, *self.requirements]).encode())
        folder = CACHE / f"{self.path.stem}-{key.hexdigest()[:12]}"
        done = folder / "installed"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (_npm if self.is_node else _uv)(folder, self.requirements)
            done.touch()
        return folder


def _uv(folder: Path, requirements: tuple[str, ...]) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    _run(uv, "venv", "-q", "-p", sys.executable, folder / "venv")
    python = folder / "venv" / "bin" / "python"
    _run(uv, "pip", "install", "-q", "-p", python, *requirements)


def _npm(folder: Path, requirements: tuple[str, ...]) -> None:
    (folder / "package.json").write_text('{"private": true}')
    _run("npm", "install", "--no-audit", "--no-fund", *requirements, cwd=folder)


def _run(*command: Any, cwd: Path | None = None) -> None:
    told: dict[str, Any] = {"text": True, "capture_output": True, "cwd": cwd}
    try:
        done = subprocess.run(
            [str(each) for each in command], env=ENVIRONMENT, check=False, **told
        )
    except OSError as error:
        raise NotInstalledError(str(error)) from None
    if done.returncode:
        raise NotInstalledError(" ".join(done.stderr.split())[:300] or "no message")


class Running:
    "A client's program in a process; ``env`` tells it where the server is"

    def __init__(self, client: Client, home: Path, env: dict[str, str]):
        self._client = client
        self._folder = client.installed()
        self._env = {**ENVIRONMENT, "HOME": str(home), **env}
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, case: str) -> None:
        "Run a function of the program; raises AssertionError with its traceback"
        process = self._process or self._start()
        self._process = None  # unless it answers
        try:
            process.stdin.write(f"{case}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, f"{self._client.program} ended"
            error = json.loads(line)["error"]
        except BaseException:
            self._end(process)
            raise
        self._process = process
        assert error is None, f"{self._client.program}: {case}\n{error}"

    def close(self) -> None:
        if self._process is not None:
            self._end(self._process)

    def _start(self) -> Any:
        if self._client.is_node:
            # Node looks for packages above the program
            shutil.copy(HERE / "runner.mjs", self._folder)
            program = shutil.copy(self._client.path, self._folder)
            command = ["node", str(self._folder / "runner.mjs"), program]
        else:
            python = self._folder / "venv" / "bin" / "python"
            command = [str(python), str(HERE / "runner.py"), str(self._client.path)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._env,
        )

    def _end(self, process: Any) -> None:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
