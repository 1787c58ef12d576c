"""What the commands print of a response and of the store, as plain values."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from . import catalog
from .history import History, message_text
from .store import Store
from .tree import Forest, outline

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
    "miss_reason",
    "restore_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_tps",
    "state_start",
    "state_end",
    "state_bytes",
    "state_parent",
    "state_file",
)


def open_store() -> Store | None:
    "The state store, None where nothing was ever stored"
    root = catalog.data_directory()
    return Store(root) if (root / "index.db").exists() else None


def describe_response(history: History, response_id: str) -> dict[str, Any]:
    """All that is known of one response, in the order of FACTS.

    Facts of the run come from the log, those of the state from the store;
    unknown ones are None (a model other than kvllama, no state left).
    """
    turn = history.turn(response_id)
    branch = history.branch(response_id)
    facts = {
        **history.facts(response_id),
        **{name: branch.get(name) for name in ("verb", "mode", "excerpt")},
        "response_id": response_id,
        "thread_id": turn["thread_id"],
        "parent_response_id": branch.get("from_response") or history.parent(turn),
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
            state_file=str(store.path(entry.state)) if entry.present else None,
        )
    return {name: facts.get(name) for name in FACTS}


def describe_tree(
    history: History, reference: str | None, count: int
) -> Iterator[list[dict[str, Any]]]:
    """The lines of one tree, or of the newest ones without a reference.

    A line has the keys lead (what connects it to its parent), id (as short as
    tells responses apart), current, verb, mode, excerpt, prompt, tokens, state_bytes.
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
                "changes": _word_changes(left[1], right[1]),
            }
            for left, right in pairs
        ],
    }


def _word_changes(left: str, right: str) -> list[tuple[str, str]]:
    "Both texts as runs of words that are equal, gone or new"
    words = [re.findall(r"\S+\s*|\s+", text) for text in (left, right)]
    matcher = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False)
    changes = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            changes.append((" ", "".join(words[0][a:b])))
            continue
        changes += [("-", "".join(words[0][a:b]))] if b > a else []
        changes += [("+", "".join(words[1][c:d]))] if d > c else []
    return changes


def describe_store() -> dict[str, Any]:
    """The store in numbers: responses known, those with a file, bytes, tokens.

    Also by model, and what was missed and why.
    """
    store = open_store()
    models: dict[str, dict[str, Any]] = {}
    responses = states = tokens = nbytes = 0
    for entry in store.entries() if store else ():
        responses += 1
        if not entry.present:
            continue
        assert store is not None
        fingerprint = entry.state.fingerprint
        if fingerprint not in models:
            fields = json.loads(store.describe(fingerprint) or "{}")
            models[fingerprint] = {
                "fingerprint": fingerprint,
                "name": fields.get("name", "unknown"),
                "kv_type": fields.get("kv_type", "unknown"),
                "states": 0,
                "bytes": 0,
            }
        models[fingerprint]["states"] += 1
        models[fingerprint]["bytes"] += entry.nbytes
        states += 1
        nbytes += entry.nbytes
        tokens += len(entry.state.tokens)
    return {
        "directory": str(catalog.data_directory()),
        "responses": responses,
        "states": states,
        "bytes": nbytes,
        "tokens": tokens,
        "models": list(models.values()),
        "misses": store.misses() if store else [],
    }
