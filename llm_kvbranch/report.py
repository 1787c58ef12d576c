"""What the commands print of a response and of the store, as plain values."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from .ancestry import Ancestry
from .errors import StoreError
from .history import History, message_text
from .settings import budget, data_directory
from .store import Store
from .tree import Forest, outline
from .words import changes

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


def open_store(create: bool = False) -> Store | None:
    "The state store, None where nothing was ever stored unless it may be created"
    root = data_directory()
    there = create or (root / "states").is_dir()
    return Store(root, budget()) if there else None


def existing_store(create: bool = False) -> Store:
    "The state store; raises StoreError where nothing was ever stored"
    store = open_store(create)
    if store is None:
        raise StoreError("Nothing is stored yet: ask something with llm -m kvllama")
    return store


def describe_response(history: History, response_id: str) -> dict[str, Any]:
    """All that is known of one response, in the order of FACTS.

    Facts of the run come from the log, those of the state from the store;
    unknown ones are None (a model other than kvllama, no state left).
    """
    turn = history.turn(response_id)
    branch = history.branch(response_id)
    parent = branch.get("from_response") or Ancestry(history.db).answered(response_id)
    facts = {
        **history.facts(response_id),
        **{name: branch.get(name) for name in ("verb", "mode", "excerpt")},
        "response_id": response_id,
        "thread_id": turn["thread_id"],
        "parent_response_id": parent,
        "model": turn["model"],
        "resolved_model": turn["resolved_model"],
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
    """The lines of one tree, or of the newest ones without a reference.

    A line has the keys lead (what connects it to its parent), id (as short as
    tells responses apart), current, verb, mode, excerpt, prompt, tokens, state_bytes,
    state_gone, starred, note.
    """
    forest, store = Forest(history), open_store()
    if reference is None:
        roots = forest.recent(count)
    else:
        roots = [forest.tree(history.resolve(reference, threads=True))]
    current = forest.current()
    for root in roots:
        lines = []
        for lead, node in outline(root):
            entry = store.get(node.id) if store else None
            lines.append(
                {
                    "lead": lead,
                    "id": forest.short(node.id),
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
    """Where two responses part, and how what follows differs.

    ``shared`` is the number of messages both begin with, ``roles`` and
    ``changes`` describe each pair of messages after them: a list of (sign,
    text) where the sign is " ", "-" (the first has it) or "+" (the other has).
    """
    chains = [
        [(m.role, message_text(m)) for m in (*response.sent, *response.answered)]
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
                "changes": changes(left[1], right[1]),
            }
            for left, right in pairs
        ],
    }


def describe_store(history: History | None = None) -> dict[str, Any]:
    """The store in numbers, none of which take longer to find as it grows.

    ``reclaimable`` bytes are neither pinned nor needed by what is; ``hit_rate``
    is the share of all prompts' tokens that was not read again. With a history
    the largest threads have names.
    """
    store = open_store()
    if store is None:
        return {"directory": str(data_directory()), "responses": 0, "states": 0}
    models = [_describe_model(row) for row in store.models()]
    total = {
        name: sum(model[name] for model in models)
        for name in ("responses", "states", "bytes", "tokens", "prompts")
    }
    read = sum(model["prompt_tokens"] for model in models)
    reused = sum(model["reused_tokens"] for model in models)
    pinned = store.pinned_bytes()
    return {
        "directory": str(data_directory()),
        **total,
        "budget": store.budget(),
        "budget_is_default": store.limit is None,
        "pinned_bytes": pinned,
        "reclaimable_bytes": total["bytes"] - pinned,
        "prompt_tokens": read,
        "reused_tokens": reused,
        "hit_rate": round(reused / read, 4) if read else None,
        "models": models,
        "threads": [_describe_thread(row, history) for row in store.largest_threads(5)],
        "misses": store.misses(),
        "removals": store.removals(),
    }


def _describe_model(row: dict[str, Any]) -> dict[str, Any]:
    fields = json.loads(row["fields"] or "{}")
    counters = ("responses", "states", "tokens", "prompts", "prompt_tokens")
    return {
        "fingerprint": row["fingerprint"],
        "name": fields.get("name", "unknown"),
        "kv_type": fields.get("kv_type", "unknown"),
        "llama.cpp": fields.get("llama.cpp", "unknown"),
        "bytes": row["nbytes"],
        "reused_tokens": row["reused_tokens"],
        **{name: row[name] for name in counters},
    }


def _describe_thread(row: dict[str, Any], history: History | None) -> dict[str, Any]:
    return {
        "thread_id": row["thread"] or None,
        "name": history.thread_name(row["thread"]) if history else None,
        "states": row["states"],
        "bytes": row["nbytes"],
    }
