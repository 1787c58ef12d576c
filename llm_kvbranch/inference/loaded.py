"""A model in memory: its context, the slots in it, and the store of its states.

The idea: this is what an answer is made with. Whoever uses it holds ``lock``, so
that calls to llama.cpp and to the store never overlap.

The invariant: no failure of the store fails a prompt. The user is warned, and the
answer is computed without stored state.

This module does not know who runs answers, llm's models or options, or the log.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ..chat import Rendering
from ..engine import Engine, Load
from ..errors import ChatError, KVBranchError, StateError
from ..store import STORE_ERRORS, Entry, Store, is_damage
from .filling import Filler
from .nostore import NoStore
from .planning import Plan, Planner
from .readback import covered
from .slots import Slots

Result = TypeVar("Result")


class Watch(Protocol):
    "Told what begins, for which generations, and what it may take if that varies"

    def __call__(
        self, work: str, generations: Sequence[Any] = (), seconds: float | None = None
    ) -> None: ...


class LoadedModel:
    """A model's context, its slots, and the store that its planner looks into.

    ``load`` says which files were loaded and where to; ``name`` is what the model is
    called. ``warn`` is given one line about anything that went wrong without
    stopping the answer. ``watch`` is for whoever has to find out what hangs;
    ``waiting`` returns the requests that are to be planned next.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        warn: Callable[[str], None],
        load: Load,
        name: str | None = None,
    ):
        self.engine = engine
        self.planner = planner
        self.warn = warn
        self.load = load
        self.name = name or load.path.stem
        self.lock = threading.RLock()
        self.watch: Watch = lambda work, generations=(), seconds=None: None
        self.waiting: Callable[[], Sequence[Any]] = list
        self.slots = Slots(engine)
        self.filler = Filler(engine, self.slots, planner.store, self._lost)

    @property
    def store(self) -> Store | None:
        store = self.planner.store
        return None if isinstance(store, NoStore) else store

    def plan(
        self,
        messages: Sequence[Any],
        rendering: Rendering | None = None,
        keep_thinking: bool = False,
    ) -> Plan:
        """Plan a prompt, and hold the files that its plan uses.

        Raises ChatError when the model cannot take the messages, tools or values.
        """
        rendering = rendering or Rendering()
        if rendering.tools and not self.planner.chat.takes_tools:
            raise ChatError(
                f"{self.name} does not support tools (its chat template has none): "
                "choose another model, or leave the tools out"
            )
        self.planner.chat.check(rendering)
        is_rebuilt = False
        for _ in range(4):
            try:
                plan = self.planner.plan(messages, rendering, keep_thinking)
                plan.hold = self.planner.store.hold(plan.chain)
            except STORE_ERRORS as error:
                failure = error if is_rebuilt else self._rebuild(error)
                if failure is None:
                    is_rebuilt = True
                    continue
                self.warn(f"{failure}. This answer is computed without stored state")
                return self._plan_without_store(messages, rendering, keep_thinking)
            if plan.hold is not None or not plan.chain.segments:
                return plan
            # A file was deleted or replaced in the meantime: plan again
        return plan

    def _plan_without_store(
        self, messages: Sequence[Any], rendering: Rendering, keep_thinking: bool
    ) -> Plan:
        "A plan for this prompt only: the store may be usable again for the next one"
        with self.lock, self.planner.no_store():
            plan = self.planner.plan(messages, rendering, keep_thinking)
        plan.without_store = True
        plan.miss_reason = "the state store cannot be read"
        return plan

    @contextlib.contextmanager
    def room_for(self, nbytes: int) -> Iterator[None]:
        """While room is made for a new state, hold what waiting prompts begin with.

        Otherwise a prompt that has waited might have to be read as a whole.
        """
        store = self.store
        with contextlib.ExitStack() as held:
            if store is not None and store.nbytes() + nbytes > store.budget():
                for request in self.waiting():
                    with contextlib.suppress(KVBranchError, *STORE_ERRORS):
                        plan = self.planner.plan(
                            request.messages, request.rendering, request.keep_thinking
                        )
                        if (hold := store.hold(plan.chain)) is not None:
                            held.enter_context(hold)
            yield

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
        "Where the tokens [start, end) of a text begin and end, in characters"
        vocab = self.engine.weights
        tokens = vocab.tokenize(text, special=False)
        _, before = covered(tokens[:start], vocab.piece, text)
        _, upto = covered(tokens[:end], vocab.piece, text)
        return before, upto

    def _lost(self, entry: Entry, reason: StateError) -> None:
        "Record that a file could not be used"
        try:
            self.writing(lambda: self.planner.store.lost(entry, reason))
        except STORE_ERRORS as failure:
            self.warn(f"{failure}. A state file that cannot be used stays in the store")

    def writing(self, write: Callable[[], Result]) -> Result:
        "Do a write to the store, and once more if its index was damaged and is rebuilt"
        try:
            return write()
        except STORE_ERRORS as error:
            failure = self._rebuild(error)
            if failure is None:
                return write()
            raise failure from None

    def _rebuild(self, error: Exception) -> Exception | None:
        "Rebuild the index if it is damaged; returns the error if that is not so"
        store = self.store
        if store is None or not is_damage(error):
            return error
        try:
            store.rebuild()
        except STORE_ERRORS as failure:
            return failure
        self.warn("The index of the state store was damaged: it was rebuilt")
        return None
