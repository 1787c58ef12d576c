"""Which tokens a prompt is, and which of their rows are already known.

The idea: nobody says what a prompt continues. Its messages are looked up by llm's
content hashes: the deepest assistant turn whose state is stored gives exact token
ids, also if the turn was cut (a branch at an excerpt). The rest is tokenised. All of
it is then matched against the store token by token, which also finds shared documents
and repeated prompts.

The invariant: the chain of a plan holds exactly the plan's first tokens. Where
something that could have been reused is not, ``why_prefilled`` names the reason.

This module decides; it does not touch llama.cpp's memory or any file.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Chat, Part, Rendering, message_text
from ..store import Chain, Entry, Hold, common_prefix, tokens_of
from .nostore import NoStore, States
from .resume import resumable

# A cut inside a token leaves at most this many characters of it
_STRADDLE = 48
_MAX_RECENT = 64  # turns of this process whose token ids are kept in memory
_TWO_TEXTS = ("A", "1")  # no token begins both
_SUSPICIOUS = 16  # characters for each token that fits: longer prompts are estimated
_PLAIN = Rendering()
_SLACK = 0.02  # seconds that prefilling must save to be preferred to restoring


@dataclass
class Plan:
    """The tokens of a prompt, and the stored chain that holds their beginning.

    The chain never covers the last token: its logits give the answer's first token.
    ``n_known`` is how many tokens belong to known turns, which should not have to be
    prefilled. ``known_hash`` is the input hash of the turn that the prompt continues.
    ``hold`` keeps the chain's files from being deleted. For ``why_prefilled``:
    ``miss_reason`` says why a known turn was not recognised, ``choice`` that
    prefilling was preferred, ``lack`` why a known turn has no state. ``without_store``
    says that the store failed: nothing is read from or written to it for this prompt.
    """

    tokens: array[int]
    chain: Chain
    render: str
    input_hash: str | None
    n_known: int = 0
    miss_reason: str | None = None
    choice: str | None = None
    lack: str = ""
    known_hash: str | None = None
    hold: Hold | None = None
    without_store: bool = False


def why_prefilled(plan: Plan, lost: Sequence[str], n_reused: int) -> str | None:
    """Why tokens were prefilled that a store could have had; None if none were.

    ``lost`` are the reasons for which files could not be used, ``n_reused`` is how
    many tokens were in memory or restored.
    """
    reasons = list(lost)
    if reason := plan.miss_reason or plan.choice:
        reasons.append(reason)
    elif not reasons and n_reused < min(plan.n_known, len(plan.tokens) - 1):
        reasons.append(plan.lack)
    return "; ".join(dict.fromkeys(reasons)) or None


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


@dataclass
class _Known:
    "The first ``n_text`` characters of the message at ``index`` as exact tokens"

    index: int
    tokens: array[int]
    n_text: int
    whole: bool  # with the message's tool calls, if it has any
    entry: Entry | None = None


class Planner:
    """Plans prompts for one model and one kind of state (fingerprint).

    ``piece`` gives the bytes of a token. ``cuts_anywhere`` says whether a sequence can
    be continued from any position, or only where snapshots and the ``window`` (in
    tokens) allow it. ``machine`` names what prefill rates are measured on.
    """

    def __init__(
        self,
        chat: Chat,
        piece: Callable[[int], bytes],
        store: States | None,
        fingerprint: str,
        cuts_anywhere: bool,
        window: int = 0,
        machine: str = "",
    ):
        self.chat = chat
        self.piece = piece
        self.store: States = NoStore() if store is None else store
        self.fingerprint = fingerprint
        self.cuts_anywhere = cuts_anywhere
        self.window = window
        self.machine = machine
        self._recent: deque[Turn] = deque(maxlen=_MAX_RECENT)

    @contextlib.contextmanager
    def no_store(self) -> Iterator[None]:
        "Plan as if there were no store"
        store, self.store = self.store, NoStore()
        try:
            yield
        finally:
            self.store = store

    def remember(self, turn: Turn) -> None:
        "Keep a turn's token ids in memory: it may be continued before it is stored"
        self._recent.append(turn)

    def plan(self, messages: Sequence[Any], rendering: Rendering = _PLAIN) -> Plan:
        "Plan the answer to llm messages; raises ChatError"
        hashes = chain_hashes(messages)
        last = hashes[-1] if hashes else None
        render = self.chat.render_id(rendering)
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
                messages, known.index, known.tokens, rest, rendering, known.whole
            )
            if tokens is None:
                known = None
                reason = "the chat template does not continue from the last answer"
        if tokens is None:
            tokens = self.chat.encode(messages, rendering)
        seen = self.store.by_hash("input_hash", [last], self.fingerprint)
        also = [known.entry] if known is not None and known.entry else []
        chain = self.stored(tokens[:-1], [*seen, *also])
        plan = Plan(tokens, chain, render, last, 0, reason)
        if known is not None:
            plan.known_hash = hashes[known.index - 1] if known.index else None
            plan.n_known = len(known.tokens)
            plan.lack = self._why_no_state(known.entry, plan)
        asked = next((entry for entry in seen if entry.state.render == render), None)
        if asked is not None:  # the same prompt was answered before: all is known
            plan.n_known, plan.miss_reason = len(tokens), None
            plan.lack = self._why_no_state(asked, plan)
        self._choose(plan)
        return plan

    def ahead(
        self,
        messages: Sequence[Any],
        parts: Sequence[Part],
        rendering: Rendering = _PLAIN,
    ) -> array[int]:
        """The tokens of messages, their answer, and what any next turn begins with.

        ``parts`` are those of the answer, which was just given; empty if that is not
        known.
        """
        import llm

        messages = [*messages, answer_message(parts)]
        index, answer = len(messages) - 1, chain_hashes(messages)[-1]
        turn = next((t for t in reversed(self._recent) if t.tip_hash == answer), None)
        if turn is None:
            return tokens_of()
        one, other = (
            self.chat.encode_after(
                [*messages, llm.user(any_text)], index, turn.tokens, "", rendering, True
            )
            for any_text in _TWO_TEXTS
        )
        if one is None or other is None:
            return tokens_of()
        return one[: common_prefix(one, other)]

    def _choose(self, plan: Plan) -> None:
        "Leave out what is sooner prefilled than restored, by measured rates"
        if not plan.chain.segments:
            return
        prefill, opened, read = map(self.store.rate, self.rates())
        if not (prefill and opened and read):
            return
        n, spent = len(plan.tokens), 0.0
        options = [(n / prefill, 0)]
        segments = plan.chain.segments
        for i, segment in enumerate(segments):
            if segment.entry.present:
                spent += 1 / opened + segment.entry.nbytes / read
            else:
                spent += (segment.end - segment.start) / prefill
            usable = segment.end
            if not self.cuts_anywhere:
                usable = resumable(segments[: i + 1], self.window)
            if usable == segment.end:
                options.append((spent + (n - segment.end) / prefill, segment.end))
        cost, upto = min(options)
        if cost + _SLACK < options[-1][0]:
            again = len(plan.chain.tokens) - upto
            plan.chain = plan.chain.cut(upto)
            plan.choice = (
                f"reading {again:,} tokens again is faster than restoring them"
            )

    def rates(self) -> tuple[str, str, str]:
        """Names of the measured rates that plans depend on.

        Tokens prefilled, files opened, and bytes restored per second.
        """
        return f"prefill {self.fingerprint} {self.machine}", "open", "read"

    def stored(self, tokens: array[int], seen: Sequence[Entry]) -> Chain:
        "The chain that holds the most of the tokens and can be continued from"
        return self.store.longest_prefix(
            self.fingerprint, tokens, seen, self._resumable
        )

    def _resumable(self, chain: Chain) -> Chain:
        "The longest beginning of a chain that this architecture can continue from"
        if self.cuts_anywhere:
            return chain
        return chain.cut(resumable(chain.segments, self.window))

    def _known_turn(
        self,
        messages: Sequence[Any],
        hashes: list[str],
        answers: list[int],
        render: str,
    ) -> _Known | None:
        "The deepest assistant turn whose tokens are known, whole or up to a cut"
        whole = self._by_hash("tip_hash", [hashes[i] for i in answers], render)
        inputs = [hashes[i - 1] for i in answers if i]
        begun = self._by_hash("input_hash", inputs, render)
        for index in reversed(answers):
            candidates = whole.get(hashes[index], []) + (
                begun.get(hashes[index - 1], []) if index else []
            )
            best: _Known | None = None
            for candidate in candidates:
                text = message_text(messages[index])
                found = self._match(index, candidate, text, hashes[index])
                if found and (best is None or found.n_text > best.n_text):
                    best = found
            if best is not None:
                return best
        return None

    def _by_hash(
        self, column: str, hashes: list[str], render: str
    ) -> dict[str, list[Turn | Entry]]:
        "Turns in memory and entries of the store, by one of their hashes"
        candidates: list[Turn | Entry] = list(self._recent)
        candidates += self.store.by_hash(column, hashes, self.fingerprint)
        found: dict[str, list[Turn | Entry]] = {}
        for candidate in candidates:
            facts = candidate.state if isinstance(candidate, Entry) else candidate
            if facts.render == render:
                found.setdefault(getattr(facts, column), []).append(candidate)
        return found

    def _match(
        self, index: int, candidate: Turn | Entry, text: str, tip: str
    ) -> _Known | None:
        "How much of the message at an index a candidate's answer spells"
        if isinstance(candidate, Entry):
            state = candidate.state
            n_prompt, tip_hash = state.answer, state.tip_hash
            answer = state.tokens[n_prompt - state.start :]
        else:
            n_prompt, tip_hash = candidate.n_prompt, candidate.tip_hash
            answer = candidate.tokens[n_prompt:]
        n, n_text = covered(answer, self.piece, text)
        whole = tip_hash == tip and (n_text == len(text) or self._has(answer, text))
        if whole:  # with thinking, tool calls, and control tokens at its end
            n, n_text = len(answer), len(text)
        elif text and not n and not self._begins(answer, text):
            return None
        if not isinstance(candidate, Entry):
            return _Known(index, candidate.tokens[: n_prompt + n], n_text, whole)
        known = self.store.chain(candidate).tokens[: n_prompt + n]
        if not known:
            return None  # a link of its chain is unknown
        return _Known(index, known, n_text, whole, candidate)

    def _has(self, answer: array[int], text: str) -> bool:
        "Whether an answer has a text, after its thinking perhaps"
        spelled = b"".join(map(self.piece, answer)).decode("utf-8", "replace")
        return text.strip() in spelled

    def _begins(self, answer: array[int], text: str) -> bool:
        "Whether a text ends inside the first token or character of an answer"
        spelled = b"".join(map(self.piece, answer[:_STRADDLE]))
        return spelled.decode("utf-8", "replace").startswith(text)

    def _why_no_state(self, entry: Entry | None, plan: Plan) -> str:
        "Why known tokens of a prompt have no rows; ``entry`` knows them"
        at, n = len(plan.chain.tokens), plan.n_known
        if entry is not None and at < n - 1:
            for segment in self.store.chain(entry).cut(n).segments:
                if segment.end > at and segment.entry.gone:
                    return segment.entry.gone
        if self.cuts_anywhere:
            return "an earlier answer left no state"
        return (
            "this kind of model continues from a snapshot, and the last one comes "
            "before this point"
        )

    def _why_unknown(self, tip: str) -> str:
        if isinstance(self.store, NoStore):
            return "there is no state store"
        entries = self.store.by_hash("tip_hash", [tip])
        if any(entry.state.fingerprint == self.fingerprint for entry in entries):
            return "the tools or the chat template changed"
        if not entries:
            return "no state of the last answer is stored"
        theirs = self._fields(entries[0].state.fingerprint)
        ours = self._fields(self.fingerprint)
        changed = [
            f"{name} {theirs.get(name) or '-'} is now {ours.get(name) or '-'}"
            for name in ours
            if theirs.get(name) != ours.get(name) and name not in ("model", "name")
        ]
        if theirs.get("model") != ours.get("model"):
            changed.insert(0, f"{theirs.get('name')} is now {ours.get('name')}")
        return f"the state was made with other settings: {', '.join(changed)}"

    def _fields(self, fingerprint: str) -> dict[str, str]:
        fields = self.store.describe(fingerprint)
        return dict(json.loads(fields)) if fields else {}


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


def min_tokens(messages: Sequence[Any], limit: int, longest: Callable[[], int]) -> int:
    """How many tokens a prompt has at least; 0 if it looks shorter than ``limit``.

    A cheap bound, because tokenising megabytes takes seconds. ``longest`` gives the
    bytes of the vocabulary's longest token. Answers are not counted: a template may
    leave out their beginning.
    """
    texts = [message_text(m) for m in messages if m.role != "assistant"]
    if sum(map(len, texts)) <= _SUSPICIOUS * limit:
        return 0
    letters = sum(len(word) for text in texts for word in text.split())
    return -(-letters // longest())


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
