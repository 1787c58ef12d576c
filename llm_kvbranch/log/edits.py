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
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .history import History
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
    "A turn from another log: its id, llm's messages, and other columns of its row"

    id: str
    sent: list[Any]
    answered: list[Any]
    facts: dict[str, Any]


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
        for turn in new:
            history.store.log(_as_response(turn, origin), thread_id)


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


def delete_responses(history: History, response_ids: Sequence[str]) -> None:
    """Delete responses from the log, with the threads and messages only they used.

    The caller must include every response that continues one of them.
    """
    with history.writing():
        for response_id in response_ids:
            _delete_turn(history.db, response_id)


def _delete_turn(db: Any, response_id: str) -> None:
    (turn,) = db.query("select * from turns where id = ?", [response_id])
    _keep_retries_in_place(db, response_id)
    for table, column in _ABOUT_TURNS.items():
        if db[table].exists():
            db.execute(f"delete from {table} where {column} = ?", [response_id])
    db.execute("delete from turns where id = ?", [response_id])
    _correct_thread(db, turn["thread_id"])
    at = turn["tip_message_hash"]
    while at and not _is_referenced(db, at):
        (message,) = db.query("select parent_hash from messages where hash = ?", [at])
        parts = "(select id from parts where message_hash = ?)"
        for table in ("part_attachments", "part_fragments"):
            db.execute(f"delete from {table} where part_id in {parts}", [at])
        db.execute("delete from parts where message_hash = ?", [at])
        db.execute("delete from messages where hash = ?", [at])
        at = message["parent_hash"]


def _keep_retries_in_place(db: Any, response_id: str) -> None:
    """Give retries of a response its own record of where it branched from.

    A retry is placed in the tree by the response that it repeats; without that
    response it would lose its parent.
    """
    if db["kvbranch_branches"].exists():
        columns = "from_response, verb, mode, excerpt, start, end"
        db.execute(
            f"update kvbranch_branches set ({columns}) = (select {columns}"
            " from kvbranch_branches where response_id = ?1)"
            " where from_response = ?1 and verb = 'retry'"
            " and exists (select 1 from kvbranch_branches where response_id = ?1)",
            [response_id],
        )


def _correct_thread(db: Any, thread_id: str) -> None:
    "Point a thread at its last turn, or delete it if it has none"
    rows = db.query(
        "select tip_message_hash from turns where thread_id = ?"
        " order by id desc limit 1",
        [thread_id],
    )
    if last := next(iter(rows), None):
        tip = last["tip_message_hash"]
        db.execute(
            "update threads set tip_message_hash = ? where id = ?", [tip, thread_id]
        )
        return
    db.execute(
        "update threads set forked_from = (select forked_from from threads"
        " where id = ?1) where forked_from = ?1",
        [thread_id],
    )
    db.execute("delete from threads where id = ?", [thread_id])


def _is_referenced(db: Any, message_hash: str) -> bool:
    "Whether a turn, a thread or another message refers to a message"
    return any(
        db.query(
            "select 1 from messages where parent_hash = :hash union all"
            " select 1 from turns where parent_message_hash = :hash"
            " or tip_message_hash = :hash union all"
            " select 1 from threads where tip_message_hash = :hash limit 1",
            {"hash": message_hash},
        )
    )
