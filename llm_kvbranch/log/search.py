"""Finding responses by their words: llm's own full-text index, asked safely.

The idea: words are words, whatever signs are in them: each must be there, the last
one may go on, and what stands in quotes must be there as it is. So nothing that is
typed can be a mistake.

This module knows the log's tables, not what shows the results.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import sqlite_utils

from .ancestry import IN, listed
from .branching import question

_SHOWN = 300  # characters of a snippet
_WORDS = 24  # of it
# As llm ranks: what was asked says more of what a turn is about
_RANK = "bm25(turn_search_fts, 10.0, 1.0)"


@dataclass(frozen=True)
class Found:
    "A response, and where the words are in a ``snippet`` of it: [start, end) pairs"

    id: str
    model: str
    created: str | None
    prompt: str
    snippet: str
    hits: list[tuple[int, int]]


def match_of(words: str) -> str | None:
    "What SQLite has to match for some words; None where there are none"
    quoted = re.findall(r'"([^"]*)"|([^\s"]+)', words.replace("\0", " "))
    terms = [a or b for a, b in quoted]
    terms = [term for term in terms if any(map(str.isalnum, term))]
    if not terms:
        return None
    may_go_on = "*" if quoted[-1][1] == terms[-1] else ""
    return " ".join(f'"{term}"' for term in terms) + may_go_on


def search(
    db: sqlite_utils.Database,
    words: str,
    among: Iterable[str] | None = None,
    n: int = 50,
) -> list[Found]:
    "The n responses that fit some words best, of all or of those ``among`` which"
    match = match_of(words)
    if match is None or not db["turn_search_fts"].exists():
        return []
    # What no text can hold, since nobody could know it
    opened, closed = (secrets.token_hex(8) for _ in "[]")
    limited = "" if among is None else f"and turns.id {IN}"
    rows = db.query(
        "select turns.id, model, turns.datetime_utc, turn_search.prompt,"
        f" snippet(turn_search_fts, -1, ?, ?, '…', {_WORDS}) snippet"
        " from turn_search_fts"
        " join turn_search on turn_search.id = turn_search_fts.rowid"
        " join turns on turns.id = turn_search.turn_id"
        f" where turn_search_fts match ? {limited}"
        f" order by {_RANK}, turns.id desc limit ?",
        [opened, closed, match, *([] if among is None else [listed(among)]), n],
    )
    return [
        Found(
            row["id"],
            row["model"],
            row["datetime_utc"],
            question(row["prompt"] or ""),
            *_marked(row["snippet"] or "", opened, closed),
        )
        for row in rows
    ]


def _marked(text: str, opened: str, closed: str) -> tuple[str, list[tuple[int, int]]]:
    "A snippet without its marks, of a length that can be shown, and where they were"
    plain, hits = "", []
    for piece in text.split(opened):
        hit, end, rest = piece.partition(closed)
        if end:
            hits.append((len(plain), len(plain) + len(hit)))
        plain += hit + rest
    start = max(0, hits[0][0] - _SHOWN // 3) if hits and len(plain) > _SHOWN else 0
    shown = plain[start : start + _SHOWN]
    moved = [(a - start, min(b - start, len(shown))) for a, b in hits]
    return shown, [(a, b) for a, b in moved if a < b]
