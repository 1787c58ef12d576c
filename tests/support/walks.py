"""Random walks through a grammar: answers that a constraint allows, of any kind."""

from __future__ import annotations

import random

from llm_kvbranch.engine import Weights

CLOSING = {b'"', b"]", b"}", b'"]', b'"}', b'":'}
SHORT = {b"a", b"b", b"c", b"1", b"@", b"."}
N_TOKENS = 400  # of a walk, after which it is given up


def walk(weights: Weights, grammar: str, seed: int) -> str | None:
    """A random answer that the grammar allows; None if the walk finds no end.

    A walk prefers what ends something, or strings would be endless.
    """
    chance = random.Random(seed)
    eager = chance.choice([0.1, 0.4, 0.8])
    matcher = weights.vocabulary.matcher(grammar)
    written = b""
    for n in range(N_TOKENS):
        allowed = matcher.allowed()
        hidden = set(allowed.hidden or ())
        tokens = range(weights.n_vocab) if allowed.hidden is not None else allowed.ids
        among = set(tokens) - hidden
        good: list[int] = []
        if chance.random() < max(eager, n / 100):
            good = [t for t in _some(weights, "closing", CLOSING) if t in among]
        if not good and chance.random() < 0.5:
            good = [t for t in _some(weights, "short", SHORT) if t in among]
        token = chance.choice(good or sorted(among))
        matcher.accept(token)
        if weights.is_eog(token):
            return written.decode()
        written += weights.piece(token)
    return None


def walks(weights: Weights, grammar: str, n: int) -> list[str]:
    "The answers of n walks that find an end; of fewer if most do not"
    found: list[str] = []
    for seed in range(4 * n):
        if (said := walk(weights, grammar, seed)) is not None:
            found.append(said)
            if len(found) == n:
                break
    return found


def _some(weights: Weights, name: str, pieces: set[bytes]) -> list[int]:
    "Tokens that end answers or are one of the pieces"
    found: list[int] | None = getattr(weights, name, None)
    if found is None:
        tokens = range(weights.n_vocab)
        found = [t for t in tokens if weights.is_eog(t) or weights.piece(t) in pieces]
        setattr(weights, name, found)
    return found
