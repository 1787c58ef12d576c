"""Constrained sampling: which tokens an answer may continue with, by llguidance.

The idea: llguidance follows the answer token by token through a grammar, and says which
tokens may come next. The logits of all others are out of the draw before any sampler
sees them, so a token is drawn as if only the allowed ones existed.

The invariant: a constraint that cannot be held to the end is an error, never an answer
that breaks it. Compiling one, and each token, has limits.

This module does not know JSON schemas, or how the grammar came about.
"""

from __future__ import annotations

import ctypes
import operator
import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ..errors import KVBranchError
from .lib import llama

# What a grammar may take: llguidance counts steps, which pass at 10,000 or more a ms
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 100_000,
    "max_items_in_row": 10_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
_FEW = 1024  # forbidden tokens that are hidden one by one
_MASKS = 32  # that are remembered: a string, a number, the space between them ...
_MOST_WORDS = 200
_LISTING = re.compile(r"\n1 \| ")
_NOISE = (
    re.compile(r"at \d+\(\d+\): "),
    re.compile(r"failed to compile JSON schema: "),
    re.compile(r"<non-verbose/>|Parser Error: "),
)


class _Pieces:
    "A vocabulary as llguidance wants to see it; it never tokenizes"

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int):
        self.tokens = tokens
        self.eos_token_id = end

    def __call__(self, text: Any) -> list[int]:
        raise NotImplementedError


class Allowed:
    """The tokens that may come next: all but a few ``hidden`` ones, or just ``ids``.

    Used for the same mask again and again, so what it needs is made once.
    """

    def __init__(self, mask: bytes, n_vocab: int):
        bits = int.from_bytes(mask, "little") & ((1 << n_vocab) - 1)
        n = bits.bit_count()
        self.hidden: list[int] | None = None
        if n_vocab - n <= _FEW:
            self.hidden = _ones(bits ^ ((1 << n_vocab) - 1))
            return
        self.ids = _ones(bits)
        columns = array("i", bytes(12 * n))  # llama_token_data: id, logit, p
        columns[0::3] = array("i", self.ids)
        self._rows = columns.tobytes()
        self._pick = operator.itemgetter(*self.ids) if n > 1 else None

    def candidates(self, logits: memoryview[float]) -> Any:
        "The allowed tokens and their logits, as llama.cpp's samplers take them"
        rows = bytearray(self._rows)
        found = self._pick(logits) if self._pick else [logits[i] for i in self.ids]
        memoryview(rows).cast("f")[1::3] = memoryview(array("f", found))
        return rows


def _ones(bits: int) -> list[int]:
    return [found.start() for found in re.finditer("1", f"{bits:b}"[::-1])]


class Vocabulary:
    "The tokens of a model as llguidance reads them; one for all of its answers"

    def __init__(self, pieces: Sequence[bytes], names: Sequence[str], ends: list[int]):
        from llguidance import LLTokenizer, TokenizerWrapper

        # Only a grammar that names one by its id allows a token that spells nothing
        tokens = [
            piece if piece and token not in ends else b"\xff" + name.encode()
            for token, (piece, name) in enumerate(zip(pieces, names, strict=True))
        ]
        self.n_vocab = len(tokens)
        wrapped = TokenizerWrapper(_Pieces(tokens, ends[0]))
        self._tokenizer = LLTokenizer(wrapped, eos_token=ends)
        self._masks: OrderedDict[bytes, Allowed] = OrderedDict()

    def matcher(self, grammar: str) -> Matcher:
        "Follows one answer; raises KVBranchError for a grammar that cannot be used"
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS)
        found = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if found.is_error():
            raise KVBranchError(f"The answer cannot be constrained: {_words(found)}")
        matcher = Matcher(self, found)
        matcher.allowed()  # so that what allows nothing is refused at once
        return matcher

    def allowed(self, mask: bytes) -> Allowed:
        found = self._masks.get(mask)
        if found is None:
            found = Allowed(mask, self.n_vocab)
            if len(self._masks) >= _MASKS:
                self._masks.popitem(last=False)
            self._masks[mask] = found
        else:
            self._masks.move_to_end(mask)
        return found


class Matcher:
    "The place of one answer in its grammar"

    def __init__(self, vocabulary: Vocabulary, matcher: Any):
        self._vocabulary = vocabulary
        self._matcher = matcher

    def allowed(self) -> Allowed:
        "What may come next: where the answer is complete, only an end; never nothing"
        mask = self._matcher.compute_bitmask()
        self._check()
        found = self._vocabulary.allowed(mask)
        if found.hidden is None and not found.ids:
            raise KVBranchError("No token of this model can continue the answer")
        return found

    def accept(self, token: int) -> None:
        "The answer continues with a token"
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            words = _words(self._matcher)
            raise KVBranchError(f"The answer cannot be constrained further: {words}")


def draw(chain: Any, allowed: Allowed, context: Any, index: int) -> int:
    "Draw one of the allowed tokens from the logits at a batch index, and remember it"
    lib = llama()
    address = ctypes.addressof(lib.llama_get_logits_ith(context, index).contents)
    n_vocab = lib.llama_vocab_n_tokens(
        lib.llama_model_get_vocab(lib.llama_get_model(context))
    )
    found = memoryview((ctypes.c_float * n_vocab).from_address(address))
    logits: memoryview[float] = found.cast("B").cast("f")
    if allowed.hidden is not None:
        kept = [logits[token] for token in allowed.hidden]
        try:
            for token in allowed.hidden:
                logits[token] = -float("inf")
            return int(lib.llama_sampler_sample(chain, context, index))
        finally:  # others may draw from the same logits
            for token, logit in zip(allowed.hidden, kept, strict=True):
                logits[token] = logit
    rows = allowed.candidates(logits)
    data = (ctypes.c_char * len(rows)).from_buffer(rows)
    pointer = ctypes.cast(data, ctypes.POINTER(lib.llama_token_data))
    drawn = lib.llama_token_data_array(pointer, len(rows) // 12, -1, False)
    lib.llama_sampler_apply(chain, ctypes.byref(drawn))
    token = int(pointer[drawn.selected].id)
    lib.llama_sampler_accept(chain, token)
    return token


def _words(matcher: Any) -> str:
    "What llguidance found wrong, as one line, without the grammar that it repeats"
    text = _LISTING.split(matcher.get_error())[0]
    for noise in _NOISE:
        text = noise.sub("", text)
    return " ".join(text.split())[:_MOST_WORDS]
