"""A measurement's files: its JSON, its table, its plot, and a summary of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from . import machine, plots, table
from .bars import Bar, number
from .measurement import Measurement
from .result import Result, read, write

VERDICTS = {True: "met", False: "**missed**", None: "not measured"}


def publish(measurement: Measurement, result: Result, out: Path) -> None:
    "Write all that is to be told of a result"
    write(result, [bar.to_json() for bar in measurement.bars(result)], out)
    figure = measurement.plot(result)
    picture = figure is not None
    if figure is not None:
        plots.save(figure, out, result.name, footnote(result))
    (out / f"{result.name}.md").write_text(page(measurement, result, picture))


def footnote(result: Result) -> str:
    quick = "A quick run: not to be quoted. " if result.quick else ""
    return f"{quick}{machine.line(result.machine)}; {result.date}"


def page(measurement: Measurement, result: Result, picture: bool = True) -> str:
    "Markdown: the table, what each one was asked to do, what must hold"
    parts = [f"# {result.title}"]
    if result.quick:
        parts.append("A quick run, to see that it works: not to be quoted.")
    parts.append(measurement.table(result))
    if picture:
        parts.append(f"![{result.title}]({result.name}.svg)")
    if bars := measurement.bars(result):
        parts.append(bars_table(bars))
    if result.contenders:
        lines = [f"- **{name}**: {what}" for name, what in result.contenders.items()]
        parts.append("\n".join(lines))
    if result.dashes:
        lines = [f"- {name}: {why}" for name, why in result.dashes.items()]
        parts.append("What is not there, and why:\n\n" + "\n".join(lines))
    if result.checks:
        parts.append(checks_table(result))
    versions = ", ".join(f"{name} {v}" for name, v in result.versions.items())
    parts.append(f"{machine.line(result.machine)}. {versions}. {result.date}")
    return "\n\n".join(parts) + "\n"


def bars_table(bars: Sequence[Bar]) -> str:
    rows = [
        [
            bar.what,
            bar.why or table.DASH if bar.value is None else number(bar.value),
            bar.limit,
            VERDICTS[bar.met],
        ]
        for bar in bars
    ]
    return table.markdown(["must hold", "is", "limit", ""], rows)


def checks_table(result: Result) -> str:
    rows = [
        [
            f"{check['contender']}, {check['what']}",
            f"{check['judged']} of {check['of']}",
            f"{check['gap']:.2f}",
            "yes" if check["right"] else check.get("reason") or "**no**",
        ]
        for check in result.checks
    ]
    text = (
        "Answers, judged by the model reading everything anew: how much more likely "
        "another token was at the worst (logits; rounding moves them by some tenths)."
    )
    header = ["answers of", "judged", "gap", "right"]
    return f"{text}\n\n{table.markdown(header, rows)}"


def summary(measurements: Sequence[Measurement], out: Path) -> None:
    "``README.md`` of the results: every bar, and every table"
    parts = ["# Results", "Made by `python -m benchmarks`. Ratios first."]
    for measurement in measurements:
        result = read(out / f"{measurement.name}.json")
        if result is None:
            continue
        quick = " (a quick run: not to be quoted)" if result.quick else ""
        parts.append(f"## [{result.title}]({result.name}.md){quick}")
        if (out / f"{result.name}.svg").exists():
            parts.append(f"![{result.title}]({result.name}.svg)")
        if bars := measurement.bars(result):
            parts.append(bars_table(bars))
        parts.append(measurement.table(result))
        parts.append(f"{machine.line(result.machine)}; {result.date}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n\n".join(parts) + "\n")


def today() -> str:
    return time.strftime("%Y-%m-%d")
