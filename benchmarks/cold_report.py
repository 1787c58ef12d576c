"""Tables and plots of follow-ups in a new process: see cold.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import markdown, ratio, seconds, spread
from .peers.commands import PARTS

FIRST, FOLLOW = "first turn", "follow-up"
OURS, FLOOR = "kvllama", "floor"
SHARE_OF_FIRST = {1200: 0.22, 5000: 0.06}
SHARE_OF_FLOOR = 1.15
SPLIT_AT = 1200


def sizes(result: Result) -> list[int]:
    return [int(n) for n in result.settings["sizes"]]


def bars(result: Result) -> list[Bar]:
    found = []
    for n, most in SHARE_OF_FIRST.items():
        value = result.ratio((FOLLOW, OURS, n), (FIRST, n))
        why = "" if value is not None else "not in a quick run"
        what = f"follow-up to {n:,} tokens in a new process, of the first turn's time"
        found.append(Bar(what, value, most=most, why=why))
    for n in sizes(result):
        value = result.ratio((FOLLOW, OURS, n), (FOLLOW, FLOOR, n))
        what = f"follow-up to {n:,} tokens in a new process, against the floor"
        found.append(Bar(what, value, most=SHARE_OF_FLOOR))
    return found


def table(result: Result) -> str:
    names = list(result.contenders)
    header = ["conversation", "first turn", "follow-up / first turn"]
    header += [f"{OURS} / {FLOOR}", *names]
    rows = []
    for n in sizes(result):
        tokens = result.facts[str(n)]["restored"]
        rows.append(
            [
                f"{tokens:,} tokens",
                seconds(result.median(FIRST, n)),
                ratio(result.ratio((FOLLOW, OURS, n), (FIRST, n))),
                ratio(result.ratio((FOLLOW, OURS, n), (FOLLOW, FLOOR, n))),
                *(spread(result, FOLLOW, name, n) for name in names),
            ]
        )
    parts = [markdown(header, rows), "Medians (lowest to highest)."]
    return "\n\n".join([*parts, split(result), plugin(result)])


def split(result: Result) -> str:
    "Where the time goes, of each contender"
    n = SPLIT_AT if SPLIT_AT in sizes(result) else sizes(result)[-1]
    rows = [
        [
            name,
            *(seconds(result.median("part", name, n, part)) for part in PARTS),
            seconds(result.median(FOLLOW, name, n)),
        ]
        for name in result.contenders
    ]
    tokens = result.facts[str(n)]["restored"]
    text = markdown([f"{tokens:,} tokens: time in", *PARTS, "all"], rows)
    return (
        f"{text}\n\nStart-up is all until the model's file is opened; restore is all "
        "from there to the first decoding that is neither load nor context; first "
        "token is sampling and printing it."
    )


def plugin(result: Result) -> str:
    one, other = result.median("help", "without"), result.median("help", "with")
    if one is None or other is None:
        return ""
    return (
        f"`llm --help` takes {1000 * one:.0f} ms without this plugin and "
        f"{1000 * other:.0f} ms with it."
    )


def plot(result: Result) -> Any:
    figure = plots.figure("A follow-up in a new process", 2, width=5.6, height=4.2)
    if figure is None:
        return None
    sheet, (times, parts) = figure
    lengths = {n: result.facts[str(n)]["restored"] for n in sizes(result)}

    def points(*name: object) -> list[tuple[float, float]]:
        found = [(length, result.median(*name, n)) for n, length in lengths.items()]
        return [(length, y) for length, y in found if y is not None]

    series = {"kvllama, first turn": points(FIRST)}
    series |= {name: points(FOLLOW, name) for name in result.contenders}
    plots.lines(times, "Seconds to the first token", series, "tokens of conversation")
    n = SPLIT_AT if SPLIT_AT in lengths else max(lengths)
    split_of = {
        name: [result.median("part", name, n, part) or 0 for part in PARTS]
        for name in result.contenders
    }
    plots.stacked(parts, f"Where the time goes, {lengths[n]:,} tokens", PARTS, split_of)
    return sheet
