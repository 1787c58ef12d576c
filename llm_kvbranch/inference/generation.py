"""One answer, from its plan to its end.

The idea: a generation is a coroutine. It plans its prompt, takes a slot, fills it
and draws token after token; whatever has to be decoded it yields, so that its
session can decode it together with what other generations need.

The invariant: a slot ends where the text does: a token that goes past a stop
string, or stops inside a character, is not part of the state.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from array import array
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..chat import Call, ToolStream
from ..engine import Feed, Sampler, Sampling
from ..errors import ContextError
from ..store import Entry, tokens_of
from .capture import Unstored
from .cells import HEADROOM, Slot
from .loaded import STORE_ERRORS, LoadedModel
from .planning import Plan, Turn, answer_hash, covered, least_tokens
from .slots import Done, Filling, Work
from .text import TextStream


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


class Runner(Protocol):
    "Who runs generations, many at a time: a session"

    @property
    def lock(self) -> AbstractContextManager[Any]:
        "Held by whoever uses the model"

    def start(self, generation: Generation) -> None:
        "Run a generation from now on; raises what keeps it from starting"

    def next_piece(self, generation: Generation) -> str | None:
        "The next piece of its text, None at its end"

    def stop(self, generation: Generation) -> None:
        "Run it no longer"


class Generation:
    """One answer: iterate over it for its text, then ``commit`` it.

    ``facts`` is complete when it has ended. Instead of iterating, a caller may
    ``start`` it, step the session, and empty ``pieces`` after each step.
    """

    def __init__(self, model: LoadedModel, session: Runner, request: Request):
        self.model = model
        self.session = session
        self.request = request
        self.facts: dict[str, Any] = {}
        self.finish_reason = "stop"
        self.limit = 0  # of tokens in prompt and answer together
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self.answer = 0
        self.plan: Plan | None = None
        self.slot: Slot | None = None
        self.pieces: deque[str] = deque()  # not taken yet
        self.feed: Feed | None = None  # what it waits for to be decoded
        self.ended = False
        self.error: BaseException | None = None
        self.calls: list[Call] = []  # of tools
        self.said = ""  # all of its text, once finished
        self.n_generated = 0
        self._sampler: Sampler | None = None
        self._cancelled = False
        self._started = 0.0
        self._work: Work[None] | None = None
        self._unstored: Unstored | None = None

    @property
    def name(self) -> str:
        "The model's"
        return self.model.name

    @property
    def end(self) -> int:
        return len(self.tokens)

    @property
    def is_answering(self) -> bool:
        "Whether its prompt is read, and it waits for one token at a time"
        return self.n_generated > 0

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        "Stop as soon as possible; callable from any thread"
        self._cancelled = True

    def __iter__(self) -> Generator[str, None, None]:
        try:
            self.start()
            while piece := self.session.next_piece(self):
                yield piece
        finally:
            self.session.stop(self)

    def start(self) -> None:
        """Plan, take a slot and restore into it.

        Raises what makes that impossible, such as a ContextError or a ChatError.
        """
        self.session.start(self)

    # -- as a coroutine, driven by the session ---------------------------

    def advance(self, done: Done | None) -> None:
        """Run until something has to be decoded; ``done`` says what was decoded.

        None starts it. An exception ends the generation, which keeps it as ``error``.
        """
        if self.ended:
            return
        try:
            if done is None:
                self._work = self._run()
                self.feed = next(self._work)
            elif self._work is not None:
                self.feed = self._work.send(done)
        except StopIteration:
            self.close()
        except Exception as error:
            self.close(error)
        except BaseException:  # Ctrl-C, which is not this answer's alone
            self.close()
            raise

    def draw(self, index: int) -> int:
        "A token from the logits at an index of the batch just decoded"
        assert self._sampler is not None
        return self.model.engine.sample(self._sampler, index)

    def close(self, error: BaseException | None = None) -> None:
        "End, whatever happened, and give the slot back"
        if self.ended:
            return
        self.ended, self.feed, self.error = True, None, error
        work, self._work = self._work, None
        if work is not None:
            work.close()
        if self.slot is not None:
            self.model.slots.release(self.slot)
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _run(self) -> Work[None]:
        self._started = time.perf_counter()
        model, slots = self.model, self.model.slots
        plan, slot = self._begin()
        expected = min(self.request.max_tokens or HEADROOM, 4 * HEADROOM)
        n_cells = max(min(self.limit, self.answer + expected), plan.chain.n_cells)
        filling = yield from slots.fill(slot, plan.tokens, plan.chain, n_cells)
        unstored = Unstored(model, plan, slot, filling, self.facts)
        self._describe(plan, filling)
        token, weights, generated = filling.token, model.engine.weights, tokens_of()
        text, first, ended = TextStream(self.request.stop), 0.0, False
        said = ToolStream(_names(self.request.tools))
        while not (ended or self._cancelled or token is None or weights.is_eog(token)):
            generated.append(token)
            self.n_generated += 1
            piece = said.feed(text.feed(weights.piece(token)))
            if not first:
                first = time.perf_counter()
                self.facts["ttft_ms"] = ms(first - self._started)
            if piece:
                self.pieces.append(piece)
            ended = text.stopped or self._at_limit(len(generated))
            if not ended:
                token = yield from self._next(slot, plan.tokens + generated)
        if len(generated) > 1:
            rate = (len(generated) - 1) / (time.perf_counter() - first)
            self.facts["decode_tps"] = round(rate, 2)
        if rest := said.feed(text.end()) + said.end():
            self.pieces.append(rest)
        self.calls = said.calls
        if self._cancelled:
            self.finish_reason = "cancelled"
        elif self.calls:
            self.finish_reason = "tool_calls"
        self.said = said.said
        tip_hash = answer_hash(said.said, plan.input_hash, self.calls)
        tokens = self._said(plan, generated, text.text)
        yield from self._finish(plan, slot, unstored, tokens, tip_hash)

    def _begin(self) -> tuple[Plan, Slot]:
        "Plan and take a slot"
        model, request = self.model, self.request
        self.limit = self._find_limit()
        weights = model.engine.weights
        least = least_tokens(
            request.messages, self.limit, lambda: weights.longest_piece
        )
        self._refuse(least, "at least ")
        plan = self.plan = model.plan(request.messages, request.tools)
        if plan.hold is not None:
            # Released when the answer is stored, or nobody can store it any more
            weakref.finalize(self, plan.hold.release_later)
        self.answer = len(plan.tokens)
        self._refuse(self.answer)
        self._sampler = model.engine.sampler(request.sampling, plan.tokens)
        slot = self.slot = model.slots.acquire(plan.tokens)
        return plan, slot

    def _next(self, slot: Slot, tokens: array[int]) -> Work[int | None]:
        "Decode the last token and draw the next; None if there is no need or no room"
        slots, token = self.model.slots, None
        while len(slot.tokens) < len(tokens):
            if self._cancelled:
                return None
            try:  # for the next one as well, which may be the last to be decoded
                slots.grow(slot, len(tokens) + 1, self.limit)
            except ContextError:
                self.finish_reason = "context"
                return None
            token = yield from slots.decode(slot, tokens)
        slots.stepped(slot)
        return token

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
        trained, request = self.model.engine.n_ctx_train, self.request
        limit = min(request.n_ctx or trained, trained) if trained else request.n_ctx
        return limit or 1 << 20

    def _refuse(self, n_tokens: int, qualified: str = "") -> None:
        "Raise ContextError if a prompt of so many tokens leaves no room to answer"
        limit, trained = self.limit, self.model.engine.n_ctx_train
        if n_tokens < limit:
            return
        raise ContextError(
            f"The prompt is {qualified}{n_tokens:,} tokens long with its history, "
            f"{self.model.name} takes {limit:,} with the answer. Shorten it"
            + (
                f", or raise n_ctx (up to {trained:,})"
                if limit < (trained or 0)
                else ", start a new conversation or use a model with more context"
            )
        )

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
                    if self.model.engine.cuts_anywhere
                    else "this kind of model goes on from a snapshot, and the last "
                    "one comes before this point"
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
            device=self.model.engine.weights.placement,
            miss_reason="; ".join(dict.fromkeys(reasons)) or None,
            restore_ms=ms(filling.restore_ms / 1e3),
            prefill_ms=ms(filling.prefill_ms / 1e3),
            ttft_ms=None,
            decode_tps=None,
        )
        counted = filling.misses or reasons == [plan.choice]
        if reasons and not counted and self.model.store is not None:
            with contextlib.suppress(*STORE_ERRORS):
                self.model.store.count_miss(reasons[0])

    def _said(self, plan: Plan, generated: array[int], text: str) -> array[int]:
        "The tokens of prompt and answer, which end where the text does"
        piece = self.model.engine.weights.piece
        n, n_text = covered(generated, piece, text)
        if n_text == len(text):
            # Tokens that spell nothing (control tokens) belong to the answer
            while n < len(generated) and not piece(generated[n]):
                n += 1
        return plan.tokens + generated[:n]

    def _finish(
        self,
        plan: Plan,
        slot: Slot,
        unstored: Unstored,
        tokens: array[int],
        tip_hash: str | None,
    ) -> Work[None]:
        "Make the slot end where the answer does, and remember what to store"
        model, slots = self.model, self.model.slots
        slots.truncate(slot, len(tokens))
        if len(slot.tokens) < min(len(plan.chain.tokens), self.answer):
            yield from slots.fill(slot, tokens, plan.chain, logits=False)
        yield from slots.decode(slot, tokens, logits=False)
        self.tokens = tokens
        model.planner.remember(
            Turn(tokens, self.answer, plan.render, plan.input_hash, tip_hash)
        )
        self._unstored = unstored
        start, nbytes = unstored.finish(tokens, tip_hash)
        self.facts.update(
            generated_tokens=self.n_generated,
            finish_reason=self.finish_reason,
            state_start=start,
            state_end=self.end,
            state_bytes=nbytes,
        )

    def commit(self, response_id: str, thread_id: str | None = None) -> Entry | None:
        """Store the rows that this answer added, under its response's id.

        ``thread_id`` is llm's thread that the response was logged in.
        Also writes the files again that were found missing or bad on the way.
        Never raises for the store's sake: it warns and returns None.
        """
        with self.session.lock:
            unstored, self._unstored = self._unstored, None
            if unstored is None:
                return None
            return unstored.commit(response_id, thread_id)


def _names(tools: Sequence[dict[str, Any]]) -> list[str]:
    return [str(tool["function"]["name"]) for tool in tools]


def ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
