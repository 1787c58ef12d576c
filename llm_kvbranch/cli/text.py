"""Text for a terminal: plurals and lines that wrap.

This module does not know what the text is about.
"""

from __future__ import annotations

import shutil
import sys
import textwrap


def count(n: int, noun: str) -> str:
    "A number and its noun: 1 state, 2 states"
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def hanging(text: str, indent: int) -> str:
    "Text wrapped for the terminal, later lines indented; unchanged when piped"
    if not sys.stdout.isatty():
        return text
    lines = textwrap.wrap(
        text,
        max(20, shutil.get_terminal_size().columns - indent),
        break_long_words=False,  # paths and commands are copied
        break_on_hyphens=False,
    )
    return ("\n" + " " * indent).join(lines)
