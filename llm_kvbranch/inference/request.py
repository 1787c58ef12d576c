"""What to generate an answer from, and how.

A request is plain data, which travels between processes. This module does not know how
answers are generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..chat import Call, Rendering, call_grammar
from ..engine import Sampling
from ..errors import ChatError
from .loaded import LoadedModel


@dataclass(frozen=True)
class Resumed:
    """Where an answer to the same request stopped, in an engine that has ended.

    ``tokens`` are those that it had generated, and whose events were sent, with these
    ``calls`` among them. With a ``finish_reason`` the answer ends there; ``ended_by``
    is then the text of the token that ended it, None if it was cut off.
    """

    tokens: tuple[int, ...]
    finish_reason: str | None = None
    calls: tuple[Call, ...] = ()
    ended_by: str | None = None

    @property
    def was_told(self) -> bool:
        "Whether the end was sent as well; not if it was cancelled without an engine"
        return self.finish_reason not in (None, "cancelled")


@dataclass(frozen=True)
class Request:
    """What to generate from. ``messages`` are llm's, ``tools`` are as chat templates
    take them; ``values``, ``date``, ``think`` and ``effort`` are as Rendering has them.
    ``keep_thinking`` is whether earlier thinking stays in the prompt though the
    template drops it. ``thinking_budget`` is how many tokens an answer may think.
    ``must_call`` are tools, one of which the answer must call; without
    ``parallel_calls`` it ends with its first call. ``n_ctx`` limits prompt and answer
    together, in tokens. ``number`` is what others call it.
    """

    messages: Sequence[Any]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n_ctx: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    think: str | None = None
    effort: str | None = None
    keep_thinking: bool = False
    thinking_budget: int | None = None
    must_call: tuple[str, ...] = ()
    parallel_calls: bool = True
    resumed: Resumed | None = None
    number: int = 0

    @property
    def rendering(self) -> Rendering:
        return Rendering(
            tools=self.tools,
            values=self.values,
            date=self.date,
            think=self.think,
            effort=self.effort,
            thinking_budget=self.thinking_budget,
        )


def sampling_of(model: LoadedModel, request: Request) -> Sampling:
    """How a request's tokens are drawn, constrained to calls if it must call a tool.

    Raises ChatError if the model cannot be made to call one.
    """
    sampling, weights = request.sampling, model.engine.weights
    if not request.must_call:
        return sampling
    if sampling.grammar is not None or sampling.constraint is not None:
        raise ChatError(
            "An answer that must call a tool takes no schema, regex or grammar: leave "
            "one out"
        )

    def controls(text: str) -> list[tuple[str, int | None]]:
        found = [
            (weights.control_text(token), None if weights.is_eog(token) else token)
            for token in weights.tokenize(text, special=True)
        ]
        return [(name, token) for name, token in found if name]

    grammar = call_grammar(
        model.planner.chat.dialect,
        request.tools,
        request.must_call,
        request.parallel_calls,
        controls,
    )
    return replace(sampling, constraint=grammar)
