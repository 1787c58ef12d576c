"""Stars and notes on responses.

The idea: marks are rows of a table of ours in the log, so they stay with it wherever
it is copied. A response without a star or a note has no row.

This module knows its own table. It does not know who shows the marks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sqlite_utils

from ..errors import HistoryError
from .history import History
from .tables import IN, json_list
from .text import as_text

MAX_NOTE = 2000  # characters


@dataclass(frozen=True)
class Mark:
    "The star and the note of one response"

    response_id: str
    starred: bool = False
    note: str | None = None


def read_marks(db: sqlite_utils.Database, ids: Iterable[str]) -> Iterator[Mark]:
    "The marks of those responses that have any"
    if db["kvbranch_marks"].exists():
        for row in db.query(
            f"select * from kvbranch_marks where response_id {IN}", [json_list(ids)]
        ):
            note = as_text(row["note"]) or None
            yield Mark(row["response_id"], bool(row["starred"]), note)


def read_mark(history: History, response_id: str) -> Mark:
    "The mark of one response"
    return next(read_marks(history.db, [response_id]), Mark(response_id))


def mark(
    history: History,
    response_id: str,
    starred: bool | None = None,
    note: str | None = None,
) -> Mark:
    """Change the star or the note of a response; None leaves it as it is.

    An empty note removes the note. Raises HistoryError if it is too long.
    """
    if note is not None and len(note) > MAX_NOTE:
        raise HistoryError(f"A note can have at most {MAX_NOTE:,} characters")
    history.prepare()
    with history.writing():
        old = read_mark(history, response_id)
        new = Mark(
            response_id,
            old.starred if starred is None else starred,
            old.note if note is None else note.strip() or None,
        )
        table = history.db.table("kvbranch_marks")
        if not new.starred and new.note is None:
            table.delete_where("response_id = ?", [response_id])
        else:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            values = {"starred": new.starred, "note": new.note, "updated": now}
            table.insert({"response_id": response_id, **values}, replace=True)
    return new
