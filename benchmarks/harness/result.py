"""What a measurement found: every value, and what is needed to understand it.

The idea: values are kept under names of several parts, joined by slashes, such as
``follow-up/kvllama/1200``. Everything that is told of a measurement is computed from
a ``Result``, which is its JSON file and nothing more.

This module does not know what was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass
class Result:
    """Values by name, and the facts beside them.

    ``contenders`` says what each one was asked to do, ``dashes`` why a value is
    not there, ``checks`` whether answers were right.
    """

    name: str
    title: str
    quick: bool = False
    date: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    contenders: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    dashes: dict[str, str] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, list[float]] = field(default_factory=dict)

    def add(self, value: float, *name: object) -> None:
        self.raw.setdefault(key(*name), []).append(value)

    def values(self, *name: object) -> list[float]:
        return self.raw.get(key(*name), [])

    def median(self, *name: object) -> float | None:
        "None where nothing was measured"
        values = self.values(*name)
        return statistics.median(values) if values else None

    def ratio(self, one: Iterable[object], other: Iterable[object]) -> float | None:
        "That of two medians, None where one was not measured"
        above, below = self.median(*one), self.median(*other)
        return None if above is None or not below else above / below

    def paired(self, one: Iterable[object], other: Iterable[object]) -> float | None:
        """The median of the ratios within each round.

        A machine that is slower for a while is so for both of a round.
        """
        above, below = self.values(*one), self.values(*other)
        if not above or len(above) != len(below):
            return self.ratio(one, other)
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    def why_not(self, *name: object) -> str:
        "Why there is no value: the reason for the longest name that has one"
        parts = key(*name).split("/")
        for n in range(len(parts), 0, -1):
            if reason := self.dashes.get("/".join(parts[:n])):
                return reason
        return self.dashes.get(parts[-1], "not measured")


def key(*name: object) -> str:
    return "/".join(str(part) for part in name)


def medians(result: Result) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "n": len(values),
        }
        for name, values in result.raw.items()
        if values
    }


def write(result: Result, bars: list[dict[str, Any]], out: Path) -> Path:
    "``<name>.json``: all of it, with the medians and bars that follow"
    path = out / f"{result.name}.json"
    body = {"format": FORMAT, **asdict(result), "medians": medians(result)}
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**body, "bars": bars}, indent=1) + "\n")
    return path


def read(path: Path) -> Result | None:
    "What was written; None where there is nothing, or of another format"
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if body.get("format") != FORMAT:
        return None
    return Result(**{name: body[name] for name in Result.__dataclass_fields__})
