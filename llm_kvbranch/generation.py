"""One answer, from its plan to its stored state.

The idea: a generation plans its prompt, takes a slot, fills it and decodes.
When its response is logged it is committed: the rows that are not stored yet
are captured and put in the store, and files found bad on the way are written
again.

The invariant: nothing is stored before ``commit``. A slot ends where the text
does: a token that goes past a stop string, or stops inside a character, is not
part of the state.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .engine import Sampler, Sampling
from .errors import ContextError, KVBranchError, StateError, StoreError
from .index import Chain, Entry
from .planning import Plan, Turn, answer_hash, covered
from .slots import HEADROOM, Filling, Slot
from .state import State, prefix_digest, tokens_of
from .store import Store
from .text import TextStream

if TYPE_CHECKING:
    from .session import Session

# All conversations, and all turns after the same answer, begin with the same few
# tokens of the chat template. What shares no more with another turn is stored
# again: else it would need the other's file, and keep it from being evicted or
# pruned, for next to nothing.
MIN_SHARED = 64

_MEASURED_TOKENS = 64  # prefilling fewer says little of the rate
_MEASURED_BYTES = 1 << 18  # restoring less is a matter of opening the file

STORE_ERRORS = (StoreError, sqlite3.Error, OSError)


@dataclass(frozen=True)
class Request:
    """What to generate from. ``messages`` are llm's; ``tools`` as chat templates
    take them. ``n_ctx`` limits prompt and answer together, in tokens.
    """

    messages: Sequence[Any]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n_ctx: int | None = None
    tools: tuple[dict[str, Any], ...] = ()


@dataclass
class _Captured:
    "Rows from ``start`` on, and snapshots by position"

    start: int
    rows: bytearray
    snapshots: dict[int, bytearray]


class Generation:
    """One answer: iterate over it for its text, then ``commit`` it.

    ``facts`` is complete when the iteration has ended.
    """

    def __init__(self, session: Session, request: Request):
        self.session = session
        self.request = request
        self.facts: dict[str, Any] = {}
        self.finish_reason = "stop"
        self._prompt = tokens_of()
        self.limit = 0  # of tokens in prompt and answer together
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self.answer = 0
        self.plan: Plan | None = None
        self.slot: Slot | None = None
        self.sampler: Sampler | None = None
        self.wants: array[int] | None = None  # tokens that it waits to go on from
        self.ready: int | None = None  # the token after them
        self._cancelled = False
        self._misses: list[tuple[Entry, str]] = []
        self._kept: _Captured | None = None
        self._fork = 0
        self._tip_hash: str | None = None
        self._committed = False
        self._reads: list[tuple[int, float]] = []
        self._let_go: Callable[[], Any] = lambda: None

    @property
    def end(self) -> int:
        return len(self.tokens)

    def cancel(self) -> None:
        "Stop as soon as possible; callable from any thread"
        self._cancelled = True

    def __iter__(self) -> Generator[str, None, None]:
        session = self.session
        try:
            yield from self._run()
        except KeyboardInterrupt:
            if not self._cancelled:
                raise
            self.finish_reason = "cancelled"
        finally:
            with session.lock:
                self._end()

    def _run(self) -> Iterator[str]:
        session, request = self.session, self.request
        started = time.perf_counter()
        with session.lock:
            token = self._begin()
        weights, generated = session.engine.weights, tokens_of()
        text, first, ended = TextStream(request.stop), 0.0, False
        while not (ended or self._cancelled or weights.is_eog(token)):
            generated.append(token)
            piece = text.feed(weights.piece(token))
            if not first:
                first = time.perf_counter()
                self.facts["ttft_ms"] = _ms(first - started)
            ended = text.stopped or self._at_limit(len(generated))
            # Told before the text is handed out, which may take its time: the
            # next token can come from a batch that another generation decodes
            self.wants = None if ended else self._prompt + generated
            if piece:
                yield piece
            if not ended:
                token = session.next_token(self)
        if len(generated) > 1:
            rate = (len(generated) - 1) / (time.perf_counter() - first)
            self.facts["decode_tps"] = round(rate, 2)
        if rest := text.end():
            yield rest
        if self._cancelled:
            self.finish_reason = "cancelled"
        with session.lock:
            self._finish(generated, text.text)

    def _begin(self) -> int:
        "Plan, take a slot, fill it, and draw the first token"
        session, request = self.session, self.request
        plan = self.plan = session.plan(request)
        if session.store is not None:
            # Until the answer is stored, or nobody can store it any more
            locks = session.store.locks
            self._let_go = weakref.finalize(self, locks.drop_later, plan.held)
        self._prompt, self.answer = plan.tokens, len(plan.tokens)
        self.limit = self._find_limit()
        self.sampler = session.engine.sampler(request.sampling, plan.tokens)
        slot = self.slot = session.slots.acquire(plan.tokens)
        session.running.append(self)
        expected = min(request.max_tokens or HEADROOM, 4 * HEADROOM)
        n_cells = max(min(self.limit, self.answer + expected), plan.chain.n_cells)
        session.slots.reserve(slot, n_cells)
        with _interruptible(lambda: self._cancelled) as stop:
            filling = session.slots.fill(slot, plan.tokens, plan.chain, stop)
        self._fork = min(filling.resident - filling.shared, self.answer - 1)
        self._misses, self._reads = filling.misses, filling.reads
        lost = [entry for entry, _ in filling.misses if not self._can_heal(entry)]
        plan.chain = plan.chain.before(lost)
        self._describe(plan, filling)
        # Before the lock is let go: the next decode replaces the logits
        return self.draw(filling.index)

    def draw(self, index: int) -> int:
        "A token from the logits at an index of the batch just decoded"
        assert self.sampler is not None
        return self.session.engine.sample(self.sampler, index)

    def _end(self) -> None:
        "Leave the running ones, whatever happened"
        self.wants = self.ready = None
        if self in self.session.running:
            self.session.running.remove(self)
        if self.slot is not None:
            self.session.slots.release(self.slot)
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None

    def _at_limit(self, n_generated: int) -> bool:
        "Whether the answer may not get longer"
        if n_generated == self.request.max_tokens:
            self.finish_reason = "length"
        elif self.answer + n_generated >= self.limit:
            self.finish_reason = "context"
        else:
            return False
        return True

    def _find_limit(self) -> int:
        "How many tokens prompt and answer may have together"
        session, request = self.session, self.request
        trained = session.engine.n_ctx_train
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

    def _describe(self, plan: Plan, filling: Filling) -> None:
        reused = filling.resident + filling.restored
        reasons = [reason for _, reason in filling.misses]
        if plan.miss_reason:
            reasons.append(plan.miss_reason)
        elif plan.choice:
            reasons.append(plan.choice)
        elif not reasons and reused < min(plan.n_known, self.answer - 1):
            reasons.append(
                plan.lack
                or (
                    "an earlier answer left no state"
                    if self.session.engine.cuts_anywhere
                    else "this kind of model goes on from a snapshot, and the last "
                    "one is before the cut"
                )
            )
        self.facts.update(
            prompt_tokens=self.answer,
            restored_tokens=reused,
            resident_tokens=filling.resident,
            prefilled_tokens=self.answer - reused,
            imported_tokens=sum(
                s.end - s.start for s in plan.chain.segments if s.entry.state.origin
            )
            or None,
            generated_tokens=0,
            device=self.session.engine.weights.placement,
            miss_reason="; ".join(dict.fromkeys(reasons)) or None,
            restore_ms=_ms(filling.restore_ms / 1e3),
            prefill_ms=_ms(filling.prefill_ms / 1e3),
            ttft_ms=None,
            decode_tps=None,
        )
        counted = filling.misses or reasons == [plan.choice]
        if reasons and not counted and self.session.store is not None:
            with contextlib.suppress(*STORE_ERRORS):
                self.session.store.count_miss(reasons[0])

    def _finish(self, generated: array[int], text: str) -> None:
        "Make the slot end where the text does, and remember what to store"
        session, plan, slot = self.session, self.plan, self.slot
        assert plan is not None
        assert slot is not None
        piece = session.engine.weights.piece
        n, n_text = covered(generated, piece, text)
        if n_text == len(text):
            # Tokens that spell nothing (control tokens) belong to the answer
            while n < len(generated) and not piece(generated[n]):
                n += 1
        self.tokens = plan.tokens + generated[:n]
        session.slots.truncate(slot, self.end)
        if len(slot.tokens) < min(len(plan.chain.tokens), self.answer):
            session.slots.fill(slot, self.tokens, plan.chain)
        session.slots.prefill(slot, self.tokens, logits=False)
        slot.waiting.add(self)
        self._tip_hash = answer_hash(text, plan.input_hash)
        session.planner.remember(
            Turn(
                self.tokens,
                self.answer,
                plan.render,
                plan.input_hash,
                self._tip_hash,
            )
        )
        start = 0
        if session.store is not None:
            with contextlib.suppress(*STORE_ERRORS):
                start = len(self._stored_prefix(session.store).tokens)
        self.facts.update(
            generated_tokens=len(generated),
            finish_reason=self.finish_reason,
            state_start=start,
            state_end=self.end,
            state_bytes=session.engine.nbytes(slot.seq, start, self.end)
            + session.engine.snapshot_nbytes(slot.seq)
            + sum(map(len, slot.snapshots.between(start, self.end).values())),
        )

    # -- storing -------------------------------------------------------

    def detach(self) -> None:
        "Capture the rows into memory: the slot is about to lose them"
        slot = self.slot
        assert slot is not None
        # See _without_chance_share
        start = max(0, min(self._fork, self.end - 1) - MIN_SHARED)
        self._kept = self._capture(slot, start)

    def _capture(self, slot: Slot, start: int) -> _Captured:
        "The slot's rows from a position on, and what makes them complete"
        engine = self.session.engine
        rows, snapshots = engine.capture(slot.seq, start, self.end), {}
        if not engine.cuts_anywhere:
            snapshots = slot.snapshots.between(start, self.end)
            snapshots[self.end] = engine.snapshot(slot.seq)
        return _Captured(start, rows, snapshots)

    def commit(self, response_id: str, thread_id: str | None = None) -> Entry | None:
        """Store the rows that this answer added, under its response's id.

        ``thread_id`` is llm's thread that the response was logged in.
        Also writes the files again that were found missing or bad on the way.
        Never raises for the store's sake: it warns and returns None.
        """
        session = self.session
        with session.lock:
            if session.store is None or not self.tokens or self._committed:
                return None
            self._committed = True
            try:
                return self._commit(session.store, response_id, thread_id)
            except (KVBranchError, *STORE_ERRORS) as error:
                session.warn(f"{error}. The answer is logged, its state is not kept")
                return None
            finally:
                self._let_go()
                session.store.locks.drop(())

    def _commit(
        self, store: Store, response_id: str, thread_id: str | None
    ) -> Entry | None:
        session, slot, plan = self.session, self.slot, self.plan
        assert slot is not None
        assert plan is not None
        live = self in slot.waiting
        if live:
            self._heal(store, slot)
        stored = self._stored_prefix(store)
        start = len(stored.tokens)
        if live:
            captured = self._capture(slot, start)
        elif self._kept is not None and self._kept.start <= start:
            captured = self._kept
            start, stored = captured.start, stored.cut(captured.start)
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
            tip_hash=self._tip_hash,
            render=plan.render,
            thread_id=thread_id,
        )
        self._account(store)
        if not stored.segments:
            self._let_go()  # what was restored may make room for this
        rows, snapshots = captured.rows, captured.snapshots
        if not session.engine.is_finite(rows, start, self.end) or not all(
            session.engine.is_finite_snapshot(data, mark)
            for mark, data in snapshots.items()
        ):
            raise StateError("The state holds values that are no numbers")
        entry = store.put(state, rows, stored, snapshots)
        if live:
            slot.snapshots.forget_before(self.end)
        slot.waiting.discard(self)
        self._kept = None
        return entry

    def _account(self, store: Store) -> None:
        "Count the prompt, and take the measurements that plans are made by"
        facts, measured = self.facts, {}
        prefill, opened, read = self.session.planner.rates()
        if facts["prefilled_tokens"] >= _MEASURED_TOKENS:
            measured[prefill] = facts["prefilled_tokens"], facts["prefill_ms"] / 1e3
        for name, small in ((opened, True), (read, False)):
            reads = [r for r in self._reads if (r[0] < _MEASURED_BYTES) == small]
            amount = len(reads) if small else sum(nbytes for nbytes, _ in reads)
            if reads:
                measured[name] = amount, sum(seconds for _, seconds in reads)
        store.count_prompt(
            self.session.planner.fingerprint,
            self.answer,
            facts["restored_tokens"],
            measured,
        )

    def _stored_prefix(self, store: Store) -> Chain:
        "The chain of good files that holds the beginning, up to the answer"
        planner, plan = self.session.planner, self.plan
        assert plan is not None
        seen = store.find("input_hash", [plan.input_hash], planner.fingerprint)
        chain = planner.stored(self.tokens[: min(self.answer, self.end - 1)], seen)
        for segment in chain.segments:
            if not segment.entry.present:
                chain = chain.cut(segment.start)
                break
        return self._without_chance_share(chain)

    def _without_chance_share(self, chain: Chain) -> Chain:
        "The chain without a last segment that is another turn's, and hardly used"
        plan = self.plan
        assert plan is not None
        if not chain.segments:
            return chain
        last, state = chain.segments[-1], chain.segments[-1].entry.state
        wanted = state.input_hash in {plan.input_hash, plan.known_hash} - {None}
        if wanted or last.end == state.end or last.end - last.start >= MIN_SHARED:
            return chain
        return chain.cut(last.start)

    def _can_heal(self, entry: Entry) -> bool:
        "Whether the prompt holds all the tokens of an entry, each at its place"
        state = entry.state
        return (
            self.session.engine.cuts_anywhere
            and state.end <= self.answer
            and self._prompt[state.start : state.end] == state.tokens
        )

    def _heal(self, store: Store, slot: Slot) -> None:
        "Write the files again whose rows were prefilled because they were bad"
        assert self.plan is not None
        for entry, _ in self._misses:
            if self._can_heal(entry):
                state = replace(entry.state, digest="")
                rows = self.session.engine.capture(slot.seq, state.start, state.end)
                store.put(state, rows, self.plan.chain)
        self._misses = []


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
