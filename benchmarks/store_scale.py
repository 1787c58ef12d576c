"""The store as it grows: what it costs with 1,000, 10,000, 100,000 responses in it.

    python benchmarks/store_scale.py [--sizes 1000 10000 100000] [--out DIR]
    python benchmarks/store_scale.py --quick

One store of each size is filled with the same made-up forest: conversations of
1 to 30 turns of 50 to 400 tokens, of which some branch inside an earlier answer,
and a third of which begin with one of a few long system prompts. KV rows are a
few bytes each, since no question to the index depends on them. For filling only,
nothing is flushed to the disk (``os.fsync`` does nothing, SQLite's
``synchronous`` is off); everything that is timed runs as it does in use.

Each round asks every store once, in turn, so that whatever else the machine does
happens to all of them. Medians and 95th percentiles are printed, written to
``store_scale.json`` and ``store_scale.md``, and plotted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_kvbranch.index import BLOCK, Chain, Entry
from llm_kvbranch.report import describe_store
from llm_kvbranch.state import State, prefix_digest, tokens_from_bytes, tokens_of
from llm_kvbranch.store import Store
from llm_kvbranch.upkeep import pin

MODELS = ("5ca1ab1e" * 2, "0ddba115" * 2)  # the second has a tenth of the roots
RENDER = "f00d" * 4
N_VOCABULARY = 49152
N_SYSTEM = (900, 1400, 2100, 3000)  # tokens of the shared system prompts
N_LIVE = 12  # conversations that take turns
BRANCHES = 0.1  # of all turns go on from inside an earlier answer
N_PINS = 10
PLENTY = 1 << 50  # a budget under which nothing is evicted

# What is timed: title, and how many times the least size's cost is allowed
TIMED: dict[str, tuple[str, float | None]] = {
    "open": ("open the store", None),
    "follow_up": ("find: a follow-up", 2),
    "branch": ("find: a branch inside an answer", 2),
    "system": ("find: a known system prompt", 2),
    "unknown": ("find: an unknown prompt", 2),
    "tip": ("find by the answer's hash", 2),
    "input": ("find by the prompt's hash", 2),
    "put": ("store a response", 2),
    "evict": ("store and evict", 2),
    "hold": ("hold and drop a chain", None),
    "pinned": ("bytes of what is pinned", None),
    "status": ("`status`", 2),
    "fresh": ("new process: open and find", None),
    "flush": ("to compare: write 4 kB, flush", None),
}
OPENS_WITHIN = 0.010  # seconds


@dataclass
class Node:
    "A stored response, and where the answer to what it was asked begins"

    entry: Entry
    parent: Node | None

    @property
    def state(self) -> State:
        return self.entry.state

    def tokens(self, end: int | None = None) -> array[int]:
        "All token ids up to a position"
        end = self.state.end if end is None else end
        if self.parent is None:
            return self.state.tokens[: end - self.state.start]
        if end <= self.state.start:
            return self.parent.tokens(end)
        return (
            self.parent.tokens(self.state.start)
            + self.state.tokens[: end - self.state.start]
        )


@dataclass
class Conversation:
    "Responses that go on from each other, until there are enough of them"

    n: int
    nodes: list[Node]


@dataclass
class Forest:
    "A store, and what was put into it; the same for the same seed"

    root: Path
    store: Store
    rng: random.Random
    nodes: list[Node] = field(default_factory=list)
    live: list[Conversation] = field(default_factory=list)
    by_id: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.systems = [self.text(n) for n in N_SYSTEM]

    # -- making --------------------------------------------------------

    def text(self, n: int) -> array[int]:
        "Token ids that nothing else begins with"
        return tokens_of(self.rng.choices(range(N_VOCABULARY), k=n))

    def name(self) -> str:
        "As unique as llm's, and in order of time as those are"
        return f"{len(self.nodes):010x}{self.rng.getrandbits(64):016x}"

    def hash(self) -> str:
        return f"{self.rng.getrandbits(256):064x}"

    def grow(self, n: int) -> None:
        "Fill the store up to n responses"
        while len(self.nodes) < n:
            if len(self.live) < N_LIVE:
                first = self.add(*self.new_root())
                self.live.append(Conversation(self.rng.randint(1, 30), [first]))
            conversation = self.rng.choice(self.live)
            nodes = conversation.nodes
            if len(nodes) >= conversation.n:
                self.live.remove(conversation)
                continue
            above, end = nodes[-1], nodes[-1].state.end
            if self.rng.random() < BRANCHES:
                above = self.rng.choice(nodes)
                end = self.rng.randint(above.state.answer + 1, above.state.end)
            nodes.append(self.add(*self.follow_up(above, end)))

    def new_root(self) -> tuple[State, Chain, Node | None]:
        "The first response of a conversation, on the store's own prefix"
        tokens = self.text(self.rng.randint(50, 400))
        if self.rng.random() < 1 / 3:
            tokens = self.rng.choice(self.systems) + tokens
        model = MODELS[self.rng.random() < 0.1]
        chain = self.store.longest_prefix(model, tokens)
        last = chain.segments[-1].entry.state if chain.segments else None
        state = self.state(model, tokens, chain, thread_id=self.name())
        return state, chain, self.by_id[last.response_id] if last else None

    def follow_up(self, above: Node, end: int) -> tuple[State, Chain, Node | None]:
        "The response to a new turn after the first tokens of another's"
        tokens = above.tokens(end) + self.text(self.rng.randint(50, 400))
        chain = self.store.chain(above.entry).cut(end)
        thread = above.state.thread_id if end == above.state.end else self.name()
        state = self.state(
            above.state.fingerprint,
            tokens,
            chain,
            thread_id=thread,
            input_hash=self.hash(),
        )
        return state, chain, above

    def state(
        self, model: str, tokens: array[int], chain: Chain, **facts: Any
    ) -> State:
        start = len(chain.tokens)
        return State(
            **{
                "response_id": self.name(),
                "fingerprint": model,
                "start": start,
                "end": len(tokens),
                "answer": start + (len(tokens) - start) // 3,
                "tokens": tokens[start:],
                "prefix": prefix_digest(tokens, start),
                "parent_id": chain.segments[-1].entry.state.response_id
                if chain.segments
                else None,
                "input_hash": self.hash(),
                "tip_hash": self.hash(),
                "render": RENDER,
                **facts,
            }
        )

    def add(self, state: State, chain: Chain, parent: Node | None) -> Node:
        entry = self.store.put(state, state.response_id.encode(), chain)
        node = Node(entry, parent)
        self.nodes.append(node)
        self.by_id[state.response_id] = node
        return node

    # -- asking --------------------------------------------------------

    def any_node(self) -> Node:
        return self.rng.choice(self.nodes)

    def question(self, kind: str) -> tuple[str, array[int], int]:
        "A model, a prompt, and how many of its tokens the store knows"
        node = self.any_node()
        model, known = node.state.fingerprint, tokens_of()
        if kind == "follow_up":
            known = node.tokens()
        elif kind == "branch":
            known = node.tokens(
                self.rng.randint(node.state.answer + 1, node.state.end - 1)
            )
        elif kind == "system":
            model, known = MODELS[0], self.rng.choice(self.systems)
        return model, known + self.text(200), len(known)


def fill(root: Path, n: int) -> tuple[Forest, float]:
    "A store of n responses, written without flushing anything"
    started, fsync = time.perf_counter(), os.fsync
    os.fsync = lambda _: None
    try:
        store = Store(root, PLENTY)
        store.db.execute("pragma synchronous = off")
        forest = Forest(root, store, random.Random(7))
        forest.grow(n)
        store.db.execute("pragma wal_checkpoint(truncate)")
        store.close()
    finally:
        os.fsync = fsync
    os.sync()
    forest.store = Store(root, PLENTY)
    for node in forest.rng.sample(forest.nodes, N_PINS):
        pin(forest.store, node.state.response_id)
    return forest, time.perf_counter() - started


# -- timing ------------------------------------------------------------


def operations(forest: Forest, work: Path) -> dict[str, Callable[[], float]]:
    "What is timed: each call does one of its kind and returns its seconds"

    def opening() -> float:
        started = time.perf_counter()
        store = Store(forest.root, PLENTY)
        elapsed = time.perf_counter() - started
        store.close()
        return elapsed

    def finding(kind: str) -> float:
        model, tokens, n_known = forest.question(kind)
        started = time.perf_counter()
        chain = forest.store.longest_prefix(model, tokens)
        elapsed = time.perf_counter() - started
        # Less than a block may be overlooked, and random tokens may be known
        if not n_known - BLOCK < len(chain.tokens) <= n_known + 3:
            sys.exit(f"{kind}: found {len(chain.tokens)} of {n_known} tokens")
        return elapsed

    def by_hash(column: str) -> float:
        state = forest.any_node().state
        started = time.perf_counter()
        found = forest.store.find(column, [getattr(state, column)], state.fingerprint)
        elapsed = time.perf_counter() - started
        assert found[0].state.response_id == state.response_id
        return elapsed

    def putting(evict: bool) -> float:
        node = forest.any_node()
        state, chain, _ = forest.follow_up(node, node.state.end)
        forest.store.limit = forest.store.nbytes() if evict else PLENTY
        started = time.perf_counter()
        forest.store.put(state, state.response_id.encode(), chain)
        elapsed = time.perf_counter() - started
        forest.store.limit = PLENTY
        return elapsed

    def holding() -> float:
        chain = forest.store.chain(forest.any_node().entry)
        started = time.perf_counter()
        forest.store.locks.drop(forest.store.hold(chain) or [])
        return time.perf_counter() - started

    def pinned() -> float:
        started = time.perf_counter()
        assert forest.store.pinned_bytes() > 0
        return time.perf_counter() - started

    def status() -> float:
        os.environ["LLM_KVBRANCH_DIR"] = str(forest.root)
        started = time.perf_counter()
        facts = describe_store()
        elapsed = time.perf_counter() - started
        assert facts["responses"] >= len(forest.nodes)
        return elapsed

    def flush() -> float:
        with open(work / "flush", "wb", buffering=0) as file:
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            return time.perf_counter() - started

    def fresh() -> float:
        return run_alone(forest, work)["seconds"]

    return {
        "open": opening,
        "follow_up": lambda: finding("follow_up"),
        "branch": lambda: finding("branch"),
        "system": lambda: finding("system"),
        "unknown": lambda: finding("unknown"),
        "tip": lambda: by_hash("tip_hash"),
        "input": lambda: by_hash("input_hash"),
        "put": lambda: putting(evict=False),
        "evict": lambda: putting(evict=True),
        "hold": holding,
        "pinned": pinned,
        "status": status,
        "fresh": fresh,
        "flush": flush,
    }


def measure(
    forests: list[Forest], rounds: int, few: int, work: Path
) -> list[dict[str, list[float]]]:
    "Seconds of every operation on every store, taken in turns"
    rng = random.Random(11)
    all_operations = [operations(forest, work) for forest in forests]
    times: list[dict[str, list[float]]] = [{n: [] for n in TIMED} for _ in forests]
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
                        times[which][name].append(seconds)
    return times


ALONE = """
import sys, time
from pathlib import Path
import llm_kvbranch.store as store
from llm_kvbranch.state import tokens_from_bytes
sys.path.insert(0, sys.argv[1])
from store_scale import peak_memory
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
    here = str(Path(__file__).parent)
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


