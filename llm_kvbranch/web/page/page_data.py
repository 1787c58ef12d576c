"""Trees and conversations as plain values, for the page.

The idea: a tree is described by the start of every text, a conversation in full. Both
say what state each response has.

This module does not know HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...log import Forest, History, Node, Turn, diff, read_path, read_turns, search
from ...store import StateInfo, look_up
from ..serving import Server

PROMPT, START, EXCERPT = 200, 160, 200  # characters of each that a tree shows
_READ = 1000  # characters read for them, since white space is collapsed


def one_line(text: str | None, n: int) -> str:
    "The start of a text, without line breaks"
    return " ".join((text or "")[: 2 * _READ].split())[:n]


async def slots_of(server: Server | None) -> dict[str, int]:
    "The slot of each response that is in memory"
    if server is None:
        return {}
    slots = (await server.host.status())["slots"]
    return {slot["response_id"]: slot["id"] for slot in slots if slot["response_id"]}


def describe_tree(
    history: History, reference: str, slots: Mapping[str, int]
) -> dict[str, Any]:
    "The tree that a response is in, parents before children"
    forest = Forest(history, _READ)
    root = forest.tree(history.resolve(reference, threads=True))
    forest.load_answers(root)
    nodes = list(root.walk())
    current = history.current()
    states = look_up(node.id for node in nodes)
    resident = _resident(forest, nodes, slots)
    return {
        "root": root.id,
        "current": current if any(node.id == current for node in nodes) else None,
        "nodes": [
            _node(node, states.get(node.id), resident.get(node.id)) for node in nodes
        ],
    }


def _resident(
    forest: Forest, nodes: list[Node], slots: Mapping[str, int]
) -> dict[str, int]:
    "The slots of responses in memory: the last one in a slot, and those before it"
    resident: dict[str, int] = {}
    for node in nodes:
        at, slot = node, slots.get(node.id)
        while slot is not None and at.id not in resident:
            resident[at.id] = slot
            above = at.parent
            if above is None or not forest.ancestry.is_whole(at.id, above.id):
                break
            at = above
    return resident


def _node(node: Node, state: StateInfo | None, slot: int | None) -> dict[str, Any]:
    return {
        "id": node.id,
        "parent": node.parent.id if node.parent else None,
        "thread": node.thread_id,
        "model": node.model,
        "prompt": one_line(node.prompt, PROMPT),
        "start": one_line(node.answer, START),
        "tokens": {"input": node.input_tokens, "output": node.output_tokens},
        "verb": node.verb,
        "mode": node.mode,
        "excerpt": None if node.excerpt is None else one_line(node.excerpt, EXCERPT),
        **_state(state, slot),
        "starred": node.starred,
        "note": node.note,
        "created": node.created,
        "ms": node.duration_ms,
    }


def _state(state: StateInfo | None, slot: int | None) -> dict[str, Any]:
    kind = state.kind if state else "none"
    return {
        "state": kind if slot is None else "hot",
        "why": state.gone if state else None,
        "nbytes": (state.nbytes or None) if state else None,
        "slot": slot,
    }


def describe_path(
    history: History, reference: str, slots: Mapping[str, int]
) -> dict[str, Any]:
    "The conversation from the root of a tree to a response"
    id = history.resolve(reference, threads=True)
    forest = Forest(history, _READ)
    nodes = {node.id: node for node in forest.tree(id).walk()}
    turns = read_path(history, nodes[id])
    states = look_up(turn.node.id for turn in turns)
    resident = _resident(forest, list(nodes.values()), slots)
    return {
        "id": id,
        "turns": [
            _turn(turn, _state(states.get(turn.node.id), resident.get(turn.node.id)))
            for turn in turns
        ],
    }


def _turn(turn: Turn, state: dict[str, Any]) -> dict[str, Any]:
    node = turn.node
    return {
        "id": node.id,
        "thread": node.thread_id,
        "model": node.model,
        "created": node.created,
        "verb": node.verb,
        "mode": node.mode,
        "system": turn.system,
        "prompt": turn.prompt,
        "question": turn.question,
        "quoted": turn.quoted,
        "reasoning": turn.reasoning,
        "text": turn.text,
        "cut": turn.cut,
        "apart": turn.apart,
        "facts": turn.facts,
        "tokens": {"input": node.input_tokens, "output": node.output_tokens},
        "ms": node.duration_ms,
        "calls": turn.calls,
        "results": turn.results,
        "attachments": turn.attachments,
        "starred": node.starred,
        "note": node.note,
        **state,
        "children": [_child(child) for child in node.children],
    }


def _child(node: Node) -> dict[str, Any]:
    "A response that continues an answer, and from which part of it"
    return {
        "id": node.id,
        "verb": node.verb,
        "mode": node.mode,
        "start": node.start,
        "end": node.end,
        "question": one_line(node.prompt, PROMPT),
        "starred": node.starred,
    }


def describe_found(found: search.Found, forest: Forest) -> dict[str, Any]:
    "A search result"
    return {
        "id": found.id,
        "root": forest.ancestry.root(found.id),
        "prompt": one_line(found.prompt, PROMPT),
        "snippet": found.snippet,
        "hits": found.hits,
        "created": found.created,
        "model": found.model,
    }


def describe_columns(history: History, references: list[str]) -> dict[str, Any]:
    "Answers side by side: what history they share, and how their words differ"
    ids = [history.resolve(each, threads=True) for each in references]
    forest = Forest(history, _READ)
    roots = forest.load(list(dict.fromkeys(map(forest.ancestry.root, ids))))
    nodes = {node.id: node for root in roots for node in root.walk()}
    ways = [[node.id for node in nodes[id].path()] for id in ids]
    shared = [each[0] for each in zip(*ways, strict=False) if len(set(each)) == 1]
    turns = {
        turn.node.id: turn
        for turn in read_turns(history, [nodes[id] for id in dict.fromkeys(ids)])
    }
    pieces = diff.columns([turns[id].text for id in ids])
    return {
        "shared": len(shared),
        "last_shared": shared[-1] if shared else None,
        "columns": [
            {
                "id": id,
                "question": one_line(turns[id].question, PROMPT),
                "model": nodes[id].model,
                "created": nodes[id].created,
                "pieces": [{"sign": sign, "text": text} for sign, text in runs],
            }
            for id, runs in zip(ids, pieces, strict=True)
        ],
    }
