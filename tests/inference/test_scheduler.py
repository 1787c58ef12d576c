"""Many clients of one session, on the FakeEngine: who is served, and how it ends."""

from __future__ import annotations

import random
import threading
import time

import llm
import pytest

from llm_kvbranch.errors import ContextError, OverloadedError
from llm_kvbranch.store.maintenance import verify

from ..support.life import user
from ..support.scheduled import LONG, Asked, scheduled


class TestRoom:
    "Fails if storing one conversation evicts what a waiting prompt begins with"

    def test_a_prompt_that_waits_keeps_its_beginning(self, root):
        with scheduled(root, n_seq=1, pause=0.01) as scheduler:
            # Each prompt begins with one of these, and holds it while it runs
            first, second = (
                Asked(scheduler, text).check() for text in (LONG, LONG[7:])
            )
            states = [
                scheduler.call(each.ticket.generation.commit, name).result(20)
                for each, name in ((first, "first"), (second, "second"))
            ]
            store = scheduler.session.store
            store.limit = store.nbytes() + states[0].nbytes // 2
            other = Asked(scheduler, LONG[9:], client="b", max_tokens=9)
            more = [user(LONG[7:]), llm.assistant(second.text)]
            running = Asked(scheduler, LONG, "c", max_tokens=900, before=more)
            more = [user(LONG), llm.assistant(first.text)]
            waiting = Asked(scheduler, "More", client="d", before=more)
            other.check()
            scheduler.call(other.ticket.generation.commit, "other").result(20)
            assert waiting.ticket.started is None
            scheduler.cancel(running.ticket)
            facts = waiting.check().ticket.generation.facts
            assert facts["restored_tokens"] >= states[0].state.end - 1


class TestAnswers:
    "Fails if one of many answers is wrong, late or lost"

    @pytest.mark.parametrize("kind", [{}, {"recurrent": True}, {"window": 12}])
    def test_more_than_there_are_slots(self, kind):
        with scheduled(**kind) as scheduler:
            for asked in [Asked(scheduler, f"Hello {i}") for i in range(9)]:
                asked.check()
            assert scheduler.n_running() == scheduler.n_waiting_now() == 0
            assert (
                scheduler.counts["ended stop"] + scheduler.counts["ended length"] == 9
            )

    def test_text_comes_while_it_is_made(self):
        with scheduled(pause=0.01) as scheduler:
            asked = Asked(scheduler, LONG, max_tokens=200)
            asked.check()
            assert len(asked.pieces) > 1

    def test_an_error_reaches_its_client(self):
        with scheduled() as scheduler:
            scheduler.session.engine.n_ctx_train = 40
            wrong, right = Asked(scheduler, LONG), Asked(scheduler, "Hi")
            assert isinstance(wrong.wait().ticket.error, ContextError)
            right.check()

    def test_the_engine_survives_an_unexpected_error(self):
        with scheduled() as scheduler:
            decode, scheduler.session.step = scheduler.session.step, _fail
            first = Asked(scheduler, "Hi")
            assert "nobody" in str(first.wait().ticket.error)
            scheduler.session.step = decode
            Asked(scheduler, "Hi").check()

    def test_calls_come_between_batches(self):
        with scheduled(pause=0.002) as scheduler:
            asked = Asked(scheduler, LONG, max_tokens=100)
            names = [
                scheduler.call(lambda: threading.current_thread().name)
                for _ in range(5)
            ]
            assert {name.result(5) for name in names} == {"kvbranch-engine"}
            with pytest.raises(RuntimeError, match="nobody"):
                scheduler.call(_fail).result(5)
            asked.check()


def _fail():
    raise RuntimeError("nobody foresaw this")


