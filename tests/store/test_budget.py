"""The store stays within its budget, and evicts the right states.

One byte too many fills a disk that others use. Evicting the wrong state means that
a long document is read again, or that rows vanish while someone reads them.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_kvbranch.store.index as index_module
import llm_kvbranch.store.store as store_module
from llm_kvbranch.errors import StateError, StoreError
from llm_kvbranch.store.maintenance import pin, verify
from llm_kvbranch.store.store import EVICTED, Store

from ..support.stores import (
    DOCUMENT,
    MODEL,
    ROWS,
    SIZE,
    a_state,
    contents,
    conversation,
    conversation_after,
    fill,
    find,
    names,
    present,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


BUDGET = 4 * SIZE  # room for four states


class TestEviction:
    "What is evicted has to be read again, so it should be what nobody asks for"

    def test_nothing_while_there_is_room(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        assert present(store) == "a b c d"

    def test_the_longest_unused_goes_first(self, store: Store) -> None:
        a = fill(store, "a")
        for name in "bc":
            fill(store, name)
        fill(store, "a2", a)
        assert present(store) == "a a2 b c"
        fill(store, "d")
        assert present(store) == "a a2 c d"
        fill(store, "e")
        assert present(store) == "a a2 d e"

    def test_no_more_than_needed(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        fill(store, "e", nbytes=ROWS // 10)
        assert present(store) == "b c d e"
        fill(store, "f", nbytes=ROWS // 10)
        assert present(store) == "b c d e f"
        fill(store, "g", nbytes=2 * ROWS)
        assert present(store) == "d e f g"

    def test_the_end_of_a_conversation_goes_before_its_beginning(
        self, store: Store
    ) -> None:
        conversation(store, "a", "b", "c", "d")
        for name, left in zip("efg", ("a b c e", "a b e f", "a e f g"), strict=True):
            fill(store, name)
            assert present(store) == left

    def test_what_the_new_state_goes_on_from_stays(self, store: Store) -> None:
        *_, b = conversation(store, "a", "b")
        for name in "xy":
            fill(store, name)
        *_, d = conversation_after(store, b, "c", "d")
        assert present(store) == "a b c d"
        with pytest.raises(StoreError, match="in use or pinned"):
            fill(store, "e", d)
        assert present(store) == "a b c d"

    def test_the_state_before_makes_room_for_its_replacement(
        self, store: Store
    ) -> None:
        for name in "abcd":
            fill(store, name)
        fill(store, "b")
        assert present(store) == "a b c d"

    def test_but_not_twice(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        fill(store, "a", nbytes=ROWS * 3 // 2)
        assert present(store) == "a c d"

    def test_a_lower_budget_is_kept_from_the_next_state_on(self, root: Path) -> None:
        with contextlib.closing(Store(root, 9 * SIZE)) as store:
            for name in "abcdef":
                fill(store, name)
            store.limit = 2 * SIZE
            fill(store, "g")
            assert present(store) == "f g"

    def test_another_models_states_make_room(self, store: Store) -> None:
        state = a_state("x", DOCUMENT, fingerprint="other-model")
        store.put(state, bytes(ROWS))
        for name in "abcd":
            fill(store, name)
        assert present(store) == "a b c d"

    def test_the_index_stays_right(self, store: Store) -> None:
        *_, c = conversation(store, "a", "b", "c")
        for name in "defg":
            fill(store, name)
        assert not list(verify(store))
        fill(store, "c2", c)
        assert not list(verify(store))

    def test_files_that_a_crash_left_unaccounted_for_take_room(
        self, store: Store
    ) -> None:
        "Such as those of a process that ended before its last transaction"
        for name in "abcd":
            fill(store, name)
        store.db.execute("insert into pending values (?, 'd')", [MODEL])
        store.db.execute("update states set nbytes = 0 where id = 'd'")
        fill(store, "e")
        assert present(store) == "b c d e"

    def test_states_of_an_index_made_again_by_another_take_room(
        self, store: Store
    ) -> None:
        fill(store, "a")
        with contextlib.closing(Store(store.root, 4 * SIZE)) as other:
            other.rebuild()
            for name in "bcd":
                fill(other, name)
        fill(store, "e")
        assert present(store) == "b c d e"

    @given(
        budget=st.integers(0, 40_000),
        puts=st.lists(
            st.tuples(st.integers(0, 20_000), st.none() | st.integers(0, 9)),
            max_size=12,
        ),
        data=st.data(),
    )
    @settings(max_examples=100, deadline=None)
    def test_the_budget_is_never_exceeded(
        self,
        budget: int,
        puts: list[tuple[int, int | None]],
        data: st.DataObject,
    ) -> None:
        with (
            tempfile.TemporaryDirectory() as root,
            contextlib.closing(Store(root, budget)) as store,
        ):
            for i, (nbytes, place) in enumerate(puts):
                entries = [e for e in store.entries() if store.chain(e).tokens]
                parent = None
                if entries and place is not None:
                    parent = entries[place % len(entries)]
                    if data.draw(st.booleans()) and parent.present:
                        pin(store, parent.state.response_id)
                before = contents(Path(root))
                try:
                    fill(store, f"r{i:02}", parent, nbytes)
                except StoreError:
                    assert contents(Path(root)) == before
                present(store)
                assert store.nbytes() <= budget
            assert not list(verify(store))


class TestTwoConversationsInTurn:
    """Together a tenth over the budget, or more

    Fails if a short turn of one evicts the long beginning of the other, all of which
    is then read again for the next turn.
    """

    DOCUMENT, TURN, PER_TOKEN = 530, 42, 2304

    def turn(self, store: Store, name: str, text: list[int]) -> int:
        "Store the state of a turn; returns how many tokens were read"
        chain = find(store, text)
        for segment in chain.segments:
            if not segment.entry.present:
                chain = chain.cut(segment.start)
                break
        n, parents = len(chain.tokens), [s.entry.state for s in chain.segments]
        above = parents[-1].response_id if parents else None
        state = a_state(name, text, n, above)
        with store.hold(chain) or contextlib.nullcontext():
            store.put(state, bytes(self.PER_TOKEN * (len(text) - n)), chain)
        return len(text) - n

    @pytest.mark.parametrize("excess", [1.1, 1.2, 1.3])
    def test_no_turn_reads_a_document_again(self, root: Path, excess: float) -> None:
        n_turns = 6
        most = self.DOCUMENT + n_turns * self.TURN
        budget = int(2 * most * self.PER_TOKEN / excess)
        read: list[int] = []
        with contextlib.closing(Store(root, budget)) as store:
            texts = [[n * 10_000 + i for i in range(self.DOCUMENT)] for n in (1, 2)]
            for turn in range(n_turns + 1):
                for n, text in enumerate(texts):
                    read.append(self.turn(store, f"c{n}-{turn}", text))
                    text += [n * 10_000 + turn * 100 + i for i in range(self.TURN)]
            assert not list(verify(store))
            assert store.nbytes() <= budget
        over = 2 * most - budget // self.PER_TOKEN
        assert max(read[2:]) <= over + 2 * self.TURN, read

    def test_a_state_that_is_not_worth_it_is_known_and_said_to_be_evicted(
        self, root: Path
    ) -> None:
        budget = 2 * self.DOCUMENT * self.PER_TOKEN
        with contextlib.closing(Store(root, budget)) as store:
            a = list(range(self.DOCUMENT - 10))
            self.turn(store, "a", a)
            self.turn(store, "b", [9000 + i for i in a])
            self.turn(store, "a2", [*a, *range(100)])
            assert present(store) == "a b"
            entry = store.get("a2")
            assert entry is not None
            assert entry.gone == EVICTED
            assert len(find(store, [*a, *range(100)]).tokens) == len(a) + 100
            assert [row["count"] for row in store.removals()] == [1]
            assert not list(verify(store))

    def test_a_new_conversation_replaces_one_that_nobody_asks_for(
        self, root: Path
    ) -> None:
        budget = (self.DOCUMENT + 4 * self.TURN) * self.PER_TOKEN
        with contextlib.closing(Store(root, budget)) as store:
            self.turn(store, "old", list(range(self.DOCUMENT)))
            text: list[int] = []
            for turn in range(10):
                text += [9000 + 100 * turn + i for i in range(self.TURN)]
                self.turn(store, f"new{turn}", list(text))
            assert "old" not in present(store).split()
            assert "new9" in present(store).split()


class TestClock:
    "States stored while the clock was ahead would stay until it catches up"

    @pytest.fixture
    def hours(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        "Set the clock so many hours ahead"
        ahead = [0]

        def now() -> str:
            time = datetime.datetime.now(datetime.timezone.utc)
            return (time + datetime.timedelta(hours=ahead[0])).isoformat()

        for module in (store_module, index_module):
            monkeypatch.setattr(module, "now", now, raising=False)
        return lambda n: ahead.__setitem__(0, n)

    @pytest.mark.parametrize("rebuilt", [False, True])
    def test_the_order_of_uses_is_the_one_that_was_seen(
        self, store: Store, hours: Callable[[int], None], rebuilt: bool
    ) -> None:
        hours(1)
        for name in "abcd":
            fill(store, name)
        hours(0)
        fill(store, "e")
        a = fill(store, "f")
        hours(-1000)
        fill(store, "g", a)
        if rebuilt:
            store.rebuild()
        assert names(list(store.by_use())) == ["d", "e", "g", "f"]
        fill(store, "h")
        assert present(store) == "e f g h"

    def test_a_time_at_the_end_of_all_times_is_survived(self, store: Store) -> None:
        fill(store, "a")
        store.db.execute("update states set used = '9999-12-31T23:59:59.999999+00:00'")
        fill(store, "b")
        assert present(store) == "a b"


class TestRefusal:
    "A state that does not fit must not evict those that do"

    def refused(self, store: Store, match: str, nbytes: int = ROWS) -> None:
        before = contents(store.root), list(store.db.iterdump())
        with pytest.raises(StoreError, match=match):
            fill(store, "new", nbytes=nbytes)
        assert (contents(store.root), list(store.db.iterdump())) == before

    def test_larger_than_the_budget(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        self.refused(store, r"exceeds the store's budget of 408,000", 5 * ROWS)

    def test_larger_with_its_header_only(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        self.refused(store, "budget of 408,000", 4 * SIZE)

    def test_all_is_pinned(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
            pin(store, name)
        self.refused(store, "in use or pinned. Raise it with llm kvbranch store budget")
        for name in "abcd":
            pin(store, name, False)
        fill(store, "new")

    def test_what_is_not_pinned_is_too_little(self, store: Store) -> None:
        for name in "abcd":
            fill(store, name)
        for name in "abc":
            pin(store, name)
        self.refused(store, "in use or pinned", 2 * ROWS)
        with contextlib.closing(Store(store.root, 4 * SIZE)) as other:
            fill(other, "new")
        assert present(store) == "a b c new"

    def test_a_budget_of_nothing(self, root: Path) -> None:
        with contextlib.closing(Store(root, 0)) as store:
            self.refused(store, "exceeds the store's budget of 0", 1)


class TestEvicted:
    "A state that vanished without a trace cannot be explained or read again"

    def test_its_token_ids_stay_known(self, store: Store) -> None:
        store.put(a_state("old", DOCUMENT, tip_hash="tip"), bytes(ROWS))
        for name in "abcd":
            fill(store, name)
        chain = find(store, DOCUMENT)
        assert (len(chain.tokens), chain.available) == (100, 0)
        assert names(store.by_hash("tip_hash", ["tip"])) == ["old"]

    def test_its_reason_is_what_opening_it_says(self, store: Store) -> None:
        "Even if another process evicts it after it was found"
        seen = fill(store, "old")
        with contextlib.closing(Store(store.root, SIZE)) as other:
            fill(other, "new")
        found = store.get("old")
        assert found is not None
        assert (found.present, found.gone) == (False, EVICTED)
        for entry in (seen, found):
            with pytest.raises(StateError) as caught:
                store.open(entry).__enter__()
            assert str(caught.value) == EVICTED

    def test_it_can_come_back(self, store: Store) -> None:
        for name in "abcdea":
            fill(store, name)
        found = store.get("a")
        assert found is not None
        assert (found.present, found.gone) == (True, None)

    def test_removals_are_counted(self, store: Store) -> None:
        sizes = [fill(store, name).nbytes for name in "abcdef"]
        (removal,) = store.removals()
        assert (removal["reason"], removal["count"]) == (EVICTED, 2)
        assert removal["nbytes"] == sum(sizes[:2])


class TestPinned:
    "A long document pinned but evicted is read again when it is needed most"

    def test_it_and_all_that_it_needs_stay(self, store: Store) -> None:
        conversation(store, "a", "b", "c")
        pin(store, "b")
        for name in "wxyz":
            fill(store, name)
        assert present(store) == "a b y z"

    def test_until_it_is_unpinned(self, store: Store) -> None:
        fill(store, "a")
        pin(store, "a")
        for name in "bcdef":
            fill(store, name)
        assert present(store) == "a d e f"
        pin(store, "a", False)
        fill(store, "g")
        assert present(store) == "d e f g"

    def test_what_it_does_not_need_may_go(self, store: Store) -> None:
        "A state that shares no tokens with the parent that its row names"
        fill(store, "a")
        store.put(a_state("b", [7] * 40, 0, "a"), bytes(ROWS))
        pin(store, "b")
        assert store.pinned_keys() == {(MODEL, "b")}
        for name in "xyz":
            fill(store, name)
        assert present(store) == "b x y z"

    def test_its_bytes(self, store: Store) -> None:
        entries = conversation(store, "a", "b", "c")
        fill(store, "x")
        assert store.pinned_bytes() == 0
        pin(store, "b")
        pin(store, "b")
        pin(store, "a")
        assert store.pinned_bytes() == entries[0].nbytes + entries[1].nbytes


def test_sizes_in_this_module_are_as_they_say(store: Store) -> None:
    assert SIZE * 0.98 < fill(store, "name").nbytes < SIZE
    assert isinstance(store.budget(), int)
