"""Many processes on one store that is too small for them.

Each answers 25 prompts, continuing its own and the others' conversations, while all
of them evict each other's states. A state that is evicted while it is read, or an
index that two of them disagree about, leads to a wrong answer, a miss without a good
reason, or a store in which ``verify`` finds problems.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from llm_kvbranch.inference.filling import BEING_WRITTEN
from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.store import EVICTED, Store

from ..support.children import as_line, child, from_line
from ..support.life import Life

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

N_PROCESSES, N_TURNS = 8, 25


def crowd(root: Path, budget: int) -> list[dict]:
    "What each of the processes reports at its end"

    def work(out: int, seed: int) -> None:
        life, facts = Life(root, seed, {}, budget), []
        warnings: list[str] = []
        life.session.warn = warnings.append
        shared = root.parent / "conversations"
        for _ in range(N_TURNS):
            for path in shared.iterdir():  # what the others said recently
                with contextlib.suppress(ValueError, FileNotFoundError):
                    life.known[path.name] = from_line(path.read_text())
            _, answer = life.step()
            facts.append(answer.facts)
            (shared / f"{seed}").write_text(as_line(answer.chain))
            life.known = dict(list(life.known.items())[-16:])
        said = {
            "warnings": warnings,
            "restored": sum(f["restored_tokens"] for f in facts),
            "reasons": [f["miss_reason"] for f in facts if f["miss_reason"]],
        }
        os.write(out, json.dumps(said).encode())

    (root.parent / "conversations").mkdir()
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(child(lambda out, s=seed: work(out, s)))
            for seed in range(N_PROCESSES)
        ]
        said = []
        for pid, reading in running:
            with os.fdopen(os.dup(reading)) as file:
                text = file.read()
            os.waitpid(pid, 0)
            assert not text.startswith("failed"), text
            said.append(json.loads(text))
    return said


class TestCrowd:
    "Eviction of what another process is about to read"

    def test_eight_processes(self, tmp_path: Path) -> None:
        budget = 60_000
        root = tmp_path / "store"
        watched = Watch(root)
        with watched:
            said = crowd(root, budget)
        misses = "; ".join(reason for each in said for reason in each["reasons"])
        with contextlib.closing(Store(root, budget)) as store:
            assert not list(verify(store))
            removals = {row["reason"]: row["count"] for row in store.removals()}
            assert store.nbytes() <= budget
        assert watched.largest <= budget
        assert set(removals) == {EVICTED}
        assert removals[EVICTED] > 100, "the budget was too large to show anything"
        assert sum(each["restored"] for each in said) > 1000
        assert set(misses.split("; ")) <= {
            EVICTED,
            BEING_WRITTEN,
            "an earlier answer left no state",
            "no state of the last answer is stored",
        }
        for each in said:
            assert all("in use or pinned" in warning for warning in each["warnings"])


class Watch:
    "Measures the size of a store's files all the time"

    def __init__(self, root: Path):
        self.root, self.largest, self._stop = root, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.is_set():
            total = 0
            for path in (self.root / "states").glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
            self.largest = max(self.largest, total)
            time.sleep(0.01)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
