"""Where answers stand in a rendered prompt, so that their own tokens can stand there.

The idea: the messages are rendered with sentinels where an answer's own tokens begin
and end. What stands around the sentinels is what the template adds. A sentinel in an
answer's reasoning tells whether the template keeps that.

The invariants: the sentinels change nothing else in the rendering, and later messages
come after them. Otherwise nothing can be spliced.

This module does not know tokens, or how messages are rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from ..errors import ChatError
from .jinja import NUMBER

_LATER = f"\ue004{NUMBER}\ue005"
_END = "end"

Kind = Literal["prompt", "reasoning", "text"]
Render = Callable[[Sequence[Any]], str]


@dataclass(frozen=True)
class Own:
    """What an answer's own tokens supply of the assistant message at ``index``.

    They begin with its reasoning or its text; or, with "prompt", they follow on tokens
    that supply all that comes before. They reach to the end of its text, or of the
    ``whole`` message with its calls, whose last characters are ``ending``.
    ``unfinished`` says that they end inside its reasoning.
    """

    index: int
    begins: Kind = "prompt"
    whole: bool = False
    ending: str = ""
    unfinished: bool = False


def keeping(
    render: Render, messages: Sequence[Any], indexes: Iterable[int]
) -> frozenset[int]:
    "The indexes of the messages whose reasoning is in the rendering"
    marks = {index: _mark("reasoning", index) for index in indexes}
    if not marks:
        return frozenset()
    shown = list(messages)
    for index, mark in marks.items():
        shown[index] = _change(shown[index], "reasoning", mark, "")
    rendered = render(shown)
    return frozenset(index for index, mark in marks.items() if mark in rendered)


def around(
    render: Render,
    ends_turn: Callable[[str], bool],
    messages: Sequence[Any],
    owns: Sequence[Own],
) -> list[str] | None:
    """What the template writes before, between and after what own tokens supply.

    ``owns`` are in order. Before one that begins with the prompt there is nothing.
    ``ends_turn`` says whether a text begins with what ends a turn. None if nothing can
    be spliced.
    """
    last = owns[-1]
    try:
        texts = _around(render, messages, owns)
    except ChatError:  # the template rejects what was changed
        texts = None
    if texts is None and [last] == list(owns) and last.begins == "prompt":
        after = _after_calls(render, messages, last)
        if after is not None and ends_turn(after):
            texts = ["", after]
    return texts


def _around(
    render: Render, messages: Sequence[Any], owns: Sequence[Own]
) -> list[str] | None:
    plain, marked = list(messages), list(messages)
    for own in owns:
        message = _supplied(messages[own.index], own)
        plain[own.index], marked[own.index] = message, _marked(message, own)
    texts, insides, rest = [], [], render(marked)
    if any(rest.count(_mark(_END, own.index)) != 1 for own in owns):
        return None
    for own in owns:
        before, inside = "", ""
        if own.begins != "prompt":
            before, found, rest = rest.partition(_mark(own.begins, own.index))
            if not found:
                return None
        inside, _, rest = rest.partition(_mark(_END, own.index))
        texts.append(before)
        insides.append(_spaced(inside, plain[own.index], own))
    texts.append(rest)
    ahead = _before_later(render, marked, owns[0].index)
    if ahead is not None and _mark(_END, owns[0].index) not in ahead:
        return None
    if any(own.whole for own in owns) and not _same_results(render, messages, marked):
        return None
    return texts if _agree(render(plain), texts, insides) else None


def _same_results(
    render: Render, messages: Sequence[Any], marked: Sequence[Any]
) -> bool:
    """Whether the results of tools are written without the calls as they are with them.

    Some templates write a result as part of the message that called, or not at all.
    """
    if all(message.role != "tool" for message in messages):
        return True
    found = []
    for each in (messages, marked):
        later = [_later(m) if m.role == "tool" else m for m in each]
        found.append(render(later).count(_LATER))
    return found[0] == found[1]


def _later(message: Any) -> Any:
    "A message whose text, or results, end with a mark"
    if message.role != "tool":
        return _change(message, "text", "", _LATER)
    parts = [replace(part, output=part.output + _LATER) for part in message.parts]
    return replace(message, parts=parts)


def _supplied(message: Any, own: Own) -> Any:
    "A message without those parts of which the template need not write anything"
    from llm.parts import TextPart

    if own.unfinished:
        return replace(message, parts=[TextPart(text="-")])  # as if it had a text
    if own.whole:
        parts = [p for p in message.parts if p.to_dict()["type"] != "tool_call"]
        return replace(message, parts=parts)
    return message


def _marked(message: Any, own: Own) -> Any:
    message = _change(message, "text", "", _mark(_END, own.index))
    if own.begins != "prompt":
        message = _change(message, own.begins, _mark(own.begins, own.index), "")
    return message


def _mark(kind: str, index: int) -> str:
    "Like CUT, no message can contain it. A template changes it where it changes text"
    return f'\ue002{kind}Z"\\&{NUMBER}.{index}\ue003'


def _change(message: Any, kind: str, before: str, after: str) -> Any:
    "A message with more before and after the text of its parts of a kind"
    from llm.parts import TextPart

    parts = list(message.parts)
    found = [i for i, part in enumerate(parts) if part.to_dict()["type"] == kind]
    if found:
        first, last = found[0], found[-1]
        parts[first] = replace(parts[first], text=before + parts[first].text)
        parts[last] = replace(parts[last], text=parts[last].text + after)
    else:
        at = sum(part.to_dict()["type"] == "reasoning" for part in parts)
        parts.insert(at, TextPart(text=before + after))
    return replace(message, parts=parts)


def _before_later(render: Render, messages: Sequence[Any], index: int) -> str | None:
    """What is rendered before anything of the messages after an index.

    None if there are none. A new system prompt, say, may be put at the very top.
    """
    later = [*messages[: index + 1], *map(_later, messages[index + 1 :])]
    return render(later).partition(_LATER)[0] if len(later) > index + 1 else None


# -- where own tokens are ------------------------------------------------


@dataclass(frozen=True)
class _Inside:
    "What is between two sentinels, with the white space that may be trimmed"

    lead: str
    core: str
    trail: str
    loose: bool = False  # there is nothing; the template may set white space elsewhere


def _spaced(inside: str, message: Any, own: Own) -> _Inside:
    if own.begins != "prompt":
        core = inside.strip()
        lead = inside[: len(inside) - len(inside.lstrip())] if core else ""
        trail = inside[len(lead) + len(core) :]
        return _Inside(lead, core, trail, own.whole and not inside)
    said = _text(message)
    trail = said[len(said.rstrip()) :]
    return _Inside("", inside.removesuffix(trail), trail)


def _text(message: Any) -> str:
    parts = [part.to_dict() for part in message.parts]
    return "".join(part["text"] for part in parts if part["type"] == "text")


def _agree(plain: str, texts: Sequence[str], insides: Sequence[_Inside]) -> bool:
    "Whether a rendering is the same without sentinels, but for white space"
    at = 0
    for inside, (begin, end) in zip(insides, pairwise(texts), strict=True):
        before, trail, after = begin, inside.trail, end
        if inside.loose:
            before, after = begin.rstrip(), end.lstrip()
            rest = plain[at + len(before) :]
            trail = rest[: len(rest) - len(rest.lstrip())]
        at = _past(plain, at, [before])
        at = _past(plain, at, _ends(inside.lead), inside.core)
        at = _past(
            plain, at, [trail[:n] for n in range(len(trail), -1, -1)], after
        ) - len(after)
        if at < 0:
            return False
    return plain[at:] == after


def _past(plain: str, at: int, options: Sequence[str], then: str = "") -> int:
    "The position after one of some texts and another; far below 0 if none is there"
    for option in options:
        if at >= 0 and plain.startswith(option + then, at):
            return at + len(option) + len(then)
    return -len(plain) - 1


def _after_calls(render: Render, messages: Sequence[Any], own: Own) -> str | None:
    """What the template writes after a message that ends with calls, which stay in it.

    Other arguments show what comes after them. The own tokens supply the beginning of
    that: what closes the call.
    """
    message = messages[own.index]
    calls = [
        i for i, p in enumerate(message.parts) if p.to_dict()["type"] == "tool_call"
    ]
    if not calls or not own.whole:
        return None
    ends, changed = [], list(messages)
    for arguments in ({"a": 1}, {"a": 2}):
        parts = list(message.parts)
        parts[calls[-1]] = replace(parts[calls[-1]], arguments=arguments)
        changed[own.index] = replace(message, parts=parts)
        ends.append(render(changed)[::-1])
    after = ends[0][: shared(*ends)][::-1]
    n = min(len(after), len(own.ending))
    while n and not own.ending.endswith(after[:n]):
        n -= 1
    after, plain = after[n:], render(messages)
    before = _before_later(render, messages, own.index)
    if not n or not plain.endswith(after):
        return None
    begin = plain.removesuffix(after)
    return after if before is None or before.startswith(begin) else None


def shared(one: str, other: str) -> int:
    "How many characters two texts begin with alike"
    low, high = 0, min(len(one), len(other)) + 1
    while low + 1 < high:  # invariant: one[:low] == other[:low]
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _ends(space: str) -> list[str]:
    "All ends of some white space, the longest first"
    return [space[n:] for n in range(len(space) + 1)]
