"""Statistics of the store: misses, hits, removals, rates, totals.

The idea: whatever people may ask about the store ("why was this read again?",
"where did my state go?", "is it worth its disk space?") is counted when it happens,
in rows whose number does not grow with the store.

The invariant: no answer depends on statistics. If they are lost, counting starts
again.

This module does not know files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import xxhash

from ..errors import StoreError
from .database import Database, now

# A measurement's weight halves after this many others
_HALF_LIFE = 8


class Stats(Database):
    "Counters, and facts that are slow to compute"

    # -- models --------------------------------------------------------

    def describe(self, fingerprint: str, fields: str | None = None) -> str | None:
        "The facts behind a fingerprint, as JSON; records them if given"
        row = self.db.execute(
            "select fields from models where fingerprint = ?", [fingerprint]
        ).fetchone()
        known = str(row["fields"]) if row and row["fields"] else None
        if fields is None or fields == known:
            return known
        with self._write() as db:
            db.execute(
                "insert into models (fingerprint, fields) values (?, ?)"
                " on conflict (fingerprint) do update set fields = excluded.fields",
                [fingerprint, fields],
            )
        return fields

    def file_digest(self, path: Path) -> str:
        """xxh3-128 of a file's content, cached by path, size, mtime and inode.

        Raises OSError when the file cannot be read.
        """
        status = path.stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        name = os.fsencode(path)
        row = self.db.execute("select * from digests where path = ?", [name]).fetchone()
        if row and [row["size"], row["mtime_ns"], row["inode"]] == identity:
            return str(row["digest"])
        digest = content_digest(path)
        with contextlib.suppress(StoreError), self._write() as db:
            db.execute(
                "insert or replace into digests values (?, ?, ?, ?, ?)",
                [name, *identity, digest],
            )
        return digest

    # -- what happened -------------------------------------------------

    def count_miss(self, reason: str) -> None:
        with self._write() as db:
            db.execute(
                "insert into misses values (?, 1, ?) on conflict (reason)"
                " do update set count = count + 1, last = excluded.last",
                [reason, now()],
            )

    def count_prompt(
        self,
        fingerprint: str,
        n_tokens: int,
        n_reused: int,
        measured: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        """Count a logged prompt: its tokens, and how many of them were reused.

        ``measured`` has an (amount, seconds) for some rates; older ones fade.
        """
        with self._write() as db:
            db.execute(
                "insert into models (fingerprint, prompts, prompt_tokens,"
                " reused_tokens) values (?, 1, ?, ?) on conflict (fingerprint)"
                " do update set prompts = prompts + 1,"
                " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " reused_tokens = reused_tokens + excluded.reused_tokens",
                [fingerprint, n_tokens, n_reused],
            )
            db.executemany(
                "insert into rates values (?1, ?2, ?3) on conflict (name) do update"
                " set amount = amount * ?4 + excluded.amount,"
                " seconds = seconds * ?4 + excluded.seconds",
                [
                    (name, *measurement, 0.5 ** (1 / _HALF_LIFE))
                    for name, measurement in (measured or {}).items()
                ],
            )

    def rate(self, name: str) -> float | None:
        "Amount per second; None if nothing was measured"
        row = self.db.execute("select * from rates where name = ?", [name]).fetchone()
        return row["amount"] / row["seconds"] if row and row["seconds"] > 0 else None

    # -- totals ---------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        "The counters of every model that has any, largest first"
        return [
            dict(row)
            for row in self.db.execute(
                "select * from models where responses or prompts order by nbytes desc"
            )
        ]

    def largest_threads(self, n: int) -> list[dict[str, Any]]:
        "The threads whose states take the most bytes"
        return [
            dict(row)
            for row in self.db.execute(
                "select * from threads where nbytes > 0 order by nbytes desc limit ?",
                [n],
            )
        ]

    def nbytes(self) -> int:
        "Bytes of all state files"
        query = "select coalesce(sum(nbytes), 0) from models"
        return int(self.db.execute(query).fetchone()[0])

    def misses(self) -> list[dict[str, Any]]:
        "Why stored state was not used, most frequent reason first"
        return self._by_count("misses")

    def removals(self) -> list[dict[str, Any]]:
        "Why state files were deleted, most frequent reason first"
        return self._by_count("removals")

    def _by_count(self, table: str) -> list[dict[str, Any]]:
        query = f"select * from {table} order by count desc"
        return [dict(row) for row in self.db.execute(query)]


def content_digest(path: Path) -> str:
    "xxh3-128 of a file's content"
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while n := file.readinto(buffer):
            digest.update(memoryview(buffer)[:n])
    return digest.hexdigest()
