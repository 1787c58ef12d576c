"""Each system call that writes is made to fail, or to be the process's last.

strace does to a real process, including SQLite's calls, what ``test_crash`` does to
Python's functions.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.store import Store

from ..support.life import Life

CALLS = "write,pwrite64,fsync,fdatasync,ftruncate,rename,unlink,mkdir"
SCRIPT = """
import sys
from tests.support.life import Life
life = Life(sys.argv[1], 5, {})
life.session.store.limit = life.session.store.nbytes() + 500  # something must go
life.session.warn = lambda message: None
for _ in range(2):
    name, answer = life.step()
    if answer.entry is not None:
        print(name, flush=True)
life.session.store.close()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("grown") / "store"
    life = Life(root, 1, {})
    for _ in range(4):
        life.step()
    life.session.store.close()
    return root


def run(root: Path, log: Path, *injection: str) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "--seccomp-bpf", "-o", str(log), "-e", f"trace={CALLS}"]
    script = [sys.executable, "-c", SCRIPT, str(root)]
    return subprocess.run(
        [*command, *injection, *script],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def counted(log: Path) -> collections.Counter[str]:
    "How often each call was made"
    found = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.M)
    return collections.Counter(found)


def test_every_call(grown: Path, tmp_path: Path, capsys) -> None:
    "A call whose failure breaks the store, or loses what was stored before"
    root, log = tmp_path / "whole", tmp_path / "strace"
    shutil.copytree(grown, root)
    done = run(root, log)
    assert done.returncode == 0, done.stderr
    calls = counted(log)
    assert {"write", "pwrite64", "fsync", "rename", "unlink"} <= calls.keys(), calls
    tried = 0
    for call, n in sorted(calls.items()):
        for nth in range(1, n + 1):
            full = ["error=ENOSPC"] if call == "write" else []
            for fault in ("error=EIO", "signal=SIGKILL", *full):
                shutil.rmtree(root)
                shutil.copytree(grown, root)
                injection = f"inject={call}:{fault}:when={nth}"
                done = run(root, log, "-e", injection)
                check(root, done, f"{injection}\n{done.stderr[-2000:]}")
                tried += 1
    with capsys.disabled():
        print(f"\n{tried} faults at {sum(calls.values())} calls: {dict(calls)}")  # noqa: T201


def check(root: Path, done: subprocess.CompletedProcess[str], where: str) -> None:
    with contextlib.closing(Store(root)) as store:
        assert not list(verify(store)), where
        present = {e.state.response_id for e in store.entries() if e.present}
        assert present, where
    said = done.stdout.split()
    if said:  # the last one that was stored, since nobody else could evict it
        assert said[-1] in present, where
    life = Life(root, 9, {})
    _, answer = life.step()
    assert answer.entry is not None, where
    life.session.store.close()
