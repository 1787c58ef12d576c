"""The tables and views that this project adds to llm's log.

The idea: what llm has no place for (where a branch came from, what a person marked)
is in tables of our own, beside llm's and named for us. The views put both together,
for people who look at the log with datasette or SQL.

The invariant: llm's own tables stay as llm made them, and a log without ours is a
log like any other.
"""

from __future__ import annotations

import sqlite_utils
from sqlite_utils.migrations import Migrations

migrations = Migrations("llm-kvbranch")

# Who may see all of these may see the conversations of a log
READ = ("turns", "threads", "messages", "parts")
"The tables of llm's that a conversation is read from"


@migrations()
def m001_branches(db: sqlite_utils.Database) -> None:
    "Where a response came from that a command of ours asked for"
    db.table("kvbranch_branches").create(
        {
            "response_id": str,
            "thread_id": str,
            "from_response": str,
            "verb": str,
            "mode": str,
            "excerpt": str,
            "start": int,
            "end": int,
            "created": str,
        },
        pk="response_id",
    )
    db.table("kvbranch_branches").create_index(["from_response"])
    db.table("kvbranch_branches").create_index(["thread_id"])


@migrations()
def m002_marks(db: sqlite_utils.Database) -> None:
    "Stars and notes of a person"
    db.table("kvbranch_marks").create(
        {"response_id": str, "starred": int, "note": str, "updated": str},
        pk="response_id",
        not_null={"starred"},
        defaults={"starred": 0},
    )
