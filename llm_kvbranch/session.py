"""The one owner of a context: restores, prefills, generates, captures.

The idea: a slot is a sequence in the context together with the token ids it
holds. A generation takes the idle slot that shares the most with its prompt,
fills it (what is in memory stays, what is on disk is restored, the rest is
prefilled) and decodes. When its response is logged, the rows that are not
stored yet are captured and put in the store.

The invariants: ``slot.tokens`` are exactly the rows of its sequence, also after
an error, Ctrl-C or an abandoned generation. Nothing is stored before
``commit``. No failure of the store fails a prompt.

This module does not know llm's models, options or log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sqlite3
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from .chat import Chat
from .engine import (
    KV_TYPES,
    Engine,
    Feed,
    Load,
    Sampling,
    Settings,
    Weights,
    json_grammar,
)
from .errors import ContextError, KVBranchError, StateError, StoreError
from .planning import Plan, Planner, chain_hashes, covered
from .state import State, common_prefix, prefix_digest, tokens_of
from .store import Chain, Entry, Store
from .text import TextStream

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

_HEADROOM = 512  # cells reserved for an answer whose length is not known

_STORE_ERRORS = (StoreError, sqlite3.Error, OSError)


@dataclass(frozen=True)
class Request:
    """What to generate from. ``messages`` are llm's; ``tools`` as chat templates
    take them. ``n_ctx`` limits prompt and answer together, in tokens.
    """

    messages: Sequence[Any]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n_ctx: int | None = None
    tools: tuple[dict[str, Any], ...] = ()


@dataclass
class Slot:
    "A sequence of the context and the token ids of its rows"

    seq: int
    tokens: array[int] = field(default_factory=tokens_of)
    busy: bool = False
    used: int = 0
    # Finished generations whose rows are here and not stored yet
    waiting: weakref.WeakSet[Generation] = field(default_factory=weakref.WeakSet)


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
        self._clock = itertools.count(1)
        self._slots = [Slot(seq) for seq in range(engine.settings.n_seq)]

    def generate(self, request: Request) -> Generation:
        "A generation, which does nothing until it is iterated over"
        return Generation(self, request)

    # -- for generations, with the lock held -----------------------------

    def plan(self, request: Request) -> Plan:
        try:
            return self.planner.plan(request.messages, request.tools)
        except _STORE_ERRORS as error:
            self.give_up_store(error)
            plan = self.planner.plan(request.messages, request.tools)
            plan.miss_reason = "the state store cannot be read"
            return plan

    def give_up_store(self, error: BaseException) -> None:
        "Go on without a store after it failed"
        self.warn(f"{error}. Going on without stored state")
        self.store = self.planner.store = None

    def acquire(self, tokens: array[int]) -> Slot:
        "The idle slot that shares the most with the tokens"
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            raise ContextError(
                f"{len(self._slots)} generations are running: finish one first"
            )
        slot = max(idle, key=lambda s: (common_prefix(s.tokens, tokens), s.used))
        slot.busy = True
        slot.used = next(self._clock)
        return slot

    def release(self, slot: Slot) -> None:
        "Give a slot back, its tokens corrected to what it really holds"
        held = self.engine.length(slot.seq)
        if held != len(slot.tokens) and not self._cut(
            slot, min(held, len(slot.tokens))
        ):
            self._cut(slot, 0)
        slot.busy = False

    def fill(
        self,
        slot: Slot,
        tokens: array[int],
        chain: Chain,
        stop: Callable[[], bool] | None = None,
    ) -> Filling:
        """Make the slot hold exactly the tokens; logits of the last one.

        ``chain`` says which of them are stored. Raises KeyboardInterrupt when
        ``stop`` says so.
        """
        filling = Filling()
        started = time.perf_counter()
        resident = min(common_prefix(slot.tokens, tokens), len(tokens) - 1)
        self.settle(slot, resident)
        if not self._cut(slot, resident):
            self._cut(slot, 0)
        filling.resident = len(slot.tokens)
        if not self.engine.cuts_anywhere and len(chain.tokens) <= filling.resident:
            chain = Chain()
        for segment in chain.segments:
            if segment.end <= len(slot.tokens):
                continue
            try:
                self._restore(slot, tokens, segment)
                filling.restored += segment.end - max(segment.start, filling.resident)
            except StateError as error:
                filling.misses.append((segment.entry, str(error)))
                if not self.engine.cuts_anywhere:
                    break
                filling.restore_ms += _ms_since(started)
                started = time.perf_counter()
                self.prefill(slot, tokens[: segment.end], stop, logits=False)
                filling.prefill_ms += _ms_since(started)
                started = time.perf_counter()
        filling.restore_ms += _ms_since(started)
        started = time.perf_counter()
        filling.index = self.prefill(slot, tokens, stop)
        filling.prefill_ms += _ms_since(started)
        return filling

    def _restore(self, slot: Slot, tokens: array[int], segment: Any) -> None:
        "Append a segment's rows to the slot; raises StateError"
        entry: Entry = segment.entry
        if self.store is None:
            raise StateError("the state store cannot be read")
        if not entry.present:
            raise StateError("state file is missing")
        try:
            with self.store.open(entry) as payload:
                state = entry.state
                self.engine.restore(
                    slot.seq, payload, state.start, state.end, segment.end
                )
        except StateError as error:
            try:
                self.store.lost(entry, str(error))
            except _STORE_ERRORS as failure:
                self.give_up_store(failure)
            raise
        slot.tokens += tokens[len(slot.tokens) : segment.end]

    def prefill(
        self,
        slot: Slot,
        tokens: array[int],
        stop: Callable[[], bool] | None = None,
        logits: bool = True,
    ) -> int:
        "Decode what the slot lacks of the tokens; index of the last one's logits"
        index = -1
        while (begin := len(slot.tokens)) < len(tokens):
            chunk = tokens[begin : begin + self.engine.settings.n_batch]
            last = begin + len(chunk) == len(tokens)
            feed = Feed(slot.seq, begin, chunk, logits=logits and last)
            (index,) = self.engine.decode([feed], stop)
            slot.tokens += chunk
        return index

    def reserve(self, slot: Slot, n: int) -> None:
        "Make room for n tokens in the slot; idle slots are given up for it"
        if n + self._others(slot) > self.engine.n_ctx:
            for other in self._slots:
                if other is not slot and not other.busy and other.tokens:
                    self.settle(other, 0)
                    self._cut(other, 0)
        self.engine.reserve(
            n + self._others(slot), [s.seq for s in self._slots if s.tokens]
        )

    def grow(self, slot: Slot, n: int, limit: int) -> None:
        "Make room for n tokens in the slot, and for more to come below the limit"
        if n + self._others(slot) > self.engine.n_ctx:
            self.reserve(slot, min(limit, n + max(_HEADROOM, n // 2)))

    def _others(self, slot: Slot) -> int:
        return sum(len(s.tokens) for s in self._slots if s is not slot)

    def _cut(self, slot: Slot, n: int) -> bool:
        if not self.engine.cut(slot.seq, n):
            return False
        del slot.tokens[n:]
        return True

    def cut(self, slot: Slot, n: int) -> bool:
        "Forget the slot's tokens from n on; False where it cannot be done"
        return self._cut(slot, n)

    def settle(self, slot: Slot, n: int) -> None:
        "Before rows from n on are lost: keep those that may still be logged"
        for generation in list(slot.waiting):
            if n < generation.end or not self.engine.cuts_anywhere:
                generation.detach()
                slot.waiting.discard(generation)


@dataclass
class Filling:
    "How a slot was filled: tokens in memory already, tokens restored, misses"

    resident: int = 0
    restored: int = 0
    misses: list[tuple[Entry, str]] = field(default_factory=list)
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    index: int = -1


class Generation:
    """One answer: iterate over it for its text, then ``commit`` it.

    ``facts`` is complete when the iteration has ended.
    """

    def __init__(self, session: Session, request: Request):
        self.session = session
        self.request = request
        self.facts: dict[str, Any] = {}
        self.finish_reason = "stop"
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self.answer = 0
        self.plan: Plan | None = None
        self._slot: Slot | None = None
        self._cancelled = False
        self._misses: list[tuple[Entry, str]] = []
        self._kept: tuple[int, bytearray] | None = None  # (start, rows)
        self._fork = 0

    @property
    def end(self) -> int:
        return len(self.tokens)

    def cancel(self) -> None:
        "Stop as soon as possible; callable from any thread"
        self._cancelled = True

    def __iter__(self) -> Iterator[str]:
        session = self.session
        try:
            yield from self._run()
        except KeyboardInterrupt:
            if not self._cancelled:
                raise
            self.finish_reason = "cancelled"
        finally:
            if self._slot is not None:
                with session.lock:
                    session.release(self._slot)

    def _run(self) -> Iterator[str]:
        session, request = self.session, self.request
        started = time.perf_counter()
        with session.lock:
            plan = self.plan = session.plan(request)
            self.answer = len(plan.tokens)
            limit = self._limit()
            slot = self._slot = session.acquire(plan.tokens)
            session.reserve(slot, min(limit, self.answer + self._expected()))
            with _interruptible(lambda: self._cancelled) as stop:
                filling = session.fill(slot, plan.tokens, plan.chain, stop)
        self._fork = min(filling.resident, self.answer - 1)
        self._misses = filling.misses
        self._describe(filling)
        sampler = session.engine.sampler(request.sampling, plan.tokens)
        text = TextStream(request.stop)
        generated = tokens_of()
        first = None
        index = filling.index
        try:
            while not self._cancelled:
                with session.lock:
                    token = session.engine.sample(sampler, index)
                if session.engine.weights.is_eog(token):
                    break
                generated.append(token)
                piece = text.feed(session.engine.weights.piece(token))
                if first is None:
                    first = time.perf_counter()
                    self.facts["ttft_ms"] = _ms(first - started)
                if piece:
                    yield piece
                if text.stopped:
                    break
                if len(generated) == request.max_tokens:
                    self.finish_reason = "length"
                    break
                if self.answer + len(generated) >= limit:
                    self.finish_reason = "context"
                    break
                with session.lock:
                    session.grow(slot, len(slot.tokens) + 1, limit)
                    index = session.prefill(slot, plan.tokens + generated)
        finally:
            sampler.close()
        if first is not None and len(generated) > 1:
            rate = (len(generated) - 1) / (time.perf_counter() - first)
            self.facts["decode_tps"] = round(rate, 2)
        if rest := text.end():
            yield rest
        self._finish(slot, generated, text.text)

    def _limit(self) -> int:
        "How many tokens prompt and answer may have together"
        session, request = self.session, self.request
        trained = session.engine.weights.n_ctx_train
        limit = min(request.n_ctx or trained, trained) if trained else request.n_ctx
        limit = limit or 1 << 20
        if self.answer >= limit:
            raise ContextError(
                f"The prompt is {self.answer:,} tokens long with its history, "
                f"{session.name} takes {limit:,} with the answer. Shorten it"
                + (
                    f", or raise n_ctx (up to {trained:,})"
                    if limit < trained
                    else ", start a new conversation or use a model with more context"
                )
            )
        return limit

    def _expected(self) -> int:
        "Cells to reserve for the answer at first"
        return min(self.request.max_tokens or _HEADROOM, 4 * _HEADROOM)

    def _describe(self, filling: Filling) -> None:
        assert self.plan is not None
        reused = filling.resident + filling.restored
        reasons = [reason for _, reason in filling.misses]
        if self.plan.miss_reason:
            reasons.append(self.plan.miss_reason)
        self.facts.update(
            prompt_tokens=self.answer,
            restored_tokens=reused,
            resident_tokens=filling.resident,
            prefilled_tokens=self.answer - reused,
            generated_tokens=0,
            miss_reason="; ".join(dict.fromkeys(reasons)) or None,
            restore_ms=_ms(filling.restore_ms / 1e3),
            prefill_ms=_ms(filling.prefill_ms / 1e3),
            ttft_ms=None,
            decode_tps=None,
        )
        if self.plan.miss_reason and self.session.store is not None:
            with contextlib.suppress(*_STORE_ERRORS):
                self.session.store.count_miss(self.plan.miss_reason)

    def _finish(self, slot: Slot, generated: array[int], text: str) -> None:
        "Make the slot end where the text does, and remember what to store"
        session = self.session
        assert self.plan is not None
        piece = session.engine.weights.piece
        n, n_text = covered(generated, piece, text)
        if n_text == len(text) and n < len(generated):
            # Tokens that spell nothing (control tokens) belong to the answer
            while n < len(generated) and not piece(generated[n]):
                n += 1
        self.tokens = self.plan.tokens + generated[:n]
        with session.lock:
            if not session.cut(slot, len(self.tokens)):
                session.fill(slot, self.tokens, self.plan.chain)
            session.prefill(slot, self.tokens, logits=False)
            slot.waiting.add(self)
            self.facts.update(
                generated_tokens=len(generated),
                finish_reason=self.finish_reason,
            )
            start = min(len(self.plan.chain.tokens), self.end - 1)
            self.facts.update(
                state_start=start,
                state_end=self.end,
                state_bytes=session.engine.nbytes(slot.seq, start, self.end),
            )

    # -- storing -------------------------------------------------------

    def detach(self) -> None:
        "Capture the rows into memory: the slot is about to lose them"
        slot = self._slot
        assert slot is not None
        start = min(self._fork, self.end - 1)
        self._kept = (start, self.session.engine.capture(slot.seq, start, self.end))

    def commit(self, response_id: str, tip_hash: str | None) -> Entry | None:
        """Store the rows that this answer added, under its response's id.

        Also writes the files again that were found missing or bad on the way.
        Never raises for the store's sake: it warns and returns None.
        """
        session = self.session
        with session.lock:
            if session.store is None or not self.tokens or self.plan is None:
                return None
            try:
                return self._commit(session.store, response_id, tip_hash)
            except _STORE_ERRORS as error:
                session.warn(f"{error}. The answer is logged, its state is not kept")
                return None
            except KVBranchError as error:
                session.warn(f"{error}. The answer is logged, its state is not kept")
                return None

    def _commit(
        self, store: Store, response_id: str, tip_hash: str | None
    ) -> Entry | None:
        session, slot, plan = self.session, self._slot, self.plan
        assert slot is not None and plan is not None
        live = self in slot.waiting
        if live:
            self._heal(store, slot)
        stored = self._stored_prefix(store)
        start = len(stored.tokens)
        if live:
            payload = session.engine.capture(slot.seq, start, self.end)
        elif self._kept is not None and self._kept[0] <= start:
            start, payload = self._kept
            stored = stored.cut(start)
        else:
            session.warn("The state left memory before its response was logged")
            return None
        state = State(
            response_id=response_id,
            fingerprint=session.planner.fingerprint,
            start=start,
            end=self.end,
            answer=self.answer,
            tokens=self.tokens[start:],
            prefix=prefix_digest(self.tokens, start),
            parent_id=(
                stored.segments[-1].entry.state.response_id if stored.segments else None
            ),
            input_hash=plan.input_hash,
            tip_hash=tip_hash,
            render=plan.render,
        )
        entry = store.put(state, payload)
        store.used(stored)
        slot.waiting.discard(self)
        self._kept = None
        return entry

    def _stored_prefix(self, store: Store) -> Chain:
        "The chain of good files that holds the beginning, up to the answer"
        planner = self.session.planner
        chain = store.longest_prefix(
            planner.fingerprint,
            self.tokens,
            store.find("input_hash", [self.plan and self.plan.input_hash]),
        )
        for segment in chain.segments:
            if not segment.entry.present:
                chain = chain.cut(segment.start)
                break
        return planner.resumable(chain.cut(min(self.answer, self.end - 1)))

    def _heal(self, store: Store, slot: Slot) -> None:
        "Write the files again whose rows were prefilled because they were bad"
        for entry, _ in self._misses:
            state = entry.state
            whole = state.end <= self.answer and (
                self.tokens[state.start : state.end] == state.tokens
            )
            if whole and self.session.engine.cuts_anywhere:
                payload = self.session.engine.capture(slot.seq, state.start, state.end)
                store.put(replace(state, digest=""), payload)
        self._misses = []


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
            store.describe(
                fingerprint, json.dumps({**fields, "name": load.path.stem})
            )
        except _STORE_ERRORS as error:
            warn(f"{error}. Going on without stored state")
            store = None
    planner = Planner(
        Chat(weights), weights.piece, store, fingerprint, engine.cuts_anywhere
    )
    return Session(engine, planner, store, warn, load)


@contextlib.contextmanager
def _interruptible(
    cancelled: Callable[[], bool],
) -> Iterator[Callable[[], bool]]:
    """A stop function for long decodes that Ctrl-C makes true.

    Python delivers KeyboardInterrupt only between its own instructions; a
    prefill can take seconds inside llama.cpp, which asks this function instead.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield cancelled
        return
    interrupted = False

    def on_interrupt(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: interrupted or cancelled()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
