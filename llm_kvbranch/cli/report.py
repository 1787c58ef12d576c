"""What the commands print, as plain values: what --json shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HistoryError
from ..log import Ancestry, Forest, History, as_text, diff, message_text, open_log
from ..store import open_store

if TYPE_CHECKING:
    from ..store import Removal, Store, bundle

# In the order in which they are shown
FACTS = (
    "response_id",
    "thread_id",
    "parent_response_id",
    "model",
    "resolved_model",
    "verb",
    "mode",
    "excerpt",
    "prompt_tokens",
    "restored_tokens",
    "resident_tokens",
    "prefilled_tokens",
    "reread_tokens",
    "generated_tokens",
    "thinking_tokens",
    "thinking_cut",
    "finish_reason",
    "imported_tokens",
    "miss_reason",
    "inexact",
    "system_prompt",
    "restore_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_tps",
    "device",
    "served",
    "queue_ms",
    "restarts",
    "state_start",
    "state_end",
    "state_bytes",
    "state_parent",
    "state_pinned",
    "state_gone",
    "state_origin",
    "state_file",
)


def log_if_any(database: str | None, must_exist: bool = False) -> History | None:
    """The log; None if llm has none yet.

    Raises HistoryError if it must exist; one that the user names always must.
    """
    try:
        return History(open_log(database))
    except HistoryError:
        if database is not None or must_exist:
            raise
        return None


def describe_response(history: History, response_id: str) -> dict[str, Any]:
    """Everything known about a response, in the order of FACTS.

    Facts about the run come from the log, those about the state from the store.
    Unknown ones are None (another model than kvllama, or no state).
    """
    turn = history.turn(response_id)
    branch = history.branch(response_id)
    origin = as_text(branch.get("from_response"))
    parent = origin or Ancestry(history.db).previous(response_id)
    facts = {
        **history.facts(response_id),
        **{n: as_text(branch.get(n)) or None for n in ("verb", "mode", "excerpt")},
        "response_id": response_id,
        "thread_id": turn["thread_id"] and as_text(turn["thread_id"]),
        "parent_response_id": parent,
        "model": as_text(turn["model"]) or None,
        "resolved_model": as_text(turn["resolved_model"]) or None,
    }
    store = open_store()
    entry = store.get(response_id) if store else None
    if store is not None and entry is not None:
        facts.update(
            state_start=entry.state.start,
            state_end=entry.state.end,
            state_bytes=entry.nbytes,
            state_parent=entry.state.parent_id,
            state_pinned=entry.pinned or None,
            state_gone=entry.gone,
            state_origin=entry.state.origin,
            state_file=str(store.path(entry.state)) if entry.present else None,
        )
    return {name: facts.get(name) for name in FACTS}


# How a node is drawn: not a part of --json
DRAWN = ("lead", "short_id")


def describe_tree(
    history: History, reference: str | None, count: int
) -> Iterator[list[dict[str, Any]]]:
    """The nodes of one tree, or of the newest trees without a reference.

    ``lead`` connects a node to its parent when it is drawn.
    """
    forest, store = Forest(history), open_store()
    if reference is None:
        roots = forest.recent(count)
    else:
        roots = [forest.tree(history.resolve(reference, threads=True))]
    current = history.current()
    for root in roots:
        nodes = []
        for lead, node in root.outline():
            entry = store.get(node.id) if store else None
            nodes.append(
                {
                    "lead": lead,
                    "short_id": history.short_id(node.id),
                    "id": node.id,
                    "parent_id": node.parent.id if node.parent else None,
                    "thread_id": node.thread_id,
                    "model": node.model,
                    "prompt": node.prompt,
                    "input_tokens": node.input_tokens,
                    "output_tokens": node.output_tokens,
                    "verb": node.verb,
                    "mode": node.mode,
                    "excerpt": node.excerpt,
                    "current": node.id == current,
                    "starred": node.starred,
                    "note": node.note,
                    "state_bytes": entry.nbytes if entry else None,
                    "state_gone": entry.gone if entry else None,
                }
            )
        yield nodes


def describe_diff(history: History, one: str, other: str) -> dict[str, Any]:
    """Where two conversations diverge, and how they differ from there.

    ``shared`` is the number of messages that both begin with. Each pair of messages
    after them has a ``role`` and ``changes``: a list of (sign, text) where the sign
    is " ", "-" (only in the first) or "+" (only in the other).
    """
    chains = [
        [(m.role, message_text(m)) for m in response.messages]
        for response in (history.response(one), history.response(other))
    ]
    shared = 0
    for left, right in zip(*chains, strict=False):
        if left != right:
            break
        shared += 1
    empty = ("", "")
    pairs = itertools.zip_longest(*(c[shared:] for c in chains), fillvalue=empty)
    return {
        "shared": shared,
        "last_shared": chains[0][shared - 1] if shared else None,
        "messages": [
            {
                "role": left[0] or right[0],
                "changes": diff.changes(left[1], right[1]),
            }
            for left, right in pairs
        ],
    }


def describe_removal(removal: Removal, store: Store | None) -> dict[str, Any]:
    "What was removed from the store and what was kept; ``bytes`` is its size now"
    return {
        "removed": [entry.state.response_id for entry in removal.removed],
        "removed_bytes": removal.nbytes,
        "kept": {entry.state.response_id: why for entry, why in removal.kept},
        "bytes": store.nbytes() if store else 0,
    }


def describe_export(
    report: bundle.Transfer, file: Path, signed: bool
) -> dict[str, Any]:
    return {
        "file": str(file),
        "response_id": report.response_id,
        "states": report.n_states,
        "tokens": report.n_tokens,
        "bytes": report.nbytes,
        "signed": signed,
    }


def describe_import(report: bundle.Transfer) -> dict[str, Any]:
    return {
        "response_id": report.response_id,
        "thread_id": report.thread_id,
        "states": report.n_states,
        "new_states": report.new_states,
        "tokens": report.n_tokens,
        "model": report.model,
        "known_model": report.known_model,
        "origin": report.origin,
    }
