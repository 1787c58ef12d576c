"""Changes to llm's log other than adding an answer of our own.

The idea: turns from elsewhere are logged by llm itself, as if they had happened
here. Forgetting responses is the reverse of logging them: messages are shared by
all that go on from them, so one is removed only when nothing else leads to it.

The invariant: one transaction that waits its turn; what stays reads as before.

This module knows the log's tables, not state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .history import History, message_text

# Tables with rows about a turn, by the column that names it
_ABOUT_TURNS = {
    "turn_fragments": "turn_id",
    "turn_tools": "turn_id",
    "turn_search": "turn_id",
    "tool_instantiations": "turn_id",
    "kvbranch_branches": "response_id",
    "kvbranch_marks": "response_id",
}


@dataclass(frozen=True)
class Imported:
    "A turn from elsewhere: its id, llm messages, and the columns of its row"

    id: str
    sent: list[Any]
    answered: list[Any]
    facts: dict[str, Any]


def unknown(history: History, turns: Sequence[Imported]) -> list[Imported]:
    "Those of some turns that the log does not have"
    return [t for t in turns if not history.db["turns"].count_where("id = ?", [t.id])]


def adopt(
    history: History, turns: Sequence[Imported], thread_id: str, origin: str
) -> None:
    "Log turns from elsewhere in a new thread; ``origin`` is kept with each"
    new = unknown(history, turns)
    if not new:
        return
    words = " ".join(message_text(new[0].sent[-1]).split()) if new[0].sent else ""
    with history.writing():
        history.store.create_thread(id=thread_id, name=f"imported: {words}"[:100])
        for turn in new:
            history.store.log(_as_response(turn, origin), thread_id)


def _as_response(turn: Imported, origin: str) -> Any:
    "What ``LogStore.log`` uses of a response"
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


def forget(history: History, response_ids: Sequence[str]) -> None:
    """Remove responses from the log, with threads and messages that only they had.

    Nothing may go on from them but each other.
    """
    with history.writing():
        for response_id in response_ids:
            _forget_turn(history.db, response_id)


def _forget_turn(db: Any, response_id: str) -> None:
    (turn,) = db.query("select * from turns where id = ?", [response_id])
    _hand_on(db, response_id)
    for table, column in _ABOUT_TURNS.items():
        if db[table].exists():
            db.execute(f"delete from {table} where {column} = ?", [response_id])
    db.execute("delete from turns where id = ?", [response_id])
    _correct_thread(db, turn["thread_id"])
    at = turn["tip_message_hash"]
    while at and not _is_needed(db, at):
        (message,) = db.query("select parent_hash from messages where hash = ?", [at])
        parts = "(select id from parts where message_hash = ?)"
        for table in ("part_attachments", "part_fragments"):
            db.execute(f"delete from {table} where part_id in {parts}", [at])
        db.execute("delete from parts where message_hash = ?", [at])
        db.execute("delete from messages where hash = ?", [at])
        at = message["parent_hash"]


def _hand_on(db: Any, response_id: str) -> None:
    "Let those that asked the same again stand where they stood because of this one"
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
    "Point a thread at its last turn, or remove it if it has none"
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


def _is_needed(db: Any, message_hash: str) -> bool:
    "Whether a turn, a thread or another message leads to a message"
    return any(
        db.query(
            "select 1 from messages where parent_hash = :hash union all"
            " select 1 from turns where parent_message_hash = :hash"
            " or tip_message_hash = :hash union all"
            " select 1 from threads where tip_message_hash = :hash limit 1",
            {"hash": message_hash},
        )
    )
