"""Conversations of whole sessions on toy models, and whether their answers are right.

Each session of a ``Home`` is like a later process: it shares nothing with the ones
before but the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm

from llm_kvbranch.inference.session import (
    Generation,
    Request,
    Session,
    open_session,
)
from llm_kvbranch.store.chain import Entry

from .backend import close
from .toys import GREEDY, SETTINGS, Toy, decode

N = 24  # tokens of an answer

QUESTION = "Tell me of the sea, of the ships on it, and of those who sail them."
NEXT = "And then? What became of the oldest of them, and who told the others?"
LAST = "Who told you that?"


@dataclass
class Home:
    "A directory for state, and sessions that use it, each like a later process"

    toy: Toy
    root: Path
    warnings: list[str]

    def session(self) -> Session:
        return open_session(
            self.toy.load, SETTINGS, self.root, self.warnings.append, self.toy.weights
        )


@dataclass
class Turn:
    "An answer, and the messages up to it and with it"

    generation: Generation
    text: str
    messages: list[Any]
    entry: Entry | None = None

    @property
    def answer(self) -> list[int]:
        return list(self.generation.tokens[self.generation.n_prompt :])

    @property
    def prompt(self) -> list[int]:
        assert self.generation.plan is not None
        return list(self.generation.plan.tokens)

    @property
    def restored(self) -> int:
        return int(self.generation.facts["restored_tokens"])

    @property
    def miss_reason(self) -> str | None:
        reason: str | None = self.generation.facts["miss_reason"]
        return reason

    def commit(self, response_id: str) -> Turn:
        self.entry = self.generation.commit(response_id)
        assert self.entry is not None
        assert self.entry.state.end == self.generation.end
        return self

    def cut(self, n: int) -> list[Any]:
        "The messages with the first n characters of the answer only"
        return [*self.messages[:-1], llm.assistant(self.text[:n])]


def ask(
    session: Session,
    messages: Sequence[Any],
    question: str = QUESTION,
    n: int | None = N,
    **chosen: Any,
) -> Turn:
    "Put a question after some messages and read the whole answer"
    asked = [*messages, llm.user(question)]
    generation = session.generate(
        Request(messages=asked, sampling=GREEDY, max_tokens=n, **chosen)
    )
    text = "".join(event.text for event in generation)
    return Turn(generation, text, [*asked, llm.assistant(text)])


def is_right(turn: Turn) -> bool:
    "Whether the plan's tokens, decoded from scratch, lead to the same answer"
    generation = turn.generation
    weights = generation.model.engine.weights
    decoded = decode(weights, generation.tokens, generation.n_prompt)
    return max(decoded.beaten_by, default=0.0) <= close()


def path_of(home: Home, turn: Turn) -> Path:
    assert turn.entry is not None
    return home.root.joinpath(
        "states",
        turn.entry.state.fingerprint,
        f"{turn.entry.state.response_id}.safetensors",
    )
