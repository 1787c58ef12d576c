"""From a finished answer to its stored state.

The idea: what an answer added stays in its slot until the answer is logged, or in
memory if the slot is needed before. When it is logged, the rows that are not stored
yet are captured and put in the store, and files found bad on the way are written
again.

The invariant: nothing is stored before ``commit``, and nothing twice.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass, replace
from typing import Any

from ..errors import KVBranchError, StateError
from ..store import Chain, Entry, State, Store, prefix_digest, tokens_of
from .cells import Slot
from .loaded import STORE_ERRORS, LoadedModel
from .planning import Plan
from .slots import Filling

# All conversations, and all turns after the same answer, begin with the same few
# tokens of the chat template. What shares no more with another turn is stored
# again: else it would need the other's file, and keep it from being evicted or
# pruned, for next to nothing.
MIN_SHARED = 64

_MEASURED_TOKENS = 64  # prefilling fewer says little of the rate
_MEASURED_BYTES = 1 << 18  # restoring less is a matter of opening the file


@dataclass
class _Captured:
    "Rows from ``start`` on, and snapshots by position"

    start: int
    rows: bytearray
    snapshots: dict[int, bytearray]


class Unstored:
    "What one answer has to store: its plan, its slot, and what went wrong on the way"

    def __init__(
        self,
        model: LoadedModel,
        plan: Plan,
        slot: Slot,
        filling: Filling,
        facts: dict[str, Any],
    ):
        "``facts`` are the generation's"
        self.model = model
        self._facts = facts
        self.plan = plan
        self.slot = slot
        self.answer = len(plan.tokens)
        self.tokens = tokens_of()  # of prompt and answer, once finished
        self._tip_hash: str | None = None
        self._kept: _Captured | None = None
        self._start = 0  # where its state began when it was finished
        self._fork = min(filling.resident - filling.shared, self.answer - 1)
        self._misses, self._reads = filling.misses, filling.reads
        lost = [entry for entry, _ in filling.misses if not self._can_heal(entry)]
        plan.chain = plan.chain.before(lost)

    @property
    def end(self) -> int:
        return len(self.tokens)

    def finish(self, tokens: array[int], tip_hash: str | None) -> tuple[int, int]:
        "The slot holds the tokens now; where their state begins, and its bytes"
        model, slot = self.model, self.slot
        self.tokens, self._tip_hash = tokens, tip_hash
        slot.waiting.add(self)
        start = 0
        if model.store is not None:
            with contextlib.suppress(*STORE_ERRORS):
                start = len(self._stored_prefix(model.store).tokens)
        self._start = start
        nbytes = (
            model.engine.nbytes(slot.seq, start, self.end)
            + model.engine.snapshot_nbytes(slot.seq)
            + sum(map(len, slot.snapshots.between(start, self.end).values()))
        )
        return start, nbytes

    def detach(self) -> None:
        "Capture the rows into memory: the slot is about to lose them"
        # See _without_chance_share
        fork = min(self._fork, self.end - 1) - MIN_SHARED
        # In files that stay until it is stored, because they are held
        held = min(self._start, len(self.plan.chain.tokens))
        self._kept = self._capture(max(0, fork, held))

    def _capture(self, start: int) -> _Captured:
        "The slot's rows from a position on, and what makes them complete"
        engine, slot = self.model.engine, self.slot
        rows, snapshots = engine.capture(slot.seq, start, self.end), {}
        if not engine.cuts_anywhere:
            snapshots = slot.snapshots.between(start, self.end)
            snapshots[self.end] = engine.snapshot(slot.seq)
        return _Captured(start, rows, snapshots)

    def commit(self, response_id: str, thread_id: str | None) -> Entry | None:
        "Store the rows, for the response that was logged; see Generation.commit"
        model = self.model
        if model.store is None:
            return None
        try:
            return self._commit(model.store, response_id, thread_id)
        except (KVBranchError, *STORE_ERRORS) as error:
            model.warn(f"{error}. The answer is logged, its state is not kept")
            return None
        finally:
            self._release()

    def _commit(
        self, store: Store, response_id: str, thread_id: str | None
    ) -> Entry | None:
        model, slot, plan = self.model, self.slot, self.plan
        live = self in slot.waiting
        if live:
            self._heal(store)
        stored = self._stored_prefix(store)
        start = len(stored.tokens)
        if live:
            captured = self._capture(start)
        elif self._kept is not None and self._kept.start <= start:
            captured = self._kept
            start, stored = captured.start, stored.cut(captured.start)
        else:
            model.warn("The state left memory before its response was logged")
            return None
        state = State(
            response_id=response_id,
            fingerprint=model.planner.fingerprint,
            start=start,
            end=self.end,
            answer=self.answer,
            tokens=self.tokens[start:],
            prefix=prefix_digest(self.tokens, start),
            parent_id=(
                stored.segments[-1].entry.state.response_id if stored.segments else None
            ),
            input_hash=plan.input_hash,
            tip_hash=self._tip_hash,
            render=plan.render,
            thread_id=thread_id,
        )
        self._account(store)
        if not stored.segments:
            self._release()  # what was restored may make room for this
        rows, snapshots = captured.rows, captured.snapshots
        if not model.engine.is_finite(rows, start, self.end) or not all(
            model.engine.is_finite_snapshot(data, mark)
            for mark, data in snapshots.items()
        ):
            raise StateError("The state holds values that are no numbers")
        entry = store.put(state, rows, stored, snapshots)
        if live:
            slot.snapshots.forget_before(self.end)
            if slot.tokens == self.tokens:
                slot.response_id = response_id
        slot.waiting.discard(self)
        self._kept = None
        return entry

    def _release(self) -> None:
        "Let the files that were restored be deleted"
        if self.plan.hold is not None:
            self.plan.hold.release()

    def _account(self, store: Store) -> None:
        "Count the prompt, and take the measurements that plans are made by"
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
            self.answer,
            facts["restored_tokens"],
            measured,
        )

    def _stored_prefix(self, store: Store) -> Chain:
        "The chain of good files that holds the beginning, up to the answer"
        planner, plan = self.model.planner, self.plan
        seen = store.by_hash("input_hash", [plan.input_hash], planner.fingerprint)
        chain = planner.stored(self.tokens[: min(self.answer, self.end - 1)], seen)
        for segment in chain.segments:
            if not segment.entry.present:
                chain = chain.cut(segment.start)
                break
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
            and state.end <= self.answer
            and self.plan.tokens[state.start : state.end] == state.tokens
        )

    def _heal(self, store: Store) -> None:
        "Write the files again whose rows were prefilled because they were bad"
        for entry, _ in self._misses:
            if self._can_heal(entry):
                state = replace(entry.state, digest="")
                rows = self.model.engine.capture(self.slot.seq, state.start, state.end)
                store.put(state, rows, self.plan.chain)
        self._misses = []
