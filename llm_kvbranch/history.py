"""llm's log: which response is meant, and what it says of itself.

The idea: the log is the truth about conversations, and llm's ``LogStore`` is
how it is read. This module adds what llm has no call for: finding a response by
the start of its id, and the response that another one goes on from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llm
import sqlite_utils

from .errors import HistoryError


def open_log(database: str | None = None) -> sqlite_utils.Database:
    "The log database, llm's own by default. Raises HistoryError if there is none"
    path = Path(database) if database else Path(llm.user_dir()) / "logs.db"
    if not path.is_file():
        raise HistoryError(f"There is no log {path} yet: ask a model something first")
    return sqlite_utils.Database(path)


class History:
    "Responses in one log database"

    def __init__(self, db: sqlite_utils.Database):
        from llm.logs import LogStore

        self.db = db
        self.store = LogStore(db)

    def resolve(self, reference: str) -> str:
        """The id of a response from a full id, a unique prefix, or "last".

        Raises HistoryError, listing the candidates where there are several.
        """
        if reference == "last":
            for row in self.db.query("select id from turns order by id desc limit 1"):
                return str(row["id"])
            raise HistoryError("The log holds no response yet")
        pattern = "".join("\\" + c if c in "%_\\" else c for c in reference) + "%"
        rows = list(
            self.db.query(
                "select id from turns where id like ? escape '\\' order by id limit 6",
                [pattern],
            )
        )
        ids = [str(row["id"]) for row in rows]
        if reference in ids:
            return reference
        if not reference or not ids:
            raise HistoryError(
                f"No response with id {reference!r} in the log: see llm logs --short"
            )
        if len(ids) > 1:
            more = " ..." if len(ids) > 5 else ""
            raise HistoryError(
                f"{reference} begins several response ids, give more of it: "
                + ", ".join(ids[:5])
                + more
            )
        return ids[0]

    def turn(self, response_id: str) -> dict[str, Any]:
        "The log's row of a response"
        rows = self.db.query("select * from turns where id = ?", [response_id])
        return dict(next(rows))

    def facts(self, response_id: str) -> dict[str, Any]:
        "What kvllama logged of a response's KV state; empty for other models"
        payload = self.store.turn_response_json(response_id)
        facts = payload.get("kvbranch") if isinstance(payload, dict) else None
        return facts if isinstance(facts, dict) else {}

    def parent(self, turn: dict[str, Any]) -> str | None:
        "Id of the response that a turn goes on from"
        at = turn["parent_message_hash"]
        while at is not None:
            rows = self.db.query("select * from messages where hash = ?", [at])
            row = next(iter(rows), None)
            if row is None:
                return None
            if row["role"] == "assistant":
                for found in self.db.query(
                    "select id from turns where tip_message_hash = ? and id < ?"
                    " order by thread_id = ? desc, id desc limit 1",
                    [at, turn["id"], turn["thread_id"]],
                ):
                    return str(found["id"])
                return None
            at = row["parent_hash"]
        return None
