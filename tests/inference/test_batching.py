"""Several generations in one context, step by step, as a server runs them.

Everything here runs on the FakeEngine, whose output depends on every row.
"""

from __future__ import annotations

import itertools
import random

import llm
import pytest

from llm_kvbranch.engine import Feed
from llm_kvbranch.errors import BusyError, ContextError
from llm_kvbranch.inference import generation as one_answer
from llm_kvbranch.inference import slots as cells
from llm_kvbranch.inference.nostore import NoStore
from llm_kvbranch.inference.session import Request
from llm_kvbranch.store.maintenance import verify
from llm_kvbranch.store.tokens import tokens_of

from ..support.fake import FakeSettings, fake_session, oracle
from ..support.life import user

DOCUMENT = "".join(chr(97 + i * i % 26) for i in range(900))
KINDS = [{}, {"recurrent": True}, {"window": 12}]


class Served:
    "Generations in one session, whose pieces are taken after every step"

    def __init__(self, session):
        self.session = session
        self.texts = {}

    def start(self, messages, **options):
        options.setdefault("max_tokens", 20)
        generation = self.session.generate(Request(messages=messages, **options))
        generation.start()
        self.texts[generation] = ""
        return generation

    def step(self):
        before = len(self.session.engine.decoded)
        self.session.step()
        for generation in self.texts:
            while generation.pieces:
                self.texts[generation] += generation.pieces.popleft().text
        return len(self.session.engine.decoded) - before

    def run(self, n_steps=10_000):
        for _ in range(n_steps):
            if not self.session.running:
                return
            self.step()
        raise AssertionError("it does not end")

    def check(self, generation):
        "The answer is that of an engine that runs nothing else"
        assert generation.ended
        if generation.error is not None:
            raise generation.error
        tokens, kind = generation.plan.tokens, self.session.engine.memory_kind
        answer = list(generation.tokens[generation.n_prompt :])
        assert answer == oracle(tokens, len(answer) + 64, **kind)[: len(answer)]
        assert self.texts[generation] or not answer


def served(root=None, n_seq=4, n_batch=16, **kind):
    settings = FakeSettings(n_batch=n_batch, n_seq=n_seq)
    return Served(fake_session(root, settings=settings, **kind))


class TestSharedPrefill:
    "Fails if a document in several prompts at once is prefilled for each of them"

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_prompt(self, kind):
        crowd = served(**kind)
        generations = [crowd.start([user(DOCUMENT)]) for _ in range(4)]
        crowd.run()
        for generation in generations:
            crowd.check(generation)
        n = generations[0].n_prompt
        assert sum(g.facts["prefilled_tokens"] for g in generations) <= n + 3
        assert {g.facts["prompt_tokens"] for g in generations} == {n}

    def test_other_questions_on_it(self):
        crowd = served()
        generations = [crowd.start([user(f"{DOCUMENT} {i}?")]) for i in range(4)]
        crowd.run()
        read = [g.facts["prefilled_tokens"] for g in generations]
        assert read[0] == generations[0].n_prompt
        assert max(read[1:]) < 10
        assert {g.facts["restored_tokens"] for g in generations[1:]} == {
            g.facts["resident_tokens"] for g in generations[1:]
        }
        for generation in generations:
            crowd.check(generation)

    def test_the_one_that_prefills_it_is_cancelled(self):
        crowd = served()
        first = crowd.start([user(DOCUMENT)])
        others = [crowd.start([user(f"{DOCUMENT} {i}?")]) for i in range(3)]
        for _ in range(7):
            crowd.step()
        first.cancel()
        crowd.run()
        assert first.finish_reason == "cancelled"
        for generation in others:
            crowd.check(generation)
        assert sum(g.facts["prefilled_tokens"] for g in others) < len(DOCUMENT)

    def test_the_one_that_is_ahead_is_waited_for(self, tmp_path):
        "Even if it started later: it restored more of the document"
        crowd = served(tmp_path)
        stored = crowd.start([user(DOCUMENT[:600])])
        crowd.run()
        stored.commit("r1")
        crowd = served(tmp_path)
        session = crowd.session
        held, session.planner.store = session.planner.store, NoStore()
        slow = crowd.start([user(DOCUMENT + " slow")])
        session.planner.store = held
        quick = crowd.start([user(DOCUMENT + " quick")])
        crowd.run()
        crowd.check(slow)
        crowd.check(quick)
        read = slow.facts["prefilled_tokens"] + quick.facts["prefilled_tokens"]
        assert read < slow.n_prompt - 250

    def test_they_share_cells_as_the_context_grows(self):
        crowd = served()
        first = crowd.start([user(DOCUMENT)], max_tokens=1)
        crowd.run()
        others = [crowd.start([user(f"{DOCUMENT} {i}?")]) for i in range(3)]
        crowd.run()
        engine = crowd.session.engine
        assert sum(map(len, engine.rows.values())) > 3 * first.n_prompt
        assert engine.n_cells < 2 * first.n_prompt
        before = engine.n_cells
        slots = crowd.session.slots
        assert slots._n_cells() == before
        slots._enlarge(engine.n_ctx + 10_000)
        assert engine.n_cells == slots._n_cells() == before
        for generation in others:
            crowd.check(generation)


