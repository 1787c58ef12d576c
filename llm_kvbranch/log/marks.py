"""Stars and notes: what a person wants to find again, and why.

The idea: a mark belongs to a response of the log, and is kept in a table of ours
beside it, so that it goes where the log goes. A response without a star or a note
has no row.

This module knows its own table, not what shows the marks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sqlite_utils

from ..errors import HistoryError
from .ancestry import IN, listed
from .history import History
from .tables import migrations

LONGEST = 2000  # characters of a note


@dataclass(frozen=True)
class Mark:
    "What is marked of one response"

    response_id: str
    starred: bool = False
    note: str | None = None


def read_marks(db: sqlite_utils.Database, ids: Iterable[str]) -> Iterator[Mark]:
    "The marks of some responses, where they have any"
    if db["kvbranch_marks"].exists():
        for row in db.query(
            f"select * from kvbranch_marks where response_id {IN}", [listed(ids)]
        ):
            yield Mark(row["response_id"], bool(row["starred"]), row["note"] or None)


def read_mark(history: History, response_id: str) -> Mark:
    "The mark of one response"
    return next(read_marks(history.db, [response_id]), Mark(response_id))


def mark(
    history: History,
    response_id: str,
    starred: bool | None = None,
    note: str | None = None,
) -> Mark:
    """Change the mark of a response, and keep what is None; an empty note is none.

    Raises HistoryError for a note that is too long.
    """
    if note is not None and len(note) > LONGEST:
        raise HistoryError(f"A note has at most {LONGEST:,} characters")
    migrations.apply(history.db)
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
