"""The turns from the root of a tree to one of its responses, in full.

The idea: each turn has what was new in it since its parent's answer, which is what a
person reads. An answer that a branch cuts ends at the cut.

This module does not know the log's messages, KV state or how turns are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .deadline import checked
from .history import History
from .messages import Messages, Part
from .tables import IN, json_list
from .text import parse_object, parts_text, question
from .tree import Node

# The facts of a generation that a turn has, in this order
FACTS = (
    "prompt_tokens",
    "restored_tokens",
    "resident_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "thinking_tokens",
    "thinking_cut",
    "ttft_ms",
    "decode_tps",
    "finish_reason",
    "miss_reason",
)


@dataclass
class Turn:
    """One response and its prompt.

    ``prompt`` is everything sent after the parent's answer, ``system`` the system
    prompt. ``text`` is the answer, ``reasoning`` the thinking before it. ``leaves`` is
    the number of characters of the parent's answer that this turn continues, None for
    all; ``cut`` is the same for this answer and the next turn of a path. ``apart`` is
    set if the turn does not continue its parent at all: a fresh context, or a retry of
    a first response.
    """

    node: Node
    system: str | None
    prompt: str
    text: str
    reasoning: str = ""
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
    "The turns from the root to a node; a system prompt only where it changes"
    return as_path(read_turns(history, node.path()))


def as_path(turns: list[Turn]) -> list[Turn]:
    "Turns from a root down, with cuts, and a system prompt only where it changes"
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
    turns: dict[str, Turn] = {}
    read_more_turns(history, nodes, turns)
    return list(turns.values())


def read_more_turns(
    history: History, nodes: list[Node], turns: dict[str, Turn]
) -> None:
    """Add the turns of some nodes to others, by their ids.

    A path or a tree can be read a part at a time, parents first.
    """
    query = f"select * from turns where id {IN}"
    found = history.db.query(query, [json_list(node.id for node in nodes)])
    rows = {row["id"]: row for row in found}
    messages = Messages(history.db, rows)
    messages.load_parts(rows.values())
    new = [_turn(node, rows[node.id], messages) for node in checked(nodes)]
    turns.update((turn.node.id, turn) for turn in new)
    for turn in checked(new):
        parent = turn.node.parent
        if parent is not None and parent.id in turns:
            answer = messages.last_answer(rows[turn.node.id]["parent_message_hash"])
            text = parts_text(messages.parts(answer)) if answer else None
            _compare_with_parent(turn, turns[parent.id], text)


def _turn(node: Node, row: dict[str, Any], messages: Messages) -> Turn:
    prompt, tip = row["parent_message_hash"], row["tip_message_hash"]
    asked: list[Part] = []
    answered: list[Part] = []
    for message in messages.up(prompt, until=messages.last_answer(prompt)):
        if messages.roles[message] != "system":
            asked[:0] = messages.parts(message)
    for message in messages.up(tip, until=prompt):
        answered[:0] = messages.parts(message)
    system = messages.system(prompt)
    return Turn(
        node=node,
        system=parts_text(messages.parts(system)) if system else None,
        prompt=parts_text(asked),
        text=parts_text(answered),
        reasoning=parts_text(answered, "reasoning"),
        facts=_facts(row["response_json"]),
        calls=[
            {"name": part.get("name"), "arguments": part.get("arguments")}
            for part in answered
            if part["type"] == "tool_call"
        ],
        results=[
            {"name": part.get("name"), "output": part.get("output")}
            for part in asked
            if part["type"] == "tool_result"
        ],
        attachments=[part["about"] for part in asked if part["type"] == "attachment"],
    )


def _compare_with_parent(turn: Turn, parent: Turn, answer: str | None) -> None:
    "Set where a turn leaves its parent, given the last answer in its prompt"
    if answer is None or not parent.text.startswith(answer or parent.text[:1]):
        turn.apart = True
    elif answer != parent.text:
        turn.leaves = len(answer)


def _facts(response_json: str | None) -> dict[str, Any]:
    "What kvllama logged about a generation; empty for other models"
    facts = parse_object(response_json).get("kvbranch")
    if not isinstance(facts, dict):
        return {}
    plain = {name: facts.get(name) for name in FACTS}
    return {k: v for k, v in plain.items() if isinstance(v, str | int | float)}
