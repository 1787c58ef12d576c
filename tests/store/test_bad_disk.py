"""A file that gets shorter while it is read, or a bad sector, does not end the process.

Memory that is mapped from a file raises SIGBUS where the file has no bytes any more.
So the readers here are processes of their own, whose exit status shows a signal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import llm_kvbranch
from llm_kvbranch.errors import StateError
from llm_kvbranch.store import buffers
from llm_kvbranch.store.digests import Check
from llm_kvbranch.store.statefile import open_state, read_state
from llm_kvbranch.store.store import Store

from ..support.children import child
from ..support.fake import fake_session
from ..support.life import Answer, user
from ..support.stores import DOCUMENT, a_state, files

pytestmark = [
    pytest.mark.usefixtures("no_fsync"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

NBYTES = 9 << 20  # more than one piece, and checked in a thread


@pytest.fixture
def path(root: Path) -> Path:
    with contextlib.closing(Store(root)) as store:
        entry = store.put(a_state("one", DOCUMENT), bytes(NBYTES))
        return store.path(entry.state)


def reported(work: Callable[[], str]) -> str:
    "What a forked process returns; fails if a signal ends it"

    def report(out: int) -> None:
        os.write(out, work().encode())

    with child(report) as (pid, reading):
        said = os.read(reading, 1 << 16).decode()
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


@contextlib.contextmanager
def shortened_while_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The file loses its last bytes when its payload is about to be checked"
    start = Check.start

    def shorten(*arguments: object) -> None:
        os.truncate(path, 1 << 20)
        start(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Check, "start", shorten)
        yield


@pytest.mark.parametrize("checked", [True, False])
def test_a_file_that_gets_shorter(path, monkeypatch, checked):
    def work() -> str:
        with shortened_while_read(path, monkeypatch):
            try:
                with open_state(path, check=Check() if checked else None):
                    return "read"
            except StateError as error:
                return str(error)

    assert reported(work) == "state file is truncated"


def test_rows_that_were_read_stay(path):
    def work() -> str:
        with open_state(path) as (_, rows, _):
            os.truncate(path, 0)
            return str(rows == bytes(NBYTES))

    assert reported(work) == "True"


def test_it_is_a_miss_with_a_reason(tmp_path, monkeypatch):
    "The prompt is read again, the answer is right, and the bad file is deleted"
    question = [user("A question " * 20)]
    one = Answer(fake_session(tmp_path), question)
    path = fake_session(tmp_path).store.path(one.entry.state)

    def work() -> str:
        start = Check.start

        def shorten(*arguments: object) -> None:
            if path.exists():
                os.truncate(path, path.stat().st_size - 10)
            start(*arguments)

        monkeypatch.setattr(Check, "start", shorten)
        after = Answer(fake_session(tmp_path), [*one.chain, user("?")], log=False)
        return str(after.check().facts["miss_reason"])

    assert reported(work) == "state file is truncated"
    assert files(tmp_path) == set()


def test_a_file_that_grows_and_shrinks_all_the_time(path):
    size = path.stat().st_size
    stop = threading.Event()

    def work() -> str:
        outcomes = set()
        for _ in range(60):
            try:
                outcomes.add(read_state(path).response_id)
                with open_state(path, check=Check()) as (_, rows, _):
                    rows.tobytes()
            except StateError as error:
                outcomes.add(str(error))
        return " / ".join(sorted(outcomes))

    def change() -> None:
        while not stop.is_set():
            os.truncate(path, 4096)
            os.truncate(path, size)

    other = threading.Thread(target=change)
    with child(lambda out: os.write(out, work().encode())) as (pid, reading):
        other.start()
        try:
            said = os.read(reading, 1 << 16).decode()
            _, status = os.waitpid(pid, 0)
        finally:
            stop.set()
            other.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert "state file is" in said


READER = """
import sys
from pathlib import Path
from llm_kvbranch.errors import UnreadableStateError
from llm_kvbranch.store.statefile import open_state
try:
    with open_state(Path(sys.argv[1])):
        print("read")
except UnreadableStateError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_bad_sector(path):
    fault = ["-P", str(path), "-e", "inject=read:error=EIO:when=5"]
    reader = [sys.executable, "-c", READER, str(path)]
    done = subprocess.run(
        ["strace", "-f", "-o", os.devnull, *fault, *reader],
        cwd=Path(llm_kvbranch.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "state file is unreadable (Input/output error)\n", done.stderr


class TestBuffers:
    "Memory that two readers have at once is a wrong answer"

    @pytest.fixture(autouse=True)
    def no_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(buffers, "_idle", [])

    def test_one_is_used_again(self):
        with buffers.buffer(10) as one:
            one[:3] = b"abc"
        (idle,) = buffers._idle
        with buffers.buffer(1 << 20) as other:
            assert other.obj is idle
            assert buffers._idle == []

    def test_a_larger_one_replaces_it(self):
        with buffers.buffer(10) as one:
            assert len(one) >= 10
        with buffers.buffer(1 << 22) as other:
            assert len(other) >= 1 << 22
        (idle,) = buffers._idle
        assert len(idle) >= 1 << 22

    def test_two_at_once(self):
        with buffers.buffer(10) as one, buffers.buffer(10) as other:
            one[:3], other[:3] = b"one", b"two"
            assert bytes(one[:3]) == b"one"
        assert len(buffers._idle) == 1

    def test_one_that_is_still_looked_at_is_left_alone(self):
        with buffers.buffer(10) as one:
            one[:3] = b"abc"
            held = one[:3]
        assert buffers._idle == []
        with buffers.buffer(10) as other:
            other[:3] = b"xyz"
        assert bytes(held) == b"abc"
