"""How a chat template writes thinking and tool calls.

The idea: a template shows how its model was trained to write, so rendering known
conversations shows what to look for in the model's answers.

The invariant: learning never raises. What a template does not show is left out.

This module does not know models, tokens, or what a model says.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass

from .formats import Form
from .learning import form_of, shortened
from .named import Messages, messages_of
from .probes import (
    ANSWER,
    KEYS,
    THOUGHT,
    UNIT,
    VALUES,
    Probe,
    Render,
    call,
    common_prefix,
    common_suffix,
)

_SHORT_ID = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Thinking:
    "How thinking begins and ends, as the template writes it"

    open: str
    close: str

    @property
    def tags(self) -> tuple[str, str]:
        "Beginning and end without white space around them"
        return self.open.strip(), self.close.strip()

    @property
    def is_spoken(self) -> bool:
        "Whether it begins with words in the prompt rather than a tag"
        return UNIT.search(self.open) is None

    def starts_open(self, prompt: str) -> bool:
        "Whether a prompt ends inside thinking"
        open, close = self.tags
        return prompt.rfind(open) > prompt.rfind(close)

    def is_over(self, prompt: str) -> bool:
        "Whether the last thinking in a prompt is closed"
        open, close = self.tags
        return prompt.rfind(close) > prompt.rfind(open)


@dataclass(frozen=True)
class Dialect:
    """How a model writes.

    ``heads`` and ``tails`` are around the text of an answer. ``forms`` are the forms
    of its calls, the one that the template writes first.
    """

    thinking: Thinking | None = None
    heads: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    # For answers that consist of messages, which comparing renderings cannot show
    messages: Messages | None = None
    short_ids: bool = False

    def new_id(self) -> str:
        "A new id for a call, in the format that the template requires"
        if self.short_ids:
            return "".join(secrets.choice(_SHORT_ID) for _ in range(9))
        return f"call_{secrets.token_hex(8)}"


def learn(source: str, render: Render) -> Dialect:
    """The dialect of a template.

    ``render`` is called with messages and other values; it may raise. Templates whose
    answers consist of messages are recognized by their source, see ``named``.
    """
    if source not in _learned:
        while len(_learned) >= 8:
            _learned.pop(next(iter(_learned)), None)
        _learned[source] = _learn(source, render)
    return _learned[source]


_learned: dict[str, Dialect] = {}


def _learn(source: str, render: Render) -> Dialect:
    if messages := messages_of(source):
        return Dialect(Thinking(*messages.thinking), messages=messages)
    probe = Probe(render)
    thinking = _thinking_of(probe) or _named_thinking(source)
    heads, tails = _around_text(probe, thinking)
    around = thinking.tags if thinking else ()
    form = form_of(probe, (*around, *heads, *tails))
    forms = [form, shortened(form)] if form else []
    return Dialect(
        thinking,
        heads,
        tails,
        tuple(form for form in forms if form),
        short_ids=_asks_short_ids(probe),
    )


def _thinking_of(probe: Probe) -> Thinking | None:
    "What is around thinking, in the first answer that shows it"
    plain = probe.plain.partition(ANSWER)[0]
    parts = [
        {"type": "thinking", "thinking": THOUGHT},
        {"type": "text", "text": ANSWER},
    ]
    calls = [call(0, {KEYS[0]: VALUES[0]})]
    for values in ({}, {"enable_thinking": True, "thinking": True}):
        for text in (
            probe.answer(ANSWER, THOUGHT, values=values),
            probe.answer(ANSWER, THOUGHT, calls, values=values),
            probe.answer("", THOUGHT, calls, values=values),
            probe.answer(parts, values=values),
        ):
            before, thought, behind = (text or "").partition(THOUGHT)
            if thought and (found := _around(before, behind, plain, probe.prompt)):
                return found
    return None


def _around(before: str, behind: str, plain: str, prompt: str) -> Thinking | None:
    close = UNIT.search(behind.partition(ANSWER)[0])
    if close is None or behind[: close.start()].strip():
        return None
    opening = [*UNIT.finditer(before)]
    open = before[opening[-1].start() :] if opening else ""
    if not open or before.rstrip() == plain.rstrip():
        # Only the prompt has the text that thinking begins with
        open = prompt.removeprefix(common_prefix(prompt, before))
    if not open.strip():
        return None
    space = behind[close.end() :]
    space = space[: len(space) - len(space.lstrip())]
    return Thinking(open, behind[: close.end()] + space)


def _named_thinking(source: str) -> Thinking | None:
    "The tags of thinking in a template's source, which it uses to drop thinking"
    if found := re.search(r"</([\w:]*think\w*)>", source):
        return Thinking(f"<{found[1]}>", f"</{found[1]}>")
    return Thinking("[THINK]", "[/THINK]") if "[/THINK]" in source else None


def _around_text(
    probe: Probe, thinking: Thinking | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    "The tags around the text of an answer, if any"
    before, answer, behind = probe.plain.partition(ANSWER)
    begin = len(common_prefix(probe.prompt, before))
    tags = [*UNIT.finditer(before)]
    around = thinking.tags if thinking else ()
    heads = [
        tag[0]
        for tag in tags
        if tag.start() >= begin and tag[0] not in (*around, *UNIT.findall(probe.prompt))
    ]
    if not answer or not heads:
        return (), ()
    if again := common_suffix(behind, probe.prompt):
        # Some templates start the next answer right away
        tails = UNIT.findall(behind.removesuffix(again))
    else:
        tails = UNIT.findall(behind)[:-1]  # the last one ends the model's turn
    return tuple(heads[-1:]), tuple(tails)


def _asks_short_ids(probe: Probe) -> bool:
    "Whether the template refuses ids that are not nine letters and digits"
    arguments = {KEYS[0]: VALUES[0]}
    long = probe.answer("", calls=[call(0, arguments, "call_0123456789abcdef")])
    return long is None and probe.answer("", calls=[call(0, arguments)]) is not None
