"""The user's store: opened where the settings say it is, and described in numbers.

The idea: a store is a directory and a budget, which are the user's settings.

The invariant: describing a store takes no longer as it grows.

This module does not change anything in a store.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from ..errors import HistoryError, StoreError
from ..log import History
from ..settings import budget, data_directory
from .maintenance import is_sound
from .store import Store


def open_store(create: bool = False) -> Store | None:
    "The state store; None if nothing was ever stored, unless it is to be created"
    root = data_directory()
    there = create or (root / "states").is_dir()
    return Store(root, budget()) if there else None


def existing_store(create: bool = False) -> Store:
    "The state store; raises StoreError if nothing was ever stored"
    store = open_store(create)
    if store is None:
        raise StoreError("Nothing is stored yet: prompt the kvllama model first")
    return store


def rebuild_if_damaged() -> bool:
    "Rebuild the index of the user's store if it is damaged; whether it was"
    try:
        store = open_store()
        if store is None or is_sound(store):
            return False
        store.rebuild()
    except (StoreError, OSError, sqlite3.Error):
        return False
    return True


def resolve_stored(store: Store | None, history: History, reference: str) -> str:
    """The id of a response in the log, or the full id of one that only has a state.

    Raises HistoryError. A response may be deleted from the log while its state is
    pinned: it must still be possible to unpin and remove that.
    """
    try:
        return history.resolve(reference)
    except HistoryError:
        if store is not None and store.get_all(reference):
            return reference
        raise


def describe_store(history: History | None = None) -> dict[str, Any]:
    """The store in numbers.

    ``reclaimable`` bytes are neither pinned nor needed by a pinned state;
    ``hit_rate`` is the share of all prompts' tokens that was reused. With a history,
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
