"""Tries whether the same prompt gives the same answer, on this machine.

The idea: what rounds otherwise is found by computing the same rows in several ways and
comparing their bytes: in batches of many sizes, beside another sequence, with another
number of threads. Then prompts are answered in all the ways in which this program comes
by their rows: fresh, again, restored, after a follow-up, branched, with a document that
another prompt shares.

The invariant: nothing is told that was not computed here. The store is one of its own.

This module does not know how findings are printed.
"""

from __future__ import annotations

import contextlib
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine import Engine, Feed, Sampling, Settings, Weights, default_threads
from .generation import Generation
from .request import Request
from .session import Session, open_session

SIZES = (1, 2, 3, 7, 8, 16, 31, 63, 64, 65, 66, 67, 96, 130)
_DEPTH = 32  # tokens before the batches that are compared
_DEEP = 600  # tokens; from 512 cells on single rows are computed by another kernel
_GREEDY = Sampling(temperature=0)


# -- rows ----------------------------------------------------------------


@dataclass
class Rows:
    "Computes the same tokens in several ways, in a context of its own"

    weights: Weights
    settings: Settings
    tokens: array[int] = field(init=False)

    def __post_init__(self) -> None:
        draw = random.Random(1)
        most = self.weights.n_vocab
        self.tokens = array("i", [draw.randrange(most) for _ in range(2 * _DEEP)])

    @contextlib.contextmanager
    def _engine(self, n_cells: int, **changes: Any) -> Iterator[Engine]:
        engine = Engine(self.weights, replace(self.settings, n_seq=2, **changes))
        try:
            engine.reserve(n_cells)
            yield engine
        finally:
            engine.close()

    def _read(self, engine: Engine, seq: int, end: int) -> None:
        while (begin := engine.length(seq)) < end:
            n = min(engine.settings.n_batch, end - begin)
            engine.decode([Feed(seq, begin, self.tokens[begin : begin + n])])

    def classes(self) -> list[list[int]]:
        "Sizes of batches, of which those in a list give the same bits; largest first"
        found: list[tuple[dict[int, bytes], list[int]]] = []
        sizes = [n for n in SIZES if n <= self.settings.n_batch]
        with self._engine(_DEPTH + max(sizes)) as engine:
            for size in reversed(sizes):
                begin, end = _DEPTH, _DEPTH + size
                engine.cut(0, 0)
                self._read(engine, 0, begin)
                engine.decode([Feed(0, begin, self.tokens[begin:end])])
                rows = {
                    n: bytes(engine.capture(0, begin, begin + n))
                    for n in sizes
                    if n <= size
                }
                for known, alike in found:
                    if known[size] == rows[size]:
                        alike.append(size)
                        break
                else:
                    found.append((rows, [size]))
        return [alike for _, alike in found]

    def influences(self) -> dict[str, bool]:
        """What an answer's row depends on beside its tokens, deep in a context.

        ``beside``: another answer in the same batch. ``after``: another conversation in
        memory. ``threads``: how many there are.
        """
        with self._engine(3 * _DEEP) as engine:
            self._read(engine, 0, _DEEP)
            rows = memoryview(engine.capture(0, 0, _DEEP))
            alone = self._next(engine)
            beside = self._next(engine, Feed(1, 0, self.tokens[:1]))
            engine.restore(1, rows, 0, _DEEP, _DEEP)
            after = self._next(engine)
        others = 1 if (self.settings.n_threads or default_threads()) > 1 else 2
        with self._engine(2 * _DEEP, n_threads=others) as engine:
            engine.restore(0, rows, 0, _DEEP, _DEEP)
            threads = self._next(engine)
        return {
            "beside": beside != alone,
            "after": after != alone,
            "threads": threads != alone,
        }

    def _next(self, engine: Engine, *others: Feed) -> bytes:
        "The row of the next token, decoded beside others, which are forgotten"
        token = self.tokens[_DEEP : _DEEP + 1]
        engine.decode([Feed(0, _DEEP, token), *others])
        row = bytes(engine.capture(0, _DEEP, _DEEP + 1))
        engine.cut(0, _DEEP)
        engine.cut(1, 0)
        return row


# -- answers -------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    "An answer: its text, all tokens, and the bytes of their rows"

    text: str
    tokens: array[int]
    rows: bytes


@dataclass(frozen=True)
class Prompt:
    "A document with two questions, and what is asked after the first answer"

    document: str
    questions: tuple[str, str]
    then: str


class Answers:
    """Answers prompts in several ways; ``root`` is a directory for stores.

    ``n_tokens`` is how long answers are.
    """

    def __init__(
        self,
        weights: Weights,
        settings: Settings,
        root: Path,
        n_tokens: int,
        template: str | None = None,
    ):
        self.weights = weights
        self.settings = settings
        self.n_tokens = n_tokens
        self._root = root
        self._template = template
        self._n = 0

    @contextlib.contextmanager
    def _session(self, root: Path | None) -> Iterator[Session]:
        session = open_session(
            self.weights.load,
            self.settings,
            root,
            _ignore,
            weights=self.weights,
            template=self._template,
        )
        try:
            yield session
        finally:
            session.engine.close()
            if session.store is not None:
                session.store.close()

    def _say(self, session: Session, *said: str) -> Said:
        "Answer the last of some messages; questions and answers take turns"
        import llm

        roles = (llm.user, llm.assistant)
        messages = [roles[n % 2](text) for n, text in enumerate(said)]
        request = Request(messages, sampling=_GREEDY, max_tokens=self.n_tokens)
        generation: Generation = session.generate(request)
        for _ in generation:
            pass
        slot = generation.slot
        assert slot is not None
        rows = bytes(session.engine.capture(slot.seq, 0, generation.end))
        self._n += 1
        generation.commit(f"trial{self._n:04}")
        return Said(generation.text, generation.tokens, rows)

    def ways(self, prompt: Prompt) -> Iterator[tuple[str, Said, Said]]:
        "For each way: its name, the answer that a fresh run gives, and this one"
        one, other = (f"{prompt.document}\n\n{each}" for each in prompt.questions)
        self._n += 1
        root = self._root / str(self._n)
        with self._session(None) as session:
            alone = self._say(session, other)
        with self._session(root) as session:
            fresh = self._say(session, one)
            yield "again", fresh, self._say(session, one)
            text, half = fresh.text, fresh.text[: len(fresh.text) // 2]
            live = self._say(session, one, text, prompt.then)
            yield "after a follow-up", fresh, self._say(session, one)
            branch = self._say(session, one, half, prompt.then)
        with self._session(root) as session:
            yield "restored", fresh, self._say(session, one)
        with self._session(root) as session:
            then = self._say(session, one, text, prompt.then)
            yield "follow-up, restored", live, then
        with self._session(root) as session:
            cut = self._say(session, one, half, prompt.then)
            yield "branch, restored", branch, cut
        with self._session(root) as session:
            yield "shared document, restored", alone, self._say(session, other)
        with self._session(None) as session:
            self._say(session, one)
            yield "shared document, in memory", alone, self._say(session, other)


def _ignore(_: str) -> None:
    "Warnings about the store of a trial help nobody"
