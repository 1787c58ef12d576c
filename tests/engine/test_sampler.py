"""Drawing at random: by seed, place and logits, whoever drew what came before."""

from __future__ import annotations

from array import array

import pytest

from llm_kvbranch.engine import Engine, Feed, Sampling
from tests.support.toys import SETTINGS, architectures

N = 24


@pytest.fixture
def engine(toy):
    engine = Engine(toy.weights, SETTINGS)
    engine.reserve(256)
    yield engine
    engine.close()


def answer(engine: Engine, sampling: Sampling, known: list[int]) -> list[int]:
    "Tokens drawn one after the other; the known ones were drawn by another sampler"
    engine.cut(0, 0)
    prompt = array("i", range(100, 120))
    sampler = engine.sampler(sampling, prompt)
    (index,) = engine.decode([Feed(0, 0, prompt)])
    found: list[int] = []
    while len(found) < N:
        if len(found) < len(known):
            token = known[len(found)]
            sampler.accept(token)
        else:
            token = engine.sample(sampler, index)
        found.append(token)
        feed = Feed(0, engine.length(0), array("i", [token]))
        (index,) = engine.decode([feed])
    return found


@architectures("llama")
@pytest.mark.parametrize("top_k", [2, 40, 0])
@pytest.mark.parametrize("grammar", [None, "root ::= [a-zA-Z ]*"])
def test_a_resumed_answer_goes_on_as_it_would_have(engine, top_k, grammar):
    "Fails if a draw depends on how many random numbers were taken before"
    sampling = Sampling(temperature=1.5, top_k=top_k, seed=3, grammar=grammar)
    whole = answer(engine, sampling, [])
    assert len(set(whole)) > 8
    for n in (0, 1, 10, N - 1):
        assert answer(engine, sampling, whole[:n]) == whole


@architectures("llama")
def test_seeds_differ(engine):
    drawn = [answer(engine, Sampling(temperature=1.5, seed=n), []) for n in range(3)]
    drawn += [answer(engine, Sampling(temperature=1.5), []) for _ in range(2)]
    assert len(set(map(tuple, drawn))) == len(drawn)
