"""The same conversations with layers and KV caches on a GPU, in part, or not at all.

The idea: the store does not know where a row was computed. What one place stored, the
others continue, unless the GPU has no flash attention for the model: then the layouts
differ, and the miss says so. Every answer is checked on the CPU.

Where this build of llama.cpp has no GPU, every place is the CPU, and everything must be
the same. ``python -m benchmarks.gpu`` runs these tests on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from llm_kvbranch.engine import Engine, Feed, Weights
from llm_kvbranch.inference.session import Session, open_session

from ..support import synth
from ..support.backend import ROUNDING, close, on_gpu
from ..support.toys import SETTINGS, Toy, apart, decode, row_values
from ..support.turns import LAST, NEXT, QUESTION, Turn, ask

N = 8  # tokens of an answer: a software device takes long for each


@dataclass(frozen=True)
class Place:
    "Where the layers and the KV cache are"

    n_gpu_layers: int = -1
    offload_kqv: bool = True

    @property
    def settings(self):
        return replace(SETTINGS, offload_kqv=self.offload_kqv)


CPU = Place(0)
PLACES = {
    "all layers": Place(),
    "part of the layers": Place(3),
    "KV in main memory": Place(offload_kqv=False),
}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
# Without a GPU two say as much as all
toys_everywhere = pytest.mark.parametrize(
    "toy",
    [
        name
        if name in ("llama", "qwen35")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in synth.MODELS
    ],
    indirect=True,
)


@pytest.fixture(scope="session")
def weights_at():
    "The weights of a toy at a place, loaded once"
    loaded = {}

    def weights(toy: Toy, place: Place) -> Weights:
        key = toy.name, place.n_gpu_layers
        if key not in loaded:
            loaded[key] = Weights(replace(toy.load, n_gpu_layers=place.n_gpu_layers))
        return loaded[key]

    return weights


@pytest.fixture
def session_at(weights_at, tmp_path):
    "A session of a later process at a place; all have the same store"

    def session(toy: Toy, place: Place) -> Session:
        weights = weights_at(toy, place)
        return open_session(
            weights.load, place.settings, tmp_path, pytest.fail, weights
        )

    return session


@pytest.fixture
def right(weights_at):
    "Whether an answer is one that the CPU would give"

    def is_right(toy: Toy, turn: Turn) -> bool:
        tokens, answer = turn.generation.tokens, turn.generation.n_prompt
        decoded = decode(weights_at(toy, CPU), tokens, answer)
        return max(decoded.beaten_by, default=0.0) <= close()

    return is_right


def layout(session: Session) -> str:
    return session.planner.fingerprint


class TestMoving:
    "Guards against states of one place that spoil the answers of another"

    @toys_everywhere
    @places
    def test_there_and_back(self, toy: Toy, place: Place, session_at, right) -> None:
        here, there = session_at(toy, CPU), session_at(toy, place)
        first = ask(here, [], n=N).commit("r1")
        second = ask(there, first.messages, NEXT, N).commit("r2")
        third = ask(session_at(toy, CPU), second.messages, LAST, N)
        if layout(here) == layout(there):
            assert second.restored == first.generation.end
            assert third.restored == second.generation.end
            assert third.miss_reason is None
        else:
            assert on_gpu()
            assert second.restored == 0
            assert "flash_attn auto is now off" in second.miss_reason
            assert third.restored == first.generation.end
        for turn in (first, second, third):
            assert right(toy, turn)

    @toys_everywhere
    @places
    def test_a_branch_in_a_later_process(
        self, toy: Toy, place: Place, session_at, right
    ) -> None:
        first = ask(session_at(toy, place), [], n=N).commit("r1")
        second = ask(session_at(toy, place), first.messages, NEXT, N).commit("r2")
        assert second.restored == first.generation.end
        branch = ask(session_at(toy, place), second.cut(len(second.text) // 2), LAST, N)
        assert branch.restored >= first.generation.end
        assert right(toy, second)
        assert right(toy, branch)


class TestRows:
    "Guards against a GPU that computes something else"

    @toys_everywhere
    @places
    def test_are_those_of_the_cpu(self, toy: Toy, place: Place, weights_at) -> None:
        tokens = toy.weights.tokenize((QUESTION + NEXT) * 3, special=False)
        values = []
        for where in (CPU, place):
            engine = Engine(weights_at(toy, where), where.settings)
            engine.reserve(len(tokens))
            engine.decode([Feed(0, 0, tokens)])
            rows = engine.capture(0, 0, len(tokens))
            values.append(row_values(engine, rows, 0, len(tokens)))
        assert values[0] or toy.name == "mamba"
        assert apart(*values) <= ROUNDING


DIGEST = """
import hashlib, sys
from pathlib import Path
from llm_kvbranch.engine import Engine, Feed, Load, Settings, Weights
weights = Weights(Load(Path(sys.argv[1]), n_gpu_layers=0))
engine = Engine(weights, Settings(n_threads=1))
engine.reserve(256)
tokens = weights.tokenize("Tell me of the sea. " * 30, special=False)[:120]
engine.decode([Feed(0, 0, tokens)])
print(hashlib.sha256(engine.capture(0, 0, 120)).hexdigest())
"""


class TestNoLayers:
    "Guards against a GPU that computes large batches although no layer is on it"

    def test_rows_are_those_of_a_machine_without_a_gpu(self, toys) -> None:
        path, digests = str(toys("llama").load.path), set()
        hidden = dict.fromkeys(("GGML_VK_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"), "")
        for more in ({}, hidden):
            done = subprocess.run(
                [sys.executable, "-c", DIGEST, path],
                check=True,
                capture_output=True,
                env={**os.environ, **more},
            )
            digests.add(done.stdout)
        assert len(digests) == 1


class TestWords:
    "Guards against an answer that is said to come from somewhere else"

    @places
    def test_the_device_is_named(self, toys, place: Place, session_at) -> None:
        turn = ask(session_at(toys("llama"), place), [], n=2)
        said = turn.generation.facts["device"]
        if not on_gpu():
            assert said.startswith("CPU")
            return
        n = 5 if place.n_gpu_layers < 0 else place.n_gpu_layers
        assert said.startswith(f"{n} of 5 layers on ")
        assert said.endswith(", KV cache in main memory") != place.offload_kqv
