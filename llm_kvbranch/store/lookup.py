"""The states of responses, read without opening the store.

The idea: opening the store would create its directory and clean up in it, so the
index is read directly.

The invariant: nothing is written. If there is no index, or it has another version,
no response has a state.

This module does not know files or token ids.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from ..log import deadline
from ..settings import data_directory
from .database import SCHEMA_VERSION, connect_reading, version


@dataclass(frozen=True)
class StateInfo:
    "The state of one response: the size of its file, or why there is none"

    nbytes: int
    gone: str | None
    pinned: bool

    @property
    def kind(self) -> str:
        "disk, evicted or none"
        if self.nbytes:
            return "disk"
        return "evicted" if is_evicted(self.gone) else "none"


def is_evicted(gone: str | None) -> bool:
    "Whether a state was removed to make room for others"
    return (gone or "").startswith("state was evicted")


def look_up(response_ids: Iterable[str]) -> dict[str, StateInfo]:
    "The states of those responses that ever had one"
    path = data_directory() / "index.db"
    if not path.is_file():
        return {}
    try:
        with (
            contextlib.closing(connect_reading(path)) as db,
            deadline.interrupting(db),
        ):
            if version(db) != SCHEMA_VERSION:
                return {}
            rows = db.execute(
                "select id, max(nbytes) nbytes, max(gone) gone, max(pinned) pinned"
                " from states where id in (select value from json_each(?)) group by id",
                [json.dumps(list(response_ids))],
            ).fetchall()
    except sqlite3.Error:
        return {}
    return {
        row["id"]: StateInfo(row["nbytes"], row["gone"], bool(row["pinned"]))
        for row in rows
    }
