"""Restoring or prefilling, whichever is faster by what was measured.

A disk that makes a turn slower than no store at all is worse than none; but one that
is distrusted without measurements would never be used.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.fake import fake_session
from ..support.life import Answer, user

LONG = "Tell me about the sea, its tides and its storms. " * 40


def session_with(root: Path, prefill: float, opened: float, read: float):
    "A session whose store has these rates: tokens, files and bytes per second"
    session = fake_session(root)
    names = session.planner.rates()
    measured = dict(
        zip(names, [(prefill, 1.0), (opened, 1.0), (read, 1.0)], strict=True)
    )
    session.store.db.execute("delete from rates")
    session.store.count_prompt("fake", 0, 0, measured)
    return session


@pytest.fixture
def parent(tmp_path: Path) -> Answer:
    return Answer(fake_session(tmp_path), [user(LONG)], max_tokens=60).check()


class TestChoice:
    def test_a_slow_disk_is_not_waited_for(self, tmp_path, parent) -> None:
        session = session_with(tmp_path, prefill=1e5, opened=1, read=1e3)
        after = Answer(session, [*parent.chain, user("And?")]).check()
        assert after.facts["restored_tokens"] == 0
        assert "faster" in after.facts["miss_reason"]
        assert not session.store.misses()  # nothing was amiss
        assert after.entry.state.parent_id == parent.id  # and nothing stored twice

    def test_a_slow_prefill_is_not_waited_for(self, tmp_path, parent) -> None:
        session = session_with(tmp_path, prefill=100, opened=1e3, read=1e9)
        after = Answer(session, [*parent.chain, user("And?")]).check()
        assert after.facts["restored_tokens"] == parent.entry.state.end
        assert after.facts["miss_reason"] is None

    def test_a_difference_that_nobody_sees_changes_nothing(
        self, tmp_path, parent
    ) -> None:
        n = parent.entry.state.end
        session = session_with(tmp_path, prefill=n / 0.001, opened=100, read=1e9)
        after = Answer(session, [*parent.chain, user("And?")]).check()
        assert after.facts["restored_tokens"] == n  # 10 ms instead of 1

    def test_only_what_is_worth_it(self, tmp_path, parent) -> None:
        "A file so large that restoring a few tokens from it takes longer"
        answered = Answer(
            fake_session(tmp_path), [*parent.chain, user("And?" + LONG)], max_tokens=3
        ).check()
        # The second file, read whole for the beginning of its prompt alone
        session = session_with(tmp_path, prefill=500, opened=1e6, read=2e4)
        again = [*parent.chain, user("And?" + LONG[:64] + "Other")]
        after = Answer(session, again).check()
        assert after.facts["restored_tokens"] == parent.entry.state.end
        assert "faster" in after.facts["miss_reason"]
        assert answered.entry.nbytes / 2e4 > 0.5

    def test_nothing_is_doubted_without_measurements(self, tmp_path, parent) -> None:
        session = fake_session(tmp_path)
        session.store.db.execute("delete from rates")
        after = Answer(session, [*parent.chain, user("And?")]).check()
        assert after.facts["restored_tokens"] == parent.entry.state.end

    def test_recurrent_states_are_chosen_whole(self, tmp_path) -> None:
        options = {"recurrent": True}
        one = Answer(fake_session(tmp_path, **options), [user(LONG)]).check()
        two = Answer(
            fake_session(tmp_path, **options),
            [*one.chain, user("And?")],
        ).check()
        session = fake_session(tmp_path, **options)
        names = session.planner.rates()
        slow = dict(zip(names, [(1e6, 1.0), (1.0, 1.0), (1e9, 1.0)], strict=True))
        session.store.count_prompt("fake", 0, 0, slow)
        after = Answer(session, [*two.chain, user("Why?")]).check()
        assert after.facts["restored_tokens"] == 0


class TestMeasuring:
    "Fails if rates are those of another machine, or of long ago"

    def test_measured_as_prompts_are_answered(self, tmp_path) -> None:
        one = Answer(fake_session(tmp_path), [user(LONG)]).check()
        session = fake_session(tmp_path)
        prefill, opened, _ = session.planner.rates()
        assert session.store.rate(prefill) > 0
        assert session.store.rate(opened) is None
        Answer(session, [*one.chain, user("And?")]).check()
        assert session.store.rate(opened) > 0

    def test_old_ones_fade(self, tmp_path) -> None:
        store = fake_session(tmp_path).store
        for seconds in [1.0] * 20 + [10.0] * 20:
            store.count_prompt("fake", 0, 0, {"read": (1000.0, seconds)})
        assert 100 < store.rate("read") < 150

    def test_what_is_not_logged_is_not_measured(self, tmp_path) -> None:
        session = fake_session(tmp_path)
        Answer(session, [user(LONG)], log=False).check()
        assert session.store.rate(session.planner.rates()[0]) is None
