"""A state file is trusted completely or not at all.

What is restored from a file decides what a model says next, so most of these tests
are about refusal: whatever happens to a file's bytes, reading it returns what was
written or raises a StateError with a reason that can be counted. The few about
writing check that a failure leaves nothing behind; the store is responsible for
moving a file to its place.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import llm_kvbranch.store.statefile as state_module
from llm_kvbranch.errors import StateError, UnreadableStateError
from llm_kvbranch.store import buffers
from llm_kvbranch.store.header import State
from llm_kvbranch.store.statefile import open_state, read_head, read_state, write_state
from llm_kvbranch.store.tokens import (
    common_prefix,
    prefix_digest,
    token_bytes,
    tokens_from_bytes,
    tokens_of,
)

NAME = "some-response.safetensors"
PAYLOAD = bytes(range(40))

token_ids = st.integers(-(2**31), 2**31 - 1)
texts = st.text(max_size=40)
damage = settings(max_examples=60, deadline=None)


def a_state(ids: Any = (1, 2, 3), start: int = 0, **facts: Any) -> State:
    "A state of the given tokens at [start, start + len(ids))"
    tokens = tokens_of(ids)
    fields: dict[str, Any] = {
        "response_id": "some-response",
        "fingerprint": "some-model",
        "start": start,
        "end": start + len(tokens),
        "answer": start,
        "tokens": tokens,
        "prefix": "00ff",
    }
    return State(**{**fields, **facts})


@st.composite
def states(draw: st.DrawFn) -> State:
    "Any state: any tokens and positions, any text, optional facts or none"
    ids = draw(st.lists(token_ids, min_size=1, max_size=80))
    start = draw(st.integers(0, 2**40))
    answer = draw(st.integers(start, start + len(ids)))
    required = ("response_id", "fingerprint", "prefix", "render", "created")
    optional = ("parent_id", "input_hash", "tip_hash", "thread_id", "origin")
    facts = {name: draw(texts) for name in required}
    facts |= {name: draw(st.none() | texts) for name in optional}
    return a_state(ids, start, answer=answer, **facts)


def refusal(path: Path) -> str:
    "The reason why a file is refused: one line without a path"
    with pytest.raises(StateError) as caught:
        read_state(path)
    reason = str(caught.value)
    for part in (path.parent, path.parent.name, path.name, path.stem):
        assert str(part) not in reason
    assert reason.isprintable()
    return reason


def write(path: Path, state: State, payload: Any) -> State:
    "Write a state file in place of the existing one"
    path.unlink(missing_ok=True)
    return write_state(path, state, payload)[0]


def n_token_bytes(header: Any) -> int:
    "How much of a body the digest covers, if the header says so"
    try:
        metadata = header["__metadata__"]
        return max(0, 4 * (int(metadata["end"]) - int(metadata["start"])))
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    "Header and body of a safetensors file"
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: Any, body: bytes) -> bytes:
    """A safetensors file with the right digest for its content.

    Only a check of the structure itself can then refuse a lie.
    """
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    signed = isinstance(metadata, dict) and isinstance(metadata.get("digest"), str)
    if signed and len(metadata["digest"]) == 32:
        metadata = {**metadata, "digest": "0" * 32}
        header = {**header, "__metadata__": metadata}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text
    digest = xxhash.xxh3_128_hexdigest(data + body[: n_token_bytes(header)])
    data = data.replace(b'"digest": "' + b"0" * 32, f'"digest": "{digest}'.encode(), 1)
    return data + body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "states-of-a-model"
    directory.mkdir()
    return directory / NAME


@pytest.fixture
def written(path: Path) -> Path:
    "A small state file"
    write_state(path, a_state((5, 6, 7), 4, parent_id="its-parent"), PAYLOAD)
    return path


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


class TestRoundTrip:
    "A field that is lost or altered would go unnoticed until reuse"

    @given(state=states(), payload=st.binary(max_size=4096))
    @settings(max_examples=80, deadline=None)
    def test_what_was_written_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, state: State, payload: bytes
    ) -> None:
        path = tmp_path_factory.getbasetemp() / NAME
        path.unlink(missing_ok=True)
        written, nbytes = write_state(path, state, payload)
        digests = {"digest": written.digest, "payload": written.payload}
        assert nbytes == path.stat().st_size
        with open_state(path) as (found, rows, _):
            assert rows == payload
        assert found == State(**{**vars(state), **digests}) == written
        assert read_state(path) == found
        assert read_head(path) == (found, nbytes)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            bytearray(b"some bytes"),
            memoryview(b"some bytes"),
            np.zeros(0, dtype=np.uint8),
            np.arange(100, dtype=np.float32).reshape(10, 10),
        ],
        ids=["nothing", "bytearray", "memoryview", "empty array", "matrix"],
    )
    def test_any_buffer_is_a_payload(self, path: Path, payload: Any) -> None:
        write_state(path, a_state(), payload)
        with open_state(path) as (_, rows, _):
            assert bytes(rows) == bytes(memoryview(payload))

    def test_a_file_that_is_there_is_left_as_it_is(self, written: Path) -> None:
        before = written.read_bytes()
        with pytest.raises(FileExistsError):
            write_state(written, a_state((9,)), b"other")
        assert written.read_bytes() == before

    def test_old_digests_in_the_state_are_not_kept(self, path: Path) -> None:
        first = write(path, a_state(), PAYLOAD)
        old = {"digest": "f" * 32, "payload": "e" * 32}
        assert write(path, a_state(**old), PAYLOAD) == first == read_state(path)

    def test_zeros_elsewhere_are_not_the_digest(self, path: Path) -> None:
        state = a_state(prefix="0" * 32, render="0" * 32, parent_id="0" * 32)
        write_state(path, state, PAYLOAD)
        assert read_state(path).prefix == "0" * 32

    def test_short_writes_still_make_a_whole_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Sluggish(io.FileIO):
            def write(self, data: Any) -> int:
                return super().write(memoryview(data)[:7])

        monkeypatch.setattr(
            state_module, "open", lambda fd, *_, **__: Sluggish(fd, "wb"), raising=False
        )
        write_state(path, a_state(), PAYLOAD)
        monkeypatch.undo()
        with open_state(path) as (_, rows, _):
            assert rows == PAYLOAD


class TestContainer:
    "A file that only this package can open could not be inspected or converted"

    def test_safetensors_reads_it(self, path: Path) -> None:
        facts = {"parent_id": "ü-parent", "thread_id": "a-thread", "created": "now"}
        state, _ = write_state(path, a_state((5, -6, 7), 4, **facts), PAYLOAD)
        tensors = safetensors.numpy.load_file(path)
        assert set(tensors) == {"tokens", "state"}
        assert tensors["tokens"].dtype == np.int32
        assert tensors["tokens"].tolist() == [5, -6, 7]
        assert tensors["state"].dtype == np.uint8
        assert tensors["state"].tobytes() == PAYLOAD
        with safetensors.safe_open(path, "numpy") as file:
            assert file.metadata() == {
                "format": "llm-kvbranch/3",
                "digest": state.digest,
                "response_id": "some-response",
                "parent_id": "ü-parent",
                "fingerprint": "some-model",
                "start": "4",
                "end": "7",
                "answer": "4",
                "prefix": "00ff",
                "render": "",
                "thread_id": "a-thread",
                "created": "now",
                "payload": state.payload,
            }

    @pytest.mark.parametrize("n", [0, 1, 63, 64])
    def test_safetensors_reads_any_length(self, path: Path, n: int) -> None:
        write_state(path, a_state(range(n + 1)), bytes(n))
        tensors = safetensors.numpy.load_file(path)
        assert tensors["tokens"].shape == (n + 1,)
        assert tensors["state"].shape == (n,)

    def test_tensors_are_aligned(self, written: Path) -> None:
        (length,) = struct.unpack("<Q", written.read_bytes()[:8])
        assert (8 + length) % 64 == 0

    def test_the_digests_cover_header_and_body(self, written: Path) -> None:
        data, state = written.read_bytes(), read_state(written)
        head, rows = data[: -len(PAYLOAD)], data[-len(PAYLOAD) :]
        unsigned = head.replace(state.digest.encode(), b"0" * 32)
        assert xxhash.xxh3_128_hexdigest(unsigned) == state.digest
        assert xxhash.xxh3_128_hexdigest(rows) == state.payload
        assert state.payload.encode() in unsigned


class TestPrivacy:
    "The prompt can be recovered from rows, so only their owner may read them"

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    def test_mode(self, path: Path, umask: Callable[[int], int], mask: int) -> None:
        umask(mask)
        write_state(path, a_state(), PAYLOAD)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
    def test_what_others_put_in_its_place_is_not_written_to(
        self, path: Path, kind: str
    ) -> None:
        theirs = path.with_name("theirs")
        if kind != "dangling link":
            theirs.touch(0o644)
        if kind == "file":
            theirs.rename(path)
        else:
            path.symlink_to(theirs)
        with pytest.raises(FileExistsError):
            write_state(path, a_state(), PAYLOAD)
        assert not any(p.stat().st_size for p in (path, theirs) if p.exists())

    def test_never_readable_by_others_while_being_written(
        self,
        path: Path,
        umask: Callable[[int], int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        umask(0)
        modes: list[int] = []

        def looking(fd: int) -> None:
            modes.append(stat.S_IMODE(os.fstat(fd).st_mode))

        monkeypatch.setattr(os, "fsync", looking)
        write_state(path, a_state(), PAYLOAD)
        assert modes[0] == 0o600


class TestDamage:
    "A changed byte that goes unnoticed is a wrong answer"

    def test_every_flipped_bit_is_refused(self, written: Path) -> None:
        data = written.read_bytes()
        assert len(data) < 1000
        with open(written, "r+b", buffering=0) as file:
            for at, bit in itertools.product(range(len(data)), range(8)):
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit]), at)
                refusal(written)
                os.pwrite(file.fileno(), data[at : at + 1], at)
        assert list(read_state(written).tokens) == [5, 6, 7]

    def test_every_shorter_file_is_refused(self, written: Path) -> None:
        data = written.read_bytes()
        for n in range(len(data)):
            written.write_bytes(data[:n])
            assert "truncated" in refusal(written) or n == 0

    @pytest.mark.parametrize("more", [b"\0", b" ", b"x" * 100])
    def test_longer_files_are_refused(self, written: Path, more: bytes) -> None:
        written.write_bytes(written.read_bytes() + more)
        assert refusal(written) == "state file is too long"

    @given(at=st.integers(0), cut=st.integers(0, 70), new=st.binary(max_size=70))
    @damage
    def test_edits_are_refused(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, new: bytes
    ) -> None:
        path = tmp_path_factory.getbasetemp() / NAME
        write(path, a_state(), PAYLOAD)
        data = path.read_bytes()
        at %= len(data) + 1
        edited = data[:at] + new + data[at + cut :]
        assume(edited != data)
        path.write_bytes(edited)
        refusal(path)

    @given(data=st.binary(max_size=300), length=st.none() | st.integers(0, 290))
    @damage
    def test_random_bytes_are_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int | None
    ) -> None:
        path = tmp_path_factory.getbasetemp() / NAME
        path.write_bytes(
            data if length is None else struct.pack("<Q", length) + data[:length]
        )
        refusal(path)

    def test_rows_of_another_file_are_refused(self, written: Path) -> None:
        data = written.read_bytes()
        written.write_bytes(data[: -len(PAYLOAD)] + PAYLOAD[::-1])
        assert refusal(written) == "state file is damaged (digest does not match)"

    def test_the_head_of_another_file_is_refused(self, written: Path) -> None:
        n, data = len(PAYLOAD), written.read_bytes()
        write(written, read_state(written), PAYLOAD[::-1])
        written.write_bytes(written.read_bytes()[:-n] + data[-n:])
        assert refusal(written) == "state file is damaged (digest does not match)"

    def test_nothing_is_handed_out_before_the_check(self, written: Path) -> None:
        data = bytearray(written.read_bytes())
        data[-1] ^= 1
        written.write_bytes(data)
        with pytest.raises(StateError), open_state(written):
            pytest.fail("the payload was given out")


class TestReasons:
    "Reasons are shown and counted, so each must be specific"

    def test_missing(self, path: Path) -> None:
        assert refusal(path) == "state file is missing"

    def test_empty(self, path: Path) -> None:
        path.touch()
        assert refusal(path) == "state file is empty"

    def test_directory_in_its_place(self, path: Path) -> None:
        path.mkdir()
        assert refusal(path).startswith("state file is unreadable (")

    def test_below_a_regular_file(self, written: Path) -> None:
        assert refusal(written / NAME).startswith("state file is unreadable (")

    @pytest.mark.parametrize("call", ["open", "mmap", "readinto"])
    def test_a_good_file_that_could_not_be_read(
        self, written: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        "Unlike a bad file, it must not be deleted"

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(buffers, "_idle", [])
        if call == "readinto":
            monkeypatch.setattr(state_module, "_read", refuse)
        else:
            module = buffers.mmap if call == "mmap" else state_module
            monkeypatch.setattr(module, call, refuse, raising=False)
        with pytest.raises(UnreadableStateError, match="Too many open files"):
            read_state(written)

    @pytest.mark.parametrize("damage", ["missing", "cut", "changed", "empty"])
    def test_a_bad_file_could_be_read(self, written: Path, damage: str) -> None:
        data = written.read_bytes()
        written.unlink()
        if damage != "missing":
            bad = {"cut": data[:-1], "changed": data[:-1] + b"?", "empty": b""}
            written.write_bytes(bad[damage])
        with pytest.raises(StateError) as caught:
            read_state(written)
        assert not isinstance(caught.value, UnreadableStateError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_no_permission(self, written: Path) -> None:
        written.chmod(0)
        assert refusal(written) == "state file is unreadable (Permission denied)"

    def test_foreign_tensors(self, path: Path) -> None:
        safetensors.numpy.save_file({"weight": np.zeros(9)}, path)
        assert refusal(path) == "state file is not in llm-kvbranch's format"

    def test_foreign_metadata(self, path: Path) -> None:
        tensors = {"tokens": np.zeros(9, np.int32), "state": np.zeros(9, np.uint8)}
        safetensors.numpy.save_file(tensors, path, {"format": "pt"})
        assert refusal(path) == "state file is not in llm-kvbranch's format"

    @pytest.mark.parametrize("other", ["llm-kvbranch/2", "llm-kvbranch/4"])
    def test_format_of_another_version(self, written: Path, other: str) -> None:
        header, body = unpacked(written.read_bytes())
        header["__metadata__"]["format"] = other
        header["__metadata__"]["something_new"] = "yes"
        written.write_bytes(packed(header, body))
        safetensors.numpy.load_file(written)
        assert refusal(written) == (
            f"state file has format {other}; this version reads llm-kvbranch/3"
        )

    def test_a_repacked_file_is_read(self, written: Path) -> None:
        "Otherwise the refusals of repacked files in this module would prove nothing"
        header, body = unpacked(written.read_bytes())
        written.write_bytes(packed(header, body))
        assert list(read_state(written).tokens) == [5, 6, 7]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400])
    | st.floats()
    | st.sampled_from([float("inf"), float("-inf")])
    | st.text(max_size=9)
    | st.sampled_from(["\ud800", "-1", "4", "7", "9" * 5000, "nan", "../x", "0" * 32]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)

Places = tuple[str, ...]
FACTS = (
    *("format", "digest", "response_id", "parent_id", "fingerprint", "start", "end"),
    *("answer", "prefix", "input_hash", "tip_hash", "render", "created"),
    *("thread_id", "origin", "payload"),
)
PLACES: list[Places] = [
    ("__metadata__",),
    ("tokens",),
    ("state",),
    *itertools.product(("tokens", "state"), ("dtype", "shape", "data_offsets")),
    *itertools.product(("__metadata__",), FACTS),
]
OPTIONAL = {"parent_id", "input_hash", "tip_hash", "thread_id", "origin"}
OPTIONAL |= {"dtype", "shape"}
REQUIRED = [place for place in PLACES if place[-1] not in OPTIONAL]


def lie(path: Path, place: Places, value: Any) -> None:
    "Change one thing in a header, and make the digest right"
    header, body = unpacked(path.read_bytes())
    within = header
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = value
    path.write_bytes(packed(header, body))


class TestLyingHeader:
    "A header that is trusted too early makes the reader crash or run wild"

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("__metadata__", "start"), "-1"),
            (("__metadata__", "start"), "7"),
            (("__metadata__", "start"), "8"),
            (("__metadata__", "start"), "0"),
            (("__metadata__", "start"), "four"),
            (("__metadata__", "start"), None),
            (("__metadata__", "start"), float("inf")),
            (("__metadata__", "end"), "6"),
            (("__metadata__", "end"), str(10**30)),
            (("__metadata__", "end"), "1" + "0" * 5000),
            (("__metadata__", "answer"), "3"),
            (("__metadata__", "answer"), "8"),
            (("__metadata__", "response_id"), None),
            (("__metadata__", "fingerprint"), 5),
            (("__metadata__", "render"), None),
            (("__metadata__", "tip_hash"), ["a", "list"]),
            (("__metadata__", "digest"), None),
            (("__metadata__", "digest"), ""),
            (("__metadata__", "digest"), "\ud800"),
            (("__metadata__", "digest"), "0" * 31),
            (("__metadata__", "payload"), None),
            (("__metadata__", "payload"), ""),
            (("__metadata__", "payload"), "0" * 32),
            (("tokens", "data_offsets"), [0, 8]),
            (("tokens", "data_offsets"), [4, 12]),
            (("tokens", "data_offsets"), [-4, 12]),
            (("tokens", "data_offsets"), [0, 2**63]),
            (("tokens", "data_offsets"), "0, 12"),
            (("state", "data_offsets"), [11, 52]),
            (("state", "data_offsets"), [0, 52]),
            (("state", "data_offsets"), [12, 51]),
            (("state", "data_offsets"), [12, 11]),
            (("state", "data_offsets"), [12, 2**70]),
            (("state", "data_offsets"), [12, float("inf")]),
            (("state", "data_offsets"), [12]),
            (("state", "data_offsets"), []),
            (("state", "data_offsets"), None),
            (("state",), []),
            (("state",), None),
            (("tokens",), 5),
            (("__metadata__",), None),
            (("__metadata__",), ["format"]),
            (("__metadata__",), {}),
        ],
        ids=str,
    )
    def test_lies_are_refused(self, written: Path, place: Places, value: Any) -> None:
        lie(written, place, value)
        refusal(written)

    @pytest.mark.parametrize("place", REQUIRED, ids=str)
    def test_nothing_may_be_left_out(self, written: Path, place: Places) -> None:
        header, body = unpacked(written.read_bytes())
        within = header if len(place) == 1 else header[place[0]]
        del within[place[-1]]
        written.write_bytes(packed(header, body))
        refusal(written)

    @given(place=st.sampled_from(PLACES), value=json_values)
    @settings(max_examples=400, deadline=None)
    def test_any_value_anywhere_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, place: Places, value: Any
    ) -> None:
        path = tmp_path_factory.getbasetemp() / NAME
        write(path, a_state(), PAYLOAD)
        lie(path, place, value)
        try:
            state = read_state(path)
        except StateError:
            return
        assert (state.start, state.end) == (0, 3)
        assert list(state.tokens) == [1, 2, 3]

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"7",
            b'"text"',
            b"{}",
            b"\xff\xfe{\x00",
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"__metadata__":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"__metadata__": {"format": "llm-kvbranch/3", "digest": '
            + b"[" * 900
            + b"]" * 900
            + b"}}",
        ],
        ids=lambda header: f"{header[:20]!r} of {len(header)}",
    )
    def test_headers_that_are_no_header(self, path: Path, header: bytes) -> None:
        path.write_bytes(struct.pack("<Q", len(header)) + header + PAYLOAD)
        refusal(path)

    @pytest.mark.parametrize("length", [2**20 + 1, 2**31, 2**63, 2**64 - 1])
    def test_a_huge_length_is_not_believed(self, written: Path, length: int) -> None:
        data = written.read_bytes()
        written.write_bytes(struct.pack("<Q", length) + data[8:])
        assert refusal(written) == "state file is not in llm-kvbranch's format"

    def test_a_header_longer_than_its_file(self, written: Path) -> None:
        data = written.read_bytes()
        written.write_bytes(struct.pack("<Q", len(data)) + data[8:])
        assert refusal(written) == "state file is truncated"


def failing(kind: type[BaseException]) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise kind(errno.ENOSPC, "No space left on device")

    return fail


class TestFailingWrites:
    "Half a file under a valid name, or leftovers, after a full disk"

    @pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
    def test_a_failing_flush_leaves_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
    ) -> None:
        monkeypatch.setattr(os, "fsync", failing(kind))
        with pytest.raises(kind):
            write_state(path, a_state(), PAYLOAD)
        assert list(path.parent.iterdir()) == []

    def test_a_failing_write_leaves_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full(io.FileIO):
            def write(self, data: Any) -> int:
                if self.tell():
                    failing(OSError)()
                return super().write(data)

        monkeypatch.setattr(
            state_module, "open", lambda fd, *_, **__: Full(fd, "wb"), raising=False
        )
        with pytest.raises(OSError, match="No space"):
            write_state(path, a_state(), PAYLOAD)
        assert list(path.parent.iterdir()) == []

    def test_no_directory_to_write_in(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            write_state(path.parent / "none" / NAME, a_state(), PAYLOAD)
        assert list(path.parent.iterdir()) == []

    def test_all_content_is_written_before_it_is_flushed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda fd: sizes.append(os.fstat(fd).st_size))
        _, nbytes = write_state(path, a_state(), PAYLOAD)
        assert sizes == [nbytes]


class TestHead:
    "An index rebuilt from unchecked headers would find wrong tokens"

    @staticmethod
    def rows_begin(path: Path) -> int:
        return path.stat().st_size - len(PAYLOAD)

    def refusal(self, path: Path) -> str:
        "The reason why a head is refused, which is that of the whole file"
        with pytest.raises(StateError) as caught:
            read_head(path)
        assert str(caught.value) == refusal(path)
        return str(caught.value)

    def test_every_flipped_bit_of_it_is_refused(self, written: Path) -> None:
        data, end = written.read_bytes(), self.rows_begin(written)
        with open(written, "r+b", buffering=0) as file:
            for at, bit in itertools.product(range(end), range(8)):
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit]), at)
                self.refusal(written)
                os.pwrite(file.fileno(), data[at : at + 1], at)
        assert list(read_head(written)[0].tokens) == [5, 6, 7]

    def test_every_other_length_is_refused(self, written: Path) -> None:
        data = written.read_bytes()
        for n in range(len(data)):
            written.write_bytes(data[:n])
            assert "truncated" in self.refusal(written) or n == 0
        written.write_bytes(data + b"\0")
        assert self.refusal(written) == "state file is too long"

    def test_missing(self, path: Path) -> None:
        assert self.refusal(path) == "state file is missing"

    def test_the_rows_are_not_read(self, written: Path) -> None:
        "Otherwise rebuilding an index would take too long before an answer"
        before = read_head(written)
        data = bytearray(written.read_bytes())
        data[-1] ^= 1
        written.write_bytes(data)
        assert read_head(written) == before
        refusal(written)

    @given(place=st.sampled_from(PLACES), value=json_values)
    @settings(max_examples=200, deadline=None)
    def test_says_what_the_whole_file_says(
        self, tmp_path_factory: pytest.TempPathFactory, place: Places, value: Any
    ) -> None:
        path = tmp_path_factory.getbasetemp() / NAME
        write(path, a_state(), PAYLOAD)
        lie(path, place, value)
        try:
            head, _ = read_head(path)
        except StateError:
            refusal(path)
            return
        assert list(head.tokens) == [1, 2, 3]
        if head.payload == xxhash.xxh3_128_hexdigest(PAYLOAD):
            assert head == read_state(path)


class TestMemory:
    "The payload is memory that is used again: nobody else may write to it"

    def test_writing_to_the_payload_leaves_the_file_alone(self, written: Path) -> None:
        before = written.read_bytes()
        with open_state(written) as (_, rows, _):
            rows[:] = bytes(len(rows))
        assert written.read_bytes() == before

    def test_the_payload_ends_with_its_context(self, written: Path) -> None:
        with open_state(written) as (state, rows, _):
            pass
        with pytest.raises(ValueError, match="released"):
            rows.tobytes()
        assert list(state.tokens) == [5, 6, 7]

    def test_a_deleted_file_stays_readable(self, written: Path) -> None:
        with open_state(written) as (_, rows, _):
            written.unlink()
            assert rows == PAYLOAD

    def test_a_view_that_is_still_held_hides_no_error(self, written: Path) -> None:
        held = []
        with pytest.raises(RuntimeError, match="the real one"):
            self._fail_holding(written, held)
        assert held[0].tobytes() == PAYLOAD

    @staticmethod
    def _fail_holding(path: Path, held: list[Any]) -> None:
        with open_state(path) as (_, rows, _):
            held.append(np.frombuffer(rows, np.uint8))
            raise RuntimeError("the real one")


class TestPositions:
    "A state with inconsistent numbers would restore rows to the wrong place"

    @pytest.mark.parametrize(
        "facts",
        [
            {"start": -1, "end": 2, "answer": 0},
            {"start": 1, "end": 3, "answer": 1},
            {"end": 4},
            {"end": 2},
            {"answer": 4},
            {"start": 2, "end": 5, "answer": 1},
            {"start": 3, "end": 0, "answer": 3},
            {"end": 0, "tokens": tokens_of()},
        ],
        ids=str,
    )
    def test_disagreeing_numbers_make_no_state(self, facts: dict[str, Any]) -> None:
        with pytest.raises(StateError):
            a_state(**facts)

    @pytest.mark.parametrize("answer", [2, 3, 5])
    def test_an_answer_may_begin_anywhere_within(self, answer: int) -> None:
        assert a_state((1, 2, 3), 2, answer=answer).answer == answer


class TestCommonPrefix:
    "One token too many is context that nobody asked for"

    @given(
        shared=st.lists(token_ids, max_size=200),
        a=st.lists(st.integers(0, 2), max_size=40),
        b=st.lists(st.integers(0, 2), max_size=40),
    )
    def test_equals_counting(
        self, shared: list[int], a: list[int], b: list[int]
    ) -> None:
        left, right = tokens_of(shared + a), tokens_of(shared + b)
        naive = 0
        for x, y in zip(left, right, strict=False):
            if x != y:
                break
            naive += 1
        assert common_prefix(left, right) == naive == common_prefix(right, left)

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 1000])
    def test_a_difference_at_any_end(self, n: int) -> None:
        tokens = tokens_of(range(n))
        assert common_prefix(tokens, tokens) == n
        assert common_prefix(tokens, tokens + tokens_of([7])) == n
        for at in {0, n // 2, n - 1} & set(range(n)):
            other = tokens[:]
            other[at] = -1
            assert common_prefix(tokens, other) == at


class TestPrefixDigest:
    "The digest identifies what comes before: all of it, and nothing else"

    @given(st.lists(token_ids, max_size=50), st.lists(token_ids, max_size=9))
    def test_is_that_of_the_ids_alone(self, ids: list[int], after: list[int]) -> None:
        expected = xxhash.xxh3_128_hexdigest(struct.pack(f"<{len(ids)}i", *ids))
        assert prefix_digest(tokens_of(ids + after), len(ids)) == expected

    @given(st.lists(token_ids, min_size=1, max_size=50), st.data())
    def test_every_token_counts(self, ids: list[int], data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(ids) - 1))
        tokens, other = tokens_of(ids), tokens_of(ids)
        other[at] ^= 1
        assert prefix_digest(tokens, len(ids)) != prefix_digest(other, len(ids))
        assert prefix_digest(tokens, at) == prefix_digest(other, at)
        assert prefix_digest(tokens, at) != prefix_digest(tokens, at + 1)

    @given(st.lists(token_ids, max_size=50))
    def test_bytes_and_back(self, ids: list[int]) -> None:
        data = token_bytes(tokens_of(ids))
        assert data == struct.pack(f"<{len(ids)}i", *ids)
        assert list(tokens_from_bytes(data)) == ids
