"""A model in memory: its context, the slots in it, and the store of its states.

The idea: this is what an answer is made with. Whoever uses it holds ``lock``, so
that calls to llama.cpp and to the store never overlap.

The invariant: no failure of the store fails a prompt. The user is warned, and the
answer is computed without stored state.

This module does not know who runs answers, llm's models or options, or the log.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..engine import Engine, Load
from ..errors import ChatError, StateError, StoreError
from ..store import Check, Entry, Store, is_damage
from .planning import Plan, Planner, covered
from .slots import Slots

STORE_ERRORS = (StoreError, sqlite3.Error, OSError)


class LoadedModel:
    """A model's context, its slots and its store.

    ``load`` says which files were loaded and where to; ``name`` is what the model is
    called. ``warn`` is given one line about anything that went wrong without
    stopping the answer.
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

    def plan(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]] = ()
    ) -> Plan:
        """Plan a prompt, and hold the files that its plan uses.

        Raises ChatError when the model cannot take the messages or tools.
        """
        if tools and not self.planner.chat.takes_tools:
            raise ChatError(
                f"{self.name} was not taught to call tools, says its chat template: "
                "choose another model, or leave the tools out"
            )
        try:
            try:
                return self._plan_and_hold(messages, tools)
            except sqlite3.DatabaseError as error:
                if self.store is None or not is_damage(error):
                    raise
                self.warn("The index of the state store was damaged: made again")
                self.store.rebuild()
                return self._plan_and_hold(messages, tools)
        except STORE_ERRORS as error:
            self._give_up_store(error)
            plan = self.planner.plan(messages, tools)
            plan.miss_reason = "the state store cannot be read"
            return plan

    def _plan_and_hold(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]]
    ) -> Plan:
        "Plan again if a file was removed in the meantime"
        for _ in range(3):
            plan = self.planner.plan(messages, tools)
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
        "Where the tokens [start, end) of a text begin and end, in characters"
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
        return self.store.open(entry, marks, check)

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
