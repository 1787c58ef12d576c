"""Ctrl-C while a statement waits for a lock."""

from __future__ import annotations

import sqlite3
from typing import Any


class Interrupting(sqlite3.Connection):
    """Raises KeyboardInterrupt from the next ``begin`` once ``armed``.

    As it arrives while SQLite waits for a lock: after the transaction has begun.
    """

    armed = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        result = super().execute(sql, *parameters)
        if self.armed and sql.lower().startswith("begin"):
            self.armed = False
            raise KeyboardInterrupt
        return result
