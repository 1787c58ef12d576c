"""One model in memory: its context, its slots and its store.

The invariant: no failure of the store fails a prompt. It is warned of, and the
answer comes all the same.

This module does not know llm's models, options or log.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from .chat import Chat
from .engine import (
    KV_TYPES,
    Engine,
    Load,
    Sampling,
    Settings,
    Weights,
    json_grammar,
)
from .errors import StateError
from .generation import STORE_ERRORS, Generation, Request
from .index import Entry, is_damage
from .planning import Plan, Planner, chain_hashes
from .slots import Slots
from .store import Store

__all__ = [
    "KV_TYPES",
    "Generation",
    "Load",
    "Request",
    "Sampling",
    "Session",
    "Settings",
    "chain_hashes",
    "json_grammar",
    "open_session",
]


class Session:
    """A model's context, its slots and its store.

    ``warn`` is told, in one line, what went wrong without stopping anything.
    Safe to use from several threads: they take turns batch by batch.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        store: Store | None,
        warn: Callable[[str], None],
        load: Load,
    ):
        self.engine = engine
        self.planner = planner
        self.store = store
        self.warn = warn
        self.load = load
        self.name = load.path.stem
        self.lock = threading.RLock()
        self.slots = Slots(engine, self._open_state, self._lost)

    def generate(self, request: Request) -> Generation:
        "A generation, which does nothing until it is iterated over"
        return Generation(self, request)

    def plan(self, request: Request) -> Plan:
        "Plan a prompt, without a store if it fails"
        try:
            try:
                return self.planner.plan(request.messages, request.tools)
            except sqlite3.DatabaseError as error:
                if self.store is None or not is_damage(error):
                    raise
                self.warn("The index of the state store was damaged: made again")
                self.store.rebuild()
                return self.planner.plan(request.messages, request.tools)
        except STORE_ERRORS as error:
            self._give_up_store(error)
            plan = self.planner.plan(request.messages, request.tools)
            plan.miss_reason = "the state store cannot be read"
            return plan

    def _open_state(self, entry: Entry) -> Any:
        if self.store is None:
            raise StateError("the state store cannot be read")
        return self.store.open(entry)

    def _lost(self, entry: Entry, reason: str) -> None:
        if self.store is not None:
            try:
                self.store.lost(entry, reason)
            except STORE_ERRORS as error:
                self._give_up_store(error)

    def _give_up_store(self, error: BaseException) -> None:
        self.warn(f"{error}. Going on without stored state")
        self.store = self.planner.store = None


def open_session(
    load: Load,
    settings: Settings,
    root: Path | str | None,
    warn: Callable[[str], None],
    weights: Weights | None = None,
) -> Session:
    """Load a model, unless it is given loaded, and open its state store.

    Raises ModelLoadError. A store that cannot be opened is warned of, and the
    session goes on without one.
    """
    store, fingerprint = None, ""
    weights = weights or Weights(load)
    engine = Engine(weights, settings)
    if root is not None:
        try:
            store = Store(root)
            fields = engine.fingerprint(store.file_digest(load.path))
            text = json.dumps(fields, sort_keys=True)
            fingerprint = xxhash.xxh3_64_hexdigest(text.encode())
            store.describe(fingerprint, json.dumps({**fields, "name": load.path.stem}))
        except STORE_ERRORS as error:
            warn(f"{error}. Going on without stored state")
            store = None
    planner = Planner(
        Chat(weights), weights.piece, store, fingerprint, engine.cuts_anywhere
    )
    return Session(engine, planner, store, warn, load)