class TestEveryOneGoesOn:
    "Fails if an answer or a prompt stands still while another prompt is prefilled"

    def test_answers_while_a_prompt_is_read(self):
        crowd = served()
        talking = crowd.start([user("Hello")], max_tokens=None)
        while not talking.is_answering:
            crowd.step()
        reading = crowd.start([user(DOCUMENT)])
        while not reading.is_answering and not talking.ended:
            before = talking.n_generated
            crowd.step()
            assert talking.n_generated > before or talking.ended

    def test_two_prompts(self):
        crowd = served()
        long = crowd.start([user(DOCUMENT)])
        crowd.step()
        short = crowd.start([user("Is it long?" * 4)])
        while not short.is_answering:
            crowd.step()
        assert not long.is_answering
        crowd.run()
        crowd.check(long)
        crowd.check(short)

    def test_what_is_not_taken_is_not_computed(self):
        crowd = served()
        unread = crowd.start([user("Hello")], max_tokens=None)
        for _ in range(50):
            crowd.session.step()
        assert len(unread.pieces) == 1
        assert unread.n_generated <= 3


class TestRoom:
    "Fails if a generation takes cells that another has reserved"

    def test_rows_shared_behind_others_are_counted_after_it_grew(self):
        """Fails if cells are counted once that a larger context has twice.

        Two slots began alike in cells of their own, and share what follows. A new
        context keeps shared rows shared only where slots share them from the start.
        """
        slots = served(n_seq=3, n_batch=64).session.slots
        engine, tokens = slots.engine, tokens_of(range(300, 340))
        first, second, third = slots.all()
        first.busy = second.busy = True  # idle slots would give way
        for slot, end in ((first, 40), (second, 10)):
            slots.reserve(slot, end)
            engine.decode([Feed(slot.seq, 0, tokens[:end])])
            slot.append(tokens[:end], bytes(end))
        assert slots.share_prefix(second, tokens) == 29
        slots.reserve(third, engine.n_ctx + 1)
        assert slots.n_used() == engine.n_cells
        assert engine.n_ctx == engine.n_cells + third.reserved

    def test_a_reading_one_keeps_its_cells(self):
        crowd = served(n_seq=3)
        first = crowd.start([user(DOCUMENT)], max_tokens=5)
        others = [
            crowd.start([user(f"{i} {DOCUMENT}")], max_tokens=5) for i in range(2)
        ]
        crowd.run()
        for generation in (first, *others):
            crowd.check(generation)

    def test_cells_are_not_counted_for_each_file(self, tmp_path):
        "Fails if all answers stop while a chain of many files is restored"
        crowd, said = served(tmp_path), []
        for i in range(20):
            said.append(user(f"Question {i}"))
            answer = crowd.start(said, max_tokens=5)
            crowd.run()
            answer.commit(f"r{i}")
            said.append(llm.assistant(answer.text))
        crowd = served(tmp_path)
        slots, n_counted = crowd.session.slots, 0
        count = slots.n_used

        def counted():
            nonlocal n_counted
            n_counted += 1
            return count()

        slots.n_used = counted
        answer = crowd.start([*said, user("And then?")])
        n_at_start = n_counted  # by then all is restored
        crowd.run()
        crowd.check(answer)
        assert answer.facts["restored_tokens"] > 200
        assert n_at_start < 5

    def test_a_limit(self):
        crowd = served()
        crowd.session.slots.max_cells = 700
        first = crowd.start([user(DOCUMENT)], max_tokens=5)
        with pytest.raises(BusyError, match="wait for one to finish"):
            crowd.start([user(DOCUMENT[::-1])], max_tokens=5)
        crowd.run()
        crowd.check(first)
        second = crowd.start([user(DOCUMENT[::-1])], max_tokens=5)
        crowd.run()
        crowd.check(second)
        with pytest.raises(ContextError, match="do not fit the context of 700"):
            crowd.start([user(DOCUMENT * 3)], max_tokens=5)
        assert not crowd.session.running

    def test_an_answer_that_has_no_more_room_ends(self, monkeypatch):
        monkeypatch.setattr(one_answer, "HEADROOM", 1)
        monkeypatch.setattr(cells, "HEADROOM", 1)
        reasons = set()
        for i in range(20):
            crowd = served()
            crowd.session.slots.max_cells = 40
            answer = crowd.start([user(f"Hello {i}")], max_tokens=None)
            crowd.run()
            crowd.check(answer)
            assert answer.end <= 40
            reasons.add(answer.finish_reason)
        assert reasons == {"context", "stop"}

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_context_grows_for_one_of_several(self, monkeypatch, kind):
        "Fails if the others draw their tokens after that: the logits are gone then"
        monkeypatch.setattr(one_answer, "HEADROOM", 1)
        monkeypatch.setattr(cells, "HEADROOM", 1)
        crowd = served(**kind)
        generations = [
            crowd.start([user(f"Hello {i}")], max_tokens=None) for i in range(4)
        ]
        crowd.run()
        for generation in generations:
            crowd.check(generation)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_grows_when_a_prompt_was_just_begun(self, kind):
        """Fails if the rows of the prompt's first batch are lost.

        They are decoded, but not in the slot's tokens yet when the answer beside it
        makes the context grow.
        """
        crowd = served(n_batch=64, **kind)
        slots, engine = crowd.session.slots, crowd.session.engine
        answer = crowd.start([user("Hello 1")], max_tokens=None)
        while not answer.is_answering:
            crowd.step()
        begun, advance = crowd.start([user(DOCUMENT)]), answer.advance
        before = len(engine.decoded)

        def grow_and_advance(done):
            if len(begun.slot.tokens) < engine.length(begun.slot.seq):
                slots._enlarge(engine.n_ctx + 100)
            advance(done)

        answer.advance, n_ctx = grow_and_advance, engine.n_ctx
        crowd.step()
        assert engine.n_ctx == n_ctx + 100
        assert len(begun.slot.tokens) == engine.length(begun.slot.seq) > 0
        while not begun.is_answering:
            crowd.step()
        assert len(engine.decoded) - before <= begun.n_prompt + answer.n_generated
        crowd.run()
        crowd.check(answer)
        crowd.check(begun)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", range(4))
    def test_rows_lost_with_a_context_are_decoded_again(self, monkeypatch, kind, seed):
        "Fails if a running answer goes on from a sequence that has become empty"
        monkeypatch.setattr(one_answer, "HEADROOM", 1)
        monkeypatch.setattr(cells, "HEADROOM", 1)
        crowd, draw = served(**kind), random.Random(seed)
        engine = crowd.session.engine
        reserve = engine.reserve

        def lossy(n_cells, live=()):
            grows = n_cells > engine.n_ctx
            reserve(n_cells, live)
            for seq in range(4) if grows else ():
                if draw.random() < 0.3:
                    engine.cut(seq, 0)

        engine.reserve = lossy
        texts = [f"Hello {i}" * 30 ** (i % 2) for i in range(4)]
        generations = []
        for text in texts:
            generations.append(crowd.start([user(text)], max_tokens=30))
            crowd.step()
            crowd.step()
        crowd.run()
        for generation in generations:
            crowd.check(generation)

    def test_rows_lost_before_they_are_stored(self, monkeypatch, tmp_path):
        "The answer is not stored, and the next prompt does not use its slot's rows"
        monkeypatch.setattr(cells, "HEADROOM", 1)
        crowd = served(tmp_path)
        engine, warnings = crowd.session.engine, []
        crowd.session.warn = warnings.append
        first = crowd.start([user("Hello")], max_tokens=5)
        crowd.run()
        slot, reserve = first.slot, engine.reserve

        def lossy(n_cells, live=()):
            reserve(n_cells, live)
            engine.cut(slot.seq, 0)

        engine.reserve = lossy
        crowd.session.slots._enlarge(engine.n_ctx + 1)
        assert not slot.tokens
        assert first.commit("r1") is None
        assert "left memory" in warnings[0]

    def test_shared_rows_are_counted_once(self):
        crowd = served()
        crowd.session.slots.max_cells = 700
        generations = [
            crowd.start([user(f"{DOCUMENT} {i}?")], max_tokens=5) for i in range(1)
        ]
        crowd.step()
        crowd.run()
        generations += [
            crowd.start([user(f"{DOCUMENT} {i}?")], max_tokens=5) for i in range(1, 4)
        ]
        crowd.run()
        for generation in generations:
            crowd.check(generation)


