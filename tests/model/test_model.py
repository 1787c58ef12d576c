"""``kvllama`` from Python: sync, async, options, conversations."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref

import llm
import pydantic
import pytest
import sqlite_utils

from llm_kvbranch import model
from llm_kvbranch.chat import Event
from llm_kvbranch.store.store import Store

pytestmark = pytest.mark.model
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture
def kvllama(monkeypatch):
    "A model whose state is stored in the directory of this test"
    monkeypatch.setattr(model, "_sessions", {})
    return model.KVLlama()


@pytest.fixture
def async_kvllama(kvllama):
    return model.AsyncKVLlama()


@pytest.fixture
def db(tmp_path):
    return sqlite_utils.Database(tmp_path / "log.db")


def states(user_path):
    root = user_path / "kvbranch"
    return {e.state.response_id: e.state for e in Store(root).entries()}


class TestSync:
    "Fails if the Python API forgets a conversation or stores what is not logged"

    def test_streams(self, kvllama):
        response = kvllama.prompt("Count to ten.", **GREEDY)
        pieces = list(response)
        assert len(pieces) > 5
        assert "".join(pieces) == response.text()
        assert response.usage().output >= len(pieces)

    def test_registered(self):
        assert isinstance(llm.get_model("kvllama"), model.KVLlama)
        assert isinstance(llm.get_async_model("kvllama"), model.AsyncKVLlama)

    def test_conversation_remembers(self, kvllama):
        conversation = kvllama.conversation()
        first = conversation.prompt("My cat is called Miso.", **GREEDY)
        first.text()
        second = conversation.prompt("What is my cat called?", **GREEDY)
        assert "Miso" in second.text()
        assert second.token_details["cached_tokens"] >= first.input_tokens

    def test_reply(self, kvllama):
        first = kvllama.prompt("Name a colour.", **GREEDY)
        second = first.reply("Another?", options=GREEDY)
        second.text()
        assert second.token_details["cached_tokens"] >= first.input_tokens

    def test_stored_when_logged(self, kvllama, db, user_path):
        conversation = kvllama.conversation()
        one = conversation.prompt("One", **GREEDY)
        one.text()
        two = conversation.prompt("Two", **GREEDY)
        two.text()
        assert not states(user_path)
        for response in (one, two):
            response.log_to_db(db)
        stored = states(user_path)
        assert set(stored) == {one.id, two.id}
        assert stored[two.id].start == stored[one.id].end
        row = db["turns"].get(two.id)
        assert row["tip_message_hash"] == stored[two.id].tip_hash
        assert row["parent_message_hash"] == stored[two.id].input_hash

    def test_an_empty_answer(self, kvllama, db, user_path):
        first = kvllama.prompt("Say hello.", **GREEDY).text()[:1]
        conversation = kvllama.conversation()
        empty = conversation.prompt("Say hello.", stop=first, **GREEDY)
        assert empty.text() == ""
        empty.log_to_db(db)
        state = states(user_path)[empty.id]
        assert state.tip_hash == db["turns"].get(empty.id)["tip_message_hash"]
        conversation.prompt("Now?", **GREEDY).text()
        facts = conversation.responses[-1].response_json["kvbranch"]
        assert facts["miss_reason"] is None

    def test_not_stored_for_a_log_in_memory(self, kvllama, user_path):
        response = kvllama.prompt("One", **GREEDY)
        response.text()
        response.log_to_db(sqlite_utils.Database(memory=True))
        assert not states(user_path)

    def test_two_at_once_in_one_thread(self, kvllama):
        """Each continues its own conversation.

        Not word for word as if alone: llama.cpp rounds differently in a batch of
        several sequences. The tests with FakeEngine check the exact answers.
        """
        prompts = ("Name a fruit.", "Name the capital of France.")
        alone = [kvllama.prompt(p, **GREEDY).text() for p in prompts]
        first, second = (iter(kvllama.prompt(p, **GREEDY)) for p in prompts)
        texts = [next(first), next(second)]
        texts[0] += "".join(first)
        texts[1] += "".join(second)
        assert "Paris" in alone[1]
        assert "Paris" in texts[1]
        assert "Paris" not in texts[0]
        assert [t[:5] for t in texts] == [t[:5] for t in alone]

    def test_threads(self, kvllama):
        prompts = ["Name a tree.", "Name a bird.", "Name a river."]
        results = {}

        def run(prompt):
            results[prompt] = kvllama.prompt(prompt, **GREEDY).text()

        threads = [threading.Thread(target=run, args=[p]) for p in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 3
        assert all(results.values())


class TestAsync:
    "Fails if the async model differs from the sync one"

    async def test_same_answer(self, kvllama, async_kvllama):
        expected = kvllama.prompt("Name a fruit.", **GREEDY).text()
        response = async_kvllama.prompt("Name a fruit.", **GREEDY)
        pieces = [piece async for piece in response]
        assert "".join(pieces) == expected

    async def test_stored_when_logged(self, async_kvllama, db, user_path):
        response = async_kvllama.prompt("One", **GREEDY)
        await response.text()
        sync = await response.to_sync_response()
        assert not states(user_path)
        sync.log_to_db(db)
        assert set(states(user_path)) == {response.id}

    async def test_logged_directly(self, async_kvllama, db, user_path):
        response = async_kvllama.prompt("One", **GREEDY)
        await response.text()
        response.log_to_db(db)
        assert set(states(user_path)) == {response.id}

    async def test_several_at_once(self, async_kvllama):
        responses = [async_kvllama.prompt(f"Count {i}", **GREEDY) for i in range(3)]
        texts = await asyncio.gather(*(r.text() for r in responses))
        assert all(texts)

    async def test_cancelled(self, async_kvllama):
        response = async_kvllama.prompt("Tell me a long story.", temperature=0)
        task = asyncio.ensure_future(_text(response))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await async_kvllama.prompt("Hi", **GREEDY).text()


class TestMemory:
    "Fails if a response that is kept in a notebook keeps its model in memory"

    def test_a_logged_response_lets_the_engine_go(self, kvllama, db):
        response = kvllama.prompt("One", **GREEDY)
        response.text()
        (engine,) = (weakref.ref(s.engine) for s in model._sessions.values())
        response.log_to_db(db)
        assert response.commit_state() is None
        model._sessions.clear()
        gc.collect()
        assert engine() is None


class _Answer:
    "A generation of one piece, which waits for ``before`` and tells ``after``"

    name = "toy"

    def __init__(self, before, after):
        self.before, self.after = before, after
        self.facts = dict.fromkeys(
            ("prompt_tokens", "generated_tokens", "restored_tokens"), 1
        )
        self.facts["finish_reason"] = "stop"

    def __iter__(self):
        assert self.before is None or self.before.wait(20), "it was not answered"
        yield Event("text", "text")
        self.after.set()

    def cancel(self): ...


class TestAsyncTogether:
    "Fails if one prompt has to wait until another has its next piece"

    async def test_a_slow_one_does_not_hold_up_the_next(
        self, async_kvllama, monkeypatch
    ):
        quick_one_ended = threading.Event()
        answers = [
            _Answer(quick_one_ended, threading.Event()),
            _Answer(None, quick_one_ended),
        ]
        monkeypatch.setattr(async_kvllama, "_generation", lambda _: answers.pop(0))
        responses = [async_kvllama.prompt(text) for text in ("slow", "quick")]
        texts = await asyncio.gather(*map(_text, responses))
        assert texts == ["text", "text"]


async def _text(response):
    return await response.text()


class TestOptions:
    "Fails if an option is ignored or accepts nonsense"

    def test_max_tokens(self, kvllama):
        response = kvllama.prompt("Tell me a story.", temperature=0, max_tokens=5)
        response.text()
        assert response.usage().output == 5

    def test_stop(self, kvllama):
        whole = kvllama.prompt("Count: one, two, three, four", **GREEDY).text()
        stop = whole[8:11]
        text = kvllama.prompt("Count: one, two, three, four", stop=stop, **GREEDY)
        assert text.text() == whole[: whole.index(stop)]

    def test_several_stops_as_json(self, kvllama):
        options = kvllama.Options(stop='["a", "b"]')
        assert options.stop == ["a", "b"]

    def test_seed(self, kvllama):
        def ask(seed):
            return kvllama.prompt(
                "Invent a name.", temperature=1.5, seed=seed, max_tokens=16
            ).text()

        assert ask(1) == ask(1)
        assert len({ask(seed) for seed in range(4)}) > 1

    def test_penalties(self, kvllama):
        def ask(**options):
            prompt = "Repeat after me: the cat and the dog and the cow and the hen"
            return kvllama.prompt(prompt, **GREEDY, **options).text()

        plain = ask()
        assert ask(repeat_penalty=1.8) != plain
        assert ask(presence_penalty=2) != plain
        assert ask(frequency_penalty=2) != plain
        assert ask(repeat_penalty=1.8, repeat_last_n=0) == plain

    @pytest.mark.parametrize("kv_type", ["q8_0", "q8_0/q4_0", "f32"])
    def test_kv_types(self, kvllama, kv_type, db):
        conversation = kvllama.conversation()
        first = conversation.prompt("Name a fruit.", kv_type=kv_type, **GREEDY)
        assert first.text()
        first.log_to_db(db)
        second = conversation.prompt("And another?", kv_type=kv_type, **GREEDY)
        second.text()
        assert second.response_json["kvbranch"]["miss_reason"] is None

    def test_schema(self, kvllama):
        class Dog(pydantic.BaseModel):
            name: str
            age: int

        response = kvllama.prompt("A dog", schema=Dog, temperature=0, max_tokens=200)
        assert set(json.loads(response.text())) == {"name", "age"}

    def test_grammar(self, kvllama):
        response = kvllama.prompt(
            "Yes or no?", grammar='root ::= "yes" | "no"', **GREEDY
        )
        assert response.text() in ("yes", "no")

    def test_bad_grammar(self, kvllama):
        with pytest.raises(llm.ModelError, match="grammar"):
            kvllama.prompt("Hi", grammar="root ::= (", **GREEDY).text()

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": -1},
            {"top_p": 0},
            {"top_k": -2},
            {"max_tokens": 0},
            {"kv_type": "f17"},
            {"kv_type": "f16/f17"},
            {"n_batch": 1},
            {"nonsense": 1},
        ],
    )
    def test_refused(self, kvllama, options):
        with pytest.raises(pydantic.ValidationError):
            kvllama.Options(**options)

    def test_all_are_described(self, kvllama):
        for name, field in kvllama.Options.model_fields.items():
            assert field.description, name

    def test_n_batch_and_threads(self, kvllama):
        text = kvllama.prompt("Hi", n_batch=64, n_threads=1, **GREEDY).text()
        assert text
