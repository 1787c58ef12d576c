"""The engine in a process of its own: what ends it, and what its answers see of that.

The processes are real and have a real model, if a very small one. They are ended by
signals, and by code that a test puts into them with a ``sitecustomize`` module.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch import errors
from llm_kvbranch.chat import Call, Part, json_grammar
from llm_kvbranch.engine import Load, Rope, Sampling, Settings
from llm_kvbranch.errors import (
    ContextError,
    EngineError,
    KVBranchError,
    ModelLoadError,
    OverloadedError,
    UnavailableError,
)
from llm_kvbranch.inference import Host, Opening, Request
from llm_kvbranch.inference.host import host as host_module
from llm_kvbranch.inference.host import process as host_process
from llm_kvbranch.inference.host import wire
from llm_kvbranch.inference.host.board import Board, Work
from llm_kvbranch.inference.host.suspects import Suspects
from llm_kvbranch.inference.request import Resumed
from llm_kvbranch.inference.turns import answer_hash
from llm_kvbranch.store import Store, verify

from ..support import synth

PATIENCE = 60
GREEDY = Sampling(temperature=0)
IDS = [f"01jzzzzzzzzzzzzzzzzzzzzz{n:02}" for n in range(32)]


@pytest.fixture(scope="module")
def toy_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("toys") / "llama.gguf"
    return synth.write("llama", path)


class Hosted:
    "A host, its warnings, and answers that record what they receive"

    def __init__(self, path: Path, root: Path | None, **more):
        settings = Settings(n_threads=1, n_seq=more.pop("n_seq", 4), flash_attn="off")
        self.warnings: list[str] = []
        self.host = Host(
            Opening(Load(path), settings, root, **more), self.warnings.append
        )

    def ask(self, text, max_tokens=40, sampling=GREEDY, **more) -> Asked:
        request = Request(
            [llm.user(text)], sampling=sampling, max_tokens=max_tokens, **more
        )
        return Asked(self.host, request)

    @property
    def pid(self) -> int:
        return self.host._process._process.pid

    def hit(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Asked:
    def __init__(self, host, request):
        self.pieces: list[str] = []
        self.times: list[float] = []
        self.n_ends = 0
        self._done = threading.Event()
        self.answer = host.submit(request, self._listen)

    def _listen(self, answer, events):
        assert not self.n_ends, "told something after the end"
        self.pieces.append("".join(event.text for event in events))
        self.times.append(time.monotonic())
        if answer.ended:
            self.n_ends += 1
            self._done.set()

    def until(self, n: int) -> Asked:
        "Wait until n pieces have come"
        deadline = time.monotonic() + PATIENCE
        while len(self.pieces) < n:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self

    @property
    def text(self) -> str:
        assert self._done.wait(PATIENCE), "it did not end"
        if self.answer.error is not None:
            raise self.answer.error
        return "".join(self.pieces)


@contextlib.contextmanager
def hosted(path, root=None, **more):
    running = Hosted(path, root, **more)
    try:
        yield running
    finally:
        assert running.host.stop(5)


@pytest.fixture
def running(toy_path, root):
    with hosted(toy_path, root) as running:
        yield running


def template_of(name: str) -> str:
    return (Path(synth.__file__).parent / "templates" / f"{name}.jinja").read_text()


def patched(monkeypatch, folder, code: str) -> None:
    "Have the engine's processes run some code when they start"
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


class TestAnswers:
    "Fails if an answer of another process differs from one of this"

    def test_one(self, running):
        asked = running.ask("Tell me about the sea")
        text, answer = asked.text, asked.answer
        assert len(asked.pieces) > 1
        assert answer.facts["generated_tokens"] == len(answer.tokens)
        assert answer.finish_reason == answer.facts["finish_reason"]
        assert "restarts" not in answer.facts
        assert running.ask("Tell me about the sea").text == text
        assert running.host.commit(answer, IDS[0]).result(PATIENCE) is True
        assert not running.warnings

    def test_an_error_keeps_its_class(self, running):
        with pytest.raises(ContextError, match="tokens long"):
            assert running.ask("word " * 9000, n_ctx=100).text
        with pytest.raises(KVBranchError, match="grammar cannot be used"):
            assert running.ask("Hi", sampling=Sampling(grammar="root ::= (")).text
        assert running.ask("Hi").text

    def test_a_schema_is_made_a_grammar_there(self, running):
        constraint = json_grammar({"type": "boolean"})
        sampling = Sampling(temperature=0, constraint=constraint)
        said = running.ask("Hi", sampling=sampling).text
        assert said in ("true", "false")

    def test_too_many(self, toy_path):
        with hosted(toy_path, n_seq=1, n_waiting=1) as running:
            first = running.ask("One", max_tokens=200).until(2)
            second = running.ask("Two")
            with pytest.raises(OverloadedError) as raised:
                assert running.ask("Three").text
            assert raised.value.retry_after >= 1
            assert first.text
            assert second.text

    def test_cancelled(self, running):
        asked = running.ask("Tell me", max_tokens=2000).until(3)
        running.host.cancel(asked.answer)
        assert asked.text
        assert asked.answer.finish_reason == "cancelled"
        assert asked.answer.facts["generated_tokens"] < 2000

    async def test_pieces(self, running):
        request = Request([llm.user("Tell me")], sampling=GREEDY, max_tokens=20)
        text, answers = "", set()
        async for answer, event in running.host.stream(request):
            answers.add(answer)
            text += event.text if event is not None else ""
        (answer,) = answers
        assert answer.ended
        assert answer.facts["queue_ms"] >= 0
        assert text == running.ask("Tell me", 20).text

    async def test_leaving_cancels(self, running):
        request = Request([llm.user("Tell me" * 500)], max_tokens=2000)
        async with contextlib.aclosing(running.host.stream(request)) as pieces:
            answer, _ = await anext(pieces)
            await asyncio.sleep(0.02)
        while not answer.ended:
            await asyncio.sleep(0.001)
        assert answer.finish_reason == "cancelled"

    async def test_errors(self, running):
        request = Request([llm.user("word " * 9000)], n_ctx=100)
        with pytest.raises(ContextError):
            async for _ in running.host.stream(request):
                pass

    async def test_status(self, running):
        asked = running.ask("Tell me", max_tokens=400).until(2)
        told = await running.host.status()
        assert [slot["state"] for slot in told["slots"]].count("answering") == 1
        assert told["n_running"] == 1
        running.host.cancel(asked.answer)
        assert asked.text
        running.host.commit(asked.answer, IDS[1]).result(PATIENCE)
        told = await running.host.status()
        assert IDS[1] in [slot["response_id"] for slot in told["slots"]]
        assert told["counts"]["ended cancelled"] == 1

    def test_what_nobody_commits_is_forgotten(self, running):
        "Its state would stay in memory for ever"
        asked = running.ask("Tell me")
        assert asked.text
        number = asked.answer.number
        del asked
        assert running.ask("And now").text  # which replaces the last answer's facts
        deadline = time.monotonic() + 10
        while running.host._dropped:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert number not in running.host._answers

    def test_it_ends_with_its_host(self, tmp_path, toy_path):
        "Even with one that is killed"
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from llm_kvbranch.engine import Load, Settings\n"
            "from llm_kvbranch.inference import Host, Opening\n"
            "host = Host(Opening(Load(Path(sys.argv[1])), Settings()), print)\n"
            "print(host._process._process.pid, flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(toy_path)],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        pid, deadline = int(told.stdout), time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() if Path("/proc").exists() else False:
            stat = Path(f"/proc/{pid}/stat").read_text()
            if ") Z" in stat:  # nobody reaps it here
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)


class TestEnds:
    "Fails if what ends the engine's process ends, changes or loses an answer"

    @pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
    def test_in_the_middle_of_an_answer(self, running, name):
        expected = running.ask("Tell me about the sea", max_tokens=120).text
        asked = running.ask("Tell me about the sea", max_tokens=120).until(20)
        running.hit(getattr(signal, name))
        assert asked.text == expected
        assert asked.n_ends == 1
        assert asked.answer.facts["restarts"] == 1
        assert asked.answer.facts["generated_tokens"] == len(asked.answer.tokens)
        assert running.host.n_restarts == 1
        (warning,) = running.warnings
        assert name in warning

    def test_a_seeded_answer_goes_on_with_the_same_words(self, running):
        "Fails if random numbers begin again with the engine"
        seeded = Sampling(temperature=1.5, seed=11)
        expected = running.ask("Tell me", max_tokens=120, sampling=seeded).text
        asked = running.ask("Tell me", max_tokens=120, sampling=seeded).until(20)
        running.hit(signal.SIGKILL)
        assert asked.text == expected
        assert running.host.n_restarts == 1

    def test_before_the_first_token(self, running):
        expected = running.ask("Tell me " * 300).text
        for _ in range(2):
            asked = running.ask("Now tell me " * 300)
            running.hit(signal.SIGKILL)
            assert asked.text == running.ask("Now tell me " * 300).text
        assert running.ask("Tell me " * 300).text == expected

    def test_when_nobody_asks(self, running):
        running.hit(signal.SIGSEGV)
        assert running.ask("Tell me").text

    def test_between_the_answer_and_its_log(self, running, root):
        "The state is computed again, and stored"
        asked = running.ask("Tell me about the sea", max_tokens=60)
        expected = asked.text
        running.hit(signal.SIGKILL)
        assert running.host.commit(asked.answer, IDS[0]).result(PATIENCE) is True
        with contextlib.closing(Store(root)) as store:
            (entry,) = store.entries()
            assert entry.state.response_id == IDS[0]
            assert entry.state.end == asked.answer.facts["state_end"]
            assert not list(verify(store))
        again = running.ask("Tell me about the sea", max_tokens=60)
        assert again.text == expected

    def test_while_calls_wait(self, running):
        asked = running.ask("Tell me", max_tokens=200).until(2)
        os.kill(running.pid, signal.SIGSTOP)
        calls = [
            running.host.tail("one two three", 2),
            running.host.place("one two three", 0, 2),
            running.host.prune([IDS[9]], True),
            running.host.alive(),
        ]
        running.hit(signal.SIGKILL)
        assert calls[0].result(PATIENCE).endswith("e")
        assert calls[1].result(PATIENCE)[0] == 0
        assert calls[2].result(PATIENCE) == {"states": 0, "nbytes": 0, "kept": []}
        assert calls[3].result(PATIENCE) is None
        assert asked.text

    def test_after_a_cancellation(self, running):
        asked = running.ask("Tell me", max_tokens=500).until(5)
        os.kill(running.pid, signal.SIGSTOP)
        running.host.cancel(asked.answer)
        running.hit(signal.SIGKILL)
        assert asked.text
        assert asked.answer.finish_reason == "cancelled"
        assert asked.answer.facts["generated_tokens"] == len(asked.answer.tokens)

    def test_a_call_of_a_tool_keeps_its_id(self, toy_path, root):
        "For clients were told that id, and llm's hash of the message has it"
        tool = {
            "type": "function",
            "function": {"name": "look", "description": "", "parameters": {}},
        }
        text = '{"name": "look", "arguments": {}}'
        grammar = 'root ::= "' + text.replace('"', '\\"') + '"'
        sampling = Sampling(temperature=0, grammar=grammar)
        with hosted(toy_path, root, template=template_of("qwen3")) as running:
            asked = running.ask("Hi", 200, sampling, tools=(tool,))
            assert asked.text == ""
            (call,) = calls = asked.answer.calls
            assert call.name == "look"
            running.hit(signal.SIGKILL)
            assert running.host.commit(asked.answer, IDS[0]).result(PATIENCE)
        with contextlib.closing(Store(root)) as store:
            (entry,) = store.entries()
        state = entry.state
        assert state.tip_hash == answer_hash(
            [Part("call", call=call) for call in calls], state.input_hash
        )

    def test_stopped(self, running, monkeypatch):
        "SIGSTOP, or a machine that swaps: it is told to go on, and does"
        monkeypatch.setattr(host_process, "_CONTINUE_SECONDS", 1.0)
        expected = running.ask("Tell me about the sea", max_tokens=120).text
        asked = running.ask("Tell me about the sea", max_tokens=120).until(20)
        running.hit(signal.SIGSTOP)
        assert asked.text == expected
        assert running.host.n_restarts == 0

    def test_stopped_for_good(self, running, monkeypatch):
        monkeypatch.setattr(host_process, "_CONTINUE_SECONDS", 1e9)
        monkeypatch.setattr(host_process, "SILENT_SECONDS", 2.0)
        expected = running.ask("Tell me about the sea", max_tokens=120).text
        asked = running.ask("Tell me about the sea", max_tokens=120).until(20)
        running.hit(signal.SIGSTOP)
        assert asked.text == expected
        assert running.host.n_restarts == 1
        assert "no sign of life" in running.warnings[0]

    def test_several_at_random_moments(self, running, root):
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        prompts = [f"{'Tell me ' * (5 + 20 * i)} about {i}" for i in range(4)]
        expected = [running.ask(each, 150) for each in prompts]
        expected = [each.text for each in expected]
        asked = [running.ask(each, 150) for each in prompts]
        while not all(each.n_ends for each in asked):
            time.sleep(chance.uniform(0.2, 1.5))
            running.hit(chance.choice([signal.SIGSEGV, signal.SIGKILL]))
        assert [each.text for each in asked] == expected, seed
        for i, each in enumerate(asked):
            assert running.host.commit(each.answer, IDS[i]).result(PATIENCE), seed
        with contextlib.closing(Store(root)) as store:
            assert {e.state.response_id for e in store.entries()} == set(IDS[:4])
            assert not list(verify(store))


_DEADLY = """
import os, time
from llm_kvbranch.inference.generation import Generation
draw = Generation.draw
def deadly(self, index):
    words = self.request.messages[-1].parts[0].text
    if self.n_generated == 5 and "deadly" in words:
        os.abort()
    if self.n_generated == 5 and "endless" in words:
        time.sleep(600)
    return draw(self, index)
