"""One model in memory: its context, its slots and its store.

The invariant: no failure of the store fails a prompt. It is warned of, and the
answer comes all the same.

This module does not know llm's models, options or log.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .chat import Chat
from .database import is_damage
from .engine import (
    KV_TYPES,
    Engine,
    Feed,
    Load,
    Rope,
    Sampling,
    Settings,
    Weights,
    json_grammar,
)
from .errors import StateError
from .generation import STORE_ERRORS, Generation, Request
from .index import Entry
from .planning import Plan, Planner, chain_hashes
from .slots import Slots
from .state import fingerprint_of
from .store import Store

__all__ = [
    "KV_TYPES",
    "Generation",
    "Load",
    "Request",
    "Rope",
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
        name: str | None = None,
    ):
        self.engine = engine
        self.planner = planner
        self.store = store
        self.warn = warn
        self.load = load
        self.name = name or load.path.stem
        self.lock = threading.RLock()
        self.slots = Slots(engine, self._open_state, self._lost)
        self.running: list[Generation] = []

    def generate(self, request: Request) -> Generation:
        "A generation, which does nothing until it is iterated over"
        return Generation(self, request)

    def next_token(self, generation: Generation) -> int:
        """The token after what a running generation has.

        Others that wait for theirs get them from the same batch, so that several
        cost little more than one.
        """
        with self.lock:
            if generation.ready is None:
                batch = [g for g in self.running if _lacks_one(g)]
                if generation in batch:
                    self._step(batch)
                else:
                    self._catch_up(generation)
            token, generation.ready = generation.ready, None
        assert token is not None
        return token

    def _step(self, batch: list[Generation]) -> None:
        "Decode the last token of each, and draw the next one"
        engine, slots = self.engine, self.slots
        feeds = []
        try:
            for g in batch:
                assert g.slot is not None
                assert g.wants is not None
                n = len(g.slot.tokens)
                slots.grow(g.slot, n + len(batch), g.limit + len(batch))
                feeds.append(Feed(g.slot.seq, n, g.wants[n:]))
            for g, index in zip(batch, engine.decode(feeds), strict=True):
                assert g.slot is not None
                assert g.wants is not None
                g.slot.tokens.append(g.wants[-1])
                slots.stepped(g.slot)
                g.ready = g.draw(index)
                g.wants = None
        except BaseException:
            for g in batch:  # rows of tokens that no slot knows of
                if g.slot is not None:
                    slots.truncate(g.slot, len(g.slot.tokens))
            raise

    def _catch_up(self, generation: Generation) -> None:
        "The same for one whose slot is not where it should be"
        slot, wants = generation.slot, generation.wants
        assert slot is not None
        assert wants is not None
        self.slots.truncate(slot, len(wants) - 1)
        self.slots.grow(slot, len(wants), generation.limit)
        index = self.slots.prefill(slot, wants)
        generation.ready = generation.draw(index)
        generation.wants = None

    def plan(self, request: Request) -> Plan:
        "Plan a prompt, without a store if it fails; its files are held"
        try:
            try:
                return self._plan_and_hold(request)
            except sqlite3.DatabaseError as error:
                if self.store is None or not is_damage(error):
                    raise
                self.warn("The index of the state store was damaged: made again")
                self.store.rebuild()
                return self._plan_and_hold(request)
        except STORE_ERRORS as error:
            self._give_up_store(error)
            plan = self.planner.plan(request.messages, request.tools)
            plan.miss_reason = "the state store cannot be read"
            return plan

    def _plan_and_hold(self, request: Request) -> Plan:
        "Plan again if a file was removed in the meantime"
        for _ in range(3):
            plan = self.planner.plan(request.messages, request.tools)
            if self.store is None:
                break
            held = self.store.hold(plan.chain)
            if held is not None:
                plan.held = held
                break
        return plan

    def _open_state(self, entry: Entry, marks: Sequence[int]) -> Any:
        if self.store is None:
            raise StateError("the state store cannot be read")
        return self.store.open_parts(entry, marks)

    def _lost(self, entry: Entry, reason: str) -> None:
        if self.store is not None:
            try:
                self.store.lost(entry, reason)
            except STORE_ERRORS as error:
                self._give_up_store(error)

    def _give_up_store(self, error: BaseException) -> None:
        self.warn(f"{error}. Going on without stored state")
        self.store = self.planner.store = None


def _lacks_one(generation: Generation) -> bool:
    "Whether it waits for the token after the next one to decode"
    wants, slot = generation.wants, generation.slot
    if wants is None or slot is None:
        return False
    return len(slot.tokens) == len(wants) - 1


def open_session(
    load: Load,
    settings: Settings,
    root: Path | str | None,
    warn: Callable[[str], None],
    weights: Weights | None = None,
    budget: int | None = None,
    name: str | None = None,
    template: str | None = None,
) -> Session:
    """Load a model, unless it is given loaded, and open its state store.

    ``budget`` is what the store may take, in bytes; 0 is no store. ``name`` is
    what the model is called, ``template`` a chat template in place of its own.
    Raises ModelLoadError. A store that cannot be opened is warned of, and the
    session goes on without one.
    """
    store, fingerprint = None, ""
    weights = weights or Weights(load)
    engine = Engine(weights, settings)
    name = name or load.path.stem
    if weights.notice:
        warn(weights.notice)
    if root is not None and budget != 0:
        try:
            store = Store(root, budget)
            fields = engine.fingerprint(store.file_digest)
            fingerprint = fingerprint_of(fields)
            store.describe(fingerprint, json.dumps({**fields, "name": name}))
        except STORE_ERRORS as error:
            warn(f"{error}. Going on without stored state")
            store = None
    planner = Planner(
        Chat(weights, template),
        weights.piece,
        store,
        fingerprint,
        engine.cuts_anywhere,
        engine.window,
        f"{weights.load.n_gpu_layers} {settings.n_threads or ''}",
    )
    return Session(engine, planner, store, warn, load, name)
