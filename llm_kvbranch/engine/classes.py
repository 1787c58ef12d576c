"""Classes of batches: how many rows are computed together decides how they round.

The idea: llama.cpp's CPU backend has several kernels for the same mathematics, and
chooses by the number of rows in a batch. Within a class of sizes a row comes out the
same, bit for bit, whatever is computed beside it; from one class to another the last
bits differ. Matrix products have one kernel for a single row and one for more. Flash
attention over f16 or f32 rows has another one from 64 rows on.

The invariant: ``of`` never puts two sizes into one class that are known to differ.

This module knows what llama.cpp's source says; ``llm kvbranch doctor --exact`` finds
out whether the machine agrees. It does not know prompts or why rows are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from .parameters import Settings, rows_at_once

ONE, FEW, MANY = 1, 2, 3  # codes of the classes
_TILE = 64  # rows, GGML_FA_TILE_Q
_TILED = ("f16", "f32")


@dataclass(frozen=True)
class Classes:
    """The smallest batch of each class, in rows.

    Batches of ``few`` rows or more, up to ``many``, are of one class, those of ``many``
    or more of another. Both are 1 if no size is known to agree with another, or if it
    does not matter. llama.cpp splits batches of more than ``most`` rows, 0 for never.
    """

    few: int = 1
    many: int = 1
    most: int = 0

    @property
    def tile(self) -> int:
        "Rows that are computed in one go, 1 where there is no such number"
        return self.many if self.many > self.few else 1

    def of(self, n: int) -> int:
        "The code of the class of a batch of n rows"
        if n >= self.many:
            return MANY
        return FEW if n >= self.few else ONE

    def least(self, n: int) -> int:
        "The fewest rows that are of the class of n rows"
        return {MANY: self.many, FEW: self.few}.get(self.of(n), 1)

    def piece(self, left: int, room: int) -> int:
        """How many of the rows that are left to decode next, at most ``room``.

        What llama.cpp computes at once is of the class of ``left`` rows, now and later.
        """
        n, least = min(left, room), self.least(left)
        if 0 < left - n < least < left:
            n = max(1, left - least)
        if self.most and n > self.most and 0 < n % self.most < least:
            n -= least if n == left else n % self.most
        return n


def classes_of(settings: Settings, on_cpu: bool) -> Classes:
    "The classes of a context; nothing is known of kernels that are not the CPU's"
    if not on_cpu:
        return Classes()
    most = rows_at_once(settings, on_cpu)
    same = settings.type_k == settings.type_v
    tiled = settings.flash_attn != "off" and same and settings.type_k in _TILED
    if tiled and most >= _TILE:
        return Classes(2, _TILE, most)
    return Classes(2, 2, most)