# -- telling -----------------------------------------------------------


def summary(times: list[float]) -> dict[str, float]:
    return {
        "median_s": statistics.median(times),
        "p95_s": statistics.quantiles(times, n=20)[-1],
        "n": len(times),
    }


def missed_bars(result: dict[str, Any]) -> Iterator[str]:
    "What did not stay as flat as it should"
    for name, (title, bar) in TIMED.items():
        ratio = result["ratios"][name][-1]
        if bar is not None and ratio > bar:
            yield f"{title}: {ratio:.2f} times the least store's, more than {bar}"
    opened = result["stores"][-1]["timed"]["open"]["median_s"]
    if opened > OPENS_WITHIN:
        yield f"open the store: {1000 * opened:.1f} ms"


def table(result: dict[str, Any]) -> str:
    "Markdown: a row for each operation, a column for each size"
    stores = result["stores"]
    sizes = [f"{store['responses']:,}" for store in stores]
    rows = [
        ["median (95th percentile), ms", *sizes, "ratio", "bar"],
        ["---", *["---:"] * (len(sizes) + 2)],
    ]
    for name, (title, bar) in TIMED.items():
        cells = [
            f"{1000 * t['median_s']:.2f} ({1000 * t['p95_s']:.2f})"
            for t in (store["timed"][name] for store in stores)
        ]
        limit = f"{bar:.0f}" if bar else ""
        limit = f"{1000 * OPENS_WITHIN:.0f} ms" if name == "open" else limit
        rows.append([title, *cells, f"{result['ratios'][name][-1]:.2f}", limit])
    rows.append([])
    rows.append(["size", *sizes, "ratio"])
    rows.append(["---", *["---:"] * (len(sizes) + 1)])
    for name, (title, scale, unit) in SIZES.items():
        values = [store[name] / scale for store in stores]
        cells = [f"{value:,.1f} {unit}" for value in values]
        rows.append([title, *cells, f"{values[-1] / values[0]:.2f}"])
    return "\n".join(f"| {' | '.join(row)} |" if row else "" for row in rows)


