"""Finding an excerpt in a text.

The idea: people copy excerpts from a terminal or a page, which may wrap lines, change
quotes and dashes, drop invisible characters, or compose accents. So the exact excerpt
is searched for first, then one that differs only in these, and last one that differs
in Markdown's marks as well, which a rendered page does not show. Positions are
half-open ranges of characters in the original text.

The invariant: a character and the accents on it stay together, unless the excerpt
occurs nowhere else.

This module knows strings only.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Container

from ..errors import AmbiguousExcerptError, HistoryError
from .markup import marks

_SIMILAR = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a`\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200e\u200f\u2060\ufeff", ""),
        "\u2026": "...",
    }
)
_JOINER = "\u200d"
_AROUND = 24  # characters shown on each side of a match
# What is compared to find the nearest text, so that the time for it is bounded
_MOST_TEXT, _MOST_EXCERPT = 100_000, 200


def find(
    text: str, excerpt: str, occurrence: int | None = None, where: str = "answer"
) -> tuple[int, int]:
    """The (start, end) of an excerpt in a text, which is called what ``where`` says.

    ``occurrence`` counts from 1 and is required if there are several. Raises
    HistoryError, which lists the matches or shows the nearest text.
    """
    if not excerpt.strip():
        raise HistoryError("The excerpt is empty: give some words of the answer")
    exact = _exact_matches(text, excerpt)
    whole = [match for match in exact if all(_is_boundary(text, at) for at in match)]
    matches = whole or _folded_matches(text, excerpt) or exact
    matches = matches or _unmarked_matches(text, excerpt)
    if not matches:
        near = _nearest(text, excerpt)
        raise HistoryError(
            "The answer does not contain that excerpt"
            + (f". The nearest text is: {near}" if near else "")
        )
    if occurrence is not None:
        if not 1 <= occurrence <= len(matches):
            raise HistoryError(
                f"The {where} contains that excerpt {_times(len(matches))}, "
                f"there is no occurrence {occurrence}"
            )
        return matches[occurrence - 1]
    if len(matches) > 1:
        shown = "; ".join(
            f"{n}: {_show(text, *match)}" for n, match in enumerate(matches[:9], 1)
        )
        raise AmbiguousExcerptError(
            f"The {where} contains that excerpt {_times(len(matches))}", shown
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
    "Matches that differ only in white space and in characters that look the same"
    return _matches(*_fold(text), _fold(excerpt)[0].strip())


def _unmarked_matches(text: str, excerpt: str) -> list[tuple[int, int]]:
    "Matches that differ in the marks of Markdown, too, in order"
    wanted = _fold(excerpt)[0].strip()
    # Other numbers are other words, so those of an excerpt stay
    bare = _fold(excerpt, marks(excerpt))[0].strip()
    found: set[tuple[int, int]] = set()
    bullets, all_marks = marks(text), marks(text, numbers=True)
    for hidden in (bullets, all_marks) if bullets != all_marks else (bullets,):
        folded = _fold(text, hidden)
        found.update(_matches(*folded, wanted))
        if bare != wanted:
            places = _matches(*folded, bare)
            found.update(place for place in places if _is_words(text, *place))
    return sorted(found)


def _is_words(text: str, start: int, end: int) -> bool:
    "Whether a range neither starts nor ends inside a word"
    return not any(
        text[at - 1 : at].isalnum() and text[at : at + 1].isalnum()
        for at in (start, end)
    )


def _matches(
    folded: str, spans: list[tuple[int, int]], wanted: str
) -> list[tuple[int, int]]:
    "The ranges of a text that was folded where something folded occurs in it"
    matches = _exact_matches(folded, wanted) if wanted else []
    found = ((spans[start][0], spans[end - 1][1]) for start, end in matches)
    return list(dict.fromkeys(found))


def _fold(text: str, hidden: Container[int] = ()) -> tuple[str, list[tuple[int, int]]]:
    """The text with plain characters and single spaces, and the range of each of them.

    Characters at the ``hidden`` positions are left out.
    """
    folded: list[str] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(text) + 1):
        if not _is_boundary(text, end):
            continue
        if start in hidden and end - start == 1:
            start = end
            continue
        plain = unicodedata.normalize("NFC", text[start:end].translate(_SIMILAR))
        if plain.isspace():
            plain = " " if folded[-1:] != [" "] else ""
        folded += plain
        spans += [(start, end)] * len(plain)
        start = end
    return "".join(folded), spans


def _is_boundary(text: str, at: int) -> bool:
    "Whether a text can be cut at a position without taking a character apart"
    if not 0 < at < len(text) or text[at] < "\u0300":
        return True
    after = text[at]
    return not (
        unicodedata.category(after)[0] == "M"
        or after == _JOINER
        or text[at - 1] == _JOINER
        or "\u1160" <= after <= "\u11ff"  # Korean letters of the same syllable
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
    )


def _nearest(text: str, excerpt: str) -> str:
    "The part of the text with the longest match of the excerpt, for a message"
    excerpt = excerpt[:_MOST_EXCERPT]
    matcher = difflib.SequenceMatcher(None, text[:_MOST_TEXT], excerpt, autojunk=False)
    match = matcher.find_longest_match()
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
