"""Choosing the next token: llama.cpp's own C sampler chain.

The order is llama.cpp's default: penalties, top-k, typical, top-p, min-p, then
temperature and the draw. Temperature 0 is greedy. The penalties also see the end of the
prompt, whether it was decoded or restored.
"""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass
from typing import Any

from ..errors import KVBranchError
from .lib import listen, llama, stderr, take_errors


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; names, units and defaults are llama.cpp's.

    A ``seed`` of None means a random one. ``grammar`` is GBNF text whose root rule is
    named ``root``; ``schema`` is a JSON schema as text, for which one is made.
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
    schema: str | None = None


class Sampler:
    "One generation's sampler chain; raises KVBranchError for an invalid grammar"

    def __init__(self, vocab: Any, sampling: Sampling, history: array[int]):
        self._chain = None
        self._llama = lib = llama()
        grammar_text = sampling.grammar
        if sampling.schema is not None:
            grammar_text = json_grammar(json.loads(sampling.schema))
        elif grammar_text is not None and is_empty(grammar_text):
            raise KVBranchError("The grammar cannot be used: its root rule is empty")
        self._chain = lib.llama_sampler_chain_init(
            lib.llama_sampler_chain_default_params()
        )
        if grammar_text is not None:
            listen()
            with stderr() as said:  # the parser does not use llama.cpp's log
                grammar = lib.llama_sampler_init_grammar(
                    vocab, grammar_text.encode(), b"root"
                )
                words = " ".join(said().split())[:200] or take_errors()
            if not grammar:
                raise KVBranchError(f"The grammar cannot be used: {words}")
            self._add(grammar)
        penalised = (sampling.repeat_penalty, sampling.frequency_penalty) != (1.0, 0.0)
        if penalised or sampling.presence_penalty:
            n = sampling.repeat_last_n
            penalties = lib.llama_sampler_init_penalties(
                lib.llama_vocab_n_tokens(vocab),
                n if n >= 0 else len(history) + (1 << 20),
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
            for token in history[-n:] if n > 0 else history if n < 0 else ():
                lib.llama_sampler_accept(penalties, token)
            self._add(penalties)
        if sampling.temperature <= 0:
            self._add(lib.llama_sampler_init_greedy())
            return
        if sampling.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(lib.llama_sampler_init_temp(sampling.temperature))
        seed = 0xFFFFFFFF if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        self._llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Any, index: int) -> int:
        "Draw a token from the logits at a batch index, and remember it"
        return int(self._llama.llama_sampler_sample(self._chain, context, index))

    def constrain(self) -> None:
        "The answer begins: what is drawn from now on must keep to the grammar"

    def accept(self, token: int) -> None:
        "Remember a token that was drawn before, from the same logits"
        self._llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if getattr(self, "_chain", None):
            self._llama.llama_sampler_free(self._chain)
            self._chain = None

    __del__ = close


def is_empty(grammar: str) -> bool:
    "Whether a GBNF grammar has no rules, or nothing in its root rule"
    rules = re.sub(r"(?m)#.*$", "", grammar).strip()
    return not rules or bool(re.search(r"\broot\s*::=\s*(?:\Z|[\w-]+\s*::=)", rules))


def json_grammar(schema: dict[str, Any]) -> str:
    "A GBNF grammar for a JSON schema; raises KVBranchError if there is none"
    import importlib

    llama()
    module = importlib.import_module("llama_cpp.llama_grammar")
    listen()
    try:
        return str(module.json_schema_to_gbnf(json.dumps(schema)))
    except Exception as error:  # the converter may raise anything
        raise KVBranchError(f"This schema cannot be enforced: {error}") from None
