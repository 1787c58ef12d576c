"""Tables and plots of restoring or reading again: see breakeven.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import markdown, ratio, seconds

SLACK = 0.02  # seconds that the planner gives away to be on the safe side


def lengths(result: Result, name: str) -> list[int]:
    "The lengths that were measured with a model"
    known = result.settings["lengths"]
    return [n for n in known if result.values("prefill", name, n)]


def break_even(result: Result, name: str, way: str = "restore") -> str:
    "The shortest measured length from which restoring is faster"
    some, at = lengths(result, name), None
    for n in reversed(some):
        value = result.ratio((way, name, n), ("prefill", name, n))
        if value is None or value > 1:
            break
        at = n
    if at is None:
        return f"more than {some[-1]:,}"
    return f"{at:,} or less" if at == some[0] else f"{at:,}"


def regret(result: Result, name: str) -> float | None:
    "Seconds that planning cost beyond the cheaper way, at worst"
    worst = None
    for n in lengths(result, name):
        chosen = result.facts.get(f"plan/{name}/{n}")
        costs = {way: result.median(way, name, n) for way in ("prefill", "restore")}
        known = [cost for cost in costs.values() if cost is not None]
        if chosen is None or len(known) < 2:
            continue
        worst = max(worst or 0.0, (costs[chosen] or 0.0) - min(known))
    return worst


def bars(result: Result) -> list[Bar]:
    what = "seconds that the planner's choice costs beyond the cheaper way, at worst"
    return [
        Bar(f"{name}: {what}", regret(result, name), most=SLACK)
        for name in result.contenders
    ]


def table(result: Result) -> str:
    rows = [
        [
            name,
            break_even(result, name),
            break_even(result, name, "cold"),
            seconds(regret(result, name)),
        ]
        for name in result.contenders
    ]
    header = ["restoring is faster from", "tokens", "not in the page cache"]
    parts = [markdown([*header, "the planner's choice costs, at most"], rows)]
    rows = [
        [
            f"{name}, {n:,}",
            ratio(result.ratio(("restore", name, n), ("prefill", name, n))),
            *(seconds(result.median(way, name, n)) for way in ways),
            str(result.facts.get(f"plan/{name}/{n}", "")),
        ]
        for ways in [("prefill", "restore", "cold")]
        for name in result.contenders
        for n in lengths(result, name)
    ]
    header = ["model, tokens", "restore / prefill", "prefill", "restore", "cold"]
    return "\n\n".join([*parts, markdown([*header, "planned"], rows)])


def plot(result: Result) -> Any:
    names = list(result.contenders)
    title = "Milliseconds to the next token, restored or read again"
    figure = plots.figure(title, len(names), width=4.4, height=3.6)
    if figure is None:
        return None
    sheet, panels = figure
    for panel, name in zip(panels, names, strict=True):
        series = {
            way: [
                (float(n), 1000 * value)
                for n in lengths(result, name)
                if (value := result.median(way, name, n)) is not None
            ]
            for way in ("prefill", "restore", "cold")
        }
        plots.lines(panel, name, series, "tokens of context")
    return sheet