class TestDisturbance:
    "Fails if what happens to one generation harms another"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", range(6))
    def test_any_order(self, tmp_path, kind, seed):
        "Generations start, end, commit and are interrupted at random"
        draw = random.Random(seed)
        crowd, ids = served(tmp_path, **kind), itertools.count()
        known, cancelled = [[user(DOCUMENT)], [llm.system("Be brief")]], set()
        for _ in range(300):
            running = crowd.session.running
            if draw.random() < 0.15 and len(running) < 4:
                before = draw.choice(known)
                question = user("".join(draw.choices("abc ", k=draw.randint(1, 90))))
                crowd.start([*before, question], max_tokens=draw.randint(1, 40))
            elif draw.random() < 0.03 and running:
                cancelled.add(chosen := draw.choice(running))
                chosen.cancel()
            elif draw.random() < 0.03:
                interrupted(crowd.session)
            crowd.step()
            for generation in [g for g in crowd.texts if g.ended]:
                text = crowd.texts[generation]
                if generation in cancelled and not generation.tokens:
                    del crowd.texts[generation]
                    continue
                crowd.check(generation)
                if draw.random() < 0.7:
                    generation.commit(f"r{next(ids)}")
                    answer = [llm.assistant(text)] if text else []
                    known.append([*generation.request.messages, *answer])
                del crowd.texts[generation]
        crowd.run()
        assert not list(verify(crowd.session.store))

    def test_one_that_nobody_reads_to_its_end(self):
        crowd = served()
        pieces = iter(left := crowd.session.generate(Request([user("Hello")])))
        next(pieces)
        pieces.close()
        assert left.ended
        assert left.finish_reason == "cancelled"

    def test_an_error_ends_its_own_generation_only(self):
        crowd = served()
        good = crowd.start([user("Hello")])
        bad = crowd.start([user("Hi")])
        bad.draw = _fail
        crowd.run()
        crowd.check(good)
        assert "no token" in str(bad.error)
        with pytest.raises(RuntimeError, match="no token"):
            crowd.session.next_event(bad)
        assert all(not slot.busy for slot in crowd.session.slots._slots)

    def test_ctrl_c_while_tokens_are_drawn(self):
        "Fails if the generations after it in the batch lose their tokens"
        crowd = served()
        stopped, others = crowd.start([user("Hi")]), []
        others += [crowd.start([user(f"Hello {i}")]) for i in range(2)]
        stopped.draw = _interrupt
        with pytest.raises(KeyboardInterrupt):
            crowd.run()
        assert stopped.ended
        crowd.run()
        for generation in others:
            crowd.check(generation)

    def test_a_batch_that_cannot_be_decoded(self):
        crowd = served()
        generations = [crowd.start([user(f"Hello {i}")]) for i in range(2)]
        decode = crowd.session.engine.decode
        crowd.session.engine.decode = _fail
        crowd.session.step()
        crowd.session.engine.decode = decode
        assert all("no token" in str(g.error) for g in generations)
        again = crowd.start([user("Hello")])
        crowd.run()
        crowd.check(again)


def _fail(*_):
    raise RuntimeError("no token")


def _interrupt(*_):
    raise KeyboardInterrupt


def interrupted(session):
    "A step that ends with KeyboardInterrupt after the batch was decoded"
    decode = session.engine.decode

    def interrupt(feeds, stop=None):
        decode(feeds, stop)
        raise KeyboardInterrupt

    session.engine.decode = interrupt
    try:
        session.step()
    except KeyboardInterrupt:
        pass
    finally:
        session.engine.decode = decode
