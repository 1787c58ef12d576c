"""How texts differ, word by word.

The idea: the words that texts have in common at both ends are set aside at once, and
difflib compares the words between. Of very long texts it compares only the first of
these, and the rest counts as changed, so that no text takes long.

This module knows strings only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

MOST = 2000  # words of each text that difflib compares
Change = tuple[str, str]  # a sign and the text of a run of words


def words_of(text: str) -> list[str]:
    "Words with the white space after them; joined, they are the text again"
    return re.findall(r"\S+\s*|\s+", text)


def changes(left: str, right: str) -> list[Change]:
    """Both texts as one list of runs of words.

    The signs are " " (in both), "-" (only in the left) and "+" (only in the right).
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
    """Several texts side by side, each as runs with " " or "+".

    "+" marks what the first text does not have and, in the first text, what some
    other does not have.
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


def _runs(words: list[str], shared: list[bool]) -> list[Change]:
    runs: list[Change] = []
    for word, same in zip(words, shared, strict=True):
        sign = " " if same else "+"
        if runs and runs[-1][0] == sign:
            runs[-1] = (sign, runs[-1][1] + word)
        else:
            runs.append((sign, word))
    return runs


def _opcodes(a: list[str], b: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    "difflib's opcodes for whole texts, however long"
    start = _n_equal(a, b)
    end = _n_equal(a[start:][::-1], b[start:][::-1])
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


def _n_equal(a: list[str], b: list[str]) -> int:
    n = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        n += 1
    return n
