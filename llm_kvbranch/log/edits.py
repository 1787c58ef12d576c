"""Changes to llm's log other than logging an answer: importing and deleting turns.

The idea: llm's own code logs imported turns as if they had been answered here.
Deleting reverses logging: other responses may share a message, so a message goes only
when nothing refers to it any more.

The invariant: each change is one transaction, and the remaining responses read as
before.

This module knows the log's tables. It does not know KV state.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llm.logs import LogStore

from ..errors import HistoryError
from .ancestry import Ancestry, climb, messages_above
from .history import History
from .tables import IN, json_list
from .text import message_text

# Tables with rows about a turn, and the column with its id
_ABOUT_TURNS = {
    "turn_fragments": "turn_id",
    "turn_tools": "turn_id",
    "turn_search": "turn_id",
    "tool_instantiations": "turn_id",
    "kvbranch_branches": "response_id",
    "kvbranch_marks": "response_id",
}


@dataclass(frozen=True)
class ImportedTurn:
    """A turn from another log: its id, llm's messages, and other columns of its row.

    Turns of one conversation share its messages: what each was sent is ``Leading``.
    """

    id: str
    sent: Sequence[Any]
    answered: list[Any]
    facts: dict[str, Any]


class Leading(Sequence[Any]):
    "The first messages of a list, not copied"

    def __init__(self, messages: list[Any], n: int):
        self.messages, self._range = messages, range(len(messages))[:n]

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self.messages[i] for i in self._range[at]]
        return self.messages[self._range[at]]


class _ImportStore(LogStore):
    "llm's store, which hashes and stores the messages that turns share only once"

    def __init__(self, db: Any):
        self.db = db  # up to date, as a History has it
        self._hashes: dict[int, list[str | None]] = {}

    def ensure_chain(
        self, messages: Any, parent: str | None = None, fragments: Any = None
    ) -> str | None:
        if not isinstance(messages, Leading):
            return super().ensure_chain(messages, parent, fragments)
        hashes = self._hashes.setdefault(id(messages.messages), [None])
        for message in messages[len(hashes) - 1 :]:
            hashes.append(super().ensure_chain([message], hashes[-1]))
        return hashes[len(messages)]


def new_turns(history: History, turns: Sequence[ImportedTurn]) -> list[ImportedTurn]:
    "The turns that the log does not have yet"
    return [t for t in turns if not history.db["turns"].count_where("id = ?", [t.id])]


def import_turns(
    history: History, turns: Sequence[ImportedTurn], thread_id: str, origin: str
) -> None:
    "Log turns from another log in a new thread, each with a note of its origin"
    new = new_turns(history, turns)
    if not new:
        return
    words = " ".join(message_text(new[0].sent[-1]).split()) if new[0].sent else ""
    with history.writing():
        history.store.create_thread(id=thread_id, name=f"imported: {words}"[:100])
        store = _ImportStore(history.db)
        for turn in new:
            store.log(_as_response(turn, origin), thread_id)


def _as_response(turn: ImportedTurn, origin: str) -> Any:
    "What ``LogStore.log`` reads of a response"
    facts = turn.facts
    return SimpleNamespace(
        id=turn.id,
        prompt=SimpleNamespace(
            messages=turn.sent,
            fragments=[],
            system_fragments=[],
            schema=None,
            options={},
            tools=[],
            tool_results=[],
        ),
        model=SimpleNamespace(model_id=facts["model"], json_replacements=None),
        resolved_model=facts["resolved_model"],
        input_tokens=facts["input_tokens"],
        output_tokens=facts["output_tokens"],
        token_details=None,
        response_json={"kvbranch": {"origin": origin}},
        duration_ms=lambda: facts["duration_ms"],
        datetime_utc=lambda: facts["datetime_utc"] or time.strftime("%Y-%m-%dT%X"),
        _messages_now=lambda: turn.answered,
    )


def prune(history: History, response_id: str, shown: Collection[str]) -> None:
    """Delete a response and all that continue it from the log.

    Raises HistoryError if these are not the responses that were shown to the user,
    because another process changed the log in the meantime.
    """
    with history.writing():
        found = Ancestry(history.db).continuations(response_id)
        if set(found) != set(shown):
            what = "has other continuations now" if found else "was deleted"
            raise HistoryError(
                f"The log has changed since: {response_id} {what}. Nothing was deleted "
                "from the log"
            )
        delete_responses(history, found)


def delete_responses(history: History, response_ids: Sequence[str]) -> None:
    """Delete responses from the log, with the threads and messages only they used.

    The caller must include every response that continues one of them.
    """
    db, ids = history.db, json_list(response_ids)
    with history.writing():
        threads = {
            row["thread_id"]
            for row in db.query(f"select thread_id from turns where id {IN}", [ids])
        }
        above = {m["hash"]: m["parent_hash"] for m in messages_above(db, response_ids)}
        _keep_retries_in_place(db, set(response_ids))
        for table, column in _ABOUT_TURNS.items():
            if db[table].exists():
                db.execute(f"delete from {table} where {column} {IN}", [ids])
        db.execute(f"delete from turns where id {IN}", [ids])
        _correct_threads(db, threads)
        _delete_unused(db, above)


def _keep_retries_in_place(db: Any, gone: set[str]) -> None:
    """Give retries of deleted responses the records of where those branched from.

    A retry is placed in the tree by the response that it repeats; without that
    response it would lose its parent. The oldest retry of a first response takes the
    place of that.
    """
    if not db["kvbranch_branches"].exists():
        return
    ids = json_list(gone)
    about = f"select * from kvbranch_branches where response_id {IN}"
    records = {row["response_id"]: row for row in db.query(about, [ids])}
    retried = {
        id: row["from_response"]
        for id, row in records.items()
        if row["verb"] == "retry" and row["from_response"] in gone
    }
    retries = db.query(
        "select response_id, from_response from kvbranch_branches"
        f" where verb = 'retry' and from_response {IN} and response_id not {IN}"
        " order by response_id",
        [ids, ids],
    )
    oldest: dict[str, str] = {}
    for row in list(retries):
        retry = row["response_id"]
        *_, first = climb(row["from_response"], retried.get)
        if first in records:
            columns = "from_response, verb, mode, excerpt, start, end"
            db.execute(
                f"update kvbranch_branches set ({columns}) = (select {columns}"
                " from kvbranch_branches where response_id = ?) where response_id = ?",
                [first, retry],
            )
        elif oldest.setdefault(first, retry) == retry:
            db.execute("delete from kvbranch_branches where response_id = ?", [retry])
        else:
            db.execute(
                "update kvbranch_branches set from_response = ? where response_id = ?",
                [oldest[first], retry],
            )


def _correct_threads(db: Any, thread_ids: set[str]) -> None:
    "Point threads at their last turns, and delete those that have none"
    rows = db.query(
        "select thread_id, tip_message_hash, max(rowid) from turns"
        f" where thread_id {IN} group by thread_id",
        [json_list(thread_ids)],
    )
    last = {row["thread_id"]: row["tip_message_hash"] for row in rows}
    for id, tip in last.items():
        db.execute("update threads set tip_message_hash = ? where id = ?", [tip, id])
    gone = json_list(thread_ids - set(last))
    query = f"select id, forked_from from threads where id {IN}"
    forked = {row["id"]: row["forked_from"] for row in db.query(query, [gone])}
    query = f"select id, forked_from from threads where forked_from {IN}"
    for row in list(db.query(query, [gone])):
        # The first above it that stays
        origins = climb(row["forked_from"], forked.get)
        origin = next((each for each in origins if each not in forked), None)
        db.execute(
            "update threads set forked_from = ? where id = ?", [origin, row["id"]]
        )
    db.execute(f"delete from threads where id {IN}", [gone])


def _delete_unused(db: Any, above: dict[str, str | None]) -> None:
    "Delete those of some messages that nothing refers to, directly or from below"
    hashes = json_list(above)
    used = db.query(
        f"select parent_message_hash hash from turns where parent_message_hash {IN}"
        f" union select tip_message_hash from turns where tip_message_hash {IN}"
        f" union select tip_message_hash from threads where tip_message_hash {IN}"
        f" union select parent_hash from messages where parent_hash {IN}"
        f" and hash not {IN}",
        [hashes] * 5,
    )
    kept: set[str] = set()
    for row in used:
        for at in climb(row["hash"], above.get):
            if at in kept:
                break
            kept.add(at)
    unused = json_list(set(above) - kept)
    parts = f"(select id from parts where message_hash {IN})"
    for table in ("part_attachments", "part_fragments"):
        db.execute(f"delete from {table} where part_id in {parts}", [unused])
    db.execute(f"delete from parts where message_hash {IN}", [unused])
    db.execute(f"delete from messages where hash {IN}", [unused])
