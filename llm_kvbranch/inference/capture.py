"""From a finished answer to its stored state.

The idea: the rows that an answer added stay in its slot until the answer is logged, or
are captured into memory if the slot is needed before. When the answer is logged, the
rows that are not stored yet are put in the store, and files that were found bad on the
way are written again.

The invariant: nothing is stored before ``commit``, and nothing twice.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass, replace
from typing import Any

from ..errors import KVBranchError, StateError
from ..store import STORE_ERRORS, Chain, Entry, State, Store, prefix_digest, tokens_of
from .exact import fit_of
from .filling import Filling
from .loaded import LoadedModel
from .planning import Plan
from .slots import Slot

# All conversations, and all turns after the same answer, begin with the same few
# tokens of the chat template. Where a state shares no more than that with another
# turn's, it stores them again: else it would depend on the other's file, and keep it
# from being evicted or pruned, for next to nothing.
MIN_SHARED = 64

_MEASURED_TOKENS = 64  # prefilling fewer says little about the rate
_MEASURED_BYTES = 1 << 18  # restoring fewer measures how long opening a file takes


@dataclass
class _Captured:
    "Rows from ``start`` on, and snapshots by position"

    start: int
    rows: bytearray
    snapshots: dict[int, bytearray]


class NewState:
    """The state that one answer adds, on its way from the slot to the store.

    ``facts`` are the generation's.
    """

    def __init__(
        self,
        model: LoadedModel,
        plan: Plan,
        slot: Slot,
        filling: Filling,
        facts: dict[str, Any],
    ):
        self.model = model
        self._facts = facts
        self.plan = plan
        self.slot = slot
        self.n_prompt = len(plan.tokens)
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self._tip_hash: str | None = None
        self._kept: _Captured | None = None
        self._start = 0  # where its state began when it was finished
        self._fork = min(filling.resident - filling.shared, self.n_prompt - 1)
        self._misses, self._reads = filling.misses, filling.reads
        kinds = slot.kinds[: self.n_prompt]
        self._fit = fit_of(self.n_prompt, plan.own, model.engine.classes, [kinds])
        lost = [entry for entry, _ in filling.misses if not self._can_heal(entry)]
        plan.chain = plan.chain.before(lost)

    @property
    def end(self) -> int:
        return len(self.tokens)

    def finish(self, tokens: array[int], tip_hash: str | None) -> tuple[int, int]:
        """The answer has ended: the slot holds exactly its prompt's and its tokens.

        Returns where the state to be stored begins, and how many bytes it has.
        """
        engine, slot = self.model.engine, self.slot
        self.tokens, self._tip_hash = tokens, tip_hash
        slot.waiting.add(self)
        with contextlib.suppress(*STORE_ERRORS):
            self._start = len(self._stored_prefix().tokens)
        nbytes = (
            engine.nbytes(slot.seq, self._start, self.end)
            + engine.snapshot_nbytes(slot.seq)
            + sum(map(len, slot.snapshots.between(self._start, self.end).values()))
        )
        return self._start, nbytes

    def detach(self) -> None:
        "Capture the rows into memory: the slot is about to lose them"
        # See _without_chance_share
        fork = min(self._fork, self.end - 1) - MIN_SHARED
        # These files are held, so they will still be there
        held = min(self._start, len(self.plan.chain.tokens))
        self._kept = self._capture(max(0, fork, held))

    def commit(self, response_id: str, thread_id: str | None) -> Entry | None:
        """Store the rows for a logged response, unless that fails or was done before.

        A failure is warned of, and returns None, as does a state that is not worth
        what would have to be evicted.
        """
        model, slot, store = self.model, self.slot, self.model.store
        if store is None or self.plan.without_store:
            return None
        live = self in slot.waiting
        try:
            model.engine.check_process()
            entry = model.writing(
                lambda: self._put(store, response_id, thread_id, live)
            )
        except (KVBranchError, *STORE_ERRORS) as error:
            model.warn(f"{error}. The answer is logged, but its state is not stored")
            return None
        finally:
            self._release()
        if live:
            slot.snapshots.forget_before(self.end)
            if slot.rests_at(self.tokens):
                slot.response_id = response_id
        slot.waiting.discard(self)
        self._kept = None
        return entry if entry.present else None  # what it takes was worth more

    def _put(
        self, store: Store, response_id: str, thread_id: str | None, live: bool
    ) -> Entry:
        if live:
            self._heal(store)
        captured, chain = self._rows_to_store(live)
        state = self._describe(captured.start, chain, response_id, thread_id)
        self._count(store)
        if not chain.segments:
            self._release()  # what was restored may be evicted to make room
        self._check(captured)
        nbytes = len(captured.rows) + sum(map(len, captured.snapshots.values()))
        with self.model.room_for(nbytes):
            return store.put(state, captured.rows, chain, captured.snapshots)

    def _rows_to_store(self, live: bool) -> tuple[_Captured, Chain]:
        "The rows that are not stored yet, and the stored chain that they continue"
        chain = self._stored_prefix()
        if live:
            return self._capture(len(chain.tokens)), chain
        if self._kept is None or self._kept.start > len(chain.tokens):
            raise StateError("The state left memory before its response was logged")
        return self._kept, chain.cut(self._kept.start)

    def _capture(self, start: int) -> _Captured:
        "The slot's rows from a position on, and the snapshots that complete them"
        engine, slot = self.model.engine, self.slot
        rows, snapshots = engine.capture(slot.seq, start, self.end), {}
        if not engine.cuts_anywhere:
            snapshots = slot.snapshots.between(start, self.end)
            snapshots[self.end] = engine.snapshot(slot.seq)
        return _Captured(start, rows, snapshots)

    def _describe(
        self, start: int, chain: Chain, response_id: str, thread_id: str | None
    ) -> State:
        parents = [segment.entry.state.response_id for segment in chain.segments]
        return State(
            response_id=response_id,
            fingerprint=self.model.planner.fingerprint,
            start=start,
            end=self.end,
            answer=self.n_prompt,
            tokens=self.tokens[start:],
            prefix=prefix_digest(self.tokens, start),
            parent_id=parents[-1] if parents else None,
            input_hash=self.plan.input_hash,
            tip_hash=self._tip_hash,
            render=self.plan.render,
            thread_id=thread_id,
        )

    def _check(self, captured: _Captured) -> None:
        "Raise StateError if rows or snapshots would spread NaN to later answers"
        engine = self.model.engine
        if not engine.is_finite(captured.rows, captured.start, self.end) or not all(
            engine.is_finite_snapshot(data, mark)
            for mark, data in captured.snapshots.items()
        ):
            raise StateError("The state holds NaN or infinite values")

    def _release(self) -> None:
        "Let the files that were restored be deleted"
        if self.plan.hold is not None:
            self.plan.hold.release()

    def _count(self, store: Store) -> None:
        "Count the prompt, and record the rates that plans depend on"
        facts, measured = self._facts, {}
        prefill, opened, read = self.model.planner.rates()
        if facts["prefilled_tokens"] >= _MEASURED_TOKENS:
            measured[prefill] = facts["prefilled_tokens"], facts["prefill_ms"] / 1e3
        for name, small in ((opened, True), (read, False)):
            reads = [r for r in self._reads if (r[0] < _MEASURED_BYTES) == small]
            amount = len(reads) if small else sum(nbytes for nbytes, _ in reads)
            if reads:
                measured[name] = amount, sum(seconds for _, seconds in reads)
        store.count_prompt(
            self.model.planner.fingerprint,
            self.n_prompt,
            facts["restored_tokens"],
            measured,
        )

    def _stored_prefix(self) -> Chain:
        "The chain of good files that holds the most of the tokens, up to the answer"
        planner, plan = self.model.planner, self.plan
        seen = planner.store.by_hash(
            "input_hash", [plan.input_hash], planner.fingerprint
        )
        chain = planner.stored(self.tokens[: min(self.n_prompt, self.end - 1)], seen)
        for segment in chain.segments:
            if not segment.entry.present:
                chain = chain.cut(segment.start)
                break
        if chain.segments:
            chain = chain.cut(self._fit.rows(planner.kinds(chain)))
        return self._without_chance_share(chain)

    def _without_chance_share(self, chain: Chain) -> Chain:
        "The chain without a last segment that is another turn's, and hardly used"
        plan = self.plan
        if not chain.segments:
            return chain
        last, state = chain.segments[-1], chain.segments[-1].entry.state
        wanted = state.input_hash in {plan.input_hash, plan.known_hash} - {None}
        if wanted or last.end == state.end or last.end - last.start >= MIN_SHARED:
            return chain
        return chain.cut(last.start)

    def _can_heal(self, entry: Entry) -> bool:
        "Whether the prompt holds all the tokens of an entry, each at its place"
        state = entry.state
        return (
            self.model.engine.cuts_anywhere
            and state.end <= self.n_prompt
            and self.plan.tokens[state.start : state.end] == state.tokens
        )

    def _heal(self, store: Store) -> None:
        "Write bad files again, from the rows that were prefilled in their place"
        for entry, _ in self._misses:
            if self._can_heal(entry):
                state = replace(entry.state, digest="")
                rows = self.model.engine.capture(self.slot.seq, state.start, state.end)
                store.put(state, rows, self.plan.chain)
        self._misses = []
