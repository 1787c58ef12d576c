"""How long batches take, learned from those that were decoded.

The idea: a row costs more the deeper it is in its context, by an amount that depends on
the model, the machine and the kernels. The line is fitted to the last few dozen
batches. How fast the machine is right now, beside other programs, is a factor that
follows the last few.

The invariant: nothing is predicted for what was never measured, neither for another
kernel nor for rows much deeper than any before.

This module does not know what is in a batch, or what for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_MEASURED = 8  # rows; the time of fewer says little about the rate
_REMEMBERED = 0.97  # of what is known of rows and depths, from batch to batch
_PRESENT = 0.5  # share of the last batch in the present factor
_BEYOND = 512  # tokens that rows may be deeper than those measured
_SPREAD = 64.0  # tokens; depths must differ by more to say what depth costs
_ENDLESS, _TIMES = 60.0, 50  # seconds, and times as long as it should take


@dataclass(frozen=True)
class Shape:
    "How many rows a batch has, and the sum of their positions"

    rows: int = 0
    positions: int = 0

    def and_rows(self, start: int, n: int) -> Shape:
        "With n more rows of a sequence, from a position on"
        return Shape(self.rows + n, self.positions + n * start + n * max(0, n - 1) // 2)

    @property
    def depth(self) -> float:
        "The mean position"
        return self.positions / self.rows if self.rows else 0.0


@dataclass
class _Line:
    "Seconds a row takes by its depth, and how that compares with the present"

    weight: float = 0.0
    depth: float = 0.0  # means and moments of what was measured
    seconds: float = 0.0
    depth_squared: float = 0.0
    product: float = 0.0
    deepest: float = 0.0
    factor: float = 1.0

    def add(self, depth: float, seconds: float) -> None:
        self.weight = _REMEMBERED * self.weight + 1
        share = 1 / self.weight
        for name, value in (
            ("depth", depth),
            ("seconds", seconds),
            ("depth_squared", depth * depth),
            ("product", depth * seconds),
        ):
            before = getattr(self, name)
            setattr(self, name, before + share * (value - before))
        self.deepest = max(self.deepest, depth)
        factor = seconds / self.usual(depth)
        self.factor += _PRESENT * (factor - self.factor)

    def usual(self, depth: float) -> float:
        "Seconds that a row takes at a depth; never less than half of the mean"
        variance = self.depth_squared - self.depth**2
        covariance = self.product - self.depth * self.seconds
        slope = max(0.0, covariance / (max(0.0, variance) + _SPREAD**2))
        return max(self.seconds / 2, self.seconds + slope * (depth - self.depth))


@dataclass
class Costs:
    """What batches took.

    Those of ``tile`` rows or more are computed by another kernel than smaller ones.
    """

    tile: int = 1
    _small: _Line = field(default_factory=_Line)
    _tiled: _Line = field(default_factory=_Line)

    def measured(self, shape: Shape, seconds: float) -> None:
        "Record how long a batch took that read some of a prompt"
        if shape.rows >= _MEASURED:
            each = max(seconds, 1e-6) / shape.rows
            self._line(shape.rows).add(shape.depth, each)

    def seconds(self, shape: Shape) -> float | None:
        "How long a batch should take; None if nothing like it was measured"
        line = self._line(shape.rows)
        if not line.weight or shape.depth > line.deepest + _BEYOND:
            return None
        return shape.rows * line.usual(shape.depth) * line.factor

    def seconds_at_most(self, shape: Shape) -> float | None:
        "After how many seconds a batch counts as endless, if that is known"
        lines = [line for line in (self._small, self._tiled) if line.weight]
        if not lines:
            return None
        each = max(line.usual(shape.depth) * line.factor for line in lines)
        return _ENDLESS + _TIMES * shape.rows * each

    def _line(self, rows: int) -> _Line:
        return self._tiled if rows >= self.tile > 1 else self._small
