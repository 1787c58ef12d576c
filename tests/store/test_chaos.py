"""Two stores in each of three processes, on one index, while system calls fail.

Every process puts, continues, evicts and reads states through two Store objects.
Meanwhile descriptors run out, the disk is full, reads and writes fail, Ctrl-C arrives
at any moment, and the others are stopped for a while or killed. At the end nothing is
lost but what was reported, and nothing sound was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_kvbranch.store.locks as locks_module
from llm_kvbranch.errors import StateError, UnreadableStateError
from llm_kvbranch.store import STORE_ERRORS, buffers, files, statefile
from llm_kvbranch.store.chain import Chain, Entry
from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.store import EVICTED, EVICTED_FULL, Store

from ..support.children import child
from ..support.stores import MODEL, a_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("no_fsync"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

N_PROCESSES, N_TURNS = 3, 200
ROWS = 20_000
BUDGET = 40 * ROWS
FAULTS = [errno.EMFILE, errno.ENOSPC, errno.EIO]
CALLS = [
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (Path, "unlink"),
    (statefile, "_write_all"),
    (statefile, "_read"),
    (statefile, "_open"),
    (files, "read_head"),
    (buffers, "_take"),
]


class Faults:
    "Makes calls fail at random while a store works; those of SQLite are not ours"

    def __init__(self, rng: random.Random):
        self.rng, self.armed, self.counts = rng, False, Counter[str]()
        for owner, name in CALLS:
            self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def failing(*args: Any, **options: Any) -> Any:
            if self.armed and self.rng.random() < 0.01:
                number = self.rng.choice(FAULTS)
                self.counts[errno.errorcode[number]] += 1
                error = OSError(number, os.strerror(number))
                if name in ("read_head", "_open"):
                    raise UnreadableStateError(f"state file is unreadable ({error})")
                raise error
            return call(*args, **options)

        setattr(owner, name, failing)


class Worker:
    "One process: its turns, and what it was told"

    def __init__(self, root: Path, seed: int):
        self.rng, self.name, self.root = random.Random(seed), f"p{seed}", root
        self.stores = [Store(root, BUDGET), Store(root, BUDGET)]
        self.faults = Faults(self.rng)
        self.stored: list[str] = []  # what a put returned
        self.reported: Counter[str] = Counter()
        self.lost: list[str] = []  # sound files that a read found gone or bad

    def work(self) -> None:
        for turn in range(N_TURNS):
            if self.rng.random() < 0.1:
                self._open_again()
            store = self.rng.choice(self.stores)
            try:
                self._disturbed(store, f"{self.name}-{turn:03}")
            except KeyboardInterrupt:
                self.reported["interrupted"] += 1
            except (*STORE_ERRORS, StateError) as error:
                self.reported[type(error).__name__] += 1
            finally:
                self.faults.armed = False

    def _disturbed(self, store: Store, name: str) -> None:
        "A turn with faults, and perhaps with Ctrl-C at some moment"
        self.faults.armed = True
        if self.rng.random() < 0.15:
            signal.setitimer(signal.ITIMER_REAL, self.rng.random() * 0.02)
        try:
            self._turn(store, name)
        finally:
            self.faults.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(self, *_: Any) -> None:
        if self.faults.armed:
            raise KeyboardInterrupt

    def _open_again(self) -> None:
        "Whoever closes the index last deletes its journal"
        for store in self.stores:
            store.close()
        self.stores = [Store(self.root, BUDGET), Store(self.root, BUDGET)]

    def _turn(self, store: Store, name: str) -> None:
        parent = self._read(store)
        chain, start, tokens = None, 0, [self.rng.randrange(1000) for _ in range(40)]
        if parent is not None and self.rng.random() < 0.7:
            chain = store.chain(parent)
            start = len(chain.tokens)
        before = list(chain.tokens) if chain else []
        above = parent.state.response_id if parent and chain and start else None
        state = a_state(name, [*before, *tokens], start, above)
        rows = name.encode() * (ROWS // len(name))
        store.put(state, rows, chain if start else None)
        self.stored.append(name)

    def _read(self, store: Store) -> Entry | None:
        "Read a random state as a restore does, and report a file that is bad"
        query = "select id from states where nbytes > 0 order by random() limit 1"
        row = store.db.execute(query).fetchone()
        found = store.get(row["id"], MODEL) if row else None
        chain = store.chain(found) if found else Chain()
        if not chain.segments or not chain.segments[-1].entry.present:
            return None  # evicted by another since it was drawn
        entry, hold = chain.segments[-1].entry, store.hold(chain)
        if hold is None:
            return None
        with hold:
            try:
                with store.open(entry) as (rows, _):
                    name = entry.state.response_id.encode()
                    assert bytes(rows) == name * (ROWS // len(name)), name
            except StateError as error:
                store.lost(entry, error)
                if not isinstance(error, UnreadableStateError):
                    self.lost.append(f"{entry.state.response_id}: {error}")
                return None
        return entry

    def report(self) -> dict[str, Any]:
        return {
            "stored": self.stored,
            "reported": self.reported,
            "lost": self.lost,
            "faults": self.faults.counts,
        }


@contextlib.contextmanager
def disturbed(pids: list[int], rng: random.Random) -> Iterator[Counter[str]]:
    "Stop the processes now and then, for longer than a write takes"
    ended, counts = threading.Event(), Counter[str]()

    def disturb() -> None:
        while not ended.wait(rng.random() * 0.1):
            pid = rng.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                counts["stopped"] += 1
                time.sleep(rng.random() * 0.05)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield counts
    finally:
        ended.set()
        thread.join()


def crowd(root: Path, seed: int) -> list[dict[str, Any]]:
    "What each process reports at its end"

    def work(out: int, number: int) -> None:
        worker = Worker(root, seed * 10 + number)
        signal.signal(signal.SIGALRM, worker.interrupt)
        worker.work()
        os.write(out, json.dumps(worker.report()).encode())

    said = []
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(child(lambda out, n=n: work(out, n)))
            for n in range(N_PROCESSES)
        ]
        pids = [pid for pid, _ in running]
        counts = stack.enter_context(disturbed(pids, random.Random(seed)))
        for pid, reading in running:
            with os.fdopen(os.dup(reading)) as file:
                text = file.read()
            _, status = os.waitpid(pid, 0)
            assert not text.startswith("failed"), text
            assert os.waitstatus_to_exitcode(status) == 0, text
            said.append(json.loads(text))
    assert counts["stopped"] > 5
    return said


@pytest.mark.parametrize("seed", [1, None])
def test_nothing_is_lost_but_what_is_reported(
    root: Path, seed: int | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(locks_module, "PATIENCE", 30.0)
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    Store(root, BUDGET).close()
    said = crowd(root, seed)
    faults = sum((Counter(each["faults"]) for each in said), Counter())
    reported = sum((Counter(each["reported"]) for each in said), Counter())
    stored = [name for each in said for name in each["stored"]]
    with capsys.disabled():
        print(f"\nseed {seed}: {len(stored)} stored, {dict(faults)}, {dict(reported)}")  # noqa: T201
    assert set(faults) == {errno.errorcode[number] for number in FAULTS}
    assert reported["interrupted"] > 5
    assert len(stored) > N_TURNS
    assert [lost for each in said for lost in each["lost"]] == []
    with contextlib.closing(Store(root, BUDGET)) as store:
        with store.writer():  # settles what is pending, as the next write does
            pass
        assert store.db.execute("pragma integrity_check").fetchone()[0] == "ok"
        assert not list(verify(store))
        for name in stored:
            entry = store.get(name, MODEL)
            assert entry is not None, name
            assert entry.present or entry.gone in (EVICTED, EVICTED_FULL), name
        evicted = sum(
            entry.gone in (EVICTED, EVICTED_FULL) for entry in store.entries()
        )
        removals = {row["reason"]: row["count"] for row in store.removals()}
        assert sum(removals.values()) >= evicted > 0
        assert removals.keys() <= {EVICTED, EVICTED_FULL}
        assert store.nbytes() <= BUDGET