class TestReadAhead:
    "Fails if idle time is wasted, or what is read ahead harms the next request"

    def idle(self, scheduler, asked):
        "The slot of an answer, after a while without requests"
        slot, n = asked.ticket.generation.slot, len(asked.ticket.generation.tokens)
        deadline = time.monotonic() + 5
        while len(slot.tokens) == n and time.monotonic() < deadline:
            time.sleep(0.005)
        return slot

    def after(self, asked, text):
        said = [*asked.ticket.generation.request.messages, llm.assistant(asked.text)]
        return {"text": text, "before": said}

    @pytest.mark.parametrize("text", ["And then?", "1", "", "😀", "<|im_end|>"])
    def test_what_any_turn_begins_with(self, text):
        with scheduled() as scheduler:
            first = Asked(scheduler, LONG).check()
            generation, slot = first.ticket.generation, self.idle(scheduler, first)
            ahead = len(slot.tokens) - len(generation.tokens)
            assert ahead > 3
            then = Asked(scheduler, **self.after(first, text)).check()
            resident = then.ticket.generation.facts["resident_tokens"]
            assert resident == len(generation.tokens) + ahead

    def test_a_branch_is_not_affected(self):
        with scheduled() as scheduler:
            first = Asked(scheduler, LONG).check()
            self.idle(scheduler, first)
            request = first.ticket.generation.request
            cut = llm.assistant(first.text[: len(first.text) // 2])
            Asked(scheduler, "Why?", before=[*request.messages, cut]).check()

    def test_it_is_not_part_of_the_state(self, tmp_path):
        with scheduled(tmp_path) as scheduler:
            first = Asked(scheduler, LONG).check()
            self.idle(scheduler, first)
            generation = first.ticket.generation
            entry = scheduler.call(generation.commit, "first").result(5)
            assert entry.state.end == len(generation.tokens)
        assert not list(verify(scheduler.session.store))
        with scheduled(tmp_path) as scheduler:
            then = Asked(scheduler, **self.after(first, "And then?")).check()
            facts = then.ticket.generation.facts
            assert facts["restored_tokens"] == entry.state.end

    def test_the_slot_still_knows_its_response(self, tmp_path):
        "Fails if an answer that is logged after it does not show as in memory"
        with scheduled(tmp_path) as scheduler:
            first = Asked(scheduler, LONG).check()
            slot = self.idle(scheduler, first)
            scheduler.call(first.ticket.generation.commit, "first").result(5)
            assert slot.response_id == "first"
            then = Asked(scheduler, **self.after(first, "And then?")).check()
            assert then.ticket.generation.slot is slot
            assert slot.response_id is None
            self.idle(scheduler, then)
            scheduler.call(then.ticket.generation.commit, "then").result(5)
            assert slot.response_id == "then"

    def test_a_request_meanwhile_does_not_wait(self):
        with scheduled() as scheduler:
            decode, begun = scheduler.session.engine.decode, threading.Event()

            def forever(feeds, stop=None):
                if scheduler.n_running():
                    return decode(feeds, stop)
                begun.set()
                while not stop():
                    time.sleep(0.001)
                raise KeyboardInterrupt

            scheduler.session.engine.decode = forever
            first = Asked(scheduler, LONG).check()
            assert begun.wait(5)
            assert scheduler.call(lambda: "at once").result(5) == "at once"
            Asked(scheduler, **self.after(first, "And then?")).check()

    @pytest.mark.parametrize("kind", [{"recurrent": True}, {"window": 12}])
    def test_not_where_a_branch_could_not_go_back(self, kind):
        with scheduled(**kind) as scheduler:
            first = Asked(scheduler, LONG).check()
            time.sleep(0.1)
            generation = first.ticket.generation
            assert generation.slot.tokens == generation.tokens


class TestTurns:
    "Fails if one client takes all slots, or one waits forever"

    def test_clients_take_turns(self):
        with scheduled(n_seq=1, pause=0.002) as scheduler:
            greedy = [Asked(scheduler, f"More {i}", "greedy") for i in range(6)]
            modest = Asked(scheduler, "One", "modest")
            modest.check()
            assert sum(asked.done.is_set() for asked in greedy) <= 2
            for asked in greedy:
                asked.check()

    def test_too_many(self):
        with scheduled(n_seq=1, n_waiting=2, pause=0.005) as scheduler:
            first = Asked(scheduler, LONG)
            while not scheduler.n_running():
                time.sleep(0.001)
            others = [Asked(scheduler, f"{i}") for i in range(2)]
            with pytest.raises(
                OverloadedError, match=r"full \(at once: 1, waiting: 2\)"
            ) as full:
                Asked(scheduler, "One more")
            assert full.value.retry_after >= 1
            for asked in (first, *others):
                asked.check()
            Asked(scheduler, "One more").check()

    def test_too_many_of_one_request(self):
        "Fails if they are told that others wait, when nobody else is there"
        with scheduled(n_seq=2, n_waiting=0, pause=0.005) as scheduler:
            accepted = [Asked(scheduler, LONG) for _ in range(2)]
            with pytest.raises(OverloadedError) as full:
                Asked(scheduler, LONG)
            assert "already waiting" not in str(full.value)
            assert "full (at once: 2, waiting: 0)" in str(full.value)
            for asked in accepted:
                asked.check()

    def test_no_room_for_two(self):
        "The second waits for the first one's cells, although a slot is free"
        with scheduled(n_seq=3, pause=0.001) as scheduler:
            scheduler.session.slots.max_cells = 700
            for asked in [Asked(scheduler, f"{i} {LONG}") for i in range(3)]:
                asked.check()
            alone = Asked(scheduler, LONG * 3).wait()
            assert "do not fit the context of 700" in str(alone.ticket.error)


class TestLeaving:
    "Fails if work goes on for a client that left"

    def test_while_it_waits(self):
        with scheduled(n_seq=1, pause=0.002) as scheduler:
            first, second = Asked(scheduler, LONG), Asked(scheduler, "Hi")
            scheduler.cancel(second.ticket)
            second.wait()
            assert not first.done.is_set()
            assert second.ticket.generation.plan is None
            first.check()

    def test_while_the_prompt_is_read(self):
        with scheduled(pause=0.005) as scheduler:
            asked = Asked(scheduler, LONG * 5)
            while not scheduler.session.engine.decoded:
                time.sleep(0.001)
            scheduler.cancel(asked.ticket)
            asked.wait()
            assert len(scheduler.session.engine.decoded) < 1000
            assert asked.ticket.generation.finish_reason == "cancelled"
            assert not asked.text

    def test_while_it_is_answered(self, tmp_path):
        with scheduled(tmp_path, pause=0.005) as scheduler:
            for i in range(50):  # an answer may end by itself just before
                asked = Asked(scheduler, f"Hi {i}", max_tokens=500)
                if asked.done.wait(0.15):
                    continue
                scheduler.cancel(asked.ticket)
                generation = asked.check().ticket.generation
                if generation.finish_reason != "stop":
                    break
            assert generation.finish_reason == "cancelled"
            entry = scheduler.call(generation.commit, "r1").result(5)
            assert entry.state.end == generation.end
            assert not list(verify(scheduler.session.store))

    def test_after_the_end(self):
        with scheduled() as scheduler:
            asked = Asked(scheduler, "Hi").check()
            scheduler.cancel(asked.ticket)
            Asked(scheduler, "Ho").check()
            assert asked.ends == 1

    @pytest.mark.parametrize("seed", range(4))
    def test_at_any_time(self, tmp_path, seed):
        draw, asked = random.Random(seed), []
        with scheduled(tmp_path, n_seq=3, pause=0.0005) as scheduler:
            for i in range(60):
                text = draw.choice([LONG, LONG[: draw.randrange(500)] + "?", f"{i}"])
                asked.append(Asked(scheduler, text, client=str(i % 4)))
                if draw.random() < 0.5:
                    scheduler.cancel(draw.choice(asked).ticket)
                time.sleep(draw.random() * 0.01)
            for each in asked:
                each.wait()
                if each.ticket.generation.finish_reason != "cancelled":
                    each.check()
            slots = scheduler.session.slots.all()
            assert not any(slot.busy or slot.reserved for slot in slots)
            assert not scheduler.session.running


class TestStopping:
    "Fails if a server that stops leaves a client waiting, or a thread running"

    def test_everybody_is_told(self):
        with scheduled(n_seq=1, pause=0.01) as scheduler:
            asked = [Asked(scheduler, f"{i} {LONG}") for i in range(3)]
            time.sleep(0.05)
            call = scheduler.call(time.sleep, 0)
            scheduler.stop()
            assert all(each.done.is_set() and each.ends == 1 for each in asked)
            assert call.done()
            with pytest.raises(OverloadedError, match="shutting down"):
                Asked(scheduler, "Hi")
            with pytest.raises(OverloadedError):
                scheduler.call(time.sleep, 0).result(1)
        assert "kvbranch-engine" not in {t.name for t in threading.enumerate()}
