"""What must hold, whether it does, and the line that says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A value and the most, or the least, that it may be.

    ``value`` is None where it was not measured, which is not a miss but is told:
    ``why`` says what was lacking.
    """

    what: str
    value: float | None
    most: float | None = None
    least: float | None = None
    why: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )

    @property
    def limit(self) -> str:
        if self.most is not None:
            return f"at most {number(self.most)}"
        return f"at least {number(self.least or 0)}"

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]

    def line(self) -> str:
        value = self.why if self.value is None else number(self.value)
        return f"{self.verdict:12}  {self.what}: {value}, {self.limit}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def number(value: float) -> str:
    "Three digits, as many as a ratio of noisy times deserves"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
