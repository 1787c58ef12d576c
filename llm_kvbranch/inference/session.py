"""Generations that run on a loaded model, several at a time.

The idea: whoever wants the next piece of an answer decodes a batch for all running
generations. A command does so until its answer is complete, a server in a thread of
its own.

The invariant: all tokens of a batch are drawn before any generation goes on, because
what one does next may replace the logits. An error ends only the generation it belongs
to.

This module does not know llm's models, options or log.
"""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from ..chat import Chat, Event
from ..engine import Engine, Feed, Load, Settings, Weights
from ..errors import KVBranchError
from ..store import STORE_ERRORS, Store, common_prefix, fingerprint_of
from .batching import Kernel, Limits, choose, shape_of, takes_long
from .costs import Costs
from .filling import Decoded
from .generation import Generation
from .interrupts import interruptible
from .loaded import LoadedModel
from .planning import Planner
from .request import Request
from .slots import Slot

_ELDEST = 4  # of so many batches, one reads the prompt that has waited longest


class Session(LoadedModel):
    """A loaded model, and the generations that run on it.

    Safe to use from several threads: they take turns batch by batch. ``limits`` say
    how much of the prompts a batch reads.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        warn: Callable[[str], None],
        load: Load,
        name: str | None = None,
    ):
        super().__init__(engine, planner, warn, load, name)
        self.running: list[Generation] = []
        self.limits = Limits()
        self._kernel = Kernel(engine.settings.n_batch, engine.tile, engine.classes)
        self._costs = Costs(engine.tile)
        self._n_steps = 0

    def generate(self, request: Request) -> Generation:
        """A generation, which does nothing until it is started or iterated over.

        Raises KVBranchError in a forked process that the engine does not work in.
        """
        self.engine.check_process()
        return Generation(self, self, request)

    def start(self, generation: Generation) -> None:
        "Plan a generation, restore what it can reuse, and run it from now on"
        with self.lock:
            self.watch("start", [generation])
            generation.advance()
            if generation.error is not None:
                raise generation.error
            if not generation.ended:
                self.running.append(generation)

    def stop(self, generation: Generation) -> None:
        "End a generation, if it has not ended"
        with self.lock:
            generation.close()
            self._forget_ended()

    def next_event(self, generation: Generation) -> Event | None:
        "The next event of a running generation, None at its end"
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
        """Decode one batch of what the running generations need.

        Generations whose last events nobody has taken yet are left out: an answer that
        nobody reads is not computed. An error ends its generation, which keeps it;
        only KeyboardInterrupt and the like are raised.
        """
        with self.lock:
            try:
                for generation in self.running:
                    if generation.cancelled and not generation.is_answering:
                        generation.finish_reason = "cancelled"
                        generation.close()
                self._forget_ended()
                self._renew_feeds()
                self._n_steps += 1
                batch = choose(
                    [
                        g
                        for g in self.running
                        if not g.is_behind and (g.cancelled or not g.pieces)
                    ],
                    self._kernel,
                    self.limits,
                    self._costs,
                    eldest_first=self._n_steps % _ELDEST == 0,
                )
                # Prompts without a turn look again whether another reads the same
                waiting = [
                    g for g in self.running if g.is_reading and not _is_in(g, batch)
                ]
                if batch:
                    self._decode(batch)
                self._advance([(generation, Decoded()) for generation in waiting])
            finally:
                self._forget_ended()

    def _renew_feeds(self) -> None:
        "Have feeds made again that follow on rows that were lost with a context"
        self._advance([(g, Decoded()) for g in self.running if g.is_behind])

    def _forget_ended(self) -> None:
        self.running[:] = [g for g in self.running if not g.ended]

    def _decode(self, batch: list[tuple[Generation, Feed]]) -> None:
        "Decode feeds in one batch, draw tokens, and advance their generations"
        feeds = [feed for _, feed in batch]
        shape, costs = shape_of(feeds), self._costs
        self.watch("decode", [g for g, _ in batch], costs.seconds_at_most(shape))
        started = time.perf_counter()
        try:
            with interruptible(
                lambda: self._is_given_up(batch), takes_long(feeds, costs)
            ) as stop:
                indices = self.engine.decode(feeds, stop)
        except BaseException as error:
            for generation, _ in batch:  # some of their tokens may have been decoded
                if (slot := generation.slot) is not None:
                    self.slots.truncate(slot, len(slot.tokens))
            self._failed(batch, error)
            return
        seconds = time.perf_counter() - started
        each = seconds / shape.rows
        if any(len(feed.tokens) > 1 for feed in feeds):
            costs.measured(shape, seconds)
        tokens, interrupt = self._draw(batch, indices)
        done = [
            (g, Decoded(len(feed.tokens), token, len(feed.tokens) * each, shape.rows))
            for (g, feed), token in zip(batch, tokens, strict=True)
        ]
        self._advance(done, interrupt)

    def _draw(
        self, batch: list[tuple[Generation, Feed]], indices: list[int]
    ) -> tuple[list[int | None], BaseException | None]:
        """Draw the next token of each generation that wants one, else None.

        An error ends its generation only. Also returns an interrupt, to be raised when
        the other generations have their tokens.
        """
        tokens: list[int | None] = []
        interrupt = None
        for (generation, feed), index in zip(batch, indices, strict=True):
            token = None
            try:
                if feed.logits:
                    self.watch("draw", [generation])
                    token = generation.draw(index)
            except Exception as error:
                generation.close(error)
            except BaseException as error:
                generation.close()
                interrupt = error
            tokens.append(token)
        return tokens, interrupt

    def _failed(
        self, batch: list[tuple[Generation, Feed]], error: BaseException
    ) -> None:
        "Give up a batch that cannot be decoded; try one again that was interrupted"
        if isinstance(error, Exception):
            for generation, _ in batch:
                generation.close(error)
            return
        self._advance([(generation, Decoded()) for generation, _ in batch])
        if not self._is_given_up(batch):
            raise error

    def _is_given_up(self, batch: list[tuple[Generation, Feed]]) -> bool:
        """Whether a batch is only for cancelled prompts, and long enough to stop.

        One of limited length is finished: whoever asks again, because a slow model did
        not answer in time, goes on from there. Begun answers are finished in any case.
        """
        return self.limits.alone is None and all(
            g.cancelled and not g.is_answering for g, _ in batch
        )

    def _advance(
        self,
        done: list[tuple[Generation, Decoded]],
        interrupt: BaseException | None = None,
    ) -> None:
        "Advance all generations, even if one is interrupted; then raise the interrupt"
        for generation, decoded in done:
            self.watch("advance", [generation])
            try:
                generation.advance(decoded)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def warm_up(self) -> None:
        """Do now what would delay the first answer.

        The chat template is compiled. A token is decoded, because llama.cpp reads the
        weights from disk only when they are first used.
        """
        import llm

        with self.lock, contextlib.suppress(KVBranchError):
            tokens = self.planner.chat.encode([llm.user("A")])
            _ = self.planner.chat.dialect  # learned now
            if self.running or self.slots.n_used():
                return
            try:
                self.engine.decode([Feed(0, 0, tokens[:1])])
            finally:
                self.engine.cut(0, 0)

    def read_ahead(self, generation: Generation, stop: Callable[[], bool]) -> bool:
        """While nobody waits, decode what any turn after an answer begins with.

        That is the end of the answer's turn and the beginning of the user's, a quarter
        of the tokens of a short question; and, where the template drops the answer's
        thinking, the answer's text without it. False if ``stop`` became true before
        the end. Not done where a sequence can only be continued from snapshots: a
        branch would have to go back further.
        """
        slot, request = generation.slot, generation.request
        with self.lock:
            if not self.engine.cuts_anywhere or generation.calls or slot is None:
                return True
            if slot.busy:
                return True
            tokens = self.planner.ahead(
                request.messages,
                generation.parts,
                request.rendering,
                request.keep_thinking,
            )
            begun = common_prefix(generation.tokens, tokens)
            if slot.tokens != generation.tokens and not (
                len(slot.tokens) >= begun > 0
                and slot.tokens == tokens[: len(slot.tokens)]
            ):
                return True  # it holds another prompt by now
            target = self.slots.for_next_turn(slot, tokens) if tokens else None
            return target is None or self._decode_ahead(target, tokens, stop)

    def _decode_ahead(
        self, slot: Slot, tokens: array[int], stop: Callable[[], bool]
    ) -> bool:
        "Decode what a slot lacks, unless ``stop`` becomes true; False if it did"
        most = self.engine.settings.n_batch
        while (begin := len(slot.tokens)) < len(tokens):
            more = tokens[begin : begin + most]
            try:
                self.engine.decode([Feed(slot.seq, begin, more, logits=False)], stop)
            except (KVBranchError, KeyboardInterrupt):  # stop raises the latter
                self.slots.truncate(slot, begin)
                return not stop()
            kind = self.engine.classes.of(len(more))
            slot.append(more, bytes([kind]) * len(more))
            slot.ahead += len(more)
        return True


def _is_in(generation: Generation, batch: list[tuple[Generation, Feed]]) -> bool:
    return any(g is generation for g, _ in batch)


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
    """Load a model, unless its weights are given, and open its state store.

    ``root`` is the store's directory, None for no store. ``budget`` is how many bytes
    the store may take: 0 for no store, None for the default. ``name`` is what the model
    is called, ``template`` a chat template to use instead of the model's own. Raises
    ModelLoadError. If the store cannot be opened, ``warn`` is called, and the session
    has none.
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
            warn(f"{error}. Continuing without stored state")
            store = None
    planner = Planner(
        Chat(weights, template),
        store,
        fingerprint,
        engine.cuts_anywhere,
        engine.window,
        f"{weights.load.n_gpu_layers} {settings.n_threads or ''}"
        f"{'' if settings.offload_kqv else ' kv in main memory'}",
        engine.classes,
    )
    return Session(engine, planner, warn, load, name)
