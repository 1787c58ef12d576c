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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Call, Chat, message_text
from ..store import Chain, Entry, Hold, Store, common_prefix, tokens_of
from .resume import resumable

# A cut inside a token leaves this many characters of it at the most
_STRADDLE = 48
_MAX_RECENT = 64  # turns of this process whose token ids are kept in memory
_TWO_TEXTS = ("A", "1")  # which no tokens begin with alike
_SUSPICIOUS = 16  # characters for each token that there is room for
_SLACK = 0.02  # seconds that prefilling must save to be preferred to restoring


@dataclass
class Plan:
    """The tokens of a prompt and the stored chain that holds their beginning.

    At least the last token is left to decode: its logits choose the answer.
    ``n_known`` is how many of the tokens belong to known turns, and so should
    not have to be read again. ``choice`` says so where prefilling was preferred
    to restoring, ``lack`` why a known turn has no state. ``known_hash`` is the
    input hash of the turn that the prompt goes on from. ``hold`` keeps the
    chain's files from being deleted.
    """

    tokens: array[int]
    chain: Chain
    render: str
    input_hash: str | None
    n_known: int = 0
    miss_reason: str | None = None
    choice: str | None = None
    lack: str | None = None
    known_hash: str | None = None
    hold: Hold | None = None


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer as exact token ids.

    ``answer`` is the position of the first generated token. The hashes are
    llm's, of the prompt's chain and of the answer.
    """

    tokens: array[int]
    answer: int
    render: str
    input_hash: str | None
    tip_hash: str | None


@dataclass
class _Known:
    "The first ``n_text`` characters of the message at ``index`` as exact tokens"

    index: int
    tokens: array[int]
    n_text: int
    whole: bool  # with all that the model said beside its text
    entry: Entry | None = None


class Planner:
    """Plans prompts for one model and one kind of state (fingerprint).

    ``piece`` gives a token's bytes. ``cuts_anywhere`` is the architecture's
    resume rule: True, any position can be resumed from; False, only where the files'
    snapshots and the ``window`` of tokens allow it. ``machine`` names what prefill
    rates are measured for.
    """

    def __init__(
        self,
        chat: Chat,
        piece: Callable[[int], bytes],
        store: Store | None,
        fingerprint: str,
        cuts_anywhere: bool,
        window: int = 0,
        machine: str = "",
    ):
        self.chat = chat
        self.piece = piece
        self.store = store
        self.fingerprint = fingerprint
        self.cuts_anywhere = cuts_anywhere
        self.window = window
        self.machine = machine
        self._recent: deque[Turn] = deque(maxlen=_MAX_RECENT)

    def remember(self, turn: Turn) -> None:
        "Keep a turn's token ids in memory: it may go on before it is stored"
        self._recent.append(turn)

    def plan(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]] = ()
    ) -> Plan:
        "Plan the answer to llm messages; raises ChatError"
        hashes = chain_hashes(messages)
        last = hashes[-1] if hashes else None
        render = self.chat.render_id(tools)
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
                messages, known.index, known.tokens, rest, tools, known.whole
            )
            if tokens is None:
                known = None
                reason = "the chat template does not go on from the last answer"
        if tokens is None:
            tokens = self.chat.encode(messages, tools)
        chain, seen = Chain(), []
        if self.store is not None:
            seen = self.store.by_hash("input_hash", [last], self.fingerprint)
            also = [known.entry] if known is not None and known.entry else []
            chain = self.stored(tokens[:-1], [*seen, *also])
        plan = Plan(tokens, chain, render, last, 0, reason)
        if known is not None:
            plan.known_hash = hashes[known.index - 1] if known.index else None
            plan.n_known = len(known.tokens)
            plan.lack = self._why_gone(known.entry, plan)
        asked = next((entry for entry in seen if entry.state.render == render), None)
        if asked is not None:  # the very same: there is nothing new in it
            plan.n_known, plan.miss_reason = len(tokens), None
            plan.lack = self._why_gone(asked, plan)
        self._choose(plan)
        return plan

    def ahead(
        self, messages: Sequence[Any], said: str, tools: Sequence[dict[str, Any]] = ()
    ) -> array[int]:
        """The tokens of messages, what was said to them, and how any next turn begins.

        Empty where that cannot be told: of an answer that was just given, it can.
        """
        import llm

        messages = [*messages, llm.assistant(said)]
        index, answer = len(messages) - 1, chain_hashes(messages)[-1]
        turn = next((t for t in reversed(self._recent) if t.tip_hash == answer), None)
        if turn is None:
            return tokens_of()
        one, other = (
            self.chat.encode_after(
                [*messages, llm.user(text)], index, turn.tokens, "", tools, True
            )
            for text in _TWO_TEXTS
        )
        if one is None or other is None:
            return tokens_of()
        return one[: common_prefix(one, other)]

    def _choose(self, plan: Plan) -> None:
        "Leave out what is read again sooner than it is restored, by measured rates"
        if self.store is None or not plan.chain.segments:
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
            plan.choice = f"{again:,} tokens are read again sooner than restored"

    def rates(self) -> tuple[str, str, str]:
        """Names of the rates that plans depend on.

        Tokens prefilled, files opened and bytes restored, each for a second.
        """
        return f"prefill {self.fingerprint} {self.machine}", "open", "read"

    def stored(self, tokens: array[int], seen: Sequence[Entry]) -> Chain:
        "The chain that holds the most of some tokens and can be resumed from"
        assert self.store is not None
        return self.store.longest_prefix(
            self.fingerprint, tokens, seen, self._resumable
        )

    def _resumable(self, chain: Chain) -> Chain:
        "The longest beginning of a chain that this architecture can resume from"
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
        if self.store is not None:
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
        "How far a candidate's answer says the same as the message at an index"
        turn = candidate.state if isinstance(candidate, Entry) else candidate
        if isinstance(candidate, Entry):
            answer = turn.tokens[turn.answer - candidate.state.start :]
        else:
            answer = turn.tokens[turn.answer :]
        n, n_text = covered(answer, self.piece, text)
        if text and not n and not self._begins(answer, text):
            return None
        whole = turn.tip_hash == tip and n_text == len(text)
        if whole:
            n = len(answer)  # with calls of tools, and control tokens at its end
        if not isinstance(candidate, Entry):
            return _Known(index, turn.tokens[: turn.answer + n], n_text, whole)
        assert self.store is not None
        known = self.store.chain(candidate).tokens[: turn.answer + n]
        if not known:
            return None  # a link of its chain is unknown
        return _Known(index, known, n_text, whole, candidate)

    def _begins(self, answer: array[int], text: str) -> bool:
        "Whether a text ends within the first token of an answer, or character"
        spelled = b"".join(map(self.piece, answer[:_STRADDLE]))
        return spelled.decode("utf-8", "replace").startswith(text)

    def _why_gone(self, entry: Entry | None, plan: Plan) -> str | None:
        "Why what an entry knows of a prompt has no rows, where that was recorded"
        at, n = len(plan.chain.tokens), plan.n_known
        if self.store is None or entry is None or at >= n - 1:
            return None
        for segment in self.store.chain(entry).cut(n).segments:
            if segment.end > at and segment.entry.gone:
                return segment.entry.gone
        return None

    def _why_unknown(self, tip: str) -> str:
        if self.store is None:
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


def answer_hash(
    text: str, input_hash: str | None, calls: Sequence[Call] = ()
) -> str | None:
    """The hash under which llm will log an answer of text, and of calls after it.

    llm makes no message of an empty answer: its tip is the prompt's.
    """
    from llm.logs import message_hash
    from llm.parts import Message, Part, TextPart, ToolCallPart

    parts: list[Part] = [TextPart(text=text)] if text else []
    for call in calls:
        part = ToolCallPart(name=call.name, arguments=call.arguments)
        part.tool_call_id = call.id
        parts.append(part)
    if not parts:
        return input_hash
    return message_hash(Message(role="assistant", parts=parts), input_hash)


def least_tokens(
    messages: Sequence[Any], limit: int, longest: Callable[[], int]
) -> int:
    """Tokens that a prompt has at least; 0 unless that may be more than a limit.

    ``longest`` gives the bytes of the vocabulary's longest token. To tokenise megabytes
    takes seconds. Answers are not counted: a template may leave out what they begin
    with.
    """
    texts = [message_text(m) for m in messages if m.role != "assistant"]
    if sum(map(len, texts)) <= _SUSPICIOUS * limit:
        return 0
    letters = sum(len(word) for text in texts for word in text.split())
    return -(-letters // longest())


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
