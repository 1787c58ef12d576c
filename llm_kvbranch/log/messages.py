"""The messages up to the answers of some responses, with all their parts.

The idea: everything is read in a few queries, however many responses there are, and
then only looked up. Text that llm stores as a fragment is put back in its place.

This module knows the log's tables. It does not know what a turn is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlite_utils

from .ancestry import climb, messages_above
from .deadline import checked
from .tables import IN, json_list
from .text import as_text, parse_object

Part = dict[str, Any]
"A part's payload, with its type, its text and, of an attachment, what it is"


class Messages:
    "Messages by their hash: roles, parents and parts"

    def __init__(self, db: sqlite_utils.Database, response_ids: Iterable[str]):
        self.db = db
        self.roles: dict[str, str] = {}
        self._above: dict[str, str | None] = {}
        for row in messages_above(db, response_ids):
            self._above[row["hash"]] = row["parent_hash"]
            self.roles[row["hash"]] = row["role"]
        self._systems = self._find_systems()
        self._parts: dict[str, list[Part]] = {}

    def up(self, at: str | None, until: str | None = None) -> Iterator[str]:
        "Messages from one up to another, which is left out, or to the first"
        for each in climb(at, self._above.get):
            if each not in self._above or each == until:
                return
            yield each

    def last_answer(self, at: str | None) -> str | None:
        "The last answer up to a message"
        return next((m for m in self.up(at) if self.roles[m] == "assistant"), None)

    def system(self, at: str | None) -> str | None:
        "The last system message up to a message"
        return self._systems.get(at)

    def _find_systems(self) -> dict[str | None, str | None]:
        found: dict[str | None, str | None] = {None: None}
        for each in self._above:
            path: list[str] = []
            for at in climb(each, self._above.get):
                if at in found:
                    break
                path.append(at)
            for one in reversed(path):
                is_system = self.roles.get(one) == "system"
                found[one] = one if is_system else found.get(self._above.get(one))
        return found

    def parts(self, message: str) -> list[Part]:
        "The parts of a message that ``load_parts`` has read"
        return self._parts.get(message, [])

    def load_parts(self, turns: Iterable[Mapping[str, Any]]) -> None:
        "Read what is new in some rows of turns since the answers before them"
        wanted: set[str | None] = set()
        for turn in turns:
            prompt = turn["parent_message_hash"]
            answer = self.last_answer(prompt)
            wanted.update(self.up(prompt, until=answer), [answer, self.system(prompt)])
            wanted.update(self.up(turn["tip_message_hash"], until=prompt))
        self._read_parts(wanted - {None})

    def _read_parts(self, messages: Iterable[str | None]) -> None:
        query = f"select * from parts where message_hash {IN} order by position"
        rows = list(self.db.query(query, [json_list(messages)]))
        parts = [parse_object(row["payload"]) for row in checked(rows)]
        used = {
            piece["fragment"]
            for part in parts
            for piece in part.get("text_ref") or ()
            if "fragment" in piece
        }
        query = f"select id, content from fragments where id {IN}"
        found = self.db.query(query, [json_list(used)]) if used else ()
        fragments = {row["id"]: row["content"] for row in found}
        for row, part in checked(zip(rows, parts, strict=True)):
            part["type"] = row["type"]
            part["text"] = as_text(row["text"])
            if row["text"] is None:
                part["text"] = "".join(
                    piece.get("literal") or fragments.get(piece.get("fragment")) or ""
                    for piece in part.get("text_ref") or ()
                )
            part["about"] = "attachment"
            self._parts.setdefault(row["message_hash"], []).append(part)
        self._describe_attachments()

    def _describe_attachments(self) -> None:
        "Set the type and the address of each attachment"
        attached = [
            (part, part["attachment"]["id"])
            for parts in self._parts.values()
            for part in parts
            if isinstance(part.get("attachment"), dict) and "id" in part["attachment"]
        ]
        if not attached:
            return
        query = f"select id, type, path, url from attachments where id {IN}"
        about = {
            row["id"]: " ".join(
                [row["type"] or "attachment", row["url"] or row["path"] or ""]
            )
            for row in self.db.query(query, [json_list({id for _, id in attached})])
        }
        for part, id in attached:
            part["about"] = about.get(id, "attachment").strip()
