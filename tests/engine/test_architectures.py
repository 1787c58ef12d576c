"""Stored state on every kind of memory that llama.cpp has.

The idea: how state can be reused depends on the architecture. Attention can be cut
anywhere. A sliding window or a recurrent state can only be used as it was stored, and
if it is cut all the same, llama.cpp does not always fail: it answers wrongly. So whole
sessions run here on toy models of random weights, and two oracles judge them:

- a session that stayed alive: what a later process restores must continue with exactly
  the same tokens;
- the plan's tokens decoded from scratch: each token of an answer must be the likeliest
  one there too. As the batches differ, and with them the rounding, a token may be
  beaten by ``CLOSE``; with a wrong state it is beaten by far more.

These models write noise: invalid UTF-8, control tokens, no end. That is intended: the
bookkeeping has to survive it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llm
import pytest

from llm_kvbranch.chat import message_text
from llm_kvbranch.engine import Engine, Feed, Load, Weights, lib
from llm_kvbranch.engine.blob import cut
from llm_kvbranch.errors import ContextError, StateError
from llm_kvbranch.inference.readback import covered
from llm_kvbranch.inference.resume import GRID, PROMPT_GRID
from llm_kvbranch.inference.session import Request, Session
from llm_kvbranch.inference.slots import HEADROOM
from llm_kvbranch.store.maintenance import verify

from ..support import synth
from ..support.toys import (
    ENDS_ONLY,
    GREEDY,
    RECURRENT,
    SETTINGS,
    WINDOWED,
    Toy,
    architectures,
)
from ..support.turns import LAST, NEXT, QUESTION, Home, N, Turn, ask, is_right, path_of


@pytest.fixture
def home(toy: Toy, tmp_path: Path) -> Home:
    return Home(toy, tmp_path / "kvbranch", [])


class TestToys:
    "Guards against tests that prove nothing: toys that ignore their prompt"

    def test_writing_is_deterministic(self, tmp_path: Path) -> None:
        first = synth.write("lfm2", tmp_path / "1.gguf").read_bytes()
        assert synth.write("lfm2", tmp_path / "2.gguf").read_bytes() == first
        assert synth.write("lfm2", tmp_path / "3.gguf", 8).read_bytes() != first
        assert len(first) < 30_000_000

    @architectures()
    def test_the_architecture_is_the_intended_one(self, toy: Toy) -> None:
        assert toy.weights.description.startswith(toy.name)
        assert (toy.weights.kind != "attention") == (toy.name in RECURRENT)
        assert toy.weights.n_swa == (synth.WINDOW if toy.name in WINDOWED else 0)
        assert Engine(toy.weights, SETTINGS).cuts_anywhere == toy.cuts_anywhere
        assert "<|im_start|>" in (toy.weights.chat_template or "")

    @architectures()
    @pytest.mark.parametrize("back", [2, 40, 100])
    def test_every_token_matters(self, toy: Toy, back: int) -> None:
        "A different token that far back leads to a different answer"
        prompt = toy.weights.tokenize((QUESTION + NEXT) * 5, special=False)
        changed = array("i", prompt)
        changed[-back] += 1
        answers = []
        for tokens in (prompt, changed):
            engine = Engine(toy.weights, SETTINGS)
            engine.reserve(len(tokens) + N)
            sampler = engine.sampler(GREEDY, tokens)
            (index,) = engine.decode([Feed(0, 0, tokens)])
            answer: list[int] = []
            for at in range(len(tokens), len(tokens) + N):
                answer.append(engine.sample(sampler, index))
                (index,) = engine.decode([Feed(0, at, array("i", answer[-1:]))])
            answers.append(answer)
        assert answers[0] != answers[1]


class TestContinuing:
    "Guards against a later process that continues differently than this one would"

    @architectures()
    def test_a_restored_answer_goes_on_as_the_live_one(self, home: Home) -> None:
        alive = home.session()
        first = ask(alive, []).commit("r1")
        live = ask(alive, first.messages, NEXT)
        assert live.generation.facts["resident_tokens"] == first.generation.end
        later = ask(home.session(), first.messages, NEXT)
        assert later.generation.facts["resident_tokens"] == 0
        assert later.restored == first.generation.end
        assert later.miss_reason is None
        assert later.prompt == live.prompt
        assert later.answer == live.answer
        assert later.text == live.text
        assert is_right(first)
        assert is_right(later)
        assert not home.warnings

    @architectures()
    def test_every_turn_in_a_process_of_its_own(self, home: Home) -> None:
        "Four turns, longer than the window; each restores all turns before it"
        alive, turns, live = home.session(), [], []
        for i, question in enumerate([QUESTION, NEXT, LAST, NEXT]):
            before = turns[-1].messages if turns else []
            live.append(ask(alive, before, question))
            turns.append(ask(home.session(), before, question).commit(f"r{i}"))
            if i:
                assert turns[i].restored == turns[i - 1].generation.end
                assert turns[i].entry.state.start == turns[i - 1].generation.end
                assert turns[i].entry.state.parent_id == f"r{i - 1}"
            assert turns[i].answer == live[i].answer
        assert turns[-1].generation.end > 2 * synth.WINDOW
        assert is_right(turns[-1])
        assert not list(verify(home.session().store))
        assert not home.warnings

    @architectures()
    def test_a_state_that_left_memory_first(self, home: Home) -> None:
        "Logged only after the next turn, or another conversation, has begun"
        session = home.session()
        first = ask(session, [])
        second = ask(session, first.messages, NEXT)
        other = ask(session, [llm.system("Be brief.")], LAST)
        first.commit("r1")
        second.commit("r2")
        other.commit("r3")
        assert not home.warnings
        for parent in (first, second, other):
            later = ask(home.session(), parent.messages, LAST)
            # At least: the next state begins as this prompt goes on
            assert later.restored >= parent.generation.end
            assert is_right(later)

    @architectures()
    @pytest.mark.parametrize("width", [1, 4, 9])
    def test_a_stop_string_in_the_middle_of_tokens(
        self, home: Home, width: int
    ) -> None:
        "The answer ends inside a token, with tokens after it decoded already"
        session = home.session()
        whole = ask(session, [])
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + width]
        alive = home.session()
        first = ask(alive, [], stop=(stop,)).commit("r1")
        at = whole.text.find(stop)
        assert first.text == whole.text[:at]
        assert first.generation.end < whole.generation.end
        live = ask(alive, first.messages, NEXT)
        later = ask(home.session(), first.messages, NEXT)
        assert live.restored == later.restored
        end, n = first.generation.end, first.generation.n_prompt
        if end > n or not home.toy.cuts_anywhere:
            assert live.restored == end
        else:  # no token of it is left: all is one prompt, which is read together
            assert live.restored == 0
        assert later.prompt == live.prompt
        assert later.answer == live.answer
        assert is_right(later)
        assert not home.warnings

    @architectures()
    def test_an_answer_that_outgrows_the_context(self, home: Home) -> None:
        "The context grows during an answer, and again during the next"
        small = home.session()
        first = ask(small, [], n=None, n_ctx=800).commit("r1")
        assert first.generation.facts["finish_reason"] == "context"
        assert small.engine.n_ctx >= 800
        roomy = replace(home, root=home.root / "other").session()
        roomy.engine.reserve(2048)
        n = first.generation.end - first.generation.n_prompt
        assert ask(roomy, [], n=n).answer[:-2] == first.answer[:-2]
        live = ask(small, first.messages, NEXT)
        later = ask(home.session(), first.messages, NEXT)
        assert live.restored == later.restored == first.generation.end
        assert later.answer == live.answer
        assert is_right(later)


class Running:
    "An answer being read, piece by piece"

    def __init__(
        self, session: Session, question: str, n: int | None, n_ctx: int | None = None
    ):
        self.messages = [llm.user(question)]
        self.generation = session.generate(
            Request(self.messages, GREEDY, max_tokens=n, n_ctx=n_ctx)
        )
        self.text = ""
        self.ended = False
        self._pieces = iter(self.generation)

    def advance(self) -> None:
        piece = next(self._pieces, None)
        self.text += piece.text if piece else ""
        self.ended = piece is None

    def turn(self) -> Turn:
        answer = llm.assistant(self.text)
        return Turn(self.generation, self.text, [*self.messages, answer])


def take_turns(*running: Running, until: Running) -> None:
    "A piece of each in turn, until one of them has ended"
    while not until.ended:
        for one in running:
            if not one.ended:
                one.advance()


class TestSeveralAtOnce:
    "Guards against answers that disturb each other, and state stored in disorder"

    @architectures()
    def test_each_goes_on_as_if_alone(self, home: Home) -> None:
        session = home.session()
        long = Running(session, QUESTION, N)
        short = Running(session, QUESTION + NEXT, N // 4)
        take_turns(long, short, until=short)
        # Takes the place that the short one had, between rows of the long one
        third = Running(session, LAST, N)
        take_turns(long, third, until=long)
        take_turns(third, until=third)
        for i, one in enumerate([long, short, third]):
            turn = one.turn().commit(f"r{i}")
            assert is_right(turn)  # not the same tokens: other batches round otherwise
            live = ask(session, turn.messages, LAST)
            later = ask(home.session(), turn.messages, LAST)
            assert later.restored == turn.generation.end
            assert later.miss_reason is None
            assert later.answer == live.answer
            assert is_right(later)
        assert not home.warnings


def shared(turn: Turn, parent: Turn) -> int:
    "How many leading tokens a prompt shares with its finished parent"
    pairs = zip(turn.prompt, parent.generation.tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(turn.prompt))


def explained(branch: Turn, kept: int) -> bool:
    "Whether a miss is reported exactly if not all shared tokens were restored"
    if branch.restored == kept:
        return branch.miss_reason is None
    return "continues from a snapshot" in (branch.miss_reason or "")


class TestCutting:
    "Guards against a branch inside an answer that remembers what was cut off"

    @architectures()
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    def test_a_branch_is_answered_as_from_nothing(
        self, home: Home, share: float
    ) -> None:
        "In a later process and in the one whose memory holds the whole answer"
        alive = home.session()
        first = ask(alive, []).commit("r1")
        second = ask(alive, first.messages, NEXT, n=2 * N).commit("r2")
        cut = second.cut(int(share * len(second.text)))
        later, live = ask(home.session(), cut, LAST), ask(alive, cut, LAST)
        assert live.prompt == later.prompt
        assert is_right(later)
        assert is_right(live)
        kept = shared(later, second)
        text = message_text(cut[-1])
        answer = second.generation.tokens[second.generation.n_prompt :]
        n, _ = covered(answer, home.toy.weights.piece, text)
        assert kept >= second.generation.n_prompt + n, "it was tokenised again"
        expected = home.toy.reachable(second.entry.state, kept)
        assert later.restored == live.restored == expected
        if home.toy.window:
            assert later.restored == kept, "the turn is shorter than the window"
        assert explained(later, kept)

    @architectures()
    def test_a_branch_can_be_gone_on_from(self, home: Home) -> None:
        alive = home.session()
        first = ask(alive, []).commit("r1")
        second = ask(alive, first.messages, NEXT, n=2 * N).commit("r2")
        cut = second.cut(len(second.text) // 2)
        branch = ask(home.session(), cut, LAST).commit("r3")
        assert branch.entry.state.start == branch.restored
        later = ask(home.session(), branch.messages, NEXT)
        assert later.restored == branch.generation.end
        assert is_right(later)
        assert not list(verify(home.session().store))

    @architectures()
    def test_a_short_branch_of_a_long_answer(self, home: Home) -> None:
        "The whole file is restored, which takes more room than the branch needs"
        first = ask(home.session(), [], n=700).commit("r1")
        for n in (40, len(first.text) // 2):
            branch = ask(home.session(), first.cut(n), LAST, n=4)
            kept = shared(branch, first)
            assert branch.restored == home.toy.reachable(first.entry.state, kept)
            assert explained(branch, kept)
            if kept > 2 * GRID:  # a shorter prompt is not worth a snapshot
                assert kept - branch.restored <= (0 if home.toy.window else GRID)
            assert path_of(home, first).exists()
            assert is_right(branch)
        whole = ask(home.session(), first.messages, LAST, n=4)
        assert whole.restored == first.generation.end

    @architectures()
    def test_a_short_branch_beside_others(self, home: Home) -> None:
        "In a context that is full of rows that may still be continued"
        first = ask(home.session(), [], n=400).commit("r1")
        session = home.session()
        running = Running(session, NEXT, 200)
        running.advance()
        branch = ask(session, first.cut(40), LAST, n=4)
        take_turns(running, until=running)
        assert explained(branch, shared(branch, first))
        assert path_of(home, first).exists()
        assert is_right(branch)
        assert is_right(running.turn())

    @architectures()
    def test_the_same_prompt_again(self, home: Home) -> None:
        "A retry shares an answer's prompt, and none of the answer"
        first = ask(home.session(), []).commit("r1")
        second = ask(home.session(), first.messages, NEXT).commit("r2")
        again = ask(home.session(), first.messages, NEXT)
        assert again.prompt == second.prompt
        # The last tokens are computed in a batch that rounds like the first time's
        kept = len(again.prompt) - (2 if home.toy.cuts_anywhere else 1)
        expected = home.toy.reachable(second.entry.state, kept)
        assert again.restored == expected
        assert is_right(again)

    @architectures()
    def test_a_long_prompt_again(self, home: Home) -> None:
        "And another question about the same document, in a conversation of its own"
        long = " ".join([QUESTION] * 60)
        first = ask(home.session(), [], f"{long} Who?").commit("r1")
        assert len(first.prompt) > 2 * PROMPT_GRID
        again = ask(home.session(), [], f"{long} Who?")
        again_read = 64 if home.toy.cuts_anywhere else 1
        assert again.restored == len(again.prompt) - again_read
        assert is_right(again)
        other = ask(home.session(), [], f"{long} Where was it?")
        kept = min(shared(other, first), len(other.prompt) - again_read)
        assert other.restored == home.toy.reachable(first.entry.state, kept)
        assert kept - other.restored < PROMPT_GRID
        assert is_right(other)

    @architectures()
    def test_several_answers_at_once(self, home: Home) -> None:
        "They share the prompt of the first, in memory"
        long = " ".join([QUESTION] * 10)
        session = home.session()
        running = [Running(session, long, N) for _ in range(3)]
        running[0].advance()
        take_turns(*running, until=running[0])
        take_turns(*running[1:], until=running[1])
        take_turns(running[2], until=running[2])
        n = running[0].generation.n_prompt
        for one in running[1:]:
            last = session.engine.classes.least(n)  # computed together, as before
            assert one.generation.facts["prefilled_tokens"] == last
            assert one.generation.facts["resident_tokens"] == n - last
        for i, one in enumerate(running):
            turn = one.turn().commit(f"r{i}")
            assert is_right(turn)
            later = ask(home.session(), turn.messages, LAST)
            assert later.restored >= turn.generation.end
            assert is_right(later)

    @architectures("llama", "deepseek2", "qwen35")
    def test_the_context_grows_under_several_answers(self, home: Home) -> None:
        "Fails if one draws a token from a context that is gone"
        session = home.session()
        running = [Running(session, QUESTION, None, 800) for _ in range(3)]
        take_turns(*running, until=running[0])
        take_turns(*running[1:], until=running[1])
        take_turns(running[2], until=running[2])
        assert session.engine.n_ctx > 3 * HEADROOM
        for one in running:
            assert one.generation.facts["generated_tokens"] > HEADROOM
            assert is_right(one.turn())


class TestLostContext:
    "Guards against silently wrong answers after a context could not be kept"

    @architectures("llama", "gemma3", "qwen35")
    def test_rows_that_llama_cpp_refuses(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "They are decoded again, and the answer beside is what it would be alone"
        session = home.session()
        first = Running(session, QUESTION, 3 * N)
        take_turns_for(N, first)
        refused: list[int] = []
        monkeypatch.setattr(
            session.engine, "_set", lambda _, seq: refused.append(seq) or 0
        )
        second = Running(session, " ".join([NEXT] * 40), N)
        take_turns_for(1, second)
        assert refused
        take_turns(first, second, until=second)
        take_turns(first, until=first)
        assert len(first.generation.tokens) == first.generation.n_prompt + 3 * N
        assert is_right(first.turn())
        assert is_right(second.turn())

    @architectures("llama", "gemma3", "qwen35")
    def test_no_context_can_be_made(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "The prompt that needed it fails; the one beside fails, or is right"
        session = home.session()
        first = Running(session, QUESTION, 3 * N)
        take_turns_for(N, first)
        with monkeypatch.context() as patch:
            patch.setattr(session.engine, "_make", failing)
            with pytest.raises(ContextError, match="no memory"):
                Running(session, " ".join([NEXT] * 40), N).advance()
        assert session.engine.n_ctx == 0
        with pytest.raises(ContextError, match="context was lost"):
            session.engine.decode([Feed(0, 0, array("i", [1]))])
        take_turns(first, until=first)
        assert is_right(first.turn())
        assert is_right(ask(session, [], LAST))


class TestCtrlC:
    "Guards against an interrupt that is lost inside a callback of llama.cpp"

    @pytest.mark.parametrize("nth", [0, 5, 20])
    @pytest.mark.parametrize("what", ["weights", "context"])
    def test_while_a_model_loads(
        self, toys: Any, monkeypatch: pytest.MonkeyPatch, what: str, nth: int
    ) -> None:
        toy, bindings, calls = toys("llama"), lib.llama(), itertools.count()
        handler = signal.getsignal(signal.SIGINT)
        engine = Engine(toy.weights, SETTINGS)
        made: dict[str, Callable[[], Any]] = {
            "weights": lambda: Weights(toy.load),
            "context": lambda: engine.reserve(256),
        }

        def log(*_: Any) -> None:
            if next(calls) == nth:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(lib, "_callbacks", [bindings.llama_log_callback(log)])
            with pytest.raises(KeyboardInterrupt):
                made[what]()
        lib.listen()
        assert next(calls) > nth
        assert signal.getsignal(signal.SIGINT) is handler
        engine = Engine(Weights(toy.load), SETTINGS)
        engine.reserve(256)
        assert engine.n_ctx == 256


def failing(*_: Any) -> None:
    raise ContextError("no memory")


def take_turns_for(n: int, *running: Running) -> None:
    for _ in range(n):
        for one in running:
            one.advance()


def flip(path: Path, tensor: str = "state") -> None:
    "Change the last byte of a tensor"
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        at = 8 + length + header[tensor]["data_offsets"][1] - 1
        file.seek(at)
        (last,) = file.read(1)
        file.seek(at)
        file.write(bytes([last ^ 1]))


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


class TestDamage:
    "Guards against one bad file that costs an answer, or the turns after it"

    @architectures()
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [(flip, "damaged"), (halve, "truncated"), (Path.unlink, "missing")],
    )
    def test_in_the_middle_of_a_chain(
        self, home: Home, damage: Callable[[Path], None], reason: str
    ) -> None:
        first = ask(home.session(), []).commit("r1")
        second = ask(home.session(), first.messages, NEXT).commit("r2")
        third = ask(home.session(), second.messages, LAST).commit("r3")
        damage(path_of(home, second))
        fourth = ask(home.session(), third.messages, NEXT).commit("r4")
        assert reason in (fourth.miss_reason or "")
        assert fourth.prompt[: third.generation.end] == list(third.generation.tokens)
        lost = second.generation.end - first.generation.end
        if home.toy.cuts_anywhere:
            assert fourth.restored == third.generation.end - lost
        else:
            assert fourth.restored == first.generation.end
        assert is_right(fourth)
        fifth = ask(home.session(), fourth.messages, LAST)
        assert fifth.miss_reason is None
        assert fifth.restored == fourth.generation.end
        assert is_right(fifth)
        assert not list(verify(home.session().store))
        assert path_of(home, second).exists() == home.toy.cuts_anywhere
        assert not home.warnings

    @architectures()
    def test_another_answers_file(self, home: Home) -> None:
        "A good file in the wrong place"
        first = ask(home.session(), []).commit("r1")
        other = ask(home.session(), [], LAST).commit("r2")
        shutil.copy(path_of(home, other), path_of(home, first))
        later = ask(home.session(), first.messages, NEXT)
        assert later.restored == 0
        assert "not the one that was stored" in (later.miss_reason or "")
        assert is_right(later)

    @architectures(*RECURRENT)
    def test_a_recurrent_state_of_several_cells(self, home: Home) -> None:
        "Found before llama.cpp sees it, which can abort on such a block"
        first = ask(home.session(), [])
        engine = first.generation.model.engine
        end, seq = first.generation.end, first.generation.slot.seq
        rows, snapshot = engine.capture(seq, 0, end), engine.snapshot(seq)
        cell = struct.pack("<IiI", 1, end - 1, 0)
        at = snapshot.index(cell)
        engine.restore(2, memoryview(rows), 0, end, end)
        for changed in ((2, end - 1, 0), (0, end - 1, 0), (1, end, 0), (1, end - 1, 1)):
            snapshot[at : at + 12] = struct.pack("<IiI", *changed)
            with pytest.raises(StateError, match="state payload"):
                engine.resume(2, memoryview(snapshot), end)
            assert engine.length(2) == 0
        snapshot[at : at + 12] = cell
        engine.resume(2, memoryview(snapshot), end)
        assert engine.length(2) == end

    @architectures(*WINDOWED)
    @pytest.mark.parametrize(
        ("field", "value"),
        [("streams", 2), ("count", 0), ("count", 63), ("position", 5), ("n_seq", 2)],
    )
    def test_a_window_of_other_positions(
        self, home: Home, field: str, value: int
    ) -> None:
        "A good block for the full layers, a bad one for those with a window"
        first = ask(home.session(), [], n=2 * N)
        engine = first.generation.model.engine
        end, seq = first.generation.end, first.generation.slot.seq
        rows, snapshot = engine.capture(seq, 0, end), engine.snapshot(seq)
        n_stream, count, position, n_seq = struct.unpack_from("<IIiI", snapshot, 8)
        assert (n_stream, count, n_seq) == (1, synth.WINDOW, 1)
        assert position == end - synth.WINDOW
        spoilt = snapshot[:]
        offset = ["streams", "count", "position", "n_seq"].index(field) * 4
        struct.pack_into("<I", spoilt, 8 + offset, value)
        engine.restore(2, memoryview(rows), 0, end, end)
        with pytest.raises(StateError, match="state payload"):
            engine.resume(2, memoryview(spoilt), end)
        with pytest.raises(StateError, match="state payload"):
            engine.slide(2, memoryview(spoilt), end, end - 5, end)
        assert engine.length(2) == 0
        engine.resume(2, memoryview(snapshot), end)
        assert engine.length(2) == end

    @architectures(*ENDS_ONLY)
    def test_a_snapshot_is_read_only_where_it_is_needed(self, home: Home) -> None:
        "Continuing a turn needs the rows of the turns before, and nothing else of them"
        first = ask(home.session(), []).commit("r1")
        second = ask(home.session(), first.messages, NEXT).commit("r2")
        for mark in first.entry.state.marks:
            flip(path_of(home, first), f"snapshot.{mark}")
        third = ask(home.session(), second.messages, LAST)
        assert third.restored == second.generation.end
        assert third.miss_reason is None
        assert is_right(third)
        branch = ask(home.session(), first.messages, LAST)
        assert branch.restored == 0
        assert "damaged" in (branch.miss_reason or "")
        assert is_right(branch)

    @architectures(*ENDS_ONLY)
    def test_what_a_turn_adds_is_what_it_takes(self, home: Home) -> None:
        "No two files hold the same rows, or a snapshot of the same position"
        session, messages, entries = home.session(), [], []
        for i, question in enumerate([QUESTION, NEXT, LAST, NEXT]):
            turn = ask(session, messages, question).commit(f"r{i}")
            messages = turn.messages
            entries.append(turn.entry)
        ends = [entry.state.end for entry in entries]
        assert [entry.state.start for entry in entries] == [0, *ends[:-1]]
        marks = [mark for entry in entries for mark in entry.state.marks]
        assert marks == sorted(set(marks))
        assert set(ends) <= set(marks)


class TestRows:
    "Guards against rows with too much or too little in them"

    @architectures()
    def test_less_of_them_is_what_less_would_be(self, home: Home) -> None:
        "A bundle's rows are cut without llama.cpp"
        first = ask(home.session(), [], n=2 * N)
        engine, seq = first.generation.model.engine, first.generation.slot.seq
        end = first.generation.end
        rows = memoryview(engine.capture(seq, 5, end))
        for upto in (6, end - 20, end):
            assert cut(rows, 5, end, upto) == engine.capture(seq, 5, upto)
        with pytest.raises(StateError):
            cut(rows[:7] if home.toy.name == "mamba" else rows[:-500], 5, end, 9)

    @architectures()
    def test_they_are_as_many_bytes_as_is_told(self, home: Home) -> None:
        first = ask(home.session(), []).commit("r1")
        second = ask(home.session(), first.messages, NEXT)
        told = second.generation.facts["state_bytes"]
        second.commit("r2")
        nbytes = path_of(home, second).stat().st_size
        assert 0 <= nbytes - told < 2000  # header and token ids


class TestControlTokens:
    "Guards against losing control tokens at the end of an answer"

    @architectures(*ENDS_ONLY)
    def test_they_are_part_of_the_answer(self, toy: Toy, tmp_path: Path) -> None:
        "A toy with two control tokens in five, which spell nothing"
        path = tmp_path / f"{toy.name}-controls.gguf"
        synth.write(toy.name, path, controls=range(30_000, 49_152))
        controlled = Toy(toy.name, Load(path), Weights(Load(path)))
        home = Home(controlled, tmp_path / "kvbranch", [])
        ends = set()
        for n in range(1, 9):
            first = ask(home.session(), [], n=n)
            if not first.text:
                continue  # llm logs no message then, so there is nothing to continue
            first.commit(f"r{n}")
            ends.add(controlled.weights.piece(first.answer[-1]) == b"")
            live = ask(first.generation.session, first.messages, LAST, n=4)
            later = ask(home.session(), first.messages, LAST, n=4)
            assert first.generation.facts["generated_tokens"] == n
            assert later.restored == first.generation.end
            assert later.answer == live.answer
        assert ends == {True, False}


class TestRandomTrees:
    "Guards against the unforeseen: any order of turns, cuts and restarts"

    @architectures()
    @pytest.mark.parametrize("seed", [1, 2])
    def test_every_answer_is_right(self, home: Home, seed: int) -> None:
        rng = random.Random(seed)
        turns: list[Turn] = []
        session, spoilt = home.session(), set()
        for step in range(16):
            if rng.random() < 0.4:
                session = home.session()
            if rng.random() < 0.15 and (files := sorted(home.root.glob("states/*/*"))):
                victim = rng.choice(files)
                rng.choice([flip, halve, Path.unlink])(victim)
                spoilt.add(victim.stem)
            messages: list[Any] = []
            if turns and rng.random() < 0.8:
                parent = rng.choice(turns[-4:])
                messages = rng.choice(
                    [
                        parent.messages,
                        parent.cut(rng.randrange(len(parent.text) + 1)),
                        parent.messages[:-2],
                    ]
                )
            question = rng.choice([QUESTION, NEXT, LAST])
            turn = ask(session, messages, question, n=rng.choice([1, 3, N, 3 * N]))
            assert is_right(turn), f"step {step}: {turn.generation.facts}"
            if rng.random() < 0.85:
                turn.commit(f"r{step}")
                turns.append(turn)
        assert {problem[0] for problem in verify(home.session().store)} <= spoilt
