"""What the commands print, as plain values: what --json shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..log import Ancestry, Forest, History, as_text, diff, message_text
from ..store import open_store

if TYPE_CHECKING:
    from ..store import Removal, Store

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
    "generated_tokens",
    "finish_reason",
    "imported_tokens",
    "miss_reason",
    "restore_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_tps",
    "device",
    "served",
    "queue_ms",
    "state_start",
    "state_end",
    "state_bytes",
    "state_parent",
    "state_pinned",
    "state_gone",
    "state_origin",
    "state_file",
)


def describe_response(history: History, response_id: str) -> dict[str, Any]:
    """Everything known about a response, in the order of FACTS.

    Facts about the run come from the log, those about the state from the store.
    Unknown ones are None (another model than kvllama, or no state).
    """
    turn = history.turn(response_id)
    branch = history.branch(response_id)
    parent = branch.get("from_response") or Ancestry(history.db).previous(response_id)
    facts = {
        **history.facts(response_id),
        **{n: as_text(branch.get(n)) or None for n in ("verb", "mode", "excerpt")},
        "response_id": response_id,
        "thread_id": turn["thread_id"],
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


def describe_tree(
    history: History, reference: str | None, count: int
) -> Iterator[list[dict[str, Any]]]:
    """The lines of one tree, or of the newest trees without a reference.

    A line has the keys lead (what connects it to its parent), id (shortened, but
    unique), current, verb, mode, excerpt, prompt, tokens, state_bytes, state_gone,
    starred, note.
    """
    forest, store = Forest(history), open_store()
    if reference is None:
        roots = forest.recent(count)
    else:
        roots = [forest.tree(history.resolve(reference, threads=True))]
    current = history.current()
    for root in roots:
        lines = []
        for lead, node in root.outline():
            entry = store.get(node.id) if store else None
            lines.append(
                {
                    "lead": lead,
                    "id": history.short_id(node.id),
                    "current": node.id == current,
                    "verb": node.verb,
                    "mode": node.mode,
                    "excerpt": node.excerpt,
                    "prompt": node.prompt,
                    "tokens": node.n_tokens,
                    "state_bytes": entry.nbytes if entry else 0,
                    "state_gone": entry.gone if entry else None,
                    "starred": node.starred,
                    "note": node.note,
                }
            )
        yield lines


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