SIZES = {
    "peak_memory_bytes": ("memory of a process that opens and finds, peak", 1e6, "MB"),
    "import_memory_bytes": ("of which before the store is opened", 1e6, "MB"),
    "index_bytes": ("index.db", 1e6, "MB"),
    "index_bytes_per_response": ("index.db for each response", 1e3, "kB"),
    "fill_s_per_response": ("filling, for each (nothing flushed)", 1e-3, "ms"),
    "rebuild_s": ("index made again from the files", 1, "s"),
    "rebuild_peak_bytes": ("memory of that, peak", 1e6, "MB"),
}


def machine_line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cores']} cores ({machine['architecture']}, {machine['system']}), "
        f"Python {machine['python']}, SQLite {machine['sqlite']}"
    )


def plot(result: dict[str, Any], out: Path) -> None:
    "store_scale.png and .svg: time against size, both logarithmic"
    try:
        import matplotlib

        matplotlib.use("agg")
        matplotlib.rcParams["svg.hashsalt"] = "store_scale"  # same file every time
        import matplotlib.pyplot as plt
    except ImportError:
        print("No plot: matplotlib is missing (python -m pip install matplotlib)")
        return
    stores = result["stores"]
    sizes = [store["responses"] for store in stores]
    figure, axes = plt.subplots(1, 3, figsize=(15.5, 5.4))
    figure.subplots_adjust(0.035, 0.16, 0.875, 0.84, wspace=0.82)
    colors = plt.get_cmap("tab10").colors
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        ends = []
        for color, (name, label) in zip(colors, names.items(), strict=False):
            if name in TIMED:
                timed = [store["timed"][name] for store in stores]
                values = [1000 * t["median_s"] for t in timed]
                high = [1000 * t["p95_s"] for t in timed]
                axis.plot(sizes, high, ":", color=color, linewidth=1)
            else:
                values = [store[name] / 1e6 for store in stores]
            axis.plot(sizes, values, "o-", color=color, linewidth=1.8, markersize=4.5)
            ratio = values[-1] / values[0]
            ends.append((values[-1], f"{label}  \u00d7{ratio:.2f}", color))
        axis.set_xscale("log")
        axis.set_yscale("log")
        # All span four powers of ten, so that a slope means the same in each
        axis.set_ylim((0.1, 1000) if title == "Size" else (0.01, 100))
        unit = "megabytes" if title == "Size" else "milliseconds"
        axis.set_title(f"{title}, {unit}", loc="left", fontsize=11)
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_xlabel("stored responses")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        label_ends(axis, ends, sizes[-1])
    figure.suptitle(
        f"A store of {' / '.join(f'{n:,}' for n in sizes)} responses: medians (lines)"
        " and 95th percentiles (dots); \u00d7 is the last median by the first",
        x=0.035,
        ha="left",
        fontsize=13,
    )
    figure.text(0.035, 0.02, machine_line(result["machine"]), fontsize=9, color="#555")
    figure.savefig(out / "store_scale.png", dpi=120)
    figure.savefig(out / "store_scale.svg", metadata={"Date": None})


