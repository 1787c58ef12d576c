"""The real model over random trees: restored rows equal those of a live context.

The live world decodes the whole path to a node in one context that is never left: it
decodes what was decoded, steps back where a branch was cut, and continues. The restored
world starts a new engine for every node and has nothing but the store. Both must
generate the same tokens and end with the same bytes.

(A live context that also holds other sequences is no reference: llama.cpp's attention
then sums in another order, see the engine's tests of siblings.)
"""

from __future__ import annotations

import contextlib
import random
from array import array

import pytest

from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings, Weights
from llm_kvbranch.inference.filling import Decoded, Filler
from llm_kvbranch.inference.slots import Slots
from llm_kvbranch.store.header import State
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest

pytestmark = pytest.mark.model

N_NODES = 10
N_GENERATED = 6
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def weights(model_path):
    return Weights(Load(model_path))


def generate(engine: Engine, seq: int, tokens: array, index: int) -> array:
    "The tokens and greedy ones after them, all decoded"
    sampler = engine.sampler(GREEDY, tokens)
    tokens = array("i", tokens)
    for _ in range(N_GENERATED):
        token = array("i", [engine.sample(sampler, index)])
        (index,) = engine.decode([Feed(seq, len(tokens), token)])
        tokens += token
    return tokens


def alone(work, engine: Engine):
    "What work returns with nothing else in its batches, and the index of its logits"
    done, index = None, -1
    while True:
        try:
            feed = next(work) if done is None else work.send(done)
        except StopIteration as end:
            return end.value, index
        (index,) = engine.decode([feed])
        done = Decoded(len(feed.tokens))


class Live:
    "The path to every node, decoded in one context"

    def __init__(self, weights):
        self.weights = weights
        self.ways: list[list[tuple[int, array]]] = []

    def grow(self, parent: int | None, cut: int, tokens: array):
        "All tokens, with generated ones, and the engine that holds them"
        way = [*(self.ways[parent] if parent is not None else []), (cut, tokens)]
        self.ways.append(way)
        engine = Engine(self.weights, Settings(n_seq=1))
        engine.reserve(2048)
        full = array("i")
        for at, prompt in way:
            engine.cut(0, at)
            (index,) = engine.decode([Feed(0, at, prompt[at:])])
            full = generate(engine, 0, prompt, index)
        return full, engine


class Restored:
    "A new engine for every node, and the store"

    def __init__(self, weights, root):
        self.weights = weights
        self.root = root

    def grow(self, node: int, cut: int, tokens: array):
        store = Store(self.root)
        engine = Engine(self.weights, Settings(n_seq=1))
        engine.reserve(len(tokens) + 64)
        slots = Slots(engine)
        filler = Filler(engine, slots, store, store.lost)
        slot = slots.acquire(tokens)
        chain = store.longest_prefix("f", tokens).cut(cut)
        assert len(chain.tokens) == cut
        filling, index = alone(filler.fill(slot, tokens, chain, own=cut), engine)
        assert not filling.misses
        assert filling.restored == cut
        full = generate(engine, slot.seq, tokens, index)
        parents = [s.entry.state.response_id for s in chain.segments]
        state = State(
            response_id=f"node{node}",
            fingerprint="f",
            start=cut,
            end=len(full),
            answer=len(tokens),
            tokens=full[cut:],
            prefix=prefix_digest(full, cut),
            parent_id=parents[-1] if parents else None,
        )
        payload = engine.capture(slot.seq, cut, len(full))
        store.put(state, payload)
        store.close()
        return full, payload


@pytest.mark.parametrize("seed", range(3))
def test_random_tree(weights, tmp_path, seed):
    draw = random.Random(seed)
    live, restored = Live(weights), Restored(weights, tmp_path)
    nodes: list[array] = []
    for node in range(N_NODES):
        parent = draw.randrange(node) if node else None
        cut, prefix = 0, array("i")
        if parent is not None:
            # At its end, or anywhere inside
            whole = len(nodes[parent])
            cut = draw.choice([whole, draw.randrange(1, whole)])
            prefix = nodes[parent][:cut]
        new = [draw.randrange(20, 40_000) for _ in range(draw.randrange(1, 90))]
        tokens = prefix + array("i", new)
        one, engine = live.grow(parent, cut, tokens)
        two, payload = restored.grow(node, cut, tokens)
        assert one == two
        assert payload == engine.capture(0, cut, len(one))
        nodes.append(two)
        if draw.random() < 0.2:
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / "index.db").unlink()
