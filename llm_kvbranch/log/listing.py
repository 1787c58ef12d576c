"""The trees of a log as a list that can be searched and turned over, newest first.

The idea: what is asked for (words, a model, a star) is true of a response; listed
is the tree that it is in, once, where its newest such response stands. Where a page
ends, the next one begins with what is older than its last response.

This module knows the log, neither state nor pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .ancestry import IN, listed
from .history import History
from .search import match_of
from .tree import Forest, Node

_READ = 200  # responses that are looked at at once
SHOWN = 500  # characters of each prompt


@dataclass(frozen=True)
class Wanted:
    "Which trees: those with a response that all this is true of"

    words: str = ""
    model: str | None = None
    starred: bool = False
    before: str | None = None

    @property
    def is_all(self) -> bool:
        return not (self.words.strip() or self.model or self.starred)


@dataclass
class Listed:
    "A tree, and the responses in it that were wanted, newest first"

    root: Node
    fitting: list[str]


@dataclass
class Page:
    "Some trees, and where the next page begins, None at the end"

    trees: list[Listed] = field(default_factory=list)
    before: str | None = None


def list_trees(history: History, wanted: Wanted, n: int = 25) -> Page:
    "The n trees that are next"
    forest, page = Forest(history, SHOWN), Page()
    for tree in _listed(forest, wanted, n):
        if len(page.trees) == n:
            page.before = page.trees[-1].fitting[0]
            break
        page.trees.append(tree)
    return page


def models_of(history: History) -> list[str]:
    "The models that answered in a log"
    rows = history.db.query("select distinct model from turns order by model")
    return [row["model"] for row in rows if row["model"]]


def n_older(history: History) -> int:
    "Conversations in the tables that llm wrote before 0.32, and not brought over"
    if not history.db["conversations"].exists():
        return 0
    query = (
        "select count(*) n from conversations where id not in (select id from threads)"
    )
    return int(next(history.db.query(query))["n"])


def _listed(forest: Forest, wanted: Wanted, n: int) -> Iterator[Listed]:
    "Trees in the order of the newest response that was wanted"
    seen: set[str] = set()
    before = wanted.before
    while ids := _fitting(forest, wanted, before):
        before = ids[-1]
        forest.ancestry.learn(ids)
        roots = [
            r for r in dict.fromkeys(map(forest.ancestry.root, ids)) if r not in seen
        ]
        seen.update(roots)
        for start in range(0, len(roots), n):
            for root in forest.grown(roots[start : start + n]):
                members = [node.id for node in root.walk()]
                fitting = _fitting(forest, wanted, among=members)
                if wanted.before is None or fitting[0] < wanted.before:
                    yield Listed(root, fitting)  # else it was on a page before


def _fitting(
    forest: Forest,
    wanted: Wanted,
    before: str | None = None,
    among: Iterable[str] | None = None,
) -> list[str]:
    "The newest responses that are wanted"
    joins, conditions, values = [], ["1"], []
    if wanted.words.strip():
        joins.append(
            "join turn_search on turn_search.turn_id = turns.id"
            " join turn_search_fts on turn_search_fts.rowid = turn_search.id"
        )
        conditions.append("turn_search_fts match ?")
        values.append(match_of(wanted.words) or '""')
    if wanted.starred:
        if not forest.db["kvbranch_marks"].exists():
            return []
        joins.append("join kvbranch_marks on response_id = turns.id and starred")
    if wanted.model:
        conditions.append("model = ?")
        values.append(wanted.model)
    if before is not None:
        conditions.append("turns.id < ?")
        values.append(before)
    if among is not None:
        conditions.append(f"turns.id {IN}")
        values.append(listed(among))
    rows = forest.db.query(
        f"select turns.id from turns {' '.join(joins)}"
        f" where {' and '.join(conditions)} order by turns.id desc limit {_READ}",
        values,
    )
    return [row["id"] for row in rows]
