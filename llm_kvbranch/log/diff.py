"""Texts as words: how they differ, and how they begin.

The idea: what two texts begin and end with alike is set aside at once; the words
between are compared by difflib. Of very long texts the rest is one piece, so that
no text takes long.

This module knows texts only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

MOST = 2000  # words between what is alike at the ends that are compared
Change = tuple[str, str]


def words_of(text: str) -> list[str]:
    "Words with the white space behind them: together they are the text"
    return re.findall(r"\S+\s*|\s+", text)


def one_line(text: str, n: int) -> str:
    "The beginning of a text in one line of n characters"
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1] + "…"


def changes(left: str, right: str) -> list[Change]:
    """Both texts as runs of words that are equal, gone or new.

    The signs are " ", "-" (the left one has it) and "+" (the right one).
    """
    a, b = words_of(left), words_of(right)
    found: list[Change] = []
    for kind, i, j, k, m in _opcodes(a, b):
        if kind == "equal":
            found.append((" ", "".join(a[i:j])))
            continue
        found += [("-", "".join(a[i:j]))] if j > i else []
        found += [("+", "".join(b[k:m]))] if m > k else []
    return found


def columns(texts: list[str]) -> list[list[Change]]:
    """Several texts beside each other, each as runs with " " or "+".

    "+" is what the first one does not have; of the first, what not all others have.
    """
    first = words_of(texts[0])
    shared = [True] * len(first)
    found: list[list[Change]] = []
    for text in texts[1:]:
        other, signs = words_of(text), [False] * len(first)
        has = [False] * len(other)
        for kind, i, j, k, m in _opcodes(first, other):
            if kind == "equal":
                signs[i:j] = [True] * (j - i)
                has[k:m] = [True] * (m - k)
        shared = [mine and theirs for mine, theirs in zip(shared, signs, strict=True)]
        found.append(_runs(other, has))
    return [_runs(first, shared), *found]


def _runs(words: list[str], alike: list[bool]) -> list[Change]:
    runs: list[Change] = []
    for word, same in zip(words, alike, strict=True):
        sign = " " if same else "+"
        if runs and runs[-1][0] == sign:
            runs[-1] = (sign, runs[-1][1] + word)
        else:
            runs.append((sign, word))
    return runs


def _opcodes(a: list[str], b: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    "As difflib's, of whole texts"
    start = _n_alike(a, b)
    end = _n_alike(a[start:][::-1], b[start:][::-1])
    if start:
        yield "equal", 0, start, 0, start
    last_a, last_b = len(a) - end, len(b) - end
    compared_a, compared_b = min(last_a, start + MOST), min(last_b, start + MOST)
    matcher = difflib.SequenceMatcher(
        None, a[start:compared_a], b[start:compared_b], autojunk=False
    )
    for kind, i, j, k, m in matcher.get_opcodes():
        yield kind, i + start, j + start, k + start, m + start
    if compared_a < last_a or compared_b < last_b:
        yield "replace", compared_a, last_a, compared_b, last_b
    if end:
        yield "equal", last_a, len(a), last_b, len(b)


def _n_alike(a: list[str], b: list[str]) -> int:
    n = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        n += 1
    return n
