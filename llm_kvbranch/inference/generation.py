"""One answer, from its plan to its end.

The idea: a generation is a coroutine. It plans its prompt, takes a slot, fills it and
generates token after token. What has to be decoded it yields, so that its session can
decode it in one batch with what other generations need.

The invariant: a slot ends where the text does. A token that goes past a stop string,
or ends inside a character, is not part of the state.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from array import array
from collections import deque
from collections.abc import Generator
from typing import Any, Protocol

from ..chat import Call, Event, Part
from ..engine import Feed, Sampler
from ..errors import ContextError
from ..store import STORE_ERRORS, Entry, tokens_of
from .answer import AnswerStream, reader_after
from .assembly import DROPPED
from .capture import NewState
from .filling import Decoded, Feeds, Filling
from .loaded import LoadedModel
from .planning import Plan, min_tokens, why_prefilled
from .readback import covered
from .request import Request, Resumed, sampling_of
from .slots import HEADROOM, Slot
from .turns import Turn, answer_hash


class Runner(Protocol):
    "Who runs generations, several at a time: a session"

    def start(self, generation: Generation, /) -> None:
        "Begin to run a generation; raises what prevents that"

    def next_event(self, generation: Generation, /) -> Event | None:
        "The next event of its answer, None at its end"

    def stop(self, generation: Generation, /) -> None:
        "End it, if it has not ended"


class Generation:
    """One answer: iterate over it for its events, then ``commit`` it.

    ``facts`` is complete when it has ended. Instead of iterating, a caller may
    ``start`` it, step the session, and empty ``pieces`` after each step.
    """

    def __init__(self, model: LoadedModel, session: Runner, request: Request):
        self.model = model
        self.session = session
        self.request = request
        self.facts: dict[str, Any] = {}
        self.finish_reason = "stop"
        self.n_ctx = 0  # tokens that prompt and answer may have together
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self.n_prompt = 0
        self.plan: Plan | None = None
        self.slot: Slot | None = None
        self.pieces: deque[Event] = deque()  # that nobody has taken yet
        self.feed: Feed | None = None  # what it needs decoded next
        self.ended = False
        self.error: BaseException | None = None
        self.ended_by: str | None = None  # the text of the token that ended it
        self.parts: list[Part] = []  # what it says, once finished
        self.generated = tokens_of()  # all tokens of the answer, with what a stop cuts
        self._sampler: Sampler | None = None
        self._constrained = False
        self._cancelled = False
        self._rounds_otherwise = False
        self._started = 0.0
        self._running: Feeds[None] | None = None
        self._new_state: NewState | None = None

    @property
    def name(self) -> str:
        "The model's"
        return self.model.name

    @property
    def end(self) -> int:
        return len(self.tokens)

    @property
    def n_generated(self) -> int:
        "How many tokens of the answer there are"
        return len(self.generated)

    @property
    def is_answering(self) -> bool:
        "Whether its prompt is read, and it generates token by token"
        return self.n_generated > 0

    @property
    def is_reading(self) -> bool:
        "Whether it has more of its prompt to read, or waits for another to do so"
        return self.feed is None or len(self.feed.tokens) > 1

    @property
    def n_left(self) -> int:
        "How many tokens of its prompt are not read yet"
        if self.slot is None or self.slot.target is None:
            return len(self.feed.tokens) if self.feed is not None else 0
        return len(self.slot.target) - len(self.slot.tokens)

    @property
    def is_behind(self) -> bool:
        "Whether its slot has lost rows that its feed would follow on"
        if self.feed is None or self.slot is None:
            return False
        return self.feed.start != len(self.slot.tokens)

    @property
    def text(self) -> str:
        "The text of its answer, once finished"
        return "".join(part.text for part in self.parts if part.kind == "text")

    @property
    def calls(self) -> list[Call]:
        "The complete tool calls of its answer, once finished"
        return [part.call for part in self.parts if part.call is not None]

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        "Stop as soon as possible; may be called from any thread"
        self._cancelled = True

    def __iter__(self) -> Generator[Event, None, None]:
        try:
            self.session.start(self)
            while event := self.session.next_event(self):
                yield event
        finally:
            self.session.stop(self)

    def start(self) -> None:
        """Plan the prompt, take a slot, and restore what can be reused.

        Raises what prevents that, such as a ContextError or a ChatError.
        """
        self.session.start(self)

    def commit(self, response_id: str, thread_id: str | None = None) -> Entry | None:
        """Store the rows that this answer added, under its response's id.

        ``thread_id`` is llm's thread that the response was logged in. Files that were
        found missing or bad on the way are written again. A failure of the store is
        warned of, and returns None.
        """
        with self.model.lock:
            new_state, self._new_state = self._new_state, None
            if new_state is None:
                return None
            return new_state.commit(response_id, thread_id)

    # -- as a coroutine, driven by the session ---------------------------

    def advance(self, done: Decoded | None = None) -> None:
        """Run until something has to be decoded; ``done`` says what was decoded.

        Without ``done`` it starts. An exception ends it, and is kept as ``error``.
        """
        if self.ended:
            return
        try:
            if done is None:
                self._running = self._run()
                self.feed = next(self._running)
            elif self._running is not None:
                self.feed = self._running.send(done)
        except StopIteration:
            self.close()
        except Exception as error:
            self.close(error)
        except BaseException:  # Ctrl-C, which is not this answer's alone
            self.close()
            raise

    def draw(self, index: int) -> int:
        "Draw a token from the logits at an index of the batch just decoded"
        assert self._sampler is not None
        return self.model.engine.sample(self._sampler, index)

    def close(self, error: BaseException | None = None) -> None:
        "End, whatever happened, and give the slot back"
        if self.ended:
            return
        self.ended, self.feed, self.error = True, None, error
        if error is None and "finish_reason" not in self.facts:  # not at its end
            self.finish_reason = "cancelled"
        running, self._running = self._running, None
        if running is not None:
            running.close()
        if self.slot is not None:
            self.model.slots.release(self.slot)
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _run(self) -> Feeds[None]:
        self._started = time.perf_counter()
        model, resumed = self.model, self.request.resumed
        plan, slot = self._begin()
        answer = self._answer_to(plan)
        self._constrain(answer)
        expected = min(self.request.max_tokens or HEADROOM, 4 * HEADROOM)
        n_cells = max(min(self.n_ctx, self.n_prompt + expected), plan.chain.n_cells)
        draws = resumed is None and answer.forced is None
        filling = yield from model.filler.fill(
            slot, plan.tokens, plan.chain, n_cells, draws, plan.mark, plan.own
        )
        new_state = NewState(model, plan, slot, filling, self.facts)
        self._describe(plan, filling)
        self._rounds_otherwise = filling.rounds_otherwise
        yield from self._generate(plan, slot, filling.token, answer)
        if resumed is not None:
            answer.name_again(resumed.calls)
        self.parts = answer.parts
        yield from self._finish(plan, slot, new_state, answer)

    def _generate(
        self, plan: Plan, slot: Slot, token: int | None, answer: AnswerStream
    ) -> Feeds[None]:
        "Generate until the answer ends; ``token`` is its first one, if it was drawn"
        weights, generated = self.model.engine.weights, self.generated
        resumed = self.request.resumed
        ended = resumed is not None and self._repeat(resumed, answer)
        n_before, first = len(generated), 0.0
        tokens = plan.tokens + generated
        if token is None and not ended:
            token = yield from self._next(slot, tokens, answer)
        while not (ended or self._cancelled or token is None or weights.is_eog(token)):
            generated.append(token)
            tokens.append(token)
            self.pieces.extend(answer.feed(token))
            self._constrain(answer)
            if not first:
                first = time.perf_counter()
                self.facts["ttft_ms"] = ms(first - self._started)
            ended = self._is_over(answer)
            if not ended:
                token = yield from self._next(slot, tokens, answer)
        if (n := len(generated) - n_before) > 1:
            rate = (n - 1) / (time.perf_counter() - first)
            self.facts["decode_tps"] = round(rate, 2)
        if not (ended or self._cancelled or token is None):
            self.ended_by = weights.text(token)
        events = answer.end(self.ended_by)
        if resumed is None or not resumed.was_told:
            self.pieces.extend(events)
        if self._cancelled:
            self.finish_reason = "cancelled"
        elif answer.calls and self.ended_by is not None:
            self.finish_reason = "tool_calls"

    def _repeat(self, resumed: Resumed, answer: AnswerStream) -> bool:
        "Take over the tokens of an answer that stopped; True if it ends with them"
        assert self._sampler is not None
        ended = False
        for token in resumed.tokens:
            self._sampler.accept(token)
            self.generated.append(token)
            answer.feed(token)  # its events were sent
            self._constrain(answer)
            ended = self._is_over(answer)
        if resumed.finish_reason is not None:
            self.finish_reason, self.ended_by = resumed.finish_reason, resumed.ended_by
            ended = True
        return ended

    def _constrain(self, answer: AnswerStream) -> None:
        "Have the sampler keep to its grammar from where the answer begins"
        if self._constrained or self._sampler is None:
            return
        if answer.may_call if self.request.must_call else answer.has_begun:
            self._constrained = True
            self._sampler.constrain()

    def _answer_to(self, plan: Plan) -> AnswerStream:
        "What reads the answer's tokens"
        model, request = self.model, self.request
        weights, dialect = model.engine.weights, model.planner.chat.dialect
        reader = reader_after(
            model.planner.chat,
            request.rendering,
            request.messages,
            plan.tokens,
            request.parallel_calls,
        )
        budget, closing = request.thinking_budget, tokens_of()
        if budget is not None and dialect.thinking is not None:
            closing = weights.tokenize(dialect.thinking.close, special=True)
        one_call = not request.parallel_calls and not request.must_call
        return AnswerStream(weights, reader, request.stop, budget, closing, one_call)

    def _begin(self) -> tuple[Plan, Slot]:
        "Plan and take a slot"
        model, request = self.model, self.request
        trained = model.engine.n_ctx_train
        limit = min(request.n_ctx or trained, trained) if trained else request.n_ctx
        self.n_ctx = limit or 1 << 20
        n_least = min_tokens(
            request.messages, self.n_ctx, lambda: model.engine.weights.longest_piece
        )
        self._check_length(n_least, "at least ")
        plan = self.plan = model.plan(
            request.messages, request.rendering, request.keep_thinking
        )
        if plan.hold is not None:
            # Released when the answer is stored, or nobody can store it any more
            weakref.finalize(self, plan.hold.release_later)
        self.n_prompt = len(plan.tokens)
        self._check_length(self.n_prompt)
        model.watch("sampler", [self])
        sampling = sampling_of(model, request)
        self._sampler = model.engine.sampler(sampling, plan.tokens, waits=True)
        model.watch("start", [self])
        slot = self.slot = model.slots.acquire(plan.tokens)
        return plan, slot

    def _check_length(self, n_tokens: int, qualified: str = "") -> None:
        "Raise ContextError if a prompt of so many tokens leaves no room to answer"
        limit, trained = self.n_ctx, self.model.engine.n_ctx_train
        if n_tokens < limit:
            return
        raise ContextError(
            f"The prompt is {qualified}{n_tokens:,} tokens long with its history, "
            f"{self.name} takes {limit:,} with the answer. Shorten it"
            + (
                f", or raise n_ctx (up to {trained:,})"
                if limit < (trained or 0)
                else ", start a new conversation or use a model with more context"
            )
        )

    def _describe(self, plan: Plan, filling: Filling) -> None:
        "The facts that are known before the first token"
        reused = filling.resident + filling.restored
        reason = why_prefilled(plan, [why for _, why in filling.misses], reused)
        self.facts.update(
            prompt_tokens=self.n_prompt,
            restored_tokens=reused,
            resident_tokens=filling.resident,
            prefilled_tokens=self.n_prompt - reused,
            reread_tokens=max(0, plan.n_known - reused) if plan.drops else None,
            imported_tokens=sum(
                s.end - s.start for s in plan.chain.segments if s.entry.state.origin
            )
            or None,
            generated_tokens=0,
            device=self.model.engine.placement,
            miss_reason=reason,
            system_prompt="in the first question"
            if self.model.planner.chat.folds_system(self.request.messages)
            else None,
            restore_ms=ms(filling.restore_ms / 1e3),
            prefill_ms=ms(filling.prefill_ms / 1e3),
            ttft_ms=None,
            decode_tps=None,
        )
        # Files that could not be used were counted when they were found
        if (
            reason
            and reason not in (plan.choice, DROPPED)
            and not (filling.misses or plan.without_store)
        ):
            with contextlib.suppress(*STORE_ERRORS):
                self.model.planner.store.count_miss(reason)

    def _why_inexact(self, plan: Plan, slot: Slot) -> str | None:
        "Why the same prompt may get another answer next time; None for no such reason"
        engine, reused = self.model.engine, self.facts["restored_tokens"]
        n_used = self.model.slots.n_used()
        reasons = {
            "a GPU may round differently each time": engine.weights.gpu_layers,
            "an earlier answer was read again as text": engine.cuts_anywhere
            and reused < plan.own,
            "a sliding window was put back, whose rows are at other places then": (
                engine.window and reused
            ),
            "it was computed beside other answers": slot.beside,
            "other conversations were in memory": n_used > len(slot.tokens),
            "the same tokens were rounded otherwise than before": (
                self._rounds_otherwise
            ),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _next(
        self, slot: Slot, tokens: array[int], answer: AnswerStream
    ) -> Feeds[int | None]:
        "Decode the last token and draw the next; None if cancelled or out of room"
        model, token, forced = self.model, None, answer.forced
        while token is None and len(slot.tokens) < len(tokens):
            if self._cancelled:
                return None
            try:  # room for the next one too, which may be the last to be decoded
                model.slots.grow(slot, len(tokens) + 1, self.n_ctx)
            except ContextError:
                self.finish_reason = "context"
                return None
            # More than one after the prompt if they are another engine's
            n = min(len(tokens), max(self.n_prompt, len(slot.tokens) + 1))
            is_last = n == len(tokens)
            wanted = tokens if is_last else tokens[:n]  # no copy for each token
            logits = forced is None and is_last
            token = yield from model.filler.decode(
                slot, wanted, self.n_prompt, logits=logits
            )
        model.filler.token_decoded(slot)
        if forced is not None and self._sampler is not None:
            self._sampler.accept(forced)
        return token if forced is None else forced

    def _is_over(self, answer: AnswerStream) -> bool:
        "Whether the answer ends here, though the model has not ended it"
        if answer.has_called:
            self.finish_reason = "tool_calls"
        return answer.has_called or answer.stopped or self._is_full(len(self.generated))

    def _is_full(self, n_generated: int) -> bool:
        "Whether the answer may not get longer"
        if n_generated == self.request.max_tokens:
            self.finish_reason = "length"
        elif self.n_prompt + n_generated >= self.n_ctx:
            self.finish_reason = "context"
        else:
            return False
        return True

    def _spelling(self, plan: Plan, generated: array[int], text: str) -> array[int]:
        "The tokens of the prompt, and of the answer up to where its text ends"
        piece = self.model.engine.weights.piece
        n, n_text = covered(generated, piece, text)
        if n_text == len(text):
            # Tokens that spell nothing (control tokens) belong to the answer
            while n < len(generated) and not piece(generated[n]):
                n += 1
        return plan.tokens + generated[:n]

    def _finish(
        self, plan: Plan, slot: Slot, new_state: NewState, answer: AnswerStream
    ) -> Feeds[None]:
        "Make the slot end where the answer does, and note what is to be stored"
        model = self.model
        tokens = self._spelling(plan, self.generated, answer.raw)
        model.slots.truncate(slot, len(tokens))
        if len(slot.tokens) < min(len(plan.chain.tokens), self.n_prompt):
            yield from model.filler.fill(slot, tokens, plan.chain, logits=False)
        yield from model.filler.decode(slot, tokens, self.n_prompt, logits=False)
        self.tokens = tokens
        tip_hash = answer_hash(self.parts, plan.input_hash)
        model.planner.remember(
            Turn(tokens, self.n_prompt, plan.render, plan.input_hash, tip_hash)
        )
        self._new_state = new_state
        start, nbytes = new_state.finish(tokens, tip_hash)
        self.facts.update(
            generated_tokens=self.n_generated,
            thinking_tokens=answer.n_thinking or None,
            thinking_cut=answer.is_over_budget or None,
            finish_reason=self.finish_reason,
            inexact=self._why_inexact(plan, slot),
            state_start=start,
            state_end=self.end,
            state_bytes=nbytes,
        )


def ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
