"""Readers can rely on their locks, and locks of dead processes do no harm.

Without a lock a file is deleted while someone reads it; with a lock that is never
released it is kept for ever. Both are tested with other Locks of this process and
with other processes, some of which are killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llm_kvbranch
import llm_kvbranch.store.locks as locks_module
from llm_kvbranch.errors import StoreError
from llm_kvbranch.store.locks import Locks

from ..support.stores import run

pytestmark = pytest.mark.skipif(
    not hasattr(locks_module.fcntl, "F_OFD_SETLK"), reason="no locks of open files"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def ours(path: Path) -> Iterator[Locks]:
    with contextlib.closing(Locks(path)) as locks:
        yield locks


@pytest.fixture
def theirs(path: Path) -> Iterator[Locks]:
    with contextlib.closing(Locks(path)) as locks:
        yield locks


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "PATIENCE", 0.01)


def free(locks: Locks, name: str) -> bool:
    "Whether a name can be claimed now"
    with locks.claims() as claims:
        return claims.take(name)


def claim(locks: Locks, name: str) -> bool:
    "Claim a name until the locks are closed"
    return locks.claims().take(name)


class TestHold:
    "A name that others can claim while it is held is a file deleted while read"

    def test_what_is_held_cannot_be_claimed(self, ours: Locks, theirs: Locks) -> None:
        ours.hold(["a", "b"])
        assert not claim(theirs, "a")
        assert not claim(theirs, "b")
        assert claim(theirs, "c")

    def test_nor_by_who_holds_it(self, ours: Locks) -> None:
        hold = ours.hold(["a"])
        assert not claim(ours, "a")
        hold.release()
        assert claim(ours, "a")

    def test_many_hold_a_name(self, ours: Locks, theirs: Locks, path: Path) -> None:
        hold, other = ours.hold(["a"]), theirs.hold(["a"])
        with contextlib.closing(Locks(path)) as third:
            hold.release()
            assert not claim(third, "a")
            other.release()
            assert claim(third, "a")

    def test_until_it_is_dropped_as_often(self, ours: Locks, theirs: Locks) -> None:
        first, second = ours.hold(["a", "b", "a"]), ours.hold(["a"])
        first.release()
        assert not claim(theirs, "a")
        assert free(theirs, "b")
        second.release()
        assert free(theirs, "a")

    def test_dropped_later_is_dropped_with_the_next_call(
        self, ours: Locks, theirs: Locks
    ) -> None:
        ours.hold(["a"]).release_later()
        assert not claim(theirs, "a")
        hold = ours.hold(["b"])
        assert free(theirs, "a")
        hold.release_later()
        assert free(ours, "b")

    def test_a_failed_claim_takes_nothing(self, ours: Locks, theirs: Locks) -> None:
        hold = ours.hold(["a"])
        assert not claim(theirs, "a")
        hold.release()
        assert free(ours, "a")
        assert free(theirs, "a")

    def test_closing_lets_go_of_everything(self, path: Path, theirs: Locks) -> None:
        ours = Locks(path)
        ours.hold(["a"])
        assert claim(ours, "b")
        ours.close()
        ours.close()
        assert free(theirs, "a")
        assert free(theirs, "b")

    def test_another_file_object_closed_lets_go_of_nothing(
        self, path: Path, ours: Locks, theirs: Locks
    ) -> None:
        "As it would with locks that belong to the process"
        ours.hold(["a"])
        Locks(path).close()
        assert not claim(theirs, "a")

    def test_a_claim_is_waited_for(self, ours: Locks, theirs: Locks) -> None:
        claims = theirs.claims()
        assert claims.take("a")
        thread = threading.Thread(target=ours.hold, args=[["a"]])
        thread.start()
        claims.release()
        thread.join(60)
        assert not thread.is_alive()
        assert not claim(theirs, "a")

    @pytest.mark.usefixtures("impatient")
    def test_a_claim_that_stays_leaves_nothing_held(
        self, ours: Locks, theirs: Locks
    ) -> None:
        with theirs.claims() as claims:
            assert claims.take("b")
            with pytest.raises(StoreError, match="keeps the state store locked"):
                ours.hold(["a", "b", "c"])
        assert all(free(theirs, name) for name in "abc")

    def test_nothing_is_written(self, path: Path, ours: Locks) -> None:
        ours.hold(["a"])
        assert path.stat().st_size == 0
        assert path.stat().st_mode & 0o777 == 0o600


class TestClaim:
    "Two that delete a file, or one that deletes what another begins to read"

    def test_is_for_one_alone(self, ours: Locks, theirs: Locks) -> None:
        with ours.claims() as claims:
            assert claims.take("a")
            assert not claim(theirs, "a")
        assert claim(theirs, "a")

    def test_releasing_leaves_what_is_held(self, ours: Locks, theirs: Locks) -> None:
        "A damaged state is deleted by its holder, and written again"
        with ours.claims() as claims:
            assert claims.take("a")
            hold = ours.hold(["a"])
        assert not claim(theirs, "a")
        hold.release()
        assert free(theirs, "a")

    def test_an_exception_releases_it(self, ours: Locks, theirs: Locks) -> None:
        "Otherwise nobody could read the state until this process ends"
        with contextlib.suppress(KeyboardInterrupt), ours.claims() as claims:
            assert claims.take("a")
            raise KeyboardInterrupt
        assert free(theirs, "a")


class TestWriter:
    "Two that change files at once leave an index that neither intended"

    @pytest.mark.usefixtures("impatient")
    def test_is_alone(self, ours: Locks, theirs: Locks) -> None:
        with ours.writer(), pytest.raises(StoreError, match="locked"), theirs.writer():
            pytest.fail("two writers at once")
        with theirs.writer():
            pass

    def test_may_be_entered_again(self, ours: Locks, theirs: Locks) -> None:
        with ours.writer():
            with ours.writer():
                pass
            assert not theirs._lock(0, shared=False)
        assert theirs._lock(0, shared=False)

    def test_an_error_lets_go_of_it(self, ours: Locks, theirs: Locks) -> None:
        with pytest.raises(ZeroDivisionError), ours.writer():
            raise ZeroDivisionError
        with theirs.writer():
            pass

    def test_names_do_not_stand_in_its_way(self, ours: Locks, theirs: Locks) -> None:
        ours.hold(map(str, range(1000)))
        with theirs.writer():
            assert claim(theirs, "a")

    def test_it_is_waited_for(self, path: Path) -> None:
        "Each adds to what the one before it wrote"
        count = path.with_name("count")
        count.write_text("0")

        def work() -> None:
            with contextlib.closing(Locks(path)) as locks:
                for _ in range(20):
                    with locks.writer():
                        count.write_text(str(int(count.read_text()) + 1))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count.read_text() == "80"


HOLDER = """
import sys
from pathlib import Path
from llm_kvbranch.store.locks import Locks
locks = Locks(Path(sys.argv[1]))
hold = locks.hold(["held"])
locks.claims().take("claimed")
with locks.writer():
    print("ready", flush=True)
    sys.stdin.readline()
