"""Text that would be read as control tokens, cut so that it is read as text.

The idea: llama.cpp reads two kinds of tokens wherever a prompt spells them: control
tokens, and user-defined tokens (``</think>`` of Qwen 3, ``<|channel>`` of Gemma 4). The
latter also where special tokens are switched off; nobody can tell them from text then.
A cut inside a text keeps the tokenizer from seeing them.

The invariant: no text that was cut becomes a control token, or a user-defined one that
the template writes. Other user-defined tokens, such as runs of spaces, are how models
read text.

This module does not know messages.
"""

from __future__ import annotations

import functools
import re
from array import array
from collections.abc import Callable
from typing import Protocol

from .jinja import CUT

_LOOKS_LIKE_CONTROL = re.compile(r"<\|[^|<>\s]+\|>")
_MARK = re.compile(r"[<>\[\]{}|\uff5c]")  # other user-defined tokens are words or space
_PATIENCE = 20_000  # characters that tokenise faster than control tokens are listed


class Vocabulary(Protocol):
    "What is needed of a model here"

    @property
    def bos_text(self) -> str: ...
    @property
    def eos_text(self) -> str: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def control_texts(self) -> tuple[str, ...]: ...

    def tokenize(self, text: str, special: bool, bos: bool = False) -> array[int]: ...
    def piece(self, token: int, /) -> bytes: ...
    def control_text(self, token: int, /) -> str: ...
    def is_user_defined(self, token: int) -> bool: ...


class Controls:
    """The control tokens of a model and its template.

    ``samples`` returns what the template writes for conversations of all kinds.
    """

    def __init__(self, vocab: Vocabulary, source: str, samples: Callable[[], str]):
        self.vocab = vocab
        self.source = source
        self._samples = samples
        self._patience = _PATIENCE

    def cut(self, text: str, whole: frozenset[str] = frozenset()) -> str:
        "The text, with a cut inside each control token that is not in ``whole``"
        if self._is_plain(text):
            return text
        starts, lengths = self._starts
        parts, done = [], 0
        for found in starts.finditer(text):
            at = found.start()
            controls = {text[at : at + n] for n in lengths} & self._texts
            if controls - whole:
                parts.append(text[done : at + 1])
                done = at + 1
        return CUT.join([*parts, text[done:]])

    def begins(self, text: str, at: int = 0) -> bool:
        "Whether a control token begins there"
        return any(text[at : at + n] in self._texts for n in self._starts[1])

    def places(self, text: str, start: int, end: int) -> list[int]:
        "Where control tokens begin"
        found = self._starts[0].finditer(text, start, end)
        return [each.start() for each in found if self.begins(text, each.start())]

    def is_first(self, text: str, tokens: array[int]) -> bool:
        "Whether the first of a text's tokens is a control token"
        return any(
            text.startswith(control)
            and self.vocab.tokenize(control, special=True) == tokens[:1]
            for control in self._texts
        )

    def _is_plain(self, text: str) -> bool:
        "Whether a text has no control token; found out before all are listed"
        if "_starts" in vars(self) or len(text) > self._patience or "<|" in text:
            return False
        self._patience -= len(text)
        tokenize = self.vocab.tokenize
        if any(written in text for written in self._written):
            return False
        return tokenize(text, special=True) == tokenize(text, special=False)

    @functools.cached_property
    def _texts(self) -> frozenset[str]:
        """The texts that are read as control tokens.

        Also what looks like one in the template: llama.cpp takes some for control
        tokens though the model's file does not call them that.
        """
        looking = _LOOKS_LIKE_CONTROL.findall(self.source)
        found = (*self.vocab.control_texts, *looking, *self._written)
        return frozenset(text for text in found if text[1:])

    @functools.cached_property
    def _written(self) -> frozenset[str]:
        "The user-defined tokens that the template writes"
        vocab = self.vocab
        found = set(vocab.tokenize(self.source + self._samples(), special=True))
        texts = (
            vocab.piece(token).decode("utf-8", "replace")
            for token in found
            if vocab.is_user_defined(token)
        )
        return frozenset(text for text in texts if _MARK.search(text))

    @functools.cached_property
    def _starts(self) -> tuple[re.Pattern[str], list[int]]:
        "A pattern for the first characters of control tokens, and their lengths"
        letters = "|".join(re.escape(c) for c in sorted({c[0] for c in self._texts}))
        return re.compile(letters or "$^"), sorted({len(c) for c in self._texts})
