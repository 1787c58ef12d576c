"""Which characters of a text are Markdown's marks, not shown once it is rendered.

The idea: a mark counts only where Markdown would take it for one: emphasis and code in
pairs, outside of words, and lists, quotes and headings at the start of a line. The
asterisk of ``2*3`` and what is in a fenced block is text. Marks that are nested in an
unusual way are taken for text, too.

This module knows strings only. It takes linear time.
"""

from __future__ import annotations

import re

_LINE = re.compile(r"(?:[ \t]*(?:>|(?:[-*+]|#{1,6})(?=[ \t])))+[ \t]*")
_NUMBERED = re.compile(r"(?:[ \t]*(?:>|(?:[-*+]|#{1,6}|\d{1,9}[.)])(?=[ \t])))+[ \t]*")
_FENCE = re.compile(r"[ \t]*(```|~~~)")
# An escaped character is text
_RUN = re.compile(r"\\.|`+|\*+|_+|~~|\n[ \t]*(?=\n)", re.DOTALL)


def marks(text: str, numbers: bool = False) -> set[int]:
    "The positions of marks in a text; those of numbered lists if ``numbers`` is set"
    found: set[int] = set()
    fence, at, part = "", 0, 0
    for line in text.splitlines(keepends=True):
        fenced = _FENCE.match(line)
        if fenced and fence in ("", fenced[1]):
            if not fence:
                found |= _pairs(text, part, at, found)
            fence = "" if fence else fenced[1]
            part = at + len(line)
        elif not fence and (match := (_NUMBERED if numbers else _LINE).match(line)):
            found.update(range(at, at + match.end()))
        at += len(line)
    return found if fence else found | _pairs(text, part, at, found)


def _pairs(text: str, start: int, end: int, known: set[int]) -> set[int]:
    "Marks of emphasis and code in [start, end) of a text, but the ``known`` ones"
    runs = [m for m in _RUN.finditer(text, start, end) if m.start() not in known]
    partners: dict[int, int] = {}  # of code: the next run of the same length
    coming: dict[str, int] = {}
    for i in range(len(runs) - 1, -1, -1):
        run = runs[i][0]
        if run[0] == "\n":
            coming.clear()
        elif run[0] == "`":
            if run in coming:
                partners[i] = coming[run]
            coming[run] = i
    found: set[int] = set()
    opened: dict[str, re.Match[str]] = {}
    i = 0
    while i < len(runs):
        match = runs[i]
        run = match[0]
        if run[0] == "\n":  # a paragraph ends
            opened.clear()
        elif i in partners:  # what is between them is text
            i = partners[i]
            found.update(range(*match.span()), range(*runs[i].span()))
        elif run[0] not in "\\`":
            before, after = (
                text[max(0, match.start() - 1) : match.start()],
                text[match.end() : match.end() + 1],
            )
            if run in opened and not before.isspace() and not _in_word(after):
                found.update(range(*opened.pop(run).span()), range(*match.span()))
            elif after.strip() and not _in_word(before):
                opened[run] = match
        i += 1
    return found


def _in_word(character: str) -> bool:
    return character.isalnum()
