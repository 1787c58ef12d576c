"""Random walks through a grammar: answers that a constraint allows, of any kind."""

from __future__ import annotations

import random

from llm_kvbranch.engine import Weights

N_TOKENS = 400  # of a walk, after which it is given up


def walk(weights: Weights, grammar: str, seed: int) -> str | None:
    """A random answer that the grammar allows; None if the walk finds no end.

    A walk prefers what ends something, or strings would be endless.
    """
    chance = random.Random(seed)
    eager = chance.choice([0.1, 0.4, 0.8])
    matcher = weights.vocabulary.matcher(grammar)
    written = b""
    closing = _closing(weights)
    for n in range(N_TOKENS):
        allowed = matcher.allowed()
        hidden = set(allowed.hidden or ())
        ids = None if allowed.hidden is not None else allowed.ids
        token = None
        if chance.random() < max(eager, n / 100):
            good = (
                [t for t in closing if t in set(ids)]
                if ids is not None
                else ([t for t in closing if t not in hidden])
            )
            token = chance.choice(good) if good else None
        while token is None:
            token = chance.choice(ids if ids is not None else range(weights.n_vocab))
            token = None if token in hidden else token
        matcher.accept(token)
        if weights.is_eog(token):
            return written.decode()
        written += weights.piece(token)
    return None


def _closing(weights: Weights) -> list[int]:
    "Tokens that end strings, lists, objects and answers"
    cached = getattr(weights, "closing", None)
    if cached is None:
        tokens = range(weights.n_vocab)
        ends = {b'"', b"]", b"}", b'"]', b'"}', b'":'}
        cached = [t for t in tokens if weights.is_eog(t) or weights.piece(t) in ends]
        weights.closing = cached  # type: ignore[attr-defined]
    return cached
