"""Tables and plots of a large store and a large tree: see scale.py."""

from __future__ import annotations

import statistics
from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, plain, ratio, seconds

# What is timed: title, and how many times the least size's cost is allowed
TIMED: dict[str, tuple[str, float | None]] = {
    "open": ("open the store", None),
    "follow_up": ("find the prefix of a follow-up", 2),
    "branch": ("find the prefix of a branch inside an answer", 2),
    "system": ("find a known system prompt", 2),
    "unknown": ("look for an unknown prompt", 2),
    "tip": ("find by the answer's hash", 2),
    "input": ("find by the prompt's hash", 2),
    "put": ("store a response's state", 2),
    "evict": ("store and evict", 2),
    "hold": ("hold and release a chain", None),
    "pinned": ("count the bytes that are pinned", None),
    "status": ("`status`", 2),
    "fresh": ("new process: open and find", None),
    "flush": ("to compare: write 4 kB, flush", None),
}
SIZES = {
    "peak": ("memory of a process that opens and finds, peak", 1e6, "MB"),
    "imports": ("before the store is opened", 1e6, "MB"),
    "index": ("index.db", 1e6, "MB"),
    "index each": ("index.db per response", 1e3, "kB"),
    "fill": ("filling the store, per response (nothing flushed)", 1, "ms"),
    "rebuild": ("rebuild the index from the files", 1, "s"),
    "rebuild peak": ("memory while rebuilding, peak", 1e6, "MB"),
}
OPENS_WITHIN = 0.010  # seconds
TREE_WITHIN = 1.0  # seconds, of the largest
DATA, DRAWN = ("tree", "page's data"), ("browser", "first")


def growth(result: Result, *name: object) -> float | None:
    "The cost at the largest size divided by the cost at the smallest"
    least, *_, most = result.settings["sizes"]
    return result.ratio((*name, most), (*name, least))


def bars(result: Result) -> list[Bar]:
    least, *_, most = result.settings["sizes"]
    found = [
        Bar("seconds to open the largest store", opened(result, most), OPENS_WITHIN)
    ]
    for name, (title, limit) in TIMED.items():
        if limit is not None:
            what = f"{title.strip('`')}: {most:,} responses, of {least:,}"
            found.append(Bar(what, growth(result, "op", name), most=limit))
    n = result.settings["trees"][-1]
    for what, names in (
        (f"seconds until a server gives the page's data of {n:,} responses", DATA),
        (f"seconds until a browser has drawn the map of {n:,} responses", DRAWN),
    ):
        value = result.median(*names, n)
        why = "" if value is not None else result.why_not(*names, n)
        found.append(Bar(what, value, most=TREE_WITHIN, why=why))
    return found


def opened(result: Result, n: int) -> float | None:
    return result.median("op", "open", n)


def table(result: Result) -> str:
    sizes = result.settings["sizes"]
    names = [f"{n:,}" for n in sizes]
    header = ["responses; ms, median (95th percentile)", *names, "ratio", "at most"]
    rows = []
    for name, (title, limit) in TIMED.items():
        cells = [cell(result.values("op", name, n)) for n in sizes]
        most = f"{limit:.0f}" if limit else ""
        most = f"{1000 * OPENS_WITHIN:.0f} ms" if name == "open" else most
        rows.append([title, *cells, ratio(growth(result, "op", name)), most])
    parts = [markdown(header, rows)]
    rows = []
    for name, (title, scale, unit) in SIZES.items():
        cells = [
            plain(None if value is None else value / scale, 1, unit)
            for value in (result.median("size", name, n) for n in sizes)
        ]
        rows.append([title, *cells, ratio(growth(result, "size", name))])
    parts.append(markdown(["responses", *names, "ratio"], rows))
    return "\n\n".join([*parts, trees(result)])


def cell(times: list[float]) -> str:
    if len(times) < 2:
        return DASH
    high = statistics.quantiles(times, n=20)[-1]
    return f"{1000 * statistics.median(times):.2f} ({1000 * high:.2f})"


def trees(result: Result) -> str:
    "Trees of several sizes, sent over HTTP in full"
    sizes = result.settings["trees"]
    rows = []
    for name in ("tree", "page's data", "page", "list of trees"):
        cells = []
        for n in sizes:
            value = result.median("tree", name, n)
            size = result.facts.get(f"tree/{name}/{n}", 0)
            text = (
                DASH
                if value is None
                else f"{1000 * value:.0f} ms, {size / 1e3:,.0f} kB"
            )
            cells.append(text)
        rows.append([name, *cells])
    for name, title in (("first", "map drawn in a browser"), ("again", "a reload")):
        values = [result.median("browser", name, n) for n in sizes]
        rows.append([title, *map(seconds, values)])
    return markdown(["a tree of", *(f"{n:,}" for n in sizes)], rows)


PANELS = {
    "Finding a prompt's prefix, ms": {
        "follow_up": "a follow-up",
        "branch": "a branch in an answer",
        "system": "a known system prompt",
        "unknown": "an unknown prompt",
    },
    "Everything else, ms": {
        "put": "store",
        "evict": "store and evict",
        "status": "status",
        "open": "open",
        "flush": "to compare: flush 4 kB",
        "fresh": "new process, open, find",
    },
}


def plot(result: Result) -> Any:
    figure = plots.figure("As the store grows", 3, width=4.6, height=3.8)
    if figure is None:
        return None
    sheet, (finding, rest, tree) = figure
    sizes = result.settings["sizes"]
    for panel, (title, names) in zip((finding, rest), PANELS.items(), strict=True):
        series = {
            label: [
                (float(n), 1000 * value)
                for n in sizes
                if (value := result.median("op", name, n)) is not None
            ]
            for name, label in names.items()
        }
        plots.lines(panel, title, series, "stored responses")
        panel.set_ylim(0.01, 100)  # so that a slope means the same in both
    series = {
        label: [
            (float(n), 1000 * value)
            for n in result.settings["trees"]
            if (value := result.median(*name, n)) is not None
        ]
        for label, name in {
            "the page's data": DATA,
            "map drawn in a browser": DRAWN,
            "map drawn, a reload": ("browser", "again"),
        }.items()
    }
    plots.lines(tree, "The page of a tree, ms", series, "responses of the tree")
    return sheet
