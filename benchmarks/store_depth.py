"""What one deep conversation costs: storing a turn, and everything done with all turns.

    python -m benchmarks --only depth
    python -m benchmarks.store_depth     the same

One thread grows turn by turn in a real store and a real log (log_cost.py writes that).
At some depths a copy is taken, and every operation that commands perform is run on it.
KV rows are a few bytes each: what an operation costs beyond reading and writing them is
what grows with depth. Times are processor seconds of this process; nothing is flushed
to the disk (as in scale.py), which they would hardly show. Bytes are those that SQLite
writes to its journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from llm_kvbranch.cli.report import describe_tree
from llm_kvbranch.log import Ancestry, History, edits, open_log, search
from llm_kvbranch.store import Store, bundle, fingerprint_of, maintenance
from llm_kvbranch.store.chain import Chain
from llm_kvbranch.store.header import State
from llm_kvbranch.store.tokens import prefix_digest, tokens_of
from llm_kvbranch.web.page.list_data import describe_list

from .harness.measurement import Measurement, Run
from .log_cost import response_id, write_deep
from .store_depth_report import bars, table

DEPTHS = [100, 200, 400, 800, 1600, 3200]
MODEL = {"model": "made up", "llama.cpp": "none", "kv": "f16"}
PLENTY = 1 << 50  # a budget under which nothing is evicted
TOKENS = 40  # that each turn adds
ROWS = bytes(512)
SAMPLED = 9  # turns before each depth that are measured; the least is what counts


@contextlib.contextmanager
def opened(home: Path, store_name: str, log: str) -> Iterator[tuple[Store, History]]:
    "A store and a log, created if need be, of which nothing is flushed"
    history = History(open_log(str(home / log), create=True))
    with contextlib.closing(Store(home / store_name, PLENTY)) as store:
        for db in (store.db, history.db.conn):
            db.execute("pragma synchronous = off")
        yield store, history
    history.db.close()


@dataclass
class Thread:
    "One thread: a log and a store with the same turns"

    home: Path
    n: int

    def __post_init__(self) -> None:
        self.last = response_id(self.n + 1)
        self.middle = response_id(self.n // 2 + 1)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Store, History]]:
        with opened(self.home, "store", "logs.db") as found:
            yield found


@dataclass
class Growing:
    "The store of a thread that gets longer"

    store: Store
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    fingerprint: str = fingerprint_of(MODEL)

    def __post_init__(self) -> None:
        self.tokens = tokens_of()
        self.chain, self.n = Chain(), 0
        self.store.describe(self.fingerprint, json.dumps({**MODEL, "name": "made up"}))

    def measured(self) -> dict[str, float]:
        "Find and store one more turn as an answer does; what that cost"
        db, wal = self.store.db, self.store.root / "index.db-wal"
        db.execute("pragma wal_checkpoint(truncate)")
        started = time.process_time()
        self.chain = self.store.longest_prefix(self.fingerprint, self.tokens)
        hold = self.store.hold(self.chain)
        found = time.process_time() - started
        assert len(self.chain.tokens) == len(self.tokens)
        assert hold is not None
        hold.release()
        stored = self.add()
        return {"find": found, "put": stored, "wal": wal.stat().st_size}

    def add(self) -> float:
        "Store one more turn; seconds that took"
        self.tokens += tokens_of(self.rng.choices(range(49152), k=TOKENS))
        state = self._state(self.chain)
        started = time.process_time()
        entry = self.store.put(state, ROWS, self.chain)
        elapsed = time.process_time() - started
        self.chain = self.chain.then(entry)
        self.n += 1
        return elapsed

    def _state(self, chain: Chain) -> State:
        start = len(chain.tokens)
        above = chain.segments[-1].entry.state.response_id if chain.segments else None
        return State(
            response_id=response_id(self.n + 2),
            parent_id=above,
            fingerprint=self.fingerprint,
            start=start,
            end=start + TOKENS,
            answer=start + TOKENS // 2,
            prefix=prefix_digest(self.tokens, start),
            thread_id=response_id(1),
            tokens=self.tokens[start:],
        )


# -- operations ----------------------------------------------------------


def tree(store: Store, history: History, thread: Thread) -> None:
    for lines in describe_tree(history, thread.last, 5):
        list(lines)


def list_page(store: Store, history: History, thread: Thread) -> None:
    describe_list(history, search.Filter(), {})


def export(store: Store, history: History, thread: Thread) -> None:
    path = thread.home / "exported"
    exported = bundle.export(store, history, thread.last, path, None)
    assert exported.n_states == thread.n


def import_(store: Store, history: History, thread: Thread) -> None:
    "Into a store and a log without any of it"
    with opened(thread.home, "other", "other.db") as (other, log):
        imported = bundle.load(other, log, thread.home / "exported", None, trust=True)
        assert imported.new_states == thread.n
        assert log.db["turns"].count == thread.n


def verify(store: Store, history: History, thread: Thread) -> None:
    assert list(maintenance.verify(store)) == []


def repair(store: Store, history: History, thread: Thread) -> None:
    assert list(maintenance.repair(store)) == []


def rebuild(store: Store, history: History, thread: Thread) -> None:
    store.rebuild()


def prune(history: History, store: Store, which: str, log: bool) -> None:
    ids = Ancestry(history.db).continuations(which)
    removal = maintenance.prune(store, ids)
    assert len(removal.removed) == len(ids)
    if log:
        edits.prune(history, which, ids)


def prune_one(store: Store, history: History, thread: Thread) -> None:
    prune(history, store, thread.last, log=False)


def prune_half(store: Store, history: History, thread: Thread) -> None:
    prune(history, store, thread.middle, log=False)


def prune_half_log(store: Store, history: History, thread: Thread) -> None:
    prune(history, store, thread.middle, log=True)


def prune_all_log(store: Store, history: History, thread: Thread) -> None:
    prune(history, store, response_id(2), log=True)


def evict(store: Store, history: History, thread: Thread) -> None:
    removal = maintenance.evict(store, store.nbytes() // 2)
    assert len(removal.removed) >= thread.n // 2


Task = Callable[[Store, History, Thread], None]
# In order; those that change the store or the log get a copy of their own
READING: dict[str, Task] = {
    "tree": tree,
    "list": list_page,
    "export": export,
    "import": import_,
    "verify": verify,
    "repair": repair,
}
CHANGING: dict[str, Task] = {
    "rebuild": rebuild,
    "prune one": prune_one,
    "prune half": prune_half,
    "prune half, log": prune_half_log,
    "prune all, log": prune_all_log,
    "evict half": evict,
}


def seconds(thread: Thread, task: Task) -> float:
    with thread.opened() as (store, history):
        started = time.process_time()
        task(store, history, thread)
        return time.process_time() - started


def operations(run: Run, home: Path, n: int) -> None:
    "Measure every operation on a thread"
    thread = Thread(home, n)
    write_deep(home / "logs.db", n)
    for name, task in READING.items():
        run.result.add(seconds(thread, task), "op", name, n)
        run.progress.step(f"{name}, {n:,} turns")
    for name, task in CHANGING.items():
        copy = run.work / "copy"
        shutil.copytree(home, copy)
        run.result.add(seconds(Thread(copy, n), task), "op", name, n)
        shutil.rmtree(copy)
        run.progress.step(f"{name}, {n:,} turns")


def measure(run: Run) -> None:
    depths = run.choose(DEPTHS, [10, 20])
    run.result.settings = {"depths": depths, "tokens": TOKENS, "sampled": SAMPLED}
    run.begin(len(depths) * (1 + len(READING) + len(CHANGING)))
    with (
        mock.patch.object(os, "fsync", return_value=None),
        opened(run.work, "store", "empty.db") as (store, _),
    ):
        growing = Growing(store)
        for n in depths:
            costs: list[dict[str, float]] = []
            while growing.n < n:
                if n - growing.n <= min(SAMPLED, n // 2):
                    costs.append(growing.measured())
                else:
                    growing.add()
            for name in ("find", "put", "wal"):
                run.result.add(min(c[name] for c in costs), "turn", name, n)
            run.progress.step(f"stored {n:,} turns")
            store.db.execute("pragma wal_checkpoint(truncate)")
            home = run.work / f"depth-{n}"
            shutil.copytree(store.root, home / "store")
            operations(run, home, n)
            shutil.rmtree(home)


MEASUREMENT = Measurement(
    "depth",
    "One deep conversation",
    minutes=3,
    measure=measure,
    bars=bars,
    table=table,
    plot=lambda result: None,
    peers=False,
)

if __name__ == "__main__":
    from .__main__ import main

    sys.exit(main([*sys.argv[1:], "--only", MEASUREMENT.name]))
