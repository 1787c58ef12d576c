"""Rounds in which contenders take turns, and a bar that shows how far they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

Who = TypeVar("Who")


def rotated(contenders: Sequence[Who], i: int) -> list[Who]:
    """The order of a round: each is first in its turn, and none always follows another.

    Every other round goes backwards.
    """
    some = list(contenders)
    if not some:
        return some
    at = i // 2 % len(some)
    order = some[at:] + some[:at]
    return order[::-1] if i % 2 else order


class Progress:
    "A progress bar for one measurement after the other"

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._bar: Any = None

    def begin(self, name: str, n: int) -> None:
        from tqdm import tqdm

        self.end()
        self._bar = tqdm(
            total=n,
            desc=f"{name:11}",
            unit="turn",
            disable=self._quiet,
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} {elapsed}{postfix}",
        )

    def step(self, text: str = "") -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        "A line that stays"
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def rounds(
        self, contenders: Sequence[Who], n: int, what: str = ""
    ) -> Iterator[tuple[int, Who]]:
        "Every contender in every round, in turns"
        for i in range(n):
            for contender in rotated(contenders, i):
                yield i, contender
                self.step(f"{what} {contender}".strip())
