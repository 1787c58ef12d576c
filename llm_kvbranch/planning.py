"""Which tokens a prompt is, and which of their rows are already known.

The idea: nobody says what a prompt continues. Its messages are looked up by
llm's content hashes: the deepest assistant turn that a stored state answers for
gives exact token ids, also when the turn was cut (a branch at an excerpt). What
is left is tokenised. The whole is then matched against the store token by
token, which finds shared documents and repeated prompts as well.

The invariant: a chain in a plan holds exactly the plan's first tokens. Where
something that could have been reused is not, ``miss_reason`` says why.

This module decides, it does not touch llama.cpp's memory or any file.
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .chat import Chat, message_text
from .state import tokens_of
from .store import Chain, Entry, Store

# A cut inside a token leaves this many characters of it at the most
_STRADDLE = 48


@dataclass
class Plan:
    """The tokens of a prompt and the stored chain that holds their beginning.

    At least the last token is left to decode: its logits choose the answer.
    """

    tokens: array[int]
    chain: Chain
    render: str
    input_hash: str | None
    miss_reason: str | None = None


@dataclass
class _Known:
    "An assistant turn with exact token ids: of all up to ``n_text`` characters"

    index: int
    entry: Entry
    tokens: array[int] = field(default_factory=tokens_of)
    n_text: int = 0


class Planner:
    """Plans prompts for one model and one kind of state (fingerprint).

    ``piece`` gives a token's bytes. ``cuts_anywhere`` is the architecture's
    resume rule: True, any position can be resumed from; False, only the end of
    a stored state can.
    """

    def __init__(
        self,
        chat: Chat,
        piece: Callable[[int], bytes],
        store: Store | None,
        fingerprint: str,
        cuts_anywhere: bool,
    ):
        self.chat = chat
        self.piece = piece
        self.store = store
        self.fingerprint = fingerprint
        self.cuts_anywhere = cuts_anywhere

    def plan(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]] = ()
    ) -> Plan:
        "Plan the answer to llm messages; raises ChatError"
        hashes = chain_hashes(messages)
        render = self.chat.render_id(tools)
        last = hashes[-1] if hashes else None
        if self.store is None:
            return Plan(self.chat.encode(messages, tools), Chain(), render, last)
        tokens, known, reason = None, None, None
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if answers:
            known = self._known_turn(messages, hashes, answers, render)
            if known is None or known.index != answers[-1]:
                reason = self._why_unknown(hashes[answers[-1]])
        if known is not None:
            rest = message_text(messages[known.index])[known.n_text :]
            if reason is None and len(rest) > _STRADDLE:
                reason = "the last answer is not the one that was stored"
            tokens = self.chat.encode_after(
                messages, known.index, known.tokens, rest, tools
            )
            if tokens is None:
                reason = "the chat template leaves the last answer out"
        if tokens is None:
            tokens = self.chat.encode(messages, tools)
        seen = self.store.find("input_hash", [last], self.fingerprint)
        if known is not None:
            seen.append(known.entry)
        chain = self.store.longest_prefix(self.fingerprint, tokens, seen)
        chain = self.resumable(chain.cut(len(tokens) - 1))
        return Plan(tokens, chain, render, last, reason)

    def resumable(self, chain: Chain) -> Chain:
        "The longest beginning of a chain that this architecture can resume from"
        if self.cuts_anywhere:
            return chain
        usable = 0
        for segment in chain.segments:
            if not segment.entry.present:
                break
            if segment.end == segment.entry.state.end:
                usable = segment.end
        return chain.cut(usable)

    def _known_turn(
        self,
        messages: Sequence[Any],
        hashes: list[str],
        answers: list[int],
        render: str,
    ) -> _Known | None:
        "The deepest assistant turn whose tokens are known, whole or up to a cut"
        assert self.store is not None
        tips = [hashes[i] for i in answers]
        inputs = [hashes[i - 1] for i in answers if i]
        whole = self._by_hash("tip_hash", tips, render)
        begun = self._by_hash("input_hash", inputs, render)
        for index in reversed(answers):
            candidates = whole.get(hashes[index], []) + (
                begun.get(hashes[index - 1], []) if index else []
            )
            best: _Known | None = None
            for entry in candidates:
                found = self._match(index, entry, message_text(messages[index]))
                if found and (best is None or found.n_text > best.n_text):
                    best = found
            if best is not None:
                return best
        return None

    def _by_hash(
        self, column: str, hashes: Iterable[str], render: str
    ) -> dict[str, list[Entry]]:
        assert self.store is not None
        found: dict[str, list[Entry]] = {}
        for entry in self.store.find(column, hashes, self.fingerprint):
            if entry.state.render == render:
                found.setdefault(getattr(entry.state, column), []).append(entry)
        return found

    def _match(self, index: int, entry: Entry, text: str) -> _Known | None:
        "How far an entry's answer says the same as a text"
        assert self.store is not None
        state = entry.state
        n, n_text = covered(
            state.tokens[state.answer - state.start :], self.piece, text
        )
        if not n and text:
            return None
        tokens = self.store.chain(entry).tokens
        if not tokens:
            return None
        return _Known(index, entry, tokens[: state.answer + n], n_text)

    def _why_unknown(self, tip: str) -> str:
        assert self.store is not None
        entries = self.store.find("tip_hash", [tip])
        if any(entry.state.fingerprint == self.fingerprint for entry in entries):
            return "the tools or the chat template changed"
        if not entries:
            return "no state of the last answer is stored"
        theirs = self._fields(entries[0].state.fingerprint)
        ours = self._fields(self.fingerprint)
        changed = [
            f"{name} {theirs.get(name) or '-'} is now {ours.get(name) or '-'}"
            for name in ours
            if theirs.get(name) != ours.get(name) and name != "model"
        ]
        if theirs.get("model") != ours.get("model"):
            changed.insert(0, "another model file")
        return f"the state was made with other settings: {', '.join(changed)}"

    def _fields(self, fingerprint: str) -> dict[str, str]:
        assert self.store is not None
        fields = self.store.describe(fingerprint)
        return dict(json.loads(fields)) if fields else {}


def chain_hashes(messages: Sequence[Any]) -> list[str]:
    "llm's hash of each message, as reached through the ones before it"
    from llm.logs import message_hash

    hashes: list[str] = []
    for message in messages:
        hashes.append(message_hash(message, hashes[-1] if hashes else None))
    return hashes


def covered(
    tokens: array[int], piece: Callable[[int], bytes], text: str
) -> tuple[int, int]:
    """How many leading tokens spell a beginning of a text: (tokens, characters).

    Counts whole characters only, so both numbers name a place where tokens and
    text can be cut together; a token that goes past the end is not counted.
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
