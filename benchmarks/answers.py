"""Whether an answer is the one that the model gives.

The idea: nobody is timed for a wrong answer. The model reads the whole prompt anew,
in one context that nothing was restored into, and is asked at each token of an answer
what it would have said. A right answer has the likeliest token everywhere, or one as
close to it as the rounding of other batches can move it (``CLOSE``).

The invariant: what is judged is the text, as its receiver has it. It is tokenised
again, for which ``CLOSE`` has to do as well.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_kvbranch.chat.template import Chat
from llm_kvbranch.engine import Engine, Feed, Load, Settings, Weights
from llm_kvbranch.store.tokens import common_prefix, tokens_of

from .harness.result import Result
from .peers.client import Message

# Logits: after a wrong row the likeliest tokens are some units apart
CLOSE = 0.5
N_CTX = 9216


@dataclass
class Asked:
    "An answer to be judged, and who gave it to what"

    contender: str
    what: str
    messages: list[Message]
    answer: str


@dataclass
class Judge:
    "Collects answers, and judges them all when nothing is timed any more"

    asked: list[Asked] = field(default_factory=list)

    def heard(
        self, contender: str, what: str, messages: Sequence[Message], answer: str
    ) -> None:
        self.asked.append(Asked(contender, what, list(messages), answer))

    def judge(self, result: Result, model: Path, most: int = 60) -> None:
        """Add a check for each contender and what it was asked.

        Of many different answers only some are judged, ``most`` of them at the most,
        shared among all; the same answer to the same messages is judged once.
        """
        groups: dict[tuple[str, str], list[Asked]] = {}
        for one in self.asked:
            groups.setdefault((one.what, one.contender), []).append(one)
        each = max(1, most // max(1, len(groups)))
        with contextlib.closing(_Reader(model)) as reader:
            gaps: dict[tuple[Any, ...], float] = {}
            for (what, contender), some in sorted(groups.items()):
                worst = 0.0
                chosen = some[:: -(-len(some) // each)]
                for one in chosen:
                    known = (*(m["content"] for m in one.messages), one.answer)
                    if known not in gaps:
                        gaps[known] = reader.gap(one.messages, one.answer)
                    worst = max(worst, gaps[known])
                result.checks.append(
                    {
                        "contender": contender,
                        "what": what,
                        "judged": len(chosen),
                        "of": len(some),
                        "gap": round(worst, 3),
                        "right": worst < CLOSE,
                    }
                )


class _Reader:
    "Reads prompts from their beginning, and keeps what the last one began with"

    def __init__(self, model: Path):
        self.weights = Weights(Load(model))
        self.chat = Chat(self.weights)
        self.engine = Engine(self.weights, Settings(n_seq=1))
        self.engine.reserve(N_CTX)
        self.held = tokens_of()

    def close(self) -> None:
        self.engine.close()

    def gap(self, messages: Sequence[Message], answer: str) -> float:
        "How much better, at the worst, another token than an answer's was"
        prompt = self.chat.encode([_message(m) for m in messages])
        tokens = prompt + self.weights.tokenize(answer, special=False)
        if len(tokens) == len(prompt):
            return float("inf")  # nothing was said
        n = min(common_prefix(self.held, tokens), len(prompt) - 1)
        self.engine.cut(0, n)
        worst, begin = 0.0, n
        for end in range(len(prompt), len(tokens)):
            scores = self._logits(self._read(tokens[:end], begin))
            worst = max(worst, float(scores.max() - scores[tokens[end]]))
            begin = end
        self.held = tokens[:begin]
        return worst

    def _read(self, tokens: array[int], begin: int) -> int:
        index, step = -1, self.engine.settings.n_batch
        for at in range(begin, len(tokens), step):
            (index,) = self.engine.decode([Feed(0, at, tokens[at : at + step])])
        return index

    def _logits(self, index: int) -> Any:
        import numpy as np

        llama = self.engine._llama
        pointer = llama.llama_get_logits_ith(self.engine._context, index)
        return np.ctypeslib.as_array(pointer, (self.weights.n_vocab,))


def _message(message: Message) -> Any:
    import llm

    return getattr(llm, message["role"])(message["content"])


def wrong(result: Result) -> list[str]:
    "What is to be said of answers that are not right"
    return [
        f"WRONG ANSWER  {check['contender']}, {check['what']}: another token was "
        f"better by {check['gap']}"
        for check in result.checks
        if not check["right"] and not check.get("reason")
    ]