hold.release()
print("dropped", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    "Another process that holds a name, has claimed one and is the writer"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=Path(llm_kvbranch.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.usefixtures("impatient")
class TestProcesses:
    "Locks that other processes ignore, or that outlive a process, protect nothing"

    def test_they_see_each_others(
        self, ours: Locks, holder: subprocess.Popen[str]
    ) -> None:
        assert not claim(ours, "held")
        assert not claim(ours, "claimed")
        with pytest.raises(StoreError):
            ours.hold(["claimed"])
        with pytest.raises(StoreError), ours.writer():
            pytest.fail("two writers at once")
        ours.hold(["held"])

    def test_what_is_dropped_is_free(
        self, ours: Locks, holder: subprocess.Popen[str]
    ) -> None:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "dropped\n"
        assert claim(ours, "held")
        assert not claim(ours, "claimed")
        with ours.writer():
            pass

    def test_a_killed_process_holds_nothing(
        self, ours: Locks, holder: subprocess.Popen[str]
    ) -> None:
        holder.kill()
        holder.wait()
        assert claim(ours, "held")
        assert claim(ours, "claimed")
        with ours.writer():
            pass

    def test_so_do_locks_of_the_process(
        self,
        ours: Locks,
        holder: subprocess.Popen[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        "On systems without locks of open files, such as FreeBSD"
        monkeypatch.delattr(locks_module.fcntl, "F_OFD_SETLK")
        assert not claim(ours, "held")
        assert not claim(ours, "claimed")
        with ours.hold(["held"]), pytest.raises(StoreError), ours.writer():
            pytest.fail("two writers at once")
        holder.kill()
        holder.wait()
        assert free(ours, "held")
        assert free(ours, "claimed")
        with ours.writer():
            pass


class TestWithoutLocks:
    "Without locks a store must still work for a single process"

    def test_everything_can_be_claimed(
        self, ours: Locks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(95, os.strerror(95))

        monkeypatch.setattr(locks_module.fcntl, "fcntl", refuse)
        with ours.hold(["a"]), ours.claims() as claims:
            assert claims.take("b")
            with ours.writer():
                pass


class TestPatience:
    "Fails if a process that is stopped delays others again and again"

    def test_a_lock_that_stayed_locked_is_not_waited_for_again(
        self, ours: Locks, theirs: Locks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks_module, "PATIENCE", 0.5)
        monkeypatch.setattr(locks_module, "_AGAIN", 0.01)

        def seconds() -> float:
            started = time.monotonic()
            with pytest.raises(StoreError):
                ours.hold(["a"])
            return time.monotonic() - started

        with theirs.claims() as claims:
            assert claims.take("a")
            assert seconds() >= 0.5
            assert seconds() < 0.4
        ours.hold(["a"]).release()
        with theirs.claims() as claims:
            assert claims.take("a")
            assert seconds() >= 0.5


class TestDeletedFile:
    "Fails if two processes are writers at once because one has the deleted file"

    pytestmark = pytest.mark.usefixtures("impatient")

    def test_locks_move_to_the_new_file(self, ours: Locks, path: Path) -> None:
        hold = ours.hold(["a"])
        path.unlink()
        with contextlib.closing(Locks(path)) as others, others.writer():
            with pytest.raises(StoreError), ours.writer():
                pytest.fail("two writers")
            assert not free(others, "a")
            hold.release()
            assert free(others, "a")

    def test_nobody_made_a_new_one(self, ours: Locks, path: Path) -> None:
        path.unlink()
        with (
            ours.writer(),
            contextlib.closing(Locks(path)) as others,
            pytest.raises(StoreError),
            others.writer(),
        ):
            pytest.fail("two writers")


def test_a_script_that_does_not_close_its_store_ends_quietly(root: Path) -> None:
    "Modules are emptied before what is left is deleted"
    script = (
        "import os, sys\n"
        "from llm_kvbranch.store import Store\n"
        "os.kept = Store(sys.argv[1])\n"
    )
    with run(script, str(root)) as process:
        assert process.communicate()[1] == ""
