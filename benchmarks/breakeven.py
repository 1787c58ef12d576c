"""How long a context must be for restoring it to be sooner than reading it again.

    python -m benchmarks --only breakeven

For models of several sizes, contexts of some lengths are read by the model, and
restored from a file, which is found in a store, read, verified, and followed by
decoding the last token: both give the logits of the next. *Cold* is when the file is
not in the page cache.

The planner is told the rates that were measured, as it is in use, and asked for every
length which of both it would do.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_kvbranch.chat.template import Chat
from llm_kvbranch.engine import Engine, Load, Settings, Weights
from llm_kvbranch.inference.capture import _MEASURED_BYTES, _MEASURED_TOKENS
from llm_kvbranch.inference.filling import Filler
from llm_kvbranch.inference.planning import Plan, Planner
from llm_kvbranch.inference.slots import Slots
from llm_kvbranch.store.chain import Chain
from llm_kvbranch.store.header import State, fingerprint_of
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest

from .breakeven_report import bars, plot, table
from .gpu.model import SHAPES, write_model
from .gpu.task import PLENTY, some_tokens
from .harness.decoding import alone
from .harness.measurement import Measurement, Run
from .harness.turns import rotated
from .peers.servers import forget_pages

SMOLLM2 = "SmolLM2-135M"
# Of random weights, by their shape; and how long contexts of them are
SHAPED = {"tiny": 512, "llama-3.2-1b": 64}
LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512)
WAYS = ("prefill", "restore", "cold")
FINGERPRINT = fingerprint_of({"benchmark": "breakeven"})


def measure(run: Run) -> None:
    rounds = run.choose(7, 2)
    longest = {"tiny": SHAPED["tiny"], SMOLLM2: 512, **SHAPED}
    longest = run.choose(longest, {"tiny": 64, SMOLLM2: 32})
    run.result.settings = {"lengths": list(LENGTHS), "rounds": rounds}
    run.result.contenders = {name: describe(name, longest[name]) for name in longest}
    lengths = {
        name: [n for n in LENGTHS if n <= most] for name, most in longest.items()
    }
    run.begin(sum(rounds * len(some) for some in lengths.values()))
    for name, some in lengths.items():
        with model_of(run, name) as model:
            for n in some:
                model.store_context(n)
            for i in range(rounds):
                for n in some:
                    for way in rotated(WAYS, i):
                        run.result.add(model.time(way, n), way, name, n)
                    run.progress.step(f"{name}, {n} tokens")
            decide(run, model, name, some)


def describe(name: str, longest: int) -> str:
    if name == SMOLLM2:
        return "the real one"
    shape = SHAPES[name]
    return (
        f"random weights (q8_0) of that shape: {shape.n_layer} layers, "
        f"{shape.n_embd:,} wide; up to {longest} tokens"
    )


@contextlib.contextmanager
def model_of(run: Run, name: str) -> Iterator[Model]:
    path = run.tools.model
    if name != SMOLLM2:
        path = run.work / f"{name}.gguf"
        write_model(path, SHAPES[name], "q8_0")
    weights = Weights(Load(path))
    with contextlib.ExitStack() as stack:
        engine = Engine(weights, Settings())
        stack.callback(engine.close)
        root = run.work / f"store-{name}"
        store = stack.enter_context(contextlib.closing(Store(root, PLENTY)))
        engine.reserve(max(LENGTHS) + 256)
        yield Model(engine, store, some_tokens(weights, max(LENGTHS)), root)
    if name != SMOLLM2:
        path.unlink()


@dataclass
class Model:
    "A model, a store, and contexts of several lengths in it"

    engine: Engine
    store: Store
    tokens: array[int]
    root: Path
    reads: list[tuple[int, float]] = field(default_factory=list)

    def context(self, n: int) -> array[int]:
        "Tokens that begin like those of no other length"
        return array("i", [n % 1000]) + self.tokens[: n - 1]

    def fill(self, n: int, chain: Chain) -> Any:
        "Have the context's tokens, by a chain and the rest by decoding"
        slots = Slots(self.engine)
        filler = Filler(self.engine, slots, self.store, lambda *_: None)
        self.engine.cut(0, 0)
        tokens = self.context(n)
        work = filler.fill(slots.acquire(tokens), tokens, chain, own=len(chain.tokens))
        filling, _ = alone(work, self.engine)
        return filling

    def store_context(self, n: int) -> None:
        tokens = self.context(n)
        self.fill(n, Chain())
        state = State(
            response_id=f"context-{n}",
            fingerprint=FINGERPRINT,
            start=0,
            end=n,
            answer=n,
            tokens=tokens,
            prefix=prefix_digest(tokens, 0),
        )
        self.store.put(state, self.engine.capture(0, 0, n))

    def chain(self, n: int) -> Chain:
        chain = self.store.longest_prefix(FINGERPRINT, self.context(n)[:-1])
        if len(chain.tokens) != n - 1:
            raise RuntimeError(f"{len(chain.tokens)} of {n - 1} tokens were found")
        return chain

    def time(self, way: str, n: int) -> float:
        "Seconds until there are logits to choose the next token by"
        if way == "cold":
            forget_pages(self.root / "states")
        began = time.perf_counter()
        filling = self.fill(n, Chain() if way == "prefill" else self.chain(n))
        self.engine._llama.llama_synchronize(self.engine._context)
        seconds = time.perf_counter() - began
        if filling.restored != (0 if way == "prefill" else n - 1):
            raise RuntimeError(f"{filling.restored} tokens restored: {filling.misses}")
        if way == "restore":
            self.reads += filling.reads
        return seconds


def decide(run: Run, model: Model, name: str, lengths: list[int]) -> None:
    "What the planner would do with each length, knowing what was measured"
    store, result = model.store, run.result
    weights = model.engine.weights
    planner = Planner(Chat(weights), store, FINGERPRINT, True)
    prefill, opened, read = planner.rates()
    long = [n for n in lengths if n >= _MEASURED_TOKENS] or lengths[-1:]
    for n in long:
        for seconds in result.values("prefill", name, n):
            store.count_prompt(FINGERPRINT, n, 0, {prefill: (n, seconds)})
    for rate, small in ((opened, True), (read, False)):
        some = [r for r in model.reads if (r[0] < _MEASURED_BYTES) == small]
        for nbytes, seconds in some or model.reads:
            amount = 1 if small else nbytes
            store.count_prompt(FINGERPRINT, 0, 0, {rate: (amount, seconds)})
    for n in lengths:
        plan = Plan(model.context(n), model.chain(n), "", None)
        planner._choose(plan)
        chosen = "restore" if plan.chain.segments else "prefill"
        result.facts[f"plan/{name}/{n}"] = chosen


MEASUREMENT = Measurement(
    "breakeven",
    "Restoring or reading again",
    minutes=1.5,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
