"""Markdown, and values as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from .result import Result

DASH = "–"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    "A table, its first column to the left and all others to the right"
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float | None) -> str:
    if value is None:
        return DASH
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{1000 * value:,.0f} ms" if value < 1 else f"{value:.2f} s"


def spread(result: Result, *name: object) -> str:
    "Seconds: the median, with the least and the most of all"
    values = result.values(*name)
    if len(values) < 2:
        return seconds(result.median(*name))
    low, high = seconds(min(values)), seconds(max(values))
    return f"{seconds(result.median(*name))} ({low} to {high})"


def ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.{3 if value < 0.1 else 2}f}"


def plain(value: float | None, digits: int = 0, unit: str = "") -> str:
    return DASH if value is None else f"{value:,.{digits}f} {unit}".rstrip()


def megabytes(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e6:,.1f} MB"
