"""The turns in a bundle: checked, and tried on the log.

The idea: everything in them that will be shown, sorted or stored is checked before any
of it is used.

The invariant: what passes can be logged. Ids are llm's, of a time that is past, so an
imported response is never the newest one for long.

This module does not know state files.
"""

from __future__ import annotations

import re
import sqlite3
import time
from typing import Any

from ulid import ULID

from ..errors import BundleError
from ..log import History, edits

ID = r"[0-7][0-9a-hjkmnp-tv-z]{25}"  # llm's ids, which are sorted as times
_MAX_NUMBER = (1 << 63) - 1  # the largest that SQLite takes


def parse_turns(manifest: dict[str, Any]) -> list[edits.ImportedTurn]:
    "The turns in a manifest; raises BundleError on anything unexpected"
    from llm import Message

    try:
        rows = manifest["messages"]
        parts = [part for row in rows for part in row["parts"]]
        if any(
            part["type"] != "text" or not isinstance(part["text"], str)
            for part in parts
        ) or any(row["role"] not in ("system", "user", "assistant") for row in rows):
            raise BundleError("The bundle has messages that are not text")
        messages = [Message.from_dict(row) for row in rows]
        turns, n_answers = [], 0
        for turn in manifest["turns"]:
            sent, answered = int(turn["n_sent"]), int(turn["n_answered"])
            n_answers += answered
            if not 0 <= sent <= sent + answered <= len(messages) >= n_answers:
                raise ValueError
            if not re.fullmatch(ID, turn["id"]):
                raise ValueError
            if ULID.from_str(turn["id"].upper()).milliseconds > time.time() * 1000:
                raise BundleError(
                    "The bundle has responses from the future: is the clock of this "
                    "machine right, and that of the one that exported it?"
                )
            facts = {
                name: turn.get(name)
                for name in ("model", "resolved_model", "datetime_utc")
            }
            numbers = {
                name: int(turn.get(name) or 0)
                for name in ("input_tokens", "output_tokens", "duration_ms")
            }
            if not all(v is None or is_plain(v) for v in facts.values()):
                raise ValueError
            if not all(0 <= number <= _MAX_NUMBER for number in numbers.values()):
                raise ValueError
            turns.append(
                edits.ImportedTurn(
                    turn["id"],
                    edits.Leading(messages, sent),
                    messages[sent : sent + answered],
                    {**facts, **numbers},
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise BundleError("The bundle's messages are invalid") from None
    ids = [turn.id for turn in turns]
    if len(set(ids)) < len(ids) or manifest["response_id"] not in ids:
        raise BundleError("The bundle's messages are invalid")
    return turns


def is_plain(value: Any) -> bool:
    "Whether a value is a short string that is safe to show in a terminal"
    return isinstance(value, str) and len(value) < 200 and value.isprintable()


class _Undo(Exception):
    "Ends a transaction that was only a trial"


def try_turns(
    history: History, turns: list[edits.ImportedTurn], thread_id: str, origin: str
) -> None:
    "Raise BundleError if the log does not take the turns, before states are stored"
    try:
        with history.writing():
            edits.import_turns(history, turns, thread_id, origin)
            raise _Undo
    except _Undo:
        pass
    except (sqlite3.IntegrityError, sqlite3.InterfaceError, TypeError, ValueError):
        raise BundleError("The bundle's messages are invalid") from None
