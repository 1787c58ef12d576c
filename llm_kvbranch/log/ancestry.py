"""Which response each response continues, read for many of them at once.

The idea: a response's parent is the one that a command branched from or, without
such a record, the one whose answer comes last in its prompt. Everything above or
below a set of responses takes a few queries, however large or deep the set is.

The invariant: every walk ends, whatever the log says: messages that are their own
ancestors, parents that do not exist, and records of branches that form a circle.

This module owns every walk over the log's messages. It does not know what a tree
looks like.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import sqlite_utils

from ..errors import HistoryError
from .deadline import check
from .tables import IN, json_list

T = TypeVar("T")

# Turns and messages above some turns. SQLite makes an index for the third step,
# since llm's table has none for the tips of turns
_ABOVE = """
with recursive above(kind, key) as (
  select 'turn', value from json_each(?)
  union select 'message', parent_message_hash from above
    join turns on kind = 'turn' and id = key
  union select 'message', parent_hash from above
    join messages on kind = 'message' and hash = key
  union select 'turn', id from above
    cross join turns on kind = 'message' and tip_message_hash = key
  {branches})
select id, rowid as logged, thread_id, tip_message_hash from turns
  where id in (select key from above where kind = 'turn')
"""
_ABOVE_BRANCHES = """
  union select 'turn', from_response from above
    join kvbranch_branches on kind = 'turn' and response_id = key
"""
_BELOW = """
with recursive below(kind, key) as (
  select 'turn', value from json_each(?)
  union select 'message', tip_message_hash from below
    join turns on kind = 'turn' and id = key
  union select 'message', hash from below
    join messages on kind = 'message' and parent_hash = key
  union select 'turn', id from below
    cross join turns on kind = 'message' and parent_message_hash = key
  {branches})
select id from turns where id in (select key from below where kind = 'turn')
"""
_BELOW_BRANCHES = """
  union select 'turn', response_id from below
    join kvbranch_branches on kind = 'turn' and from_response = key
"""
# The last answer in each prompt
_LAST_ANSWERS = f"""
with recursive up(turn, hash, parent, role) as (
  select turns.id, m.hash, m.parent_hash, m.role from turns
    join messages m on m.hash = turns.parent_message_hash where turns.id {IN}
  union
  select up.turn, m.hash, m.parent_hash, m.role from up
    join messages m on m.hash = up.parent where up.role <> 'assistant')
select turn, hash from up where role = 'assistant'
"""
_UP = """
with recursive up(hash) as ({start}
  union select m.parent_hash from messages m join up on m.hash = up.hash)
select * from messages where hash in (select hash from up)
"""
_UP_FROM_TURNS = _UP.format(start=f"select tip_message_hash from turns where id {IN}")
_UP_FROM_MESSAGE = _UP.format(start="select ?")
_WITH_MESSAGE = """
with recursive down(hash) as (select hash from messages where hash = ?1
  union select m.hash from messages m join down on m.parent_hash = down.hash)
select id from turns where tip_message_hash in (select hash from down)
  order by tip_message_hash = ?1 desc, parent_message_hash = ?1 desc, rowid desc
  limit 1
"""
_ORIGINS = f"""
select response_id, from_response, verb from kvbranch_branches
  where from_response is not null and response_id {IN}
