"""Text for a terminal: plurals and lines that wrap.

This module does not know what the text is about.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata

from .streams import is_terminal


def count(n: int, noun: str) -> str:
    "A number and its noun: 1 state, 2 states"
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def width(text: str) -> int:
    "The columns that a text takes on a terminal"
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # drawn onto the last one
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, columns: int) -> str:
    "The start of a text, in at most so many columns"
    if width(text) <= columns:
        return text
    room = columns - 1
    for i, character in enumerate(text):
        room -= _columns(character)
        if room < 0:
            return text[:i] + "…"
    return text


def columns() -> int:
    "The width of the terminal; 100 if standard output is not one"
    return shutil.get_terminal_size((100, 24)).columns


def hanging(text: str, indent: int) -> str:
    "Text wrapped for the terminal, later lines indented; unchanged when piped"
    if not is_terminal(sys.stdout):
        return text
    lines = textwrap.wrap(
        text,
        max(20, shutil.get_terminal_size().columns - indent),
        break_long_words=False,  # paths and commands are copied
        break_on_hyphens=False,
    )
    return ("\n" + " " * indent).join(lines)
