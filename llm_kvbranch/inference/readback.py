"""What a stored answer's tokens say, compared with a message of a history.

The idea: the tokens of an answer are read again as they were when it was generated.
So it is known which of them are its thinking and which its text, and where a message
that is cut inside of either ends.

The invariant: tokens are taken for a message only if they spell it.

This module does not know where tokens are stored, or what a template makes of them.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..chat import Part

# A cut inside a token leaves at most this many characters of it
STRADDLE = 48
Piece = Callable[[int], bytes]


@dataclass(frozen=True)
class Start:
    "Where a part of an answer begins: a token, and text before it that belongs to it"

    token: int
    lead: str = ""


@dataclass(frozen=True)
class Found:
    """The first ``n`` tokens of an answer spell the first characters of a message.

    ``rest`` is the text that they do not cover. They are the ``whole`` answer, or are
    ``unfinished``: they end inside of its thinking. ``reasoning`` and ``said`` are
    where the thinking, and the text and calls, begin; None if that is not known.
    """

    n: int
    n_text: int
    rest: str = ""
    whole: bool = False
    unfinished: bool = False
    reasoning: Start | None = None
    said: Start | None = None


def find(
    message: Any,
    answer: array[int],
    is_whole: bool,
    piece: Piece,
    read: Callable[[], Sequence[Part]],
    may_think: bool,
) -> Found | None:
    """What an answer's tokens spell of a message, None if nothing.

    ``is_whole`` says that the log has the answer as this message. ``read`` reads the
    answer, which ``may_think``.
    """
    thought, text = _texts(message, "reasoning"), _texts(message, "text")
    plain = None if thought else _as_text(text, answer, is_whole, piece)
    is_all = plain is not None and (plain.whole or (bool(text) and not plain.rest))
    parts = read() if may_think or not is_all else []
    if plain is not None and not any(part.kind == "reasoning" for part in parts):
        plain = replace(plain, said=Start(0))
    if is_all:
        return plain
    said = _Said(message, thought, text, is_whole)
    found = [each for each in (_as_parts(said, answer, piece, parts), plain) if each]
    return max(found, key=lambda each: (each.whole, each.n_text), default=None)


@dataclass(frozen=True)
class _Said:
    "A message, the text of its thinking and its own, and whether the log has it so"

    message: Any
    thought: str
    text: str
    is_whole: bool


def _as_text(
    text: str, answer: array[int], is_whole: bool, piece: Piece
) -> Found | None:
    "All tokens read as text: answers used to be logged with their thinking as text"
    n, n_text = covered(answer, piece, text)
    if text and not n and not _begins(answer, piece, text):
        return None
    if is_whole and n_text == len(text):
        # With tool calls, and control tokens at its end
        return Found(len(answer), n_text, whole=True)
    return Found(n, n_text, text[n_text:])


def _as_parts(
    said: _Said, answer: array[int], piece: Piece, parts: Sequence[Part]
) -> Found | None:
    "Tokens as they are read, with thinking apart from text"
    thoughts, texts = _joined(parts, "reasoning"), _joined(parts, "text")
    called = [(part.call.name, part.call.arguments) for part in parts if part.call]
    calls = [(p["name"], p["arguments"]) for p in _dicts(said.message, "tool_call")]
    thinking, saying = _thinking(answer, piece, parts), _saying(answer, piece, parts)
    is_like = said.thought in (thoughts, "")
    if is_like and said.text == texts and calls == called:
        n_text = len(texts or thoughts)
        if texts or calls or (said.is_whole and said.thought):
            unfinished = not (texts or calls)
            places = thinking, None if unfinished else saying
            return Found(len(answer), n_text, "", True, unfinished, *places)
    if said.is_whole and said.text.strip() in _spelled(answer, piece):
        return Found(len(answer), len(said.text), whole=True)  # once read otherwise
    if not calls and not said.text and said.thought and thinking is not None:
        cut = _cut(answer, piece, thinking, said.thought)
        return cut and replace(cut, unfinished=True, reasoning=cut.said, said=None)
    if not calls and said.text and is_like and saying is not None:
        cut = _cut(answer, piece, saying, said.text)
        return cut and replace(cut, reasoning=thinking)
    return None


def _cut(answer: array[int], piece: Piece, start: Start, text: str) -> Found | None:
    "The tokens from a start on that spell the beginning of a text"
    lead = start.lead[: len(text)]
    tokens = answer[start.token :]
    n, n_text = covered(tokens, piece, text[len(lead) :])
    if not text.startswith(lead) or not (lead or n or _begins(tokens, piece, text)):
        return None
    n, n_text = n + start.token, n_text + len(lead)
    return Found(n, n_text, text[n_text:], said=Start(start.token, lead))


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


def _thinking(answer: array[int], piece: Piece, parts: Sequence[Part]) -> Start | None:
    "Where an answer's thinking begins, if it begins with that"
    if not parts or parts[0].kind != "reasoning":
        return None
    return _start(answer, piece, parts[0])


def _saying(answer: array[int], piece: Piece, parts: Sequence[Part]) -> Start | None:
    "Where its text and calls begin; None if there is thinking among them"
    kinds = [part.kind for part in parts]
    n = next((n for n, kind in enumerate(kinds) if kind != "reasoning"), len(kinds))
    if n == len(kinds) or "reasoning" in kinds[n:]:
        return None
    if parts[n].kind == "call":
        return Start(parts[n].begin) if parts[n].begin < parts[n].end else None
    return _start(answer, piece, parts[n])


def _start(answer: array[int], piece: Piece, part: Part) -> Start | None:
    "The first token that begins inside a part, and what comes before it"
    spelled = _spelled(answer[: part.end], piece)
    begin = spelled.rfind(part.text.rstrip())
    if begin < 0:
        return None
    decoder, at = codecs.getincrementaldecoder("utf-8")("replace"), 0
    for n, token in enumerate(answer[: part.end]):
        whole = not decoder.getstate()[0]
        if whole and at >= begin and piece(token):
            return Start(n, spelled[begin:at])
        at += len(decoder.decode(piece(token)))
    return None


def _spelled(answer: array[int], piece: Piece) -> str:
    return b"".join(map(piece, answer)).decode("utf-8", "replace")


def _begins(answer: array[int], piece: Piece, text: str) -> bool:
    "Whether a text ends inside the first token or character of an answer"
    return _spelled(answer[:STRADDLE], piece).startswith(text)


def _texts(message: Any, kind: str) -> str:
    return "".join(part["text"] for part in _dicts(message, kind))


def _dicts(message: Any, kind: str) -> Iterable[dict[str, Any]]:
    return (p for p in (part.to_dict() for part in message.parts) if p["type"] == kind)


def covered(
    tokens: array[int], piece: Callable[[int], bytes], text: str
) -> tuple[int, int]:
    """How many leading tokens spell the beginning of a text: (tokens, characters).

    Only whole characters count, so tokens and text can both be cut there. A token
    that goes past the end of the text does not count.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at, best = 0, (0, 0)
    for n, token in enumerate(tokens, 1):
        if at == len(text):
            break
        spelled = decoder.decode(piece(token))
        if text[at : at + len(spelled)] != spelled:
            break
        at += len(spelled)
        if not decoder.getstate()[0]:
            best = (n, at)
    return best
