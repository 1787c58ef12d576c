"""Turns that were answered before, found again by what a history says.

The idea: a message is looked up by llm's content hash, and the turn that was logged
under it has its exact tokens. So has a turn that answered the same prompt, as far as
the message is the beginning of its answer.

The invariant: what is found spells the message.

This module does not know rows, files or what a template makes of a history.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Chat, Part, Rendering
from ..store import Entry, tokens_of
from .answer import AnswerStream, reader_after
from .assembly import Answer
from .nostore import States
from .readback import find


@dataclass(frozen=True)
class Turn:
    """A prompt of ``n_prompt`` tokens and its answer, as exact token ids.

    The hashes are llm's: of the prompt's chain, and of the answer.
    """

    tokens: array[int]
    n_prompt: int
    render: str
    input_hash: str | None
    tip_hash: str | None


class History:
    "The answers in some messages, looked up as they are needed"

    def __init__(
        self,
        chat: Chat,
        rendering: Rendering,
        messages: Sequence[Any],
        recent: Iterable[Turn],
        store: States,
        fingerprint: str,
    ):
        self.hashes = chain_hashes(messages)
        self.answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        self._chat, self._rendering, self._messages = chat, rendering, messages
        self._recent, self._store, self._fingerprint = recent, store, fingerprint
        self._known: dict[int, Answer | None] = {}
        self._render = chat.render_id(rendering)
        tips = [self.hashes[i] for i in self.answers]
        inputs = [self.hashes[i - 1] for i in self.answers if i]
        self._whole = self._by_hash("tip_hash", tips)
        self._begun = self._by_hash("input_hash", inputs)

    def last(self) -> Answer | None:
        "The deepest known answer, whole or up to a cut"
        return next((a for a in map(self.known, reversed(self.answers)) if a), None)

    def written(self, index: int) -> list[array[int]]:
        "The tokens that were logged as the message at an index"
        return [_answer(turn) for turn in self._whole.get(self.hashes[index], ())]

    def known(self, index: int) -> Answer | None:
        "What is known of the answer at an index, from the turn that has the most of it"
        if index not in self._known:
            self._known[index] = self._look_up(index)
        return self._known[index]

    def _look_up(self, index: int) -> Answer | None:
        turns = list(self._whole.get(self.hashes[index], ()))
        if index:
            turns += self._begun.get(self.hashes[index - 1], ())
        best: Answer | None = None
        for turn in turns:  # the same turn may be there in memory and in the store
            found = self._match(index, turn)
            if found and (best is None or found.found.n_text > best.found.n_text):
                best = found
            if found and found.found.whole:
                break
        return best

    def _by_hash(self, column: str, hashes: list[str]) -> dict[str, list[Turn | Entry]]:
        "Turns in memory and entries of the store, by one of their hashes"
        turns: list[Turn | Entry] = list(self._recent)
        turns += self._store.by_hash(column, hashes, self._fingerprint)
        found: dict[str, list[Turn | Entry]] = {}
        for turn in turns:
            facts = turn.state if isinstance(turn, Entry) else turn
            if facts.render == self._render:
                found.setdefault(getattr(facts, column), []).append(turn)
        return found

    def _match(self, index: int, turn: Turn | Entry) -> Answer | None:
        "How much of the message at an index a turn's answer spells"
        tokens, message = _answer(turn), self._messages[index]
        tip = (turn.state if isinstance(turn, Entry) else turn).tip_hash
        found = find(
            message,
            tokens,
            tip == self.hashes[index],
            self._chat.vocab.piece,
            lambda: self._read(index, turn, tokens),
            self._chat.dialect.thinking is not None,
        )
        if found is None:
            return None
        entry = turn if isinstance(turn, Entry) else None
        return Answer(index, tokens, found, lambda: self._prompt(turn), entry)

    def _prompt(self, turn: Turn | Entry) -> array[int] | None:
        "The tokens that a turn answered; None if a link of its chain is unknown"
        if not isinstance(turn, Entry):
            return turn.tokens[: turn.n_prompt]
        return self._store.chain(turn).tokens[: turn.state.answer] or None

    def _read(self, index: int, turn: Turn | Entry, answer: array[int]) -> list[Part]:
        "What the tokens of a turn's answer, the message at an index, say"
        prompt = self._prompt(turn) or tokens_of()
        before = self._messages[:index]
        reader = reader_after(self._chat, self._rendering, before, prompt)
        stream = AnswerStream(self._chat.vocab, reader)
        for token in answer:
            stream.feed(token)
        stream.end()
        for part in stream.parts:
            if part.kind == "call":
                part.begin = self._opening(answer, part.begin)
        return stream.parts

    def _opening(self, answer: array[int], begin: int) -> int:
        "Where the opening of a list of calls begins, if a call follows one"
        before = self._chat.spell(answer[:begin]).rstrip()
        for form in self._chat.dialect.forms:
            n, opening = begin, form.begin.strip()
            if not opening or not before.endswith(opening):
                continue
            while n and len(self._chat.spell(answer[n:begin]).strip()) < len(opening):
                n -= 1
            return n
        return begin


def _answer(turn: Turn | Entry) -> array[int]:
    "The tokens of a turn's answer"
    if isinstance(turn, Entry):
        return turn.state.tokens[turn.state.answer - turn.state.start :]
    return turn.tokens[turn.n_prompt :]


def chain_hashes(messages: Sequence[Any]) -> list[str]:
    "llm's hash of each message, as reached through the ones before it"
    from llm.logs import message_hash

    hashes: list[str] = []
    for message in messages:
        hashes.append(message_hash(message, hashes[-1] if hashes else None))
    return hashes


def answer_hash(parts: Sequence[Part], input_hash: str | None) -> str | None:
    """The hash under which llm will log an answer of these parts.

    llm makes no message of an empty answer: its hash is the prompt's.
    """
    from llm.logs import message_hash

    message = answer_message(parts)
    return message_hash(message, input_hash) if message.parts else input_hash


def answer_message(parts: Sequence[Part]) -> Any:
    "An answer as llm logs it: text and thinking that follow on one another are one"
    from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart

    said: list[Any] = []
    for part in parts:
        if part.call is not None:
            call = part.call
            said.append(
                ToolCallPart(
                    name=call.name, arguments=call.arguments, tool_call_id=call.id
                )
            )
            continue
        kind = ReasoningPart if part.kind == "reasoning" else TextPart
        if said and type(said[-1]) is kind:
            said[-1] = kind(text=said[-1].text + part.text)
        elif part.text:
            said.append(kind(text=part.text))
    return Message(role="assistant", parts=said)
