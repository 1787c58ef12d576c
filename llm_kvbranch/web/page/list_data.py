"""The list of conversations as plain values, for the page.

This module does not know HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from ...log import History, Node, search
from ...settings import format_size
from ...store import look_up
from .page_data import PROMPT, one_line

_LINES = 10  # of a tree's outline


def describe_list(
    history: History, wanted: search.Filter, slots: Mapping[str, int]
) -> dict[str, Any]:
    "A page of trees, and the choices for its filters"
    page = search.list_trees(history, wanted)
    newest = [tree.fitting[0] for tree in page.trees]
    found = {}
    if wanted.words:
        found = {
            f.id: f for f in search.search_responses(history.db, wanted.words, newest)
        }
    nodes = {node.id for tree in page.trees for node in tree.root.walk()}
    states = {id: known.nbytes for id, known in look_up(nodes).items()}
    return {
        "trees": [
            {
                **_tree(tree, wanted, states),
                "n_hot": sum(node.id in slots for node in tree.root.walk()),
                "snippet": _pieces(found.get(tree.fitting[0])),
            }
            for tree in page.trees
        ],
        "before": page.before,
        "models": history.models(),
        "n_older": history.n_legacy(),
    }


def _tree(
    tree: search.Listed, wanted: search.Filter, states: Mapping[str, int]
) -> dict[str, Any]:
    "A tree's question, size and outline"
    nodes = list(tree.root.walk())
    newest = max(nodes, key=lambda node: node.rowid)
    counted = [node.n_tokens for node in nodes if node.n_tokens is not None]
    nbytes = sum(states.get(node.id, 0) for node in nodes)
    lines = list(tree.root.outline())
    if not wanted.is_all:  # the matches may be far down
        fitting = set(tree.fitting)
        lines = [("", node) for node in nodes if node.id in fitting]
    return {
        "id": tree.root.id,
        "open": tree.fitting[0],
        "question": one_line(tree.root.prompt, PROMPT) or "(no text)",
        "changed": newest.created,
        "models": sorted({node.model for node in nodes if node.model}),
        "n_responses": len(nodes),
        "n_branches": sum(max(0, len(node.children) - 1) for node in nodes),
        "n_starred": sum(node.starred for node in nodes),
        "n_fitting": 0 if wanted.is_all else len(lines),
        "tokens": sum(counted) if counted else None,
        "size": format_size(nbytes) if nbytes else None,
        "lines": [_line(lead, node) for lead, node in islice(lines, _LINES)],
        "n_more": max(0, len(lines) - _LINES),
    }


def _line(lead: str, node: Node) -> dict[str, Any]:
    "A line of a tree's outline"
    return {
        "lead": lead,
        "id": node.id,
        "question": one_line(node.prompt, 120) or "(no text)",
        "verb": "fresh" if node.mode == "fresh" else node.verb,
        "excerpt": one_line(node.excerpt, 60),
        "starred": node.starred,
        "note": one_line(node.note, 120),
    }


def _pieces(found: search.Found | None) -> list[tuple[str, bool]]:
    "A snippet in pieces, each with whether it matched"
    if found is None:
        return []
    pieces, at = [], 0
    for start, end in found.hits:
        pieces += [(found.snippet[at:start], False), (found.snippet[start:end], True)]
        at = end
    return [*pieces, (found.snippet[at:], False)]