def label_ends(axis: Any, ends: list[tuple[float, str, Any]], at: float) -> None:
    "Write each line's name at its right end, moved where two would overlap"
    low, high = axis.get_ylim()
    below = 0.0  # all in parts of the axis
    for value, text, color in sorted(ends, key=lambda end: end[0]):
        y = math.log(value / low) / math.log(high / low)
        below = max(y, below + 0.045)
        axis.annotate(
            text,
            (at, value),
            xytext=(1.03, below),
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


PANELS = {
    "Finding a prompt's prefix": {
        "follow_up": "a follow-up",
        "branch": "a branch in an answer",
        "system": "a known system prompt",
        "unknown": "an unknown prompt",
        "tip": "by the answer's hash",
        "input": "by the prompt's hash",
    },
    "Everything else": {
        "put": "store",
        "evict": "store and evict",
        "status": "status",
        "open": "open",
        "hold": "hold and drop a chain",
        "pinned": "what is pinned",
        "flush": "to compare: flush 4 kB",
        "fresh": "new process, open, find",
    },
    "Size": {
        "peak_memory_bytes": "peak memory to\nopen and find",
        "index_bytes": "index.db",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--quick", action="store_true", help="1,000 and 5,000 only")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, help="directory for the results")
    arguments = parser.parse_args()
    sizes = [1000, 5000] if arguments.quick else sorted(arguments.sizes)
    rounds = 40 if arguments.quick else arguments.rounds
    work = Path(tempfile.mkdtemp(prefix="kvbranch-"))
    os.environ["LLM_KVBRANCH_BUDGET"] = str(PLENTY)
    try:
        forests, stores = [], []
        for n in sizes:
            forest, seconds = fill(work / str(n), n)
            print(f"filled a store with {n:,} responses in {seconds:.0f} s", flush=True)
            forests.append(forest)
            stores.append(
                {
                    "responses": n,
                    "fill_s_per_response": seconds / n,
                    "index_bytes": index_bytes(forest.root),
                    "index_bytes_per_response": index_bytes(forest.root) / n,
                }
            )
        few = max(rounds // 10, 5)
        times = measure(forests, rounds, few, work)
        for forest, store, timed in zip(forests, stores, times, strict=True):
            store["timed"] = {name: summary(timed[name]) for name in TIMED}
            alone = [run_alone(forest, work) for _ in range(5)]
            for name, key in (
                ("peak_memory_bytes", "peak"),
                ("import_memory_bytes", "imports"),
            ):
                store[name] = statistics.median(run[key] for run in alone)
            present = "select count(*) from states where nbytes > 0"
            before = forest.store.db.execute(present).fetchone()[0]
            forest.store.close()
            rebuilt = run_alone(forest, work, rebuild=True)
            store["rebuild_s"] = rebuilt["seconds"]
            store["rebuild_peak_bytes"] = rebuilt["peak"]
            forest.store = Store(forest.root, PLENTY)
            assert forest.store.db.execute(present).fetchone()[0] == before
            forest.store.close()
        result = {
            "machine": {
                "cores": os.cpu_count(),
                "architecture": platform.machine(),
                "system": platform.system(),
                "python": platform.python_version(),
                "sqlite": sqlite3.sqlite_version,
            },
            "stores": stores,
            "ratios": {
                name: [
                    store["timed"][name]["median_s"]
                    / stores[0]["timed"][name]["median_s"]
                    for store in stores
                ]
                for name in TIMED
            },
        }
    finally:
        shutil.rmtree(work)
    print(f"\n{table(result)}\n\n{machine_line(result['machine'])}\n")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "store_scale.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
        (arguments.out / "store_scale.md").write_text(
            f"{table(result)}\n\n{machine_line(result['machine'])}\n"
        )
        plot(result, arguments.out)
    missed = list(missed_bars(result))
    print("\n".join(f"NOT FLAT  {line}" for line in missed) or "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
