"""Finding an excerpt in a text.

The idea: people copy excerpts from a terminal or a page, which may wrap lines and
change quotes. So the exact excerpt is searched for first, then one that differs only
in white space and quotes. Positions are half-open ranges of characters in the
original text.

This module knows strings only.
"""

from __future__ import annotations

import difflib
import re

from ..errors import HistoryError

_QUOTES = str.maketrans(
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u00ab\u00bb", '\'\'\'\'"""""'
)
_AROUND = 24  # characters shown on each side of a match


def find(text: str, excerpt: str, occurrence: int | None = None) -> tuple[int, int]:
    """The (start, end) of an excerpt in a text.

    ``occurrence`` counts from 1 and is required if there are several. Raises
    HistoryError, which lists the matches or shows the nearest text.
    """
    if not excerpt.strip():
        raise HistoryError("The excerpt is empty: give some words of the answer")
    matches = _exact_matches(text, excerpt) or _folded_matches(text, excerpt)
    if not matches:
        near = _nearest(text, excerpt)
        raise HistoryError(
            "The answer does not contain that excerpt"
            + (f". The nearest text is: {near}" if near else "")
        )
    if occurrence is not None:
        if not 1 <= occurrence <= len(matches):
            raise HistoryError(
                f"The answer contains that excerpt {_times(len(matches))}, "
                f"there is no occurrence {occurrence}"
            )
        return matches[occurrence - 1]
    if len(matches) > 1:
        shown = "; ".join(
            f"{n}: {_show(text, *match)}" for n, match in enumerate(matches[:9], 1)
        )
        raise HistoryError(
            f"The answer contains that excerpt {_times(len(matches))}, choose an "
            f"occurrence: {shown}"
        )
    return matches[0]


def check_range(text: str, start: int, end: int) -> tuple[int, int]:
    "The range if it is inside the text; otherwise raises HistoryError"
    if not 0 <= start < end <= len(text):
        raise HistoryError(
            f"The range {start}:{end} is not in the answer, which has the "
            f"characters 0:{len(text)}"
        )
    return start, end


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _exact_matches(text: str, excerpt: str) -> list[tuple[int, int]]:
    found, at = [], text.find(excerpt)
    while at >= 0:
        found.append((at, at + len(excerpt)))
        at = text.find(excerpt, at + 1)
    return found


def _folded_matches(text: str, excerpt: str) -> list[tuple[int, int]]:
    "Matches that differ only in white space and quotes"
    folded, origin = _fold(text)
    wanted = _fold(excerpt)[0].strip()
    return [
        (origin[start], origin[end - 1] + 1)
        for start, end in _exact_matches(folded, wanted)
    ]


def _fold(text: str) -> tuple[str, list[int]]:
    "The text with plain quotes and single spaces, and the position of each character"
    folded: list[str] = []
    origin: list[int] = []
    for at, character in enumerate(text.translate(_QUOTES)):
        plain = " " if character.isspace() else character
        if plain != " " or folded[-1:] != [" "]:
            folded.append(plain)
            origin.append(at)
    return "".join(folded), origin


def _nearest(text: str, excerpt: str) -> str:
    "The part of the text with the longest match of the excerpt, for a message"
    matcher = difflib.SequenceMatcher(None, text, excerpt, autojunk=False)
    match = matcher.find_longest_match(0, len(text), 0, len(excerpt))
    if match.size < 3:
        return ""
    start = max(0, match.a - match.b)
    end = min(len(text), start + len(excerpt))
    while start and not text[start - 1].isspace():  # extend to whole words
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return _show(text, start, end)


def _show(text: str, start: int, end: int) -> str:
    "A match on one line, with some text around it"
    before, after = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
    parts = (re.sub(r"\s+", " ", part) for part in (before, text[start:end], after))
    left, middle, right = parts
    if len(middle) > 80:
        middle = f"{middle[:38]} ... {middle[-38:]}"
    return f"…{left}[{middle}]{right}…"
