"""The store as it grows, and the tree page: what they cost with more in them.

    python -m benchmarks --only scale

One store of each size is filled with the same made-up forest (scale_forest.py). For
filling only, nothing is flushed to the disk (``os.fsync`` does nothing, SQLite's
``synchronous`` is off); everything that is timed runs as it does in use. Each round
asks every store once, in turn.

Trees of some sizes are logged, and asked for over HTTP (scale_tree.py).
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llm_kvbranch.store import describe_store
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import BLOCK, tokens_from_bytes

from . import scale_tree
from .harness.measurement import Measurement, Run
from .scale_forest import PLENTY, Forest, fill
from .scale_report import TIMED, bars, plot, table

SIZES = [1_000, 10_000, 100_000]
TREES = [100, 500, 2_000]


def measure(run: Run) -> None:
    sizes = run.choose(SIZES, [300, 600])
    trees = run.choose(TREES, [20, 40])
    rounds, few = run.choose((200, 20), (10, 2))
    result = run.result
    result.settings = {"sizes": sizes, "trees": trees, "rounds": rounds}
    run.begin(2 * len(sizes) + 1 + run.choose(6, 2) + len(trees))
    os.environ["LLM_KVBRANCH_BUDGET"] = str(PLENTY)
    try:
        forests = []
        for n in sizes:
            forest, seconds = fill(run.work / str(n), n)
            forests.append(forest)
            result.add(1000 * seconds / n, "size", "fill", n)
            result.add(index_bytes(forest.root), "size", "index", n)
            result.add(index_bytes(forest.root) / n, "size", "index each", n)
            run.progress.step(f"filled with {n:,}")
        ask_all(run, forests, rounds, few)
        run.progress.step("asked")
        for n, forest in zip(sizes, forests, strict=True):
            rebuild(run, n, forest)
            run.progress.step(f"made again, {n:,}")
    finally:
        os.environ.pop("LLM_KVBRANCH_BUDGET")
    scale_tree.measure(run, trees, run.choose(5, 1))


def rebuild(run: Run, n: int, forest: Forest) -> None:
    "Memory of a process that asks, and of one that makes the index again"
    result = run.result
    for _ in range(run.choose(5, 2)):
        alone = run_alone(forest, run.work)
        result.add(alone["peak"], "size", "peak", n)
        result.add(alone["imports"], "size", "imports", n)
    present = "select count(*) from states where nbytes > 0"
    before = forest.store.db.execute(present).fetchone()[0]
    forest.store.close()
    rebuilt = run_alone(forest, run.work, rebuild=True)
    result.add(rebuilt["seconds"], "size", "rebuild", n)
    result.add(rebuilt["peak"], "size", "rebuild peak", n)
    forest.store = Store(forest.root, PLENTY)
    assert forest.store.db.execute(present).fetchone()[0] == before
    forest.store.close()


def ask_all(run: Run, forests: list[Forest], rounds: int, few: int) -> None:
    "Seconds of every operation on every store, taken in turns"
    rng = random.Random(11)
    sizes = run.result.settings["sizes"]
    all_operations = [operations(forest, run.work) for forest in forests]
    # What writes comes last: it changes what is read
    phases = [["fresh"], ["put", "flush"], ["evict"]]
    reading = [n for n in TIMED if not any(n in names for names in phases)]
    for names in (reading, *phases):
        n = few if names == ["fresh"] else rounds
        for i in range(n + 2):
            for name in rng.sample(names, len(names)):
                for which in rng.sample(range(len(forests)), len(forests)):
                    seconds = all_operations[which][name]()
                    if i >= 2:  # the first ones warm up
                        run.result.add(seconds, "op", name, sizes[which])


class Operations:
    "What is timed on one store: each does one of its kind and returns its seconds"

    def __init__(self, forest: Forest, work: Path):
        self.forest, self.work = forest, work

    def open(self) -> float:
        started = time.perf_counter()
        store = Store(self.forest.root, PLENTY)
        elapsed = time.perf_counter() - started
        store.close()
        return elapsed

    def find(self, kind: str) -> float:
        model, tokens, n_known = self.forest.question(kind)
        started = time.perf_counter()
        chain = self.forest.store.longest_prefix(model, tokens)
        elapsed = time.perf_counter() - started
        # Less than a block may be overlooked, and random tokens may be known
        if not n_known - BLOCK < len(chain.tokens) <= n_known + 3:
            raise RuntimeError(f"{kind}: {len(chain.tokens)} of {n_known} tokens found")
        return elapsed

    def by_hash(self, column: str) -> float:
        state = self.forest.any_node().state
        started = time.perf_counter()
        wanted = [getattr(state, column)]
        found = self.forest.store.by_hash(column, wanted, state.fingerprint)
        elapsed = time.perf_counter() - started
        assert found[0].state.response_id == state.response_id
        return elapsed

    def put(self, evict: bool) -> float:
        forest, node = self.forest, self.forest.any_node()
        state, chain, _ = forest.follow_up(node, node.state.end)
        forest.store.limit = forest.store.nbytes() if evict else PLENTY
        started = time.perf_counter()
        forest.store.put(state, state.response_id.encode(), chain)
        elapsed = time.perf_counter() - started
        forest.store.limit = PLENTY
        return elapsed

    def hold(self) -> float:
        store = self.forest.store
        chain = store.chain(self.forest.any_node().entry)
        started = time.perf_counter()
        hold = store.hold(chain)
        assert hold is not None
        hold.release()
        return time.perf_counter() - started

    def pinned(self) -> float:
        started = time.perf_counter()
        assert self.forest.store.pinned_bytes() > 0
        return time.perf_counter() - started

    def status(self) -> float:
        os.environ["LLM_KVBRANCH_DIR"] = str(self.forest.root)
        started = time.perf_counter()
        facts = describe_store()
        elapsed = time.perf_counter() - started
        os.environ.pop("LLM_KVBRANCH_DIR")
        assert facts["responses"] >= len(self.forest.nodes)
        return elapsed

    def flush(self) -> float:
        with open(self.work / "flush", "wb", buffering=0) as file:
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            return time.perf_counter() - started

    def fresh(self) -> float:
        return run_alone(self.forest, self.work)["seconds"]


def operations(forest: Forest, work: Path) -> dict[str, Callable[[], float]]:
    do = Operations(forest, work)
    finding = ("follow_up", "branch", "system", "unknown")
    return {
        "open": do.open,
        **{kind: functools.partial(do.find, kind) for kind in finding},
        "tip": lambda: do.by_hash("tip_hash"),
        "input": lambda: do.by_hash("input_hash"),
        "put": lambda: do.put(evict=False),
        "evict": lambda: do.put(evict=True),
        "hold": do.hold,
        "pinned": do.pinned,
        "status": do.status,
        "fresh": do.fresh,
        "flush": do.flush,
    }


ALONE = """
import sys, time
from pathlib import Path
import llm_kvbranch.store.store as store
from llm_kvbranch.store.tokens import tokens_from_bytes
sys.path.insert(0, sys.argv[1])
from benchmarks.scale import peak_memory
root, model, prompt = sys.argv[2:5]
tokens = tokens_from_bytes(Path(prompt).read_bytes()) if prompt else None
before = peak_memory()
started = time.perf_counter()
if model:
    opened = store.Store(root)
    assert opened.longest_prefix(model, tokens).tokens
else:
    opened = store.Store(root, 1 << 50)
    opened.rebuild()
print(time.perf_counter() - started, before, peak_memory())
"""


def run_alone(forest: Forest, work: Path, rebuild: bool = False) -> dict[str, float]:
    "A lookup, or making the index again, in a process of its own"
    model, prompt = "", ""
    if not rebuild:
        model, tokens, _ = forest.question("follow_up")
        path = work / "prompt"
        path.write_bytes(tokens.tobytes())
        prompt = str(path)
        assert tokens_from_bytes(path.read_bytes()) == tokens
    here = str(Path(__file__).parent.parent)
    output = subprocess.run(
        [sys.executable, "-c", ALONE, here, str(forest.root), model, prompt],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seconds, before, peak = map(float, output.split())
    return {"seconds": seconds, "imports": before, "peak": peak}


def peak_memory() -> int:
    "Bytes of memory that this process had at the most"
    try:  # what getrusage says on Linux may be the parent's
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def index_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("index.db*"))


MEASUREMENT = Measurement(
    "scale",
    "A large store, a large tree",
    minutes=4,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
