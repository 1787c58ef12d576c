"""A disk that is really full: a small file system of its own.

The answer is printed anyway, with one warning, and the store stays sound.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.store import EVICTED_FULL, Store

from ..support.fake import fake_session
from ..support.life import Answer, user
from ..support.terminal import Terminal

SIZE = 4 << 20
SHORT = ("-o", "temperature", "0", "-o", "max_tokens", "6")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    "A directory with room for 4 MiB"
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small file system here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, leave: int) -> Path:
    "Fill the disk up to some bytes"
    path = disk / f"others-{leave}"
    status = os.statvfs(disk)
    with open(path, "wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
        file.flush()
    return path


def problems(root: Path) -> list[tuple[str, str]]:
    with contextlib.closing(Store(root)) as store:
        return list(verify(store))


class TestFull:
    "An answer lost, or a store broken, because a state had no room"

    @pytest.mark.parametrize("leave", [0, 4096, 40_000])
    def test_the_answer_comes_and_the_store_is_whole(
        self, disk: Path, leave: int
    ) -> None:
        root, warnings = disk / "store", []
        one = Answer(fake_session(root), [user("One? " * 30)]).check()
        session = fake_session(root, warnings)
        session.store.limit = SIZE  # else the store would shrink with the disk
        others = fill(disk, leave)
        # Its parent's state is needed, so nothing can be evicted
        two = Answer(session, [*one.chain, user("Two? " * 600)], max_tokens=4).check()
        assert two.facts["restored_tokens"] > 50
        assert two.entry is None
        (warning,) = warnings
        assert "answer is logged" in warning
        assert "full" in warning or "No space" in warning
        session.store.close()
        others.unlink()
        assert not problems(root)
        again = Answer(fake_session(root), [*two.chain, user("Three?")]).check()
        assert again.entry is not None
        assert not problems(root)

    def test_old_states_make_room(self, disk: Path) -> None:
        root, warnings = disk / "store", []
        session = fake_session(root, warnings)
        session.store.limit = SIZE
        for i in range(3):
            Answer(session, [user(f"{i} " * 20_000)], max_tokens=2)
        fill(disk, 300_000)
        new = Answer(session, [user("Something else. " * 3000)], max_tokens=2)
        assert new.entry is not None
        assert not warnings
        assert [r["reason"] for r in session.store.removals()] == [EVICTED_FULL]
        assert not list(verify(session.store))

    def test_the_store_shrinks_as_the_disk_fills(self, disk: Path) -> None:
        root = disk / "store"
        session = fake_session(root)
        before = session.store.budget()
        fill(disk, 100_000)
        assert session.store.budget() < before / 10


@pytest.mark.model
class TestCommand:
    "A traceback, or an exit code that says the answer failed"

    def test_llm(self, disk: Path, user_path: Path) -> None:
        environment = {**os.environ, "LLM_KVBRANCH_DIR": str(disk / "kvbranch")}

        def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "llm", *arguments]
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )

        assert llm("kvbranch", "budget", "4MB").returncode == 0
        first = llm("-m", "kvllama", *SHORT, "Why is the sky blue?")
        assert (first.returncode, first.stderr) == (0, "")
        others = fill(disk, 0)
        second = llm("-c", *SHORT, "And at sunset?")
        assert second.returncode == 0
        assert len(second.stdout.split()) > 2
        assert second.stderr.count("Warning: ") == len(second.stderr.splitlines()) == 1
        others.unlink()
        checked = llm("kvbranch", "verify")
        assert checked.returncode == 0, checked.stdout
        third = llm("-c", *SHORT, "And on the moon?")
        assert (third.returncode, third.stderr) == (0, "")

    def test_llm_chat(self, disk: Path, user_path: Path) -> None:
        directory = {"LLM_KVBRANCH_DIR": str(disk / "kvbranch")}
        environment = {**os.environ, **directory, "LLM_KVBRANCH_BUDGET": "4MB"}
        with Terminal("chat", "-m", "kvllama", *SHORT, env=environment) as chat:
            chat.read_until("\n> ")
            for prompt in ("Hi", "And you?"):
                chat.type(prompt)
                said = chat.read_until("\n> ")
                assert said.count("\nWarning: ") == (prompt != "Hi")
                assert "Error" not in said
                fill(disk, 0)
            chat.type("quit")
            assert "Traceback" not in chat.read_all()
            assert chat.process.returncode == 0
