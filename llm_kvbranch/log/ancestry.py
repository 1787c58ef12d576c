"""Which response each response continues, read for many of them at once.

The idea: a response's parent is the one that a command branched from or, without
such a record, the one whose answer comes last in its prompt. Everything above or
below a set of responses takes a few queries, however large the set is.

The invariant: following parents always ends, even if our records of branches form
a circle.

This module owns every recursive walk over the log's messages. It does not know what
a tree looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sqlite_utils

from ..errors import HistoryError
from .history import History
from .tables import IN, json_list


def _up(column: str) -> str:
    "A table `up` of every message from a column of some turns up to the first"
    return (
        f"with recursive up(hash) as (select {column} from turns where id {IN}"
        " union select m.parent_hash from messages m join up on m.hash = up.hash)"
    )


def _down(start: str) -> str:
    "A table `down` of the messages that a query selects and all below them"
    return (
        f"with recursive down(hash) as ({start}"
        " union select m.hash from messages m join down on m.parent_hash = down.hash)"
    )


# The last answer in each prompt
_LAST_ANSWERS = f"""
with recursive up(turn, hash, parent, role) as (
  select turns.id, m.hash, m.parent_hash, m.role from turns
    join messages m on m.hash = turns.parent_message_hash where turns.id {IN}
  union all
  select up.turn, m.hash, m.parent_hash, m.role from up
    join messages m on m.hash = up.parent where up.role <> 'assistant')
select turn, hash from up where role = 'assistant'
"""
# Some responses, and those whose answers are anywhere in their prompts
_ANCESTORS = f"""{_up("parent_message_hash")}
select id, thread_id, tip_message_hash from turns
  where tip_message_hash in (select hash from up) or id {IN}
"""
_MESSAGES_ABOVE = f"""{_up("tip_message_hash")}
select hash, parent_hash, role from messages where hash in (select hash from up)
"""
_BELOW = f"""{_down(f"select tip_message_hash from turns where id {IN}")}
select id from turns where parent_message_hash in (select hash from down)
"""
_WITH_MESSAGE = f"""{_down("select hash from messages where hash = ?1")}
select id from turns where tip_message_hash in (select hash from down)
  order by tip_message_hash = ?1 desc, parent_message_hash = ?1 desc, id desc limit 1
"""
_BRANCHED = f"""
select response_id from kvbranch_branches join turns on id = response_id
  where from_response {IN}
"""
_ORIGINS = f"""
select response_id, from_response, verb from kvbranch_branches
  where from_response is not null and response_id {IN}
"""


def messages_above(
    db: sqlite_utils.Database, response_ids: Iterable[str]
) -> Iterator[dict[str, Any]]:
    "Hash, parent and role of every message up to the answers of some responses"
    yield from db.query(_MESSAGES_ABOVE, [json_list(response_ids)])


def resolve_message(history: History, message: str) -> str:
    """The newest response with a message as its answer, in its prompt or above it.

    Responses are preferred in this order. Raises HistoryError for an unknown message.
    """
    for row in history.db.query(_WITH_MESSAGE, [message]):
        return str(row["id"])
    raise HistoryError(f"No response with message {message!r} in the log")


class Ancestry:
    "The parents of responses; everything is read once and kept"

    def __init__(self, db: sqlite_utils.Database):
        self.db = db
        self._has_branches = db["kvbranch_branches"].exists()
        self._threads: dict[str, str] = {}
        self._tips: dict[str, str | None] = {}
        self._by_tip: dict[str | None, list[str]] = {}
        self._last_answers: dict[str, str] = {}  # the last answer in each prompt
        self._origins: dict[str, tuple[str, str]] = {}  # branched from, by which verb
        self._loaded: set[str] = set()

    def load(self, response_ids: Iterable[str]) -> None:
        "Read what is needed to find the ancestors of some responses"
        wanted = set(response_ids) - self._loaded
        while wanted:
            self._loaded |= wanted
            found = self._load_by_content(json_list(wanted))
            origins = self._load_origins(json_list(found))
            wanted = (origins | set(found)) - self._loaded

    def _load_by_content(self, ids: str) -> list[str]:
        "Read responses and those in their prompts; returns the new ids"
        new = []
        for row in self.db.query(_ANCESTORS, [ids, ids]):
            if row["id"] not in self._tips:
                new.append(row["id"])
                self._threads[row["id"]] = row["thread_id"]
                self._tips[row["id"]] = row["tip_message_hash"]
                self._by_tip.setdefault(row["tip_message_hash"], []).append(row["id"])
        for row in self.db.query(_LAST_ANSWERS, [json_list(new)]):
            self._last_answers[row["turn"]] = row["hash"]
        return new

    def _load_origins(self, ids: str) -> set[str]:
        "Read where responses were branched from; returns the ids of their origins"
        if not self._has_branches:
            return set()
        rows = self.db.query(_ORIGINS, [ids])
        found = {r["response_id"]: (r["from_response"], r["verb"]) for r in rows}
        self._origins |= found
        return {origin for origin, _ in found.values()}

    def parent(self, response_id: str) -> str | None:
        "The parent of a response, None for the first of a tree"
        self.load([response_id])
        at, seen = response_id, {response_id}
        while (origin := self._origin(at)) and self._origins[at][1] == "retry":
            if origin in seen:
                return None
            seen.add(origin)
            at = origin
        parent = origin or self.previous(at)
        if parent is None and at != response_id:
            return at  # retries of a first response have no other parent
        return parent

    def _origin(self, response_id: str) -> str | None:
        "The response that one was branched from, None if the log does not have it"
        origin, _ = self._origins.get(response_id, (None, None))
        return origin if origin in self._tips and origin != response_id else None

    def previous(self, response_id: str) -> str | None:
        """The response whose answer is the last one in a prompt.

        If several have that answer, one in the same thread is preferred.
        """
        self.load([response_id])
        thread = self._threads.get(response_id)
        same = self._by_tip.get(self._last_answers.get(response_id, ""), [])
        older = [each for each in same if each < response_id]
        return max(older, key=lambda o: (self._threads[o] == thread, o), default=None)

    def context(self, response_id: str) -> list[str]:
        "The responses whose answers are in a prompt, first one first, and its own"
        ids = [response_id]
        while (previous := self.previous(ids[-1])) is not None:
            ids.append(previous)
        return ids[::-1]

    def root(self, response_id: str) -> str:
        "The first response of the tree that contains a response"
        seen = {response_id}
        while (parent := self.parent(response_id)) is not None and parent not in seen:
            seen.add(parent)
            response_id = parent
        return response_id

    def is_whole(self, response_id: str, parent: str) -> bool:
        "Whether the last answer in a prompt is the complete one of another response"
        self.load([response_id])
        answer = self._last_answers.get(response_id)
        return answer is not None and answer == self._tips.get(parent)

    def descendants(self, response_ids: Iterable[str]) -> set[str]:
        "Some responses and all that may be below them in a tree"
        known = set(response_ids)
        new = known
        while new:  # not yet searched for descendants
            rows = self.db.query(_BELOW, [json_list(new)])
            found = {row["id"] for row in rows}
            branched = self._branched_from(new | found - known)
            known = known | found
            new = branched - known
            known = known | branched
        return known

    def _branched_from(self, response_ids: Iterable[str]) -> set[str]:
        "The responses that commands branched from some"
        if not self._has_branches:
            return set()
        rows = self.db.query(_BRANCHED, [json_list(response_ids)])
        return {row["response_id"] for row in rows}
