"""Choosing the next token: llama.cpp's own C sampler chain.

The order is llama.cpp's default: penalties, top-k, typical, top-p, min-p, then
temperature and the draw. Temperature 0 is greedy. The penalties also see the end of the
prompt, whether it was decoded or restored.

The invariant: what is drawn at a place in an answer depends on the seed, the place and
the tokens before it, not on how those were drawn. So an answer that is resumed by
another sampler goes on as it would have.
"""

from __future__ import annotations

import ctypes
import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import KVBranchError
from . import gbnf
from .constraint import draw
from .lib import listen, llama, stderr, take_errors

if TYPE_CHECKING:
    from .weights import Weights


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; names, units and defaults are llama.cpp's.

    A ``seed`` of None means a random one. ``grammar`` is GBNF text whose root rule is
    named ``root``; ``constraint`` is a grammar as llguidance has it.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None
    grammar: str | None = None
    constraint: str | None = None


class Sampler:
    """One generation's sampler chain; raises KVBranchError for an invalid grammar.

    A grammar or constraint holds from the first token, or, if it ``waits``, from
    ``constrain()`` on: before that, tokens are drawn as if there were none.
    """

    def __init__(
        self,
        weights: Weights,
        sampling: Sampling,
        history: array[int],
        waits: bool = False,
    ):
        self._chain = None
        self._llama = lib = llama()
        self._seed: int | None = None  # of what draws at random, if anything does
        self._drawing: Any = None  # the chain that ends with it
        self._n = 0  # tokens so far
        vocab = weights.vocab
        self._matcher = self._grammar = None
        if sampling.constraint is not None:
            self._matcher = weights.vocabulary.matcher(sampling.constraint)
        self._waits = waits
        self._chain = self._new_chain()
        if sampling.grammar is not None:
            self._grammar = self._parse(vocab, sampling.grammar)
        penalties = sampling.frequency_penalty or sampling.presence_penalty
        penalised = bool(penalties) or sampling.repeat_penalty != 1
        constrained = (sampling.constraint, sampling.grammar) != (None, None)
        self._n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        self._is_greedy = not (sampling.temperature > 0 or penalised or constrained)
        if penalised:
            n = sampling.repeat_last_n
            seen = lib.llama_sampler_init_penalties(
                self._n_vocab,
                n if n >= 0 else len(history) + (1 << 20),
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
            for token in history[-n:] if n > 0 else history if n < 0 else ():
                lib.llama_sampler_accept(seen, token)
            self._add(seen)
        if sampling.temperature <= 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            self._add_draw(sampling)
        if not waits:
            self.constrain()

    def _new_chain(self) -> Any:
        lib = self._llama
        return lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def _parse(self, vocab: Any, grammar: str) -> Any:
        "llama.cpp's sampler for a grammar in GBNF"
        gbnf.check(grammar)
        listen()
        with stderr() as said:  # the parser does not use llama.cpp's log
            found = self._llama.llama_sampler_init_grammar(
                vocab, grammar.encode(), b"root"
            )
            words = " ".join(said().split())[:200] or take_errors()
        if not found:
            raise KVBranchError(f"The grammar cannot be used: {words}")
        return found

    def _add_draw(self, sampling: Sampling) -> None:
        "What draws at random"
        lib = self._llama
        if sampling.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(lib.llama_sampler_init_temp(sampling.temperature))
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
        self._seed, self._drawing = seed & 0xFFFFFFFF, self._chain
        self._add(lib.llama_sampler_init_dist(self._seed))

    def _add(self, sampler: Any) -> None:
        self._llama.llama_sampler_chain_add(self._chain, sampler)

    def constrain(self) -> None:
        "The answer begins: what is drawn from now on must keep to the constraint"
        self._waits = False
        if self._grammar is not None:  # goes before all others
            free, self._chain = self._chain, self._new_chain()
            grammar, self._grammar = self._grammar, None
            self._add(grammar)
            self._add(free)

    def sample(self, context: Any, index: int) -> int:
        "Draw a token from the logits at a batch index, and remember it"
        self._seed_draw()
        self._n += 1
        if self._is_greedy:
            return self._likeliest(context, index)
        if self._matcher is None or self._waits:
            return int(self._llama.llama_sampler_sample(self._chain, context, index))
        token = draw(self._chain, self._matcher.allowed(), context, index)
        self._matcher.accept(token)
        return token

    def _likeliest(self, context: Any, index: int) -> int:
        """The same token as llama.cpp's greedy sampler, the first of the likeliest.

        That one lists all tokens with their logits first, which takes several times as
        long.
        """
        import numpy as np

        found = self._llama.llama_get_logits_ith(context, index)
        logits: Any = (ctypes.c_float * self._n_vocab).from_address(
            ctypes.addressof(found.contents)
        )
        return int(np.frombuffer(logits, np.float32).argmax())

    def _seed_draw(self) -> None:
        "Have the next draw depend on its place, not on how many numbers others took"
        if self._seed is None or not self._n:
            return
        lib, chain = self._llama, self._drawing
        last = lib.llama_sampler_chain_n(chain) - 1
        lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, last))
        seed = _mixed(self._seed, self._n)
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))

    def accept(self, token: int) -> None:
        "Remember a token that was drawn before, from the same logits"
        self._n += 1
        self._llama.llama_sampler_accept(self._chain, token)
        if self._matcher is not None and not self._waits:
            self._matcher.accept(token)

    def close(self) -> None:
        if getattr(self, "_chain", None):
            self._llama.llama_sampler_free(self._chain)
            self._chain = None
        if getattr(self, "_grammar", None):  # its constraint never began
            self._llama.llama_sampler_free(self._grammar)
            self._grammar = None

    __del__ = close


def _mixed(seed: int, place: int) -> int:
    "A seed for a place: neighbours get seeds that have nothing to do with each other"
    x = (seed << 32 | place) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return (x ^ x >> 31) & 0xFFFFFFFE  # llama.cpp takes the largest for a random one
