"""One model in memory: its context, its slots and its store.

The idea: whoever wants the next piece of an answer decodes a batch for all
generations that are running. A command does so until its answer is complete, a
server in a thread of its own.

The invariant: no failure of the store fails a prompt. It is warned of, and the
answer comes all the same.

This module does not know llm's models, options or log.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..chat import Chat
from ..engine import (
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
from ..errors import ChatError, KVBranchError, StateError
from ..store import Check, Entry, Store, fingerprint_of, is_damage
from . import batching
from .batching import Pace, interruptible
from .capture import STORE_ERRORS
from .generation import Generation, Request
from .planning import Plan, Planner, chain_hashes, covered
from .slots import Done, Slots

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
        self.slots = Slots(engine, self._open_state, self._lost, self._prefetch)
        self.running: list[Generation] = []
        self.pace = Pace(engine.settings.n_batch)

    def generate(self, request: Request) -> Generation:
        "A generation, which does nothing until it is started or iterated over"
        return Generation(self, request)

    def next_piece(self, generation: Generation) -> str | None:
        "The next piece of a running generation's text, None at its end"
        while True:
            with self.lock:
                if generation.pieces:
                    return generation.pieces.popleft()
                if generation.error is not None:
                    raise generation.error
                if generation.ended:
                    return None
                self.step()

    def step(self) -> None:
        """Decode one batch of what the running generations wait for.

        Those whose text nobody has taken yet are left out, so that an answer that is
        not read is not computed either. Errors are kept by the generations that
        they are of; only what ends a process is raised.
        """
        with self.lock:
            for generation in list(self.running):
                if generation.cancelled and not generation.is_answering:
                    generation.finish_reason = "cancelled"
                    generation.close()
            waiting = [g for g in self.running if g.feed is None]
            batch = batching.choose(
                [g for g in self.running if g.cancelled or not g.pieces],
                self.engine.settings.n_batch,
                self.pace.chunk(),
            )
            if batch:
                self._decode(batch)
            self._tell([(generation, Done()) for generation in waiting])

    def _decode(self, batch: list[tuple[Generation, Feed]]) -> None:
        "Decode feeds in one batch, and tell their generations"
        feeds = [feed for _, feed in batch]
        n = sum(len(feed.tokens) for feed in feeds)
        takes_long = self.pace.takes_long(n - len(feeds))
        started = time.perf_counter()
        try:
            with interruptible(lambda: _is_given_up(batch), takes_long) as stop:
                indices = self.engine.decode(feeds, stop)
        except BaseException as error:
            for generation, _ in batch:  # rows of tokens that no slot knows of
                if (slot := generation.slot) is not None:
                    self.slots.truncate(slot, len(slot.tokens))
            self._failed(batch, error)
            return
        each = (time.perf_counter() - started) / n
        self.pace.measured(n - len(feeds), each * n)
        self._tell(
            [
                (g, Done(len(feed.tokens), index, len(feed.tokens) * each))
                for (g, feed), index in zip(batch, indices, strict=True)
            ]
        )

    def _failed(
        self, batch: list[tuple[Generation, Feed]], error: BaseException
    ) -> None:
        "What could not be decoded is tried again if it was interrupted, or given up"
        if isinstance(error, Exception):
            for generation, _ in batch:
                generation.error = error
                generation.close()
            return
        self._tell([(generation, Done()) for generation, _ in batch])
        if not _is_given_up(batch):
            raise error

    def _tell(self, done: list[tuple[Generation, Done]]) -> None:
        "Let generations go on, all of them even if one is interrupted"
        interrupt = None
        for generation, what in done:
            try:
                generation.advance(what)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def warm_up(self) -> None:
        """Do what is done once, and would keep the first answer waiting.

        The chat template is compiled, and a token decoded: llama.cpp maps the weights,
        and reads them when they are used for the first time.
        """
        import llm

        with self.lock, contextlib.suppress(KVBranchError):
            tokens = self.planner.chat.encode([llm.user("A")])
            if self.running or self.slots.n_used():
                return
            try:
                self.engine.decode([Feed(0, 0, tokens[:1])])
            finally:
                self.engine.cut(0, 0)

    def read_ahead(self, generation: Generation, stop: Callable[[], bool]) -> bool:
        """Decode what any turn after an answer begins with, while nobody waits.

        That is the end of the answer's turn and the beginning of the user's, a fourth
        of the tokens of a short question. False if ``stop`` was true before the end.
        Not where only snapshots can be gone back to: it would be in a branch's way.
        """
        slot, request = generation.slot, generation.request
        with self.lock:
            if not self.engine.cuts_anywhere or generation.calls or slot is None:
                return True
            if slot.busy or slot.tokens != generation.tokens:
                return True
            said = generation.said
            tokens = self.planner.ahead(request.messages, said, request.tools)
            begin, end = len(slot.tokens), len(tokens)
            if not begin < end <= begin + self.engine.n_ctx - self.slots.n_used():
                return True
            try:
                feed = Feed(slot.seq, begin, tokens[begin:], logits=False)
                self.engine.decode([feed], stop)
                slot.add(tokens[begin:])
            except (KVBranchError, KeyboardInterrupt):  # the latter by stop
                self.slots.truncate(slot, begin)
                return not stop()
            return True

    def plan(self, request: Request) -> Plan:
        """Plan a prompt, without a store if it fails; its files are held.

        Raises ChatError where the model cannot take it.
        """
        if request.tools and not self.planner.chat.takes_tools:
            raise ChatError(
                f"{self.name} was not taught to call tools, says its chat template: "
                "choose another model, or leave the tools out"
            )
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
            plan.hold = self.store.hold(plan.chain)
            if plan.hold is not None:
                break
        return plan

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text, whole characters only"
        vocab = self.engine.weights
        tokens = vocab.tokenize(text, special=False)[-n_tokens:]
        spelled = b"".join(map(vocab.piece, tokens)).decode("utf-8", "ignore")
        n = len(spelled)
        while n and not text.endswith(spelled[-n:]):
            n -= 1  # a tokenizer may add a space in front
        return text[len(text) - n :]

    def place(self, text: str, start: int, end: int) -> tuple[int, int]:
        "The characters of a text that its tokens [start, end) spell"
        vocab = self.engine.weights
        tokens = vocab.tokenize(text, special=False)
        _, before = covered(tokens[:start], vocab.piece, text)
        _, upto = covered(tokens[:end], vocab.piece, text)
        return before, upto

    def _open_state(
        self, entry: Entry, marks: Sequence[int], check: Check | None = None
    ) -> Any:
        if self.store is None:
            raise StateError("the state store cannot be read")
        return self.store.open_parts(entry, marks, check)

    def _prefetch(self, entries: list[Entry]) -> None:
        if self.store is not None:
            self.store.prefetch(entries)

    def _lost(self, entry: Entry, reason: str) -> None:
        if self.store is not None:
            try:
                self.store.lost(entry, reason)
            except STORE_ERRORS as error:
                self._give_up_store(error)

    def _give_up_store(self, error: BaseException) -> None:
        self.warn(f"{error}. Going on without stored state")
        self.store = self.planner.store = None


def _is_given_up(batch: list[tuple[Generation, Feed]]) -> bool:
    "Whether nobody waits for a batch any more; answers are brought to their end"
    return all(g.cancelled and not g.is_answering for g, _ in batch)


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
