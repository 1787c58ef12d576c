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

import contextlib
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Chat, Part, Rendering, message_text
from ..engine import Classes
from ..store import Chain, Entry, Hold, common_prefix, tokens_of
from .assembly import DROPPED, Answer, Assembled, Assembler
from .exact import OTHERWISE, fit_of, kinds_of
from .nostore import NoStore, States
from .readback import STRADDLE
from .resume import resumable
from .turns import History, Turn, answer_message

_MAX_RECENT = 64  # turns of this process whose token ids are kept in memory
_TWO_TEXTS = ("A", "1")  # no token begins both
_SUSPICIOUS = 16  # characters for each token that fits: longer prompts are estimated
_MORE = 16  # known tokens by which another date must be better
_PLAIN = Rendering()
_ANY = Classes()
_HEADER = 16  # tokens that a template writes before an answer, at most
_SLACK = 0.02  # seconds that prefilling must save to be preferred to restoring


@dataclass
class Plan:
    """The tokens of a prompt, and the stored chain that holds their beginning.

    The chain never covers the last token: its logits give the answer's first token.
    ``n_known`` is how many tokens belong to known turns, which should not have to be
    prefilled; ``n_read`` of them were read before in this order, and for the others the
    reason is that the template ``drops`` thinking. ``known_hash`` is the input hash of
    the turn that the prompt continues. ``hold`` keeps the chain's files from being
    deleted. For ``why_prefilled``: ``miss_reason`` says why a known turn was not
    recognised, ``choice`` that prefilling was preferred, ``lack`` why a known turn has
    no state. ``without_store`` says that the store failed: nothing is read from or
    written to it for this prompt.
    ``mark`` is where the next turn will continue from if the template drops thinking.
    ``own`` is where the tokens begin that no earlier turn has read or generated. From
    ``end`` on, tokens are read again for the answer to be the same as the first time.
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
    n_read: int = 0
    drops: bool = False
    mark: int | None = None
    own: int = 0
    end: int = 0


def why_prefilled(plan: Plan, lost: Sequence[str], n_reused: int) -> str | None:
    """Why tokens were prefilled that a store could have had; None if none were.

    ``lost`` are the reasons for which files could not be used, ``n_reused`` is how
    many tokens were in memory or restored.
    """
    reasons = list(lost)
    if reason := plan.miss_reason or plan.choice:
        reasons.append(reason)
    elif not reasons and n_reused < min(plan.n_known, plan.end):
        is_dropped = plan.drops and n_reused >= plan.n_read
        reasons.append(DROPPED if is_dropped else plan.lack)
    return "; ".join(dict.fromkeys(reasons)) or None


class Planner:
    """Plans prompts for one model and one kind of state (fingerprint).

    ``cuts_anywhere`` says whether a sequence can be continued from any position, or
    only where snapshots and the ``window`` (in tokens) allow it. ``machine`` names what
    prefill rates are measured on. ``classes`` says how rows round.
    """

    def __init__(
        self,
        chat: Chat,
        store: States | None,
        fingerprint: str,
        cuts_anywhere: bool,
        window: int = 0,
        machine: str = "",
        classes: Classes = _ANY,
    ):
        self.chat = chat
        self.store: States = NoStore() if store is None else store
        self.fingerprint = fingerprint
        self.cuts_anywhere = cuts_anywhere
        self.window = window
        self.machine = machine
        self.classes = classes
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

    def plan(
        self,
        messages: Sequence[Any],
        rendering: Rendering = _PLAIN,
        keep_thinking: bool = False,
    ) -> Plan:
        "Plan the answer to llm messages; raises ChatError"
        history = self._history(messages, rendering)
        last = history.hashes[-1] if history.hashes else None
        render = self.chat.render_id(rendering)
        known, reason, assembled = history.last(), None, None
        if history.answers:
            index = history.answers[-1]
            if known is None or known.index != index:
                reason = self._why_unknown(history.hashes[index])
            elif len(known.found.rest) > STRADDLE:
                reason = "the last answer is not the one that was stored"
        if known is not None:
            assembled = self._assemble(
                history, known, messages, rendering, keep_thinking
            )
            if assembled is None:
                reason = "the chat template does not continue from the last answer"
        if assembled is None:
            tokens = self.chat.encode(messages, rendering)
        else:
            tokens = assembled.tokens
        seen = self.store.by_hash("input_hash", [last], self.fingerprint)
        also = [a.entry for a in (known, assembled and assembled.base) if a and a.entry]
        plan = Plan(tokens, self.stored(tokens[:-1], [*seen, *also]), render, last)
        plan.miss_reason, plan.mark = reason, self._mark(tokens)
        if known is not None and assembled is not None:
            index = known.index
            plan.known_hash = history.hashes[index - 1] if index else None
            plan.n_known, plan.n_read = assembled.n_known, assembled.n_read
            plan.own, plan.drops = assembled.n_read, assembled.drops
            base = assembled.base
            plan.lack = self._why_no_state(base.entry if base else known.entry, plan)
        asked = next((entry for entry in seen if entry.state.render == render), None)
        if asked is not None:  # the same prompt was answered before: all is known
            plan.n_known = plan.n_read = len(tokens)
            plan.miss_reason, plan.drops = None, False
            plan.lack = self._why_no_state(asked, plan)
        elif reason is None:
            plan.miss_reason = self._why_another_date(messages, rendering, plan)
        self._fit(plan)
        self._choose(plan)
        return plan

    def _fit(self, plan: Plan) -> None:
        "Leave out what a fresh run would compute otherwise"
        kinds = self.kinds(plan.chain)
        fit = fit_of(len(plan.tokens), plan.own, self.classes, [kinds])
        plan.end = fit.end
        if fit.rows(kinds) < min(len(kinds), fit.end):
            plan.lack = OTHERWISE
        plan.chain = plan.chain.cut(fit.reusable(kinds))

    def kinds(self, chain: Chain) -> bytes:
        "How the rows of a chain were computed"
        return kinds_of(chain, self.classes)

    def ahead(
        self,
        messages: Sequence[Any],
        parts: Sequence[Part],
        rendering: Rendering = _PLAIN,
        keep_thinking: bool = False,
    ) -> array[int]:
        """The tokens of messages, their answer, and what any next turn begins with.

        ``parts`` are those of the answer, which was just given; empty if that is not
        known.
        """
        import llm

        answered = [*messages, answer_message(parts)]
        history = self._history(answered, rendering)
        known = history.known(len(messages))
        if known is None or not known.found.whole:
            return tokens_of()
        nexts = []
        for text in _TWO_TEXTS:
            then = [*answered, llm.user(text)]
            assembled = self._assemble(history, known, then, rendering, keep_thinking)
            if assembled is None:
                return tokens_of()
            nexts.append(assembled.tokens)
        return nexts[0][: common_prefix(*nexts)]

    def _history(self, messages: Sequence[Any], rendering: Rendering) -> History:
        recent, store = self._recent, self.store
        return History(self.chat, rendering, messages, recent, store, self.fingerprint)

    def _assemble(
        self,
        history: History,
        last: Answer,
        messages: Sequence[Any],
        rendering: Rendering,
        keep_thinking: bool,
    ) -> Assembled | None:
        assembler = Assembler(
            self.chat,
            messages,
            rendering,
            history.known,
            history.written,
            keep_thinking,
        )
        return assembler.assemble(last)

    def _mark(self, tokens: array[int]) -> int | None:
        """Where the last turn begins: up to there, the next prompt is the same.

        After that, the template may have opened thinking, which it leaves out later.
        """
        if self.cuts_anywhere or self.chat.dialect.thinking is None:
            return None
        for at in range(len(tokens) - 1, max(0, len(tokens) - _HEADER), -1):
            if self.chat.vocab.control_text(tokens[at]):
                return at
        return None

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

    def _why_no_state(self, entry: Entry | None, plan: Plan) -> str:
        "Why known tokens of a prompt have no rows; ``entry`` knows them"
        at, n = len(plan.chain.tokens), plan.n_read
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
            return "the tools, the chat template or its variables changed"
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

    def _why_another_date(
        self, messages: Sequence[Any], rendering: Rendering, plan: Plan
    ) -> str | None:
        "A reason if more were known with another date in the prompt"
        at = len(plan.chain.tokens)
        if isinstance(self.store, NoStore) or 0 < plan.n_read <= at:
            return None  # all that it continues is stored, with the date of then
        for date, tokens in self.chat.on_other_dates(messages, rendering):
            if len(self.stored(tokens, []).tokens) > at + _MORE:
                return f"the chat template writes the date, and {date} was stored"
        return None

    def _fields(self, fingerprint: str) -> dict[str, str]:
        fields = self.store.describe(fingerprint)
        return dict(json.loads(fields)) if fields else {}


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
