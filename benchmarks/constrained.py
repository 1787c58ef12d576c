"""Tokens a second with a schema, beside those without a constraint.

    python -m benchmarks --only constrained

Two answers of one engine, behind the same prompt: one must match a schema, the other
may be anything. They take turns token by token, so that whatever else the machine does
happens to both, and they are always equally long. What is timed is decoding a token and
drawing the next; turns in which either took twice as long as usual are left out for
both. The schema is of a list so long that no answer completes it; the other answer goes
on after its end.
"""

from __future__ import annotations

import statistics
import time
from array import array
from itertools import chain
from typing import Any

from llm_kvbranch.chat import json_grammar
from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings, Weights

from .harness.bars import Bar
from .harness.measurement import Measurement, Run
from .harness.result import Result
from .harness.table import markdown, plain, ratio, seconds

LEAST = 0.95
SLOW = 2  # times as long as usual: the machine did something else
FREE, SCHEMA = "free", "schema"
TEMPERATURES = (0.0, 0.8)
DOG: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0},
        "breed": {"enum": ["poodle", "terrier", "beagle"]},
        "story": {"type": "string"},
    },
    "required": ["name", "age", "breed", "story"],
}
DOGS = {"type": "array", "items": DOG, "minItems": 500}
PROMPT = "A JSON list of 500 dogs with name, age, breed and a short story:\n"


class Answer:
    "One answer, in a sequence of its own"

    def __init__(self, engine: Engine, sequence: int, sampling: Sampling):
        prompt = engine.weights.tokenize(PROMPT, special=False)
        engine.cut(sequence, 0)
        self._engine, self._sequence, self._n = engine, sequence, len(prompt)
        self._sampler = engine.sampler(sampling, prompt)
        (index,) = engine.decode([Feed(sequence, 0, prompt)])
        self._token = engine.sample(self._sampler, index)

    def step(self) -> tuple[float, float]:
        "One token: seconds to decode it, and to draw the next"
        feed = Feed(self._sequence, self._n, array("i", [self._token]))
        began = time.perf_counter()
        (index,) = self._engine.decode([feed])
        decoded = time.perf_counter()
        self._token = self._engine.sample(self._sampler, index)
        drawn = time.perf_counter()
        self._n += 1
        return decoded - began, drawn - decoded

    def close(self) -> None:
        self._sampler.close()


def measure(run: Run) -> None:
    result = run.result
    rounds, n_tokens = run.choose(10, 1), run.choose(96, 16)
    result.settings = {"n_tokens": n_tokens}
    result.contenders = {
        FREE: "an answer that may be anything",
        SCHEMA: "a list of objects with strings, a number and an enum",
    }
    engine = Engine(Weights(Load(run.tools.model)), Settings(n_seq=2))
    engine.reserve(4 * n_tokens + 128)
    grammar = json_grammar(DOGS)
    run.begin(rounds * len(TEMPERATURES))
    for i in range(rounds):
        for temperature in TEMPERATURES:
            one_round(result, engine, grammar, temperature, i, n_tokens)
            run.progress.step(f"temperature {temperature:g}")


def one_round(
    result: Result, engine: Engine, grammar: str, temperature: float, i: int, n: int
) -> None:
    samplings = {
        FREE: Sampling(temperature=temperature, seed=i),
        SCHEMA: Sampling(temperature=temperature, seed=i, constraint=grammar),
    }
    answers = {
        name: Answer(engine, (number + i) % 2, sampling)
        for number, (name, sampling) in enumerate(samplings.items())
    }
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in answers}
    for k in range(n):
        for name in (FREE, SCHEMA) if k % 2 else (SCHEMA, FREE):
            steps[name].append(answers[name].step())
    undisturbed = quiet(*steps.values())
    for name, each in steps.items():
        decoding = sum(each[k][0] for k in undisturbed)
        drawing = sum(each[k][1] for k in undisturbed)
        rate = len(undisturbed) / (decoding + drawing)
        result.add(rate, "rate", f"{temperature:g}", name)
        result.add(drawing / len(undisturbed), "draw", f"{temperature:g}", name)
        answers[name].close()


def quiet(*steps: list[tuple[float, float]]) -> list[int]:
    "The turns in which nothing else on the machine held an answer up"
    times = [[decode + draw for decode, draw in each] for each in steps]
    most = SLOW * statistics.median(chain.from_iterable(times))
    return [k for k, each in enumerate(zip(*times, strict=True)) if max(each) <= most]


def share(result: Result, temperature: float) -> float | None:
    "Of the rate without a constraint"
    t = f"{temperature:g}"
    return result.paired(("rate", t, SCHEMA), ("rate", t, FREE))


def bars(result: Result) -> list[Bar]:
    return [
        Bar(
            f"tokens a second with a schema at temperature {t:g}, of those without",
            share(result, t),
            least=LEAST,
        )
        for t in TEMPERATURES
    ]


def table(result: Result) -> str:
    rows = [
        [
            f"{t:g}",
            ratio(share(result, t)),
            *(plain(result.median("rate", f"{t:g}", n), 1) for n in (SCHEMA, FREE)),
            *(seconds(result.median("draw", f"{t:g}", n)) for n in (SCHEMA, FREE)),
        ]
        for t in TEMPERATURES
    ]
    header = ["temperature", "with a schema, of without", "tokens / s with"]
    header += ["tokens / s without", "a draw with", "a draw without"]
    return f"kvllama; medians of the rounds.\n\n{markdown(header, rows)}"


MEASUREMENT = Measurement(
    "constrained",
    "Tokens a second with a schema",
    minutes=0.5,
    measure=measure,
    bars=bars,
    table=table,
    plot=lambda result: None,
    peers=False,
)
