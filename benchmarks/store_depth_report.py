"""Table of one deep conversation: see store_depth.py."""

from __future__ import annotations

import itertools
import statistics

from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, plain, ratio, seconds

MOST = 2.3  # times as much for twice the turns
NOISE = 0.02  # seconds; below it, growth cannot be told from noise
TURN = {
    "find": "find and hold what is stored of the prompt",
    "put": "store the new turn",
}
WHOLE = {
    "tree": "`tree ID`",
    "list": "the page's list",
    "export": "`export`",
    "import": "`import`",
    "verify": "`store verify`",
    "repair": "`store verify --repair`, all sound",
    "rebuild": "rebuild the index from the files",
    "prune one": "`prune` the last response",
    "prune half": "`prune` the second half",
    "prune half, log": "`prune --log` the second half",
    "prune all, log": "`prune --log` everything",
    "evict half": "evict the first half of the bytes",
}
COSTS = {
    **{("turn", name): title for name, title in TURN.items()},
    **{("op", name): title for name, title in WHOLE.items()},
}


def costs(result: Result, *name: str) -> list[float | None]:
    return [result.median(*name, n) for n in result.settings["depths"]]


def growth(result: Result, *name: str) -> float | None:
    "The mean factor of a doubling of the turns, where times are more than noise"
    found = costs(result, *name)
    least = 0.0 if name[-1] == "wal" else NOISE
    pairs = [(a, b) for a, b in itertools.pairwise(found) if a and b and b > least]
    return statistics.geometric_mean(b / a for a, b in pairs) if pairs else None


def bars(result: Result) -> list[Bar]:
    found = []
    for name, title in {**COSTS, ("turn", "wal"): "bytes written for a turn"}.items():
        what = f"{title.replace('`', '')}: twice the turns, times as much"
        why = f"under {NOISE * 1000:.0f} ms at every depth"
        found.append(Bar(what, growth(result, *name), most=MOST, why=why))
    return found


def table(result: Result) -> str:
    depths = [f"{n:,}" for n in result.settings["depths"]]
    rows = [
        [title, *map(seconds, costs(result, *name)), ratio(growth(result, *name))]
        for name, title in COSTS.items()
    ]
    kilobytes = [value and value / 1000 for value in costs(result, "turn", "wal")]
    cells = [DASH if value is None else plain(value, 0, "kB") for value in kilobytes]
    row = ["journal of the index, a turn", *cells, ratio(growth(result, "turn", "wal"))]
    rows.insert(len(TURN), row)
    header = ["processor time, one thread of n turns", *depths, "growth"]
    return "\n\n".join(
        [
            markdown(header, rows),
            "The first three are of one more turn, the others of the whole thread. "
            "Growth is the mean factor of twice the turns: 2 is linear, 4 quadratic.",
        ]
    )
