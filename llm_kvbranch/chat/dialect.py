"""How a chat template writes thinking and tool calls.

The idea: a template shows how its model was taught to write, so what it writes for
known conversations says what to look for in the model's answers.

The invariant: learning never raises. What a template does not show is left out.

This module does not know models, tokens, or what a model says.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .formats import Form
from .named import Messages, messages_of

# Renders messages, as chat templates take them, with other values of the template
Render = Callable[..., str]


@dataclass(frozen=True)
class Thinking:
    "How thinking begins and ends, as the template writes it"

    open: str
    close: str

    def starts_open(self, prompt: str) -> bool:
        "Whether a prompt ends inside thinking"
        return prompt.rfind(self.open.strip()) > prompt.rfind(self.close.strip())

    def is_over(self, prompt: str) -> bool:
        "Whether a prompt has thinking that is closed"
        return prompt.rfind(self.close.strip()) > prompt.rfind(self.open.strip())


@dataclass(frozen=True)
class Dialect:
    """What is known of how a model writes.

    ``heads`` and ``tails`` are around the text of an answer. ``forms`` are those of
    its calls.
    """

    thinking: Thinking | None = None
    heads: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    # Formats that comparing renderings cannot find out: answers that are messages
    messages: Messages | None = None

    def new_id(self) -> str:
        "A new id for a call, in the form that the template demands"
        return f"call_{secrets.token_hex(8)}"


def learn(source: str, render: Render) -> Dialect:
    "What a template shows; ``render`` is called with messages and other values"
    return _learn(source)


@functools.lru_cache(maxsize=8)
def _learn(source: str) -> Dialect:
    if messages := messages_of(source):
        return Dialect(Thinking(*messages.thinking), messages=messages)
    if "<think>" in source:
        return Dialect(Thinking("<think>", "</think>"))
    return Dialect()
