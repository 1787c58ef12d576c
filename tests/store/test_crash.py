"""Files and index agree wherever a process or the power ends.

These tests watch what is written in which order, and kill a process at every single
step of a put. Whatever it left, the next process finds a sound store.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.statefile import read_state
from llm_kvbranch.store.store import Store

from ..support.stores import DOCUMENT, MODEL, a_state, find, put, rows_of, run, total


class TestOrder:
    "What reaches the disk too late is lost in a power cut"

    @pytest.fixture
    def events(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        "What is made durable, and what is renamed or deleted"
        events: list[str] = []

        def syncing(fd: int) -> None:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            events.append("sync directory" if is_directory else "sync content")

        def tracing(statement: str) -> None:
            if statement == "commit":
                with contextlib.closing(sqlite3.connect(store.root / "index.db")) as db:
                    n = db.execute("select count(*) from pending").fetchone()[0]
                events.append(f"commit after {n} pending")

        def noting(name: str) -> Callable[..., None]:
            real = getattr(os, name)

            def call(path: Any, *more: Any, **options: Any) -> None:
                if str(path).endswith(".safetensors"):
                    events.append(f"{name} {Path(path).parent.name}")
                real(path, *more, **options)

            return call

        put(store, "one", DOCUMENT)
        monkeypatch.setattr(os, "fsync", syncing)
        for name in ("replace", "unlink"):
            monkeypatch.setattr(os, name, noting(name))
        store.db.set_trace_callback(tracing)
        return events

    def test_of_a_new_state(self, store: Store, events: list[str]) -> None:
        put(store, "two", DOCUMENT)
        assert events[:6] == [
            "sync content",
            "commit after 0 pending",
            "replace tmp",
            "sync directory",
            "commit after 1 pending",
            "unlink tmp",
        ]
        assert len(events) == 6

    def test_of_one_that_makes_room(self, store: Store, events: list[str]) -> None:
        store.limit = store.nbytes() * 3 // 2
        put(store, "two", DOCUMENT)
        assert events[:7] == [
            "sync content",
            "commit after 0 pending",
            f"unlink {MODEL}",
            "replace tmp",
            "sync directory",
            "commit after 2 pending",
            "unlink tmp",
        ]
        assert len(events) == 7

    def test_of_a_models_first(self, store: Store, events: list[str]) -> None:
        put(store, "two", DOCUMENT, fingerprint="other-model")
        assert events.count("sync directory") == 2
        assert events.index("sync directory") < events.index("replace tmp")

    @pytest.mark.parametrize("name", ["one", "two"])
    def test_no_row_promises_a_file_that_is_not_there(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        "Not even for readers while states are evicted, added or replaced"
        looks = []

        def look(*_: Any) -> None:
            with contextlib.closing(sqlite3.connect(store.root / "index.db")) as db:
                query = "select id, digest from states where nbytes > 0"
                for found, digest in db.execute(query).fetchall():
                    path = store.root / "states" / MODEL / f"{found}.safetensors"
                    looks.append(read_state(path).digest == digest)

        put(store, "one", DOCUMENT)
        put(store, "old", DOCUMENT)
        store.limit = store.nbytes()
        put(store, "one", DOCUMENT)
        for call in ("fsync", "replace", "unlink"):
            real = getattr(os, call)
            monkeypatch.setattr(
                os, call, lambda *a, real=real, **k: (look(), real(*a, **k), look())
            )
        store.db.set_trace_callback(lambda sql: sql == "commit" and look())
        put(store, name, DOCUMENT)
        assert len(looks) > 5
        assert all(looks)

    @pytest.mark.usefixtures("events")
    def test_commits_are_flushed(self, store: Store) -> None:
        "An announcement must not be late, so SQLite has to flush it"
        assert store.db.execute("pragma synchronous").fetchone()[0] == 2


CRASH = """
import os, sqlite3, sys
from pathlib import Path
from llm_kvbranch.store.header import State
from llm_kvbranch.store.tokens import prefix_digest, tokens_of
from llm_kvbranch.store.store import Store

root, name, limit = sys.argv[1:]

def die_at(n):
    "End the process at its n-th step: 9 where it was reached, else 0"
    left = [n]

    def step(*_):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    def stepping(call):
        def stepped(*args, **options):
            step()
            call(*args, **options)
            step()
        return stepped

    store = Store(f"{root}-{n}")
    store.limit = int(limit)
    for call in ("replace", "unlink", "fsync"):
        setattr(os, call, stepping(getattr(os, call)))
    store.db.set_trace_callback(lambda sql: sql.startswith("select") or step())
    tokens = tokens_of([7] * 100)
    state = State(
        response_id=name,
        fingerprint="some-model",
        start=0,
        end=100,
        answer=0,
        tokens=tokens,
        prefix=prefix_digest(tokens, 0),
    )
    store.put(state, b"new rows".ljust(2000))
    os._exit(0)

n, status = 0, 9
while status == 9:
    n += 1
    if not Path(f"{root}-{n}").exists():
        sys.exit(f"it takes more than {n} steps")
    pid = os.fork()
    if pid == 0:
        try:
            die_at(n)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
Path(root, "steps").write_text(str(n))
sys.exit(status)
"""


class TestCrash:
    "Wherever a process ends, the next one must find a sound store"

    @pytest.mark.parametrize(
        ("name", "n_before"),
        [("new", 0), ("new", 1), ("old", 0)],
        ids=["a new state", "one that makes room", "a replacement"],
    )
    def test_at_every_step_of_a_put(self, root: Path, name: str, n_before: int) -> None:
        limit = 10_000
        with contextlib.closing(Store(root, limit)) as store:
            for i in range(n_before):
                store.put(a_state(f"first-{i}", [i] * 40), bytes(6000))
            put(store, "old", DOCUMENT)
            put(store, "other", [9] * 50)
        for n in range(1, 80):
            shutil.copytree(root, f"{root}-{n}")
        crash = run(CRASH, str(root), name, str(limit))
        _, error = crash.communicate()
        assert crash.returncode == 0, error
        n_steps = int((root / "steps").read_text())
        assert n_steps > 20
        outcomes = [
            self.outcome(Path(f"{root}-{n}"), name, limit)
            for n in range(1, n_steps + 1)
        ]
        # Nothing at first, everything at last, and never backwards
        assert outcomes == sorted(outcomes)
        assert (outcomes[0], outcomes[-1]) == (0, 2)

    @staticmethod
    def outcome(root: Path, name: str, limit: int) -> int:
        "0 if nothing was done, 1 if files were deleted, 2 if the new one was added"
        with contextlib.closing(Store(root, limit)) as store:
            assert list(verify(store)) == []
            assert not os.listdir(root / "tmp")
            assert store.nbytes() == total(root) <= limit
            other = store.get("other")
            assert other is not None
            with store.open(other) as (rows, _):
                assert rows == rows_of("other")
            entry = store.get(name)
            if entry is not None and entry.present:
                with store.open(entry) as (rows, _):
                    if bytes(rows).rstrip() == b"new rows":
                        assert find(store, [7] * 100).available == 100
                        return 2
                    assert rows == rows_of(name)
            gone = [e for e in store.entries() if not e.present]
            assert all(e.gone for e in gone)
            put(store, "after", [5] * 60)
            assert find(store, [5] * 60).available == 60
            return 1 if gone else 0