Generation.draw = deadly
"""


class TestBlame:
    "Fails if a request that ends the engine each time is tried for ever"

    def test_one_among_others(self, toy_path, root, tmp_path, monkeypatch):
        patched(monkeypatch, tmp_path, _DEADLY)
        with hosted(toy_path, root) as running:
            good = [running.ask(f"Tell me {i}", 100) for i in range(2)]
            deadly = running.ask("A deadly one", 100)
            with pytest.raises(EngineError, match=r"drawing a token.*SIGABRT"):
                assert deadly.text
            assert deadly.pieces  # what came before
            assert deadly.n_ends == 1
            assert running.host.n_restarts == 2
            alone = [running.ask(f"Tell me {i}", 100) for i in range(2)]
            assert [each.text for each in good] == [each.text for each in alone]

    def test_one_without_end(self, toy_path, tmp_path, monkeypatch):
        limit = "from llm_kvbranch.inference.host import board\n"
        limit += 'board.SECONDS["draw"] = 3.0\n'
        patched(monkeypatch, tmp_path, limit + _DEADLY)
        with hosted(toy_path) as running:
            good = running.ask("Tell me", 100)
            endless = running.ask("An endless one", 100)
            with pytest.raises(EngineError, match="took more than 3 s"):
                assert endless.text
            assert good.text
            assert running.host.n_restarts == 2

    def test_text(self, toy_path, tmp_path, monkeypatch):
        "Reading what a token spells can end the engine as well"
        patched(
            monkeypatch,
            tmp_path,
            "import os\n"
            "from llm_kvbranch.inference.text import TextStream\n"
            "feed = TextStream.feed\n"
            "def deadly(self, piece, *more, **named):\n"
            "    self.n = getattr(self, 'n', 0) + 1\n"
            "    if self.n == 5 and self._stop == ('deadly',):\n"
            "        os.abort()\n"
            "    return feed(self, piece, *more, **named)\n"
            "TextStream.feed = deadly\n",
        )
        with hosted(toy_path) as running:
            good = running.ask("Tell me", 60)
            with pytest.raises(EngineError, match="writing a token's text"):
                assert running.ask("Tell me", 60, stop=("deadly",)).text
            assert good.text
            assert running.host.n_restarts == 2

    def test_a_batch(self, toy_path, tmp_path, monkeypatch):
        "All in it are suspects, and tried one after the other"
        patched(
            monkeypatch,
            tmp_path,
            "import os\n"
            "from llm_kvbranch.inference.session import Session\n"
            "decode = Session._decode\n"
            "def deadly(self, batch):\n"
            "    for g, _ in batch:\n"
            "        words = g.request.messages[-1].parts[0].text\n"
            "        if g.n_generated == 5 and 'deadly' in words:\n"
            "            self.engine.decode = lambda *_: os.abort()\n"
            "    return decode(self, batch)\n"
            "Session._decode = deadly\n",
        )
        with hosted(toy_path) as running:
            asked = [
                running.ask(f"{'A deadly one' if i == 1 else 'Tell me'} {i}", 60)
                for i in range(4)
            ]
            with pytest.raises(EngineError, match="decoding"):
                assert asked[1].text
            for i in (0, 2, 3):
                assert asked[i].text
                assert asked[i].n_ends == 1
            assert running.host.n_restarts <= 6

    def test_it_does_not_start_again(self, toy_path, tmp_path, monkeypatch):
        "Requests are refused with a word why, until it does"
        monkeypatch.setattr(host_module, "_PAUSES", (0.0, 0.1))
        path = tmp_path / "model.gguf"
        path.write_bytes(toy_path.read_bytes())
        with hosted(path) as running:
            assert running.ask("Tell me").text
            path.rename(tmp_path / "elsewhere")
            asked = running.ask("Tell me", 2000).until(2)
            running.hit(signal.SIGKILL)
            with pytest.raises(UnavailableError, match="does not start"):
                assert asked.text
            with pytest.raises(UnavailableError, match="does not start"):
                assert running.ask("Tell me").text
            (tmp_path / "elsewhere").rename(path)
            assert running.ask("Tell me").text
            assert len(running.warnings) == running.host.n_restarts == 1

    def test_it_never_starts(self, tmp_path):
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF")
        before = threading.active_count()
        with pytest.raises(ModelLoadError):
            Host(Opening(Load(path), Settings()), print)
        deadline = time.monotonic() + 10
        while threading.active_count() > before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_it_dies_while_it_starts(self, toy_path, tmp_path, monkeypatch):
        patched(monkeypatch, tmp_path, "import os\nos._exit(7)\n")
        with pytest.raises(EngineError, match="exit code 7"):
            Host(Opening(Load(toy_path), Settings()), print)


class TestSuspects:
    "Fails if who is innocent is refused, or who is guilty tried for ever"

    def test_another_place_is_an_accident(self):
        suspects = Suspects()
        for place in range(100):
            verdict = suspects.judge(Work("draw", places=((1, place),)))
            assert not verdict.refused
            assert not verdict.suspected

    def test_the_same_place_is_not(self):
        suspects = Suspects()
        assert not suspects.judge(Work("draw", places=((1, 7),))).refused
        assert suspects.judge(Work("draw", places=((1, 7),))).refused == {1}

    def test_other_work_at_that_place_is(self):
        suspects = Suspects()
        suspects.judge(Work("draw", places=((1, 7),)))
        assert not suspects.judge(Work("sampler", places=((1, 7),))).refused

    def test_prompts_are_decoded_in_few_batches(self):
        "Two accidents in the same one say little"
        suspects, work = Suspects(), Work("decode", places=((1, 0),))
        for _ in range(3):
            assert not suspects.judge(work).refused
        assert suspects.judge(work).refused == {1}

    def test_nobody_is_to_blame_for_nothing(self):
        suspects = Suspects()
        for _ in range(9):
            assert suspects.judge(Work("call")) == suspects.judge(Work())

    @given(st.integers(1, 8), st.integers(0, 7), st.randoms())
    def test_the_guilty_one_is_found(self, n, guilty, chance):
        "And no other, among requests that otherwise get on"
        guilty %= n
        suspects, alive = Suspects(), set(range(n))
        places, held = dict.fromkeys(range(n), 0), []
        for _ in range(40):
            runs = [i for i in alive if i not in held]
            if guilty not in runs:  # those that run get on, and the next is tried
                for i in runs:
                    places[i] += 1
                held = held[1:]
                continue
            work = Work("decode", places=tuple((i, places[i]) for i in runs))
            verdict = suspects.judge(work)
            if verdict.refused:
                break
            held = verdict.suspected[1:] or held
            for i in runs:
                if i != guilty:
                    places[i] += chance.randint(0, 1) if len(runs) > 1 else 1
        assert guilty in verdict.refused


class TestBoard:
    "Fails if the host reads what the engine did not write"

    def test_what_is_written_is_read(self):
        board = Board()
        seen = Board(board.path)
        board.remove()
        assert seen.read() == Work()
        board.write("decode", [(3, 40), (1 << 40, 0)], 60.0)
        work = seen.read()
        assert (work.name, work.places) == ("decode", ((3, 40), (1 << 40, 0)))
        assert work.is_endless(time.monotonic() + 61)
        assert not work.is_endless(time.monotonic() + 59)
        board.write("wait", (), float("inf"))
        assert not seen.read().is_endless(1e300)
        board.write("decode", [(i, i) for i in range(100)], 1.0)
        assert len(seen.read().places) == 64
        board.beat()
        assert seen.last_beat() <= time.monotonic()

    def test_never_half_of_it(self):
        board = Board()
        seen, stop = Board(board.path), threading.Event()
        board.remove()

        def write():
            n = 0
            while not stop.is_set():
                n += 1
                board.write("decode", [(n, n)] * (n % 64), float(n))

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(20_000):
                work = seen.read()
                assert len(set(work.places)) <= 1
                if work.places:
                    assert work.places[0][0] == work.seconds
        finally:
            stop.set()
            thread.join()


class TestWire:
    "Fails if something is not the same on the other side"

    def test_requests(self):
        messages = [
            llm.system("Be short"),
            llm.user("Hi \U0001f600\x00"),
            llm.assistant("Yes"),
        ]
        request = Request(
            messages,
            Sampling(temperature=0.5, seed=7, grammar="root ::= [a]", top_k=3),
            max_tokens=9,
            stop=("a", "b"),
            n_ctx=100,
            tools=({"type": "function", "function": {"name": "x"}},),
            values={"enable_thinking": False, "reasoning_effort": "low"},
            date="2026-01-31",
            think="low",
            effort="high",
            keep_thinking=True,
            thinking_budget=100,
            resumed=Resumed(
                (1, 2), "stop", (Call("1", "x", {"y": [1]}),), "<|im_end|>"
            ),
            number=5,
            must_call=("x",),
            parallel_calls=False,
        )
        plain = Request(messages, Sampling())
        same = [
            each.name
            for each in dataclasses.fields(Request)
            if getattr(request, each.name) == getattr(plain, each.name)
        ]
        assert same == ["messages"]  # each field says something
        data = json.loads(wire.to_line(wire.request_to_json(request)))
        again = wire.request_of(data)
        assert [m.to_dict() for m in again.messages] == [m.to_dict() for m in messages]
        assert again.__dict__ | {"messages": messages} == request.__dict__

    def test_openings(self):
        opening = Opening(
            Load(Path("a.gguf"), 3, 1, "row", (0.5, 0.5), ((Path("b"), 0.5),)),
            Settings(type_k="q8_0", rope=Rope(freq_base=1e6)),
            Path("/store"),
            7,
            "name",
            "template",
            100,
            2,
        )
        data = json.loads(wire.to_line(wire.opening_to_json(opening)))
        assert wire.opening_of(data) == opening
        plain = Opening(Load(Path("a.gguf")), Settings())
        data = json.loads(wire.to_line(wire.opening_to_json(plain)))
        assert wire.opening_of(data) == plain

    def test_every_error(self):
        kinds = [
            each
            for each in vars(errors).values()
            if isinstance(each, type) and issubclass(each, KVBranchError)
        ]
        assert len(kinds) > 10
        for kind in kinds:
            if issubclass(kind, OverloadedError):
                error = kind("why", 3)
            elif kind is errors.AmbiguousExcerptError:
                error = kind("why", "where")
            else:
                error = kind("why")
            again = wire.error_of(wire.error_to_json(error))
            assert str(again) == str(error)
            assert isinstance(again, KVBranchError)
            if kind is not errors.AmbiguousExcerptError:
                assert type(again) is kind
        assert getattr(again, "retry_after", 3) == 3

    def test_the_text_of_an_unforeseen_one_stays_there(self):
        "It may contain a prompt"
        told = wire.error_to_json(ValueError("a secret"))
        assert "secret" not in str(told)
        assert not isinstance(wire.error_of(told), KVBranchError)
