"""What state responses have, for who only looks.

The idea: the index of the store is read as it is, without opening the store: that
would make its directory, and tidy up there.

The invariant: nothing is written, and an index that is not there, or of another
version, holds no state.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from ..settings import data_directory
from .database import SCHEMA_VERSION, connect_reading, version


@dataclass(frozen=True)
class Known:
    "The state of one response: the size of its file, and why there is none"

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
    "Whether a state is gone because others needed its room"
    return (gone or "").startswith("state was evicted")


def known_states(response_ids: Iterable[str]) -> dict[str, Known]:
    "The states of some responses, where anything is known of them"
    path = data_directory() / "index.db"
    if not path.is_file():
        return {}
    try:
        with contextlib.closing(connect_reading(path)) as db:
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
        row["id"]: Known(row["nbytes"], row["gone"], bool(row["pinned"]))
        for row in rows
    }
