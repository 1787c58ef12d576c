"""Finding responses and trees: by words, model or star, newest or best first.

The idea: llm keeps a full-text index of its log. Everything a person types is taken
as words, never as the syntax of a query, so nothing they type is an error. A list of
trees shows each tree once, at its newest response that matches; the next page starts
after the last of these.

This module knows the log's tables. It does not know how results are shown.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice

import sqlite_utils

from .history import History
from .tables import IN, json_list
from .text import as_text, question
from .tree import Forest, Node

MAX_WORDS = 20  # of a visitor's search
_SNIPPET = 300  # characters
_SNIPPET_WORDS = 24
_PROMPT = 500  # characters read of each prompt in a list of trees
_READ = 200  # responses read at once for a list
# As llm ranks: words in a prompt say more about a turn than words in an answer
_RANK = "bm25(turn_search_fts, 10.0, 1.0)"


# -- responses -----------------------------------------------------------


@dataclass(frozen=True)
class Found:
    "A response, and a snippet of it with the [start, end) ranges of the words in it"

    id: str
    model: str
    created: str | None
    prompt: str
    snippet: str
    hits: list[tuple[int, int]]


def match_of(words: str) -> str | None:
    """What SQLite must match: all words, the last one as a prefix, quotes as phrases.

    None if there are no words.
    """
    quoted = re.findall(r'"([^"]*)"|([^\s"]+)', words.replace("\0", " "))
    terms = [a or b for a, b in quoted]
    terms = [term for term in terms if any(map(str.isalnum, term))]
    if not terms:
        return None
    *before, last = terms
    each = {term.lower(): term for term in before}  # again, a word changes nothing
    prefix = "*" if quoted[-1][1] == last else ""
    if not prefix:
        each.pop(last.lower(), None)
    return " ".join(f'"{term}"' for term in (*each.values(), last)) + prefix


def count_words(words: str) -> int:
    "The number of words that SQLite must find, each counted once outside of phrases"
    phrases = re.findall(r'"[^"]*"|[^\s"]+', (match_of(words) or "").rstrip("*"))
    return sum(
        sum(is_word for is_word, _ in groupby(phrase, _in_word)) for phrase in phrases
    )


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def search_responses(
    db: sqlite_utils.Database,
    words: str,
    among: Iterable[str] | None = None,
    n: int = 50,
) -> list[Found]:
    "The n responses that match words best, of all or of those ``among``"
    match = match_of(words)
    if match is None or not db["turn_search_fts"].exists():
        return []
    # Random, so that no text can contain them
    opened, closed = (secrets.token_hex(8) for _ in "[]")
    marking = [opened, closed, match]
    limited = "" if among is None else f"and turns.id {IN}"
    # Snippets are made of the best ones only: of all, they would take most of the time
    rows = db.query(
        "with best as (select turn_search.id key, turns.id, turns.rowid logged, model,"
        f" turns.datetime_utc, turn_search.prompt, {_RANK} score from turn_search_fts"
        " join turn_search on turn_search.id = turn_search_fts.rowid"
        " join turns on turns.id = turn_search.turn_id"
        f" where turn_search_fts match ? {limited}"
        " order by score, turns.rowid desc limit ?)"
        f" select best.*, snippet(turn_search_fts, -1, ?, ?, '…', {_SNIPPET_WORDS})"
        " snippet from best cross join turn_search_fts"
        " where turn_search_fts match ? and turn_search_fts.rowid = best.key"
        " order by best.score, best.logged desc",
        [match, *([] if among is None else [json_list(among)]), n, *marking],
    )
    return [
        Found(
            row["id"],
            as_text(row["model"]),
            as_text(row["datetime_utc"]) or None,
            question(as_text(row["prompt"])),
            *_parse_snippet(as_text(row["snippet"]), opened, closed),
        )
        for row in rows
    ]


def _parse_snippet(
    text: str, opened: str, closed: str
) -> tuple[str, list[tuple[int, int]]]:
    "A snippet cut to a length that can be shown, and the ranges that were marked"
    plain, hits = "", []
    for piece in text.split(opened):
        hit, end, rest = piece.partition(closed)
        if end:
            hits.append((len(plain), len(plain) + len(hit)))
        plain += hit + rest
    start = 0
    if hits and len(plain) > _SNIPPET:
        start = max(0, hits[0][0] - _SNIPPET // 3)
    shown = plain[start : start + _SNIPPET]
    moved = [(a - start, min(b - start, len(shown))) for a, b in hits]
    return shown, [(a, b) for a, b in moved if a < b]


# -- trees ---------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    "Which trees to list: those with a response that fits all of this"

    words: str = ""
    model: str | None = None
    starred: bool = False
    before: str | None = None

    @property
    def is_all(self) -> bool:
        return not (self.words.strip() or self.model or self.starred)


@dataclass
class Listed:
    "A tree, and its responses that fit, newest first"

    root: Node
    fitting: list[str]


@dataclass
class Page:
    "Some trees, and the ``before`` of the next page, None on the last one"

    trees: list[Listed] = field(default_factory=list)
    before: str | None = None


def list_trees(history: History, wanted: Filter, n: int = 25) -> Page:
    "The next n trees"
    forest, page = Forest(history, _PROMPT), Page()
    for tree in _matching_trees(forest, wanted, n):
        if len(page.trees) == n:
            page.before = page.trees[-1].fitting[0]
            break
        page.trees.append(tree)
    return page


def _matching_trees(forest: Forest, wanted: Filter, n: int) -> Iterator[Listed]:
    "Trees in the order of their newest response that fits"
    seen: set[str] = set()
    start_at = before = _logged(forest, wanted.before)
    most = _READ
    found = _Fitting(forest, wanted)
    while ids := found.before(before, most):
        before = min(ids.values())
        most *= 2  # a deep tree may hold all of them
        forest.ancestry.load(ids)
        roots = [
            r for r in dict.fromkeys(map(forest.ancestry.root, ids)) if r not in seen
        ]
        seen.update(roots)
        for start in range(0, len(roots), n):
            trees = forest.load(roots[start : start + n])
            members = [[node.id for node in root.walk()] for root in trees]
            all_members = [id for inside in members for id in inside]
            fits = found.among(all_members)
            for root, inside in zip(trees, members, strict=True):
                here = [id for id in inside if id in fits]
                fitting = sorted(here, key=fits.__getitem__, reverse=True)
                if fitting and (start_at is None or fits[fitting[0]] < start_at):
                    # Others were on an earlier page
                    yield Listed(root, fitting[:_READ])


class _Fitting:
    "The responses that fit, as from _fitting; words are looked for in the log once"

    def __init__(self, forest: Forest, wanted: Filter):
        self._forest, self._wanted = forest, wanted
        has_words = bool(wanted.words.strip())
        self._all = _fitting(forest, wanted) if has_words else None

    def before(self, before: int | None, most: int) -> dict[str, int]:
        "At most so many that were logged before one, newest first"
        if self._all is None:
            return _fitting(self._forest, self._wanted, before, most=most)
        older = (
            (id, logged)
            for id, logged in self._all.items()
            if before is None or logged < before
        )
        return dict(islice(older, most))

    def among(self, ids: Iterable[str]) -> dict[str, int]:
        "Those of some responses that fit"
        if self._all is None:
            return _fitting(self._forest, self._wanted, among=ids)
        return {id: self._all[id] for id in ids if id in self._all}


def _fitting(
    forest: Forest,
    wanted: Filter,
    before: int | None = None,
    among: Iterable[str] | None = None,
    most: int = -1,
) -> dict[str, int]:
    """At most so many responses that fit, of all or of those ``among``.

    The newest come first, each with its rowid: ids may be of a clock that is ahead.
    """
    joins, conditions = [], ["1"]
    values: list[str | int] = []
    if wanted.words.strip():
        joins.append(
            "join turn_search on turn_search.turn_id = turns.id"
            " join turn_search_fts on turn_search_fts.rowid = turn_search.id"
        )
        conditions.append("turn_search_fts match ?")
        values.append(match_of(wanted.words) or '""')
    if wanted.starred:
        if not forest.db["kvbranch_marks"].exists():
            return {}
        joins.append("join kvbranch_marks on response_id = turns.id and starred")
    if wanted.model:
        conditions.append("model = ?")
        values.append(wanted.model)
    if before is not None:
        conditions.append("turns.rowid < ?")
        values.append(before)
    if among is not None:
        conditions.append(f"turns.id {IN}")
        values.append(json_list(among))
    rows = forest.db.query(
        f"select turns.id, turns.rowid as logged from turns {' '.join(joins)}"
        f" where {' and '.join(conditions)} order by turns.rowid desc limit {most}",
        values,
    )
    return {row["id"]: row["logged"] for row in rows}


def _logged(forest: Forest, response_id: str | None) -> int | None:
    "The rowid of a response; if it is gone, one after those with a lower id"
    query = (
        "select coalesce((select rowid from turns where id = :id),"
        " (select max(rowid) from turns where id < :id) + 1, 0) logged"
    )
    rows = forest.db.query(query, {"id": response_id})
    return None if response_id is None else int(next(rows)["logged"])
