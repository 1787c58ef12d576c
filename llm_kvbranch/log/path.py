"""The turns from the root of a tree to one of its responses, in full.

The idea: each turn has what was new in it since its parent's answer, which is what a
person reads. An answer that a branch cuts ends at the cut.

This module knows the log's tables. It does not know KV state or how turns are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .ancestry import messages_above
from .history import History
from .tables import IN, json_list
from .text import question
from .tree import Node

# The facts of a generation that a turn has, in this order
FACTS = (
    "prompt_tokens",
    "restored_tokens",
    "resident_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "ttft_ms",
    "decode_tps",
    "finish_reason",
    "miss_reason",
)


@dataclass
class Turn:
    """One response and its prompt.

    ``prompt`` is everything sent after the parent's answer, ``system`` the system
    prompt. ``leaves`` is the number of characters of the parent's answer that this
    turn continues, None for all; ``cut`` is the same for this answer and the next
    turn of a path. ``apart`` is set if the turn does not continue its parent at all:
    a fresh context, or a retry of a first response.
    """

    node: Node
    system: str | None
    prompt: str
    text: str
    cut: int | None = None
    leaves: int | None = None
    apart: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    attachments: list[str] = field(default_factory=list)

    @property
    def question(self) -> str:
        return question(self.prompt)

    @property
    def quoted(self) -> str | None:
        "The part of an answer that the prompt quotes"
        return self.node.excerpt if self.question != self.prompt else None


def read_path(history: History, node: Node) -> list[Turn]:
    "The turns from the root to a node; each system prompt is in the first that has it"
    turns = read_turns(history, node.path())
    for turn, after in pairwise(turns):
        turn.cut = after.leaves
    before: str | None = None
    for turn in turns:
        system, turn.system = turn.system, None
        if system != before:
            before = turn.system = system
    return turns


def read_turns(history: History, nodes: list[Node]) -> list[Turn]:
    "The turns of some nodes, such as a path or a whole tree"
    ids = json_list(node.id for node in nodes)
    rows = history.db.query(f"select * from turns where id {IN}", [ids])
    by_id = {row["id"]: row for row in rows}
    reader = _Messages(history, by_id)
    turns = {node.id: reader.turn(node, by_id[node.id]) for node in nodes}
    for turn in turns.values():
        parent = turn.node.parent
        if parent is not None and parent.id in turns:
            answer = reader.last_answer(by_id[turn.node.id])
            _compare_with_parent(turn, turns[parent.id], answer)
    return list(turns.values())


def _compare_with_parent(turn: Turn, parent: Turn, answer: str | None) -> None:
    "Set where a turn leaves its parent, given the last answer in its prompt"
    if answer is None or not parent.text.startswith(answer or parent.text[:1]):
        turn.apart = True
    elif answer != parent.text:
        turn.leaves = len(answer)


class _Messages:
    "The messages up to the answers of some responses"

    def __init__(self, history: History, response_ids: Iterable[str]):
        self.db = history.db
        self._above: dict[str, str | None] = {}
        self._roles: dict[str, str] = {}
        for row in messages_above(self.db, response_ids):
            self._above[row["hash"]] = row["parent_hash"]
            self._roles[row["hash"]] = row["role"]
        self._systems = self._find_systems()
        self._parts: dict[str, list[dict[str, Any]]] = {}

    def _find_systems(self) -> dict[str | None, str | None]:
        "The last system message up to each message"
        found: dict[str | None, str | None] = {None: None}
        for each in self._above:
            path: list[str] = []
            at: str | None = each
            while at is not None and at not in found:
                path.append(at)
                at = self._above.get(at)
            for one in reversed(path):
                is_system = self._roles.get(one) == "system"
                found[one] = one if is_system else found[self._above.get(one)]
        return found

    def last_answer(self, row: dict[str, Any]) -> str | None:
        "The last answer in a turn's prompt, None if there is none"
        for at in self._up(row["parent_message_hash"]):
            if self._roles[at] == "assistant":
                return _text(self._of(at))
        return None

    def turn(self, node: Node, row: dict[str, Any]) -> Turn:
        "The turn of a node"
        start, tip = row["parent_message_hash"], row["tip_message_hash"]
        answered = list(self._up(tip, until=start))
        sent = [h for h in self._up(start, answers=False) if self._roles[h] != "system"]
        asked = [part for each in reversed(sent) for part in self._of(each)]
        said = [part for each in reversed(answered) for part in self._of(each)]
        system = self._systems.get(start)
        return Turn(
            node=node,
            system=_text(self._of(system)) if system else None,
            prompt=_text(asked),
            text=_text(said),
            facts=_facts(row["response_json"]),
            calls=[
                {"name": p.get("name"), "arguments": p.get("arguments")}
                for p in said
                if p["type"] == "tool_call"
            ],
            results=[
                {"name": p.get("name"), "output": p.get("output")}
                for p in asked
                if p["type"] == "tool_result"
            ],
            attachments=[p["about"] for p in asked if p["type"] == "attachment"],
        )

    def _up(
        self, at: str | None, until: str | None = None, answers: bool = True
    ) -> Iterator[str]:
        "Messages from one up to another or to the last answer, which is left out"
        while at in self._above and at != until:
            if not answers and self._roles[at] == "assistant":
                return
            yield at
            at = self._above[at]

    def _of(self, message: str) -> list[dict[str, Any]]:
        "The parts of a message; the first call reads those of all messages"
        if not self._parts:
            self._read_parts()
        return self._parts.get(message, [])

    def _read_parts(self) -> None:
        query = f"select * from parts where message_hash {IN} order by position"
        rows = list(self.db.query(query, [json_list(self._above)]))
        loaded = [_parse(row["payload"]) for row in rows]
        referred = {
            piece["fragment"]
            for payload in loaded
            for piece in payload.get("text_ref") or ()
            if "fragment" in piece
        }
        query = f"select id, content from fragments where id {IN}"
        found = self.db.query(query, [json_list(referred)]) if referred else ()
        fragments = {row["id"]: row["content"] for row in found}
        for row, part in zip(rows, loaded, strict=True):
            part["type"] = row["type"]
            part["text"] = row["text"]
            if part["text"] is None:
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
            for of in self._parts.values()
            for part in of
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


def _text(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def _parse(payload: str | None) -> dict[str, Any]:
    "A JSON object; empty if it is anything else"
    try:
        loaded = json.loads(payload or "{}")
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _facts(response_json: str | None) -> dict[str, Any]:
    "What kvllama logged about a generation; empty for other models"
    facts = _parse(response_json).get("kvbranch")
    if not isinstance(facts, dict):
        return {}
    plain = {name: facts.get(name) for name in FACTS}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float)}