"""


# -- messages ------------------------------------------------------------


def climb(at: T | None, above: Callable[[T], T | None]) -> Iterator[T]:
    "One, what is above it, and so on; ends before any comes a second time"
    seen: set[T] = set()
    while at is not None and at not in seen:
        check()
        seen.add(at)
        yield at
        at = above(at)


def messages_above(
    db: sqlite_utils.Database, response_ids: Iterable[str]
) -> Iterator[dict[str, Any]]:
    "The rows of every message up to the answers of some responses"
    yield from db.query(_UP_FROM_TURNS, [json_list(response_ids)])


def chain(db: sqlite_utils.Database, tip: str | None) -> list[dict[str, Any]]:
    "The rows of all messages up to one, first one first; HistoryError if one is gone"
    rows = {row["hash"]: row for row in db.query(_UP_FROM_MESSAGE, [tip])}
    path = list(climb(tip, lambda at: rows[at]["parent_hash"] if at in rows else None))
    for at in path:
        if at not in rows:
            raise HistoryError(f"The log is damaged: message {at} is missing")
    if path and rows[path[-1]]["parent_hash"] is not None:
        raise HistoryError(f"The log is damaged: message {tip} is its own ancestor")
    return [rows[at] for at in reversed(path)]


def resolve_message(db: sqlite_utils.Database, message: str) -> str:
    """The newest response with a message as its answer, in its prompt or above it.

    Responses are preferred in this order. Raises HistoryError for an unknown message.
    """
    for row in db.query(_WITH_MESSAGE, [message]):
        return str(row["id"])
    raise HistoryError(f"No response with message {message!r} in the log")


# -- responses -----------------------------------------------------------


class Ancestry:
    "The parents of responses; everything is read once and kept"

    def __init__(self, db: sqlite_utils.Database):
        self.db = db
        self._has_branches = db["kvbranch_branches"].exists()
        self._threads: dict[str, str] = {}
        self._logged: dict[str, int] = {}  # rowids: later ones are higher
        self._tips: dict[str, str | None] = {}
        # The responses with a tip, all of them or those in one thread, oldest first
        self._by_tip: dict[tuple[str, str | None], list[str]] = {}
        self._last_answers: dict[str, str] = {}  # the last answer in each prompt
        self._origins: dict[str, tuple[str, str]] = {}  # branched from, by which verb
        self._loaded: set[str] = set()
        self._firsts: dict[str, str | None] = {}
        self._parents: dict[str, str | None] = {}
        self._roots: dict[str, str] = {}

    def load(self, response_ids: Iterable[str]) -> None:
        "Read what is needed to find the ancestors of some responses"
        wanted = set(response_ids) - self._loaded
        if not wanted:
            return
        branches = _ABOVE_BRANCHES if self._has_branches else ""
        rows = self.db.query(_ABOVE.format(branches=branches), [json_list(wanted)])
        new = [row for row in rows if row["id"] not in self._tips]
        changed = set()
        for row in new:
            id, thread, tip = row["id"], row["thread_id"], row["tip_message_hash"]
            self._threads[id] = thread
            self._logged[id] = row["logged"]
            self._tips[id] = tip
            for key in {(tip, None), (tip, thread)} if tip is not None else ():
                self._by_tip.setdefault(key, []).append(id)
                changed.add(key)
        for key in changed:
            self._by_tip[key].sort(key=self._logged.__getitem__)
        ids = json_list(row["id"] for row in new)
        for row in self.db.query(_LAST_ANSWERS, [ids]):
            self._last_answers[row["turn"]] = row["hash"]
        for row in self.db.query(_ORIGINS, [ids]) if self._has_branches else ():
            origin = row["from_response"], row["verb"]
            self._origins[row["response_id"]] = origin
        self._loaded.update(wanted, (row["id"] for row in new))

    def parent(self, response_id: str) -> str | None:
        "The parent of a response, None for the first of a tree"
        if response_id not in self._parents:
            first = self.first_try(response_id)
            parent = None
            if first is not None:
                parent = self._origin(first) or self.previous(first)
                if parent is None and first != response_id:
                    parent = first  # retries of a first response have no other parent
            self._parents[response_id] = parent
        return self._parents[response_id]

    def first_try(self, response_id: str) -> str | None:
        "The response that one is a retry of, or itself; None if retries form a circle"
        self.load([response_id])
        path: list[str] = []
        found: str | None = None
        for at in climb(response_id, self._retried):
            if at in self._firsts:
                found = self._firsts[at]
                break
            path.append(at)
            found = at if self._retried(at) is None else None
        self._firsts.update(dict.fromkeys(path, found))
        return found

    def _retried(self, response_id: str) -> str | None:
        origin = self._origin(response_id)
        return origin if origin and self._origins[response_id][1] == "retry" else None

    def _origin(self, response_id: str) -> str | None:
        "The response that one was branched from, None if the log does not have it"
        origin, _ = self._origins.get(response_id, (None, None))
        return origin if origin in self._tips and origin != response_id else None

    def previous(self, response_id: str) -> str | None:
        """The response whose answer is the last one in a prompt.

        If several have that answer, one in the same thread is preferred.
        """
        self.load([response_id])
        answer = self._last_answers.get(response_id, "")
        logged = self._logged.get(response_id, 0)
        for thread in (self._threads.get(response_id), None):
            same = self._by_tip.get((answer, thread), [])
            if older := bisect_left(same, logged, key=self._logged.__getitem__):
                return same[older - 1]
        return None

    def context(self, response_id: str) -> list[str]:
        "The responses whose answers are in a prompt, first one first, and its own"
        return list(climb(response_id, self.previous))[::-1]

    def root(self, response_id: str) -> str:
        "The first response of the tree that contains a response"
        path: list[str] = []
        root = response_id
        for at in climb(response_id, self.parent):
            if at in self._roots:
                root = self._roots[at]
                break
            path.append(at)
            root = at
        self._roots.update(dict.fromkeys(path, root))
        return root

    def is_whole(self, response_id: str, parent: str) -> bool:
        "Whether the last answer in a prompt is the complete one of another response"
        self.load([response_id])
        answer = self._last_answers.get(response_id)
        return answer is not None and answer == self._tips.get(parent)

    def continuations(self, response_id: str) -> list[str]:
        """A response and all below it but its retries: what goes when it is pruned.

        Retries of a first response stand below it in its tree and do not continue it.
        """
        ids = self.descendants([response_id])
        self.load(ids)
        children: dict[str | None, list[str]] = {}
        for id in ids - {response_id}:
            parent = self.parent(id)
            if parent != response_id or self.first_try(id) != response_id:
                children.setdefault(parent, []).append(id)
        found = [response_id] if response_id in ids else []
        for at in found:
            found += sorted(children.get(at, ()), key=self._logged.__getitem__)
        return found

    def descendants(self, response_ids: Iterable[str]) -> set[str]:
        "Some responses and all that may be below them in a tree"
        branches = _BELOW_BRANCHES if self._has_branches else ""
        query = _BELOW.format(branches=branches)
        return {row["id"] for row in self.db.query(query, [json_list(response_ids)])}
