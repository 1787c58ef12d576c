"""Which response each response goes on from, for many of them at once.

The idea: a response's parent is the one that a command of ours branched from, else
the one whose answer is the last in its prompt. All that leads up to some responses
is read with a few queries, however many they are, and then only looked up.

The invariant: whatever the tables say, following parents comes to an end.

This module knows the log's tables, not what a tree looks like.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlite_utils

IN = "in (select value from json_each(?))"
"A condition for any number of values, given as one by ``listed``"

# Each response's prompt from its end up to the last answer in it
_ANSWERED = f"""
with recursive up(turn, hash, parent, role) as (
  select turns.id, m.hash, m.parent_hash, m.role from turns
    join messages m on m.hash = turns.parent_message_hash where turns.id {IN}
  union all
  select up.turn, m.hash, m.parent_hash, m.role from up
    join messages m on m.hash = up.parent where up.role <> 'assistant')
select turn, hash from up where role = 'assistant'
"""
# All whose answers are anywhere in the prompts of some responses, and these
_LEADING = f"""
with recursive up(hash) as (
  select parent_message_hash from turns where id {IN}
  union select m.parent_hash from messages m join up on m.hash = up.hash)
select id, thread_id, tip_message_hash from turns
  where tip_message_hash in (select hash from up) or id {IN}
"""


def listed(values: Iterable[Any]) -> str:
    "Values as one parameter for IN"
    return json.dumps(list(values))


class Ancestry:
    "The parents of responses; what was read once is kept"

    def __init__(self, db: sqlite_utils.Database):
        self.db = db
        self._has_branches = db["kvbranch_branches"].exists()
        self._threads: dict[str, str] = {}
        self._tips: dict[str, str | None] = {}
        self._by_tip: dict[str | None, list[str]] = {}
        self._answered: dict[str, str] = {}  # the last answer in each one's prompt
        self._origins: dict[str, tuple[str, str]] = {}  # branched from, by which verb
        self._learnt: set[str] = set()

    def learn(self, response_ids: Iterable[str]) -> None:
        "Read what there is to know of some responses and of all that leads to them"
        wanted = set(response_ids) - self._learnt
        while wanted:
            self._learnt |= wanted
            found = self._learn_leading(listed(wanted))
            origins = self._learn_origins(listed(found))
            wanted = (origins | set(found)) - self._learnt

    def _learn_leading(self, ids: str) -> list[str]:
        "Read the responses that lead to some by content; the new ones' ids"
        new = []
        for row in self.db.query(_LEADING, [ids, ids]):
            if row["id"] not in self._tips:
                new.append(row["id"])
                self._threads[row["id"]] = row["thread_id"]
                self._tips[row["id"]] = row["tip_message_hash"]
                self._by_tip.setdefault(row["tip_message_hash"], []).append(row["id"])
        for row in self.db.query(_ANSWERED, [listed(new)]):
            self._answered[row["turn"]] = row["hash"]
        return new

    def _learn_origins(self, ids: str) -> set[str]:
        "Read what some were branched from"
        if not self._has_branches:
            return set()
        rows = self.db.query(
            "select response_id, from_response, verb from kvbranch_branches"
            f" where from_response is not null and response_id {IN}",
            [ids],
        )
        found = {r["response_id"]: (r["from_response"], r["verb"]) for r in rows}
        self._origins |= found
        return {origin for origin, _ in found.values()}

    def parent(self, response_id: str) -> str | None:
        "The response that one goes on from, None for the first of a tree"
        self.learn([response_id])
        at, seen = response_id, {response_id}
        while (origin := self._origin(at)) and self._origins[at][1] == "retry":
            if origin in seen:
                return None
            seen.add(origin)
            at = origin
        parent = origin or self.answered(at)
        if parent is None and at != response_id:
            return at  # a sibling of the first has nothing else to stand below
        return parent

    def _origin(self, response_id: str) -> str | None:
        "What a response was branched from, None where the log does not have it"
        origin, _ = self._origins.get(response_id, (None, None))
        return origin if origin in self._tips and origin != response_id else None

    def answered(self, response_id: str) -> str | None:
        "The response whose answer a prompt goes on from: rather of the same thread"
        self.learn([response_id])
        thread = self._threads.get(response_id)
        same = self._by_tip.get(self._answered.get(response_id, ""), [])
        older = [each for each in same if each < response_id]
        return max(older, key=lambda o: (self._threads[o] == thread, o), default=None)

    def root(self, response_id: str) -> str:
        "The first response of the tree that one is in"
        seen = {response_id}
        while (parent := self.parent(response_id)) is not None and parent not in seen:
            seen.add(parent)
            response_id = parent
        return response_id

    def is_whole(self, response_id: str, parent: str) -> bool:
        "Whether the last answer in a response's prompt is another's whole one"
        self.learn([response_id])
        answered = self._answered.get(response_id)
        return answered is not None and answered == self._tips.get(parent)
