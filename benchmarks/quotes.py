"""The figures that README and docs quote, from the results kept here.

These functions make the tables, and a test fails if a page differs from the results.
They return None for what was not measured, or only by a quick run: the page then keeps
what it has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .harness import machine
from .harness.result import Result, read
from .harness.table import markdown, megabytes, plain, ratio, seconds
from .peers.servers import LLAMA, OURS, PYTHON, SLOTS

RESULTS = Path(__file__).resolve().parent / "results"


def result(name: str) -> Result | None:
    found = read(RESULTS / f"{name}.json")
    return None if found is None or found.quick else found


def first_token() -> str | None:
    found = result("cold")
    if found is None:
        return None
    rows = []
    for n in (1200, 5000, 7900):
        facts = found.facts.get(str(n))
        if facts is None:
            continue
        rows.append(
            [
                f"{facts['restored']:,} tokens",
                seconds(found.median("first turn", n)),
                seconds(found.median("follow-up", OURS, n)),
                ratio(found.ratio(("follow-up", OURS, n), ("first turn", n))),
                f"{facts['restored']:,}",
                f"{facts['prefilled']:,}",
            ]
        )
    header = ["conversation", "first turn", "follow-up", "ratio", "tokens restored"]
    return block([markdown([*header, "tokens read"], rows)])


def store_scale() -> str | None:
    found = result("scale")
    if found is None:
        return None
    from .scale_report import TIMED

    least, *_, most = found.settings["sizes"]
    rows = [
        [
            TIMED[name][0],
            seconds(found.median("op", name, least)),
            seconds(found.median("op", name, most)),
            ratio(found.ratio(("op", name, most), ("op", name, least))),
        ]
        for name in ("open", "follow_up", "branch", "put", "status")
    ]
    header = ["median", f"{least:,} responses", f"{most:,} responses", "ratio"]
    return block([markdown(header, rows)])


def store_depth() -> str | None:
    "What one deep conversation costs"
    found = result("depth")
    if found is None:
        return None
    from .store_depth_report import table

    return block([table(found)])


def servers() -> str | None:
    "The server beside llama-server"
    found, many, state = map(result, ("resident", "streams", "disk"))
    if found is None or many is None or not found.values("hot", "follow-up", LLAMA):
        return None

    def row(of: Result, title: str, *name: object, other: str = LLAMA) -> list[str]:
        ours, theirs = of.median(*name, OURS), of.median(*name, other)
        by_hand = ", its slot restored by hand" if other == SLOTS else ""
        return [title, seconds(ours), seconds(theirs) + by_hand]

    def rate(n: int, name: str) -> str:
        return f"{plain(many.median('streams', n, name))} tokens/s"

    rows = [
        row(found, "follow-up, in memory", "hot", "follow-up"),
        row(found, "branch inside the last answer, in memory", "hot", "branch"),
        row(
            found,
            "follow-up after a restart",
            *("restart", "cached", "follow-up"),
            other=SLOTS,
        ),
        ["eight answers at once", rate(8, OURS), rate(8, LLAMA)],
        row(many, "longest stop of four answers while 3,000 tokens are read", "stall"),
        row(many, "until the first token of those 3,000", "stall ttft"),
        ["one answer", rate(1, OURS), rate(1, LLAMA)],
    ]
    if state is not None:
        rows.insert(3, disk()[0][:1] + disk()[0][2:4])
    header = ["time to first token, unless it says otherwise", "`llm kvbranch serve`"]
    return block([markdown([*header, "`llama-server`"], rows)])


def page() -> str | None:
    "How long the page takes with a large tree"
    try:
        found = json.loads((RESULTS / "page.json").read_text())
    except FileNotFoundError:
        return None
    load, frames = found["load"], found["frames"]
    slowest = max(each["p95"] for name, each in frames.items() if "frame" in name)
    rows = [
        ["the map is drawn, first visit", seconds(load["first: map"]["median"] / 1e3)],
        ["the map is drawn, reload", seconds(load["again: map"]["median"] / 1e3)],
        [
            "the conversation is shown, reload",
            seconds(load["again: conversation"]["median"] / 1e3),
        ],
        ["a frame while moving or zooming, 95th percentile", seconds(slowest / 1e3)],
    ]
    header = [f"a tree of {found['nodes']:,} responses", "time"]
    return block([markdown(header, rows)])


def results() -> str:
    "Every table and plot, for a page of the documentation"
    text = (RESULTS / "README.md").read_text().partition("\n## ")[2]
    text = re.sub(r"^## \[(.*?)\]\(\w+\.md\)", r"## \1", "## " + text, flags=re.M)
    text = re.sub(r"\((\w+\.svg)\)", r"(../benchmarks/results/\1)", text)
    return f"\n{text.strip()}\n\n"


def beside_others() -> str | None:
    "Ratios of what people would use instead, one line for each thing"
    rows = [*cold(), *resident(), *disk(), *decode()]
    if not rows:
        return None
    header = ["", "ratio", "kvllama", "other", "which is"]
    last = next(r for r in map(result, ("resident", "cold", "disk", "decode")) if r)
    return block([markdown(header, rows), f"Medians on {machine.line(last.machine)}."])


def cold() -> list[list[str]]:
    found, n = result("cold"), 5000
    if found is None:
        return []
    title = f"follow-up to {found.facts[str(n)]['restored']:,} tokens, a new process"
    return [
        compared(found, title, ("follow-up", OURS, n), ("follow-up", name, n), name)
        for name in ("llm-gguf", "LlamaDiskCache")
        if found.values("follow-up", name, n)
    ]


def resident() -> list[list[str]]:
    found = result("resident")
    if found is None:
        return []
    rows = []
    n = found.settings["n_branches"]
    for title, names, peer in (
        ("follow-up, in memory", ("hot", "follow-up"), LLAMA),
        ("branch inside an answer, in memory", ("hot", "branch"), LLAMA),
        ("follow-up after a restart", ("restart", "cached", "follow-up"), SLOTS),
        ("the same", ("restart", "cached", "follow-up"), PYTHON),
        (f"{n} branches asked at once, in memory", ("tree", "hot", "at once"), LLAMA),
        (f"{n} branches, after a restart", ("tree", "restart", "at once"), SLOTS),
    ):
        if found.values(*names, peer):
            rows.append(compared(found, title, (*names, OURS), (*names, peer), peer))
    return rows


def disk() -> list[list[str]]:
    found = result("disk")
    if found is None:
        return []
    from .disk_report import kept

    mine, theirs = kept(found, OURS), kept(found, SLOTS)
    if mine is None or theirs is None:
        return []
    title = f"{found.settings['n_responses']} responses of one tree on disk"
    return [[title, ratio(mine / theirs), megabytes(mine), megabytes(theirs), SLOTS]]


def decode() -> list[list[str]]:
    found = result("decode")
    if found is None or not found.values("rate", "llama-bench"):
        return []
    rates = [plain(found.median("rate", name), 0) for name in (OURS, "llama-bench")]
    share = ratio(found.paired(("rate", OURS), ("rate", "llama-bench")))
    return [["tokens a second, one answer", share, *rates, "llama-bench"]]


def compared(
    found: Result,
    title: str,
    ours: tuple[object, ...],
    theirs: tuple[object, ...],
    peer: str,
) -> list[str]:
    values = [seconds(found.median(*ours)), seconds(found.median(*theirs))]
    return [title, ratio(found.ratio(ours, theirs)), *values, peer]


def block(parts: list[str]) -> str:
    "As cog puts it between its markers"
    return "\n" + "\n\n".join(parts) + "\n\n"
