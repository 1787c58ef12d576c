"""One response's KV rows as one file.

The idea: a state file holds the KV rows of the tokens that one response added
to its context, positions [start, end), and those tokens' ids. It is a
safetensors container (``tokens`` I32, ``state`` U8) whose metadata says which
tokens come before it, so any tool that reads safetensors can open it. Where rows
alone are not enough to go on from (sliding windows, recurrent layers), what else
the model remembers at some positions is beside them, as ``snapshot.<position>``.

The invariant: a file is written once, whole, and never changed. Every byte is
covered by a digest (xxh3-128) that is checked before the byte is used: the
header holds one of the payload, one of each snapshot, and one of itself with the
token ids, so any part can be trusted without reading the others. A digest detects
accidents, not forgery.

This module does not know what the payload means (that is the engine's), where
files live (the store's), nor anything of SQLite or llama.cpp.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from ..errors import StateError
from .digests import Check, damaged, verify

FORMAT = "llm-kvbranch/3"
SUFFIX = ".safetensors"

# A header is a few hundred bytes; a length field that claims more than this
# is damage, not a header.
_MAX_HEADER = 1 << 20
_MAX_POSITION = (1 << 63) - 1  # the largest integer of an index
_NO_DIGEST = "0" * 32


def tokens_of(ids: Any = ()) -> array[int]:
    "Token ids as the int32 array that the whole package passes around"
    return array("i", ids)


def token_bytes(tokens: array[int]) -> bytes:
    "Little-endian int32 bytes of the ids, the form used on disk and in hashes"
    if sys.byteorder == "big":  # pragma: no cover
        tokens = array("i", tokens)
        tokens.byteswap()
    return tokens.tobytes()


def tokens_from_bytes(data: bytes | memoryview) -> array[int]:
    "Inverse of token_bytes"
    tokens: array[int] = array("i")
    tokens.frombytes(data)
    if sys.byteorder == "big":  # pragma: no cover
        tokens.byteswap()
    return tokens


def prefix_digest(tokens: array[int], n: int) -> str:
    "xxh3-128 of the first n token ids: what must come before a state"
    return xxhash.xxh3_128_hexdigest(token_bytes(tokens[:n]))


def fingerprint_of(fields: dict[str, str]) -> str:
    "The name for all that must be equal for a state to fit"
    return xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode())


def common_prefix(a: array[int], b: array[int]) -> int:
    "Number of leading token ids that a and b share"
    low, high = 0, min(len(a), len(b))
    view_a, view_b = memoryview(a), memoryview(b)
    if view_a[:high] == view_b[:high]:
        return high
    while low + 1 < high:  # invariant: a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        if view_a[low:middle] == view_b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class State:
    """What a state file says of itself.

    Rows [start, end) belong to ``tokens`` (end - start ids). ``answer`` is the
    position of the first generated token, start <= answer <= end. ``prefix``
    is the digest of the ids at [0, start); ``parent_id`` names the response
    whose chain supplied them. ``input_hash`` and ``tip_hash`` are llm's message
    hashes of the prompt's chain and of the answer; ``render`` identifies what
    turned messages into text (chat template and tools). ``thread_id`` is llm's,
    ``origin`` says who brought the state here if it was made elsewhere.
    ``payload`` is the digest of the KV rows, ``snapshots`` are the positions that
    snapshots belong to (the next token's) with their digests, ``digest`` is that of
    the whole: it covers the header, these digests in it, and the token ids.
    """

    response_id: str
    fingerprint: str
    start: int
    end: int
    answer: int
    tokens: array[int]
    prefix: str
    parent_id: str | None = None
    input_hash: str | None = None
    tip_hash: str | None = None
    render: str = ""
    thread_id: str | None = None
    origin: str | None = None
    created: str = ""
    payload: str = ""
    snapshots: tuple[tuple[int, str], ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.answer <= self.end <= _MAX_POSITION:
            raise StateError("state positions are out of order")
        if self.start == self.end or len(self.tokens) != self.end - self.start:
            raise StateError("state does not hold one token for each position")
        marks = [self.start, *self.marks]
        if marks != sorted(set(marks)) or marks[-1] > self.end:
            raise StateError("state snapshots are out of order")

    @property
    def marks(self) -> tuple[int, ...]:
        "The positions that snapshots belong to, ascending"
        return tuple(position for position, _ in self.snapshots)

    @property
    def key(self) -> tuple[str, str]:
        "(fingerprint, response_id): what tells it from all other states"
        return self.fingerprint, self.response_id

    def metadata(self) -> dict[str, str]:
        "The safetensors metadata: strings only, absent keys for None"
        fields = {
            name: str(value)
            for name in _FIELDS
            if (value := getattr(self, name)) is not None
        }
        if self.snapshots:
            fields["snapshots"] = snapshots_text(self.snapshots)
        return fields


def snapshots_text(snapshots: tuple[tuple[int, str], ...]) -> str:
    "Positions and digests of snapshots as one text"
    return " ".join(f"{position}:{digest}" for position, digest in snapshots)


def snapshots_of(text: str | None) -> tuple[tuple[int, str], ...]:
    "Inverse of snapshots_text; raises ValueError"
    found = []
    for item in (text or "").split():
        position, _, digest = item.partition(":")
        if not re.fullmatch("[0-9a-f]{32}", digest):
            raise ValueError(item)
        found.append((int(position), digest))
    return tuple(found)


_FIELDS = (
    "response_id",
    "parent_id",
    "fingerprint",
    "start",
    "end",
    "answer",
    "prefix",
    "input_hash",
    "tip_hash",
    "render",
    "thread_id",
    "origin",
    "created",
    "payload",
)


def write_state(
    path: Path, state: State, payload: Any, snapshots: Mapping[int, Any] | None = None
) -> tuple[State, int]:
    """Write a new state file (mode 0600) and flush it to the disk.

    Returns the state with its digests, and the size of the file in bytes.
    ``payload`` and the ``snapshots``, by position, are any buffers. ``path`` must
    not exist: whoever wants the file elsewhere renames it once it is whole. Raises
    OSError as the file system reports it, with nothing left behind.
    """
    data = token_bytes(state.tokens)
    views = [memoryview(payload).cast("B")]
    marks = sorted(snapshots or {})
    views += [memoryview((snapshots or {})[mark]).cast("B") for mark in marks]
    digests = [xxhash.xxh3_128_hexdigest(view) for view in views]
    taken = tuple(zip(marks, digests[1:], strict=True))
    state = replace(state, payload=digests[0], snapshots=taken)
    header = _header(state, len(data), [len(view) for view in views])
    digest = _digest(header, data)
    header = header.replace(_NO_DIGEST.encode(), digest.encode(), 1)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for piece in (header, data, *views):
                _write_all(file, piece)
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    nbytes = len(header) + len(data) + sum(map(len, views))
    return replace(state, digest=digest), nbytes


def _write_all(file: Any, data: Any) -> None:
    "Raw writes may be short (2 GiB at a time on Linux)"
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def sync_directory(directory: Path) -> None:
    "Make renames in a directory durable, where directories can be synced at all"
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _header(state: State, n_token_bytes: int, sizes: list[int]) -> bytes:
    """The 8-byte length and the JSON header, padded so that tensors are aligned.

    ``sizes`` are those of the payload and the snapshots, in bytes.
    """
    tensors, begin = {}, n_token_bytes
    for name, size in zip(_names(state), sizes, strict=True):
        tensors[name] = {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [begin, begin + size],
        }
        begin += size
    header = json.dumps(
        {
            # First, so that the placeholder replaced later is the digest's own
            "__metadata__": {
                "digest": _NO_DIGEST,
                "format": FORMAT,
                **state.metadata(),
            },
            "tokens": {
                "dtype": "I32",
                "shape": [len(state.tokens)],
                "data_offsets": [0, n_token_bytes],
            },
            **tensors,
        }
    ).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header


def _names(state: State) -> list[str]:
    "The tensors after the token ids, in order"
    return ["state", *(f"snapshot.{mark}" for mark in state.marks)]


def _digest(header: Any, tokens: Any) -> str:
    digest = xxhash.xxh3_128(header)
    digest.update(tokens)
    return digest.hexdigest()


@contextlib.contextmanager
def open_state(path: Path) -> Iterator[tuple[State, memoryview]]:
    "Map a state file and give (State, payload) once every byte is verified"
    with open_parts(path) as (state, payload, _):
        yield state, payload


@contextlib.contextmanager
def open_parts(
    path: Path, wanted: Sequence[int] | None = None, check: Check | None = None
) -> Iterator[tuple[State, memoryview, dict[int, memoryview]]]:
    """Map a state file and give (State, payload, snapshots by position).

    Of the snapshots those at the ``wanted`` positions, or all; nothing else is
    read, and what is given has been verified: of the payload ``check``, if given, says
    when, and is settled before its rows are used. The views are into a private
    mapping: they live as long as the context, and are writable only because ctypes
    asks for that. Raises StateError with the reason when the file is missing, cut,
    changed, foreign in format or from a newer version.
    """
    with _opened(path) as (file, size):
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise StateError(f"state file is unreadable ({error.strerror})") from None
    view = memoryview(mapping)
    parts: dict[int, memoryview] = {}
    try:
        state, ranges = _parse(view, size)
        marks = (None, *state.marks)
        digests = (state.payload, *(digest for _, digest in state.snapshots))
        for mark, digest, (begin, end) in zip(marks, digests, ranges, strict=True):
            if mark is None or wanted is None or mark in wanted:
                parts[mark or 0] = part = view[begin:end]
                if mark is None and check is not None:
                    check.start(part, digest)
                else:
                    verify(part, digest)
        yield state, parts[0], {mark: part for mark, part in parts.items() if mark}
    finally:
        if check is not None:
            check.leave()
        # A buffer still exported (an exception's traceback can hold one) only
        # delays the unmapping; it must not hide what went wrong.
        with contextlib.suppress(BufferError):
            for part in parts.values():
                part.release()
            view.release()
            mapping.close()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    "A state file open for reading, and its size; raises StateError"
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise StateError("state file is empty")
            yield file, size
    except FileNotFoundError:
        raise StateError("state file is missing") from None
    except OSError as error:
        raise StateError(f"state file is unreadable ({error.strerror})") from None


def read_state(path: Path) -> State:
    "The verified State of a file without its payload; raises StateError"
    with open_state(path) as (state, _):
        return state


def read_head(path: Path) -> tuple[State, int]:
    """What a file says of itself, and its size in bytes; raises StateError.

    Header and token ids are verified, the payload is not read.
    """
    with _opened(path) as (file, size):
        data = bytearray(file.read(8))
        if len(data) == 8:
            (length,) = struct.unpack("<Q", data)
            data += file.read(min(length, _MAX_HEADER))
            n_token_bytes = _parse_header(memoryview(data), size)[2]
            data += file.read(n_token_bytes)
        return _parse(memoryview(data), size)[0], size


def _parse(view: memoryview, size: int) -> tuple[State, list[tuple[int, int]]]:
    """State, and where payload and snapshots are, from a file's first bytes.

    ``size`` is that of the whole file. Raises StateError on anything that was
    not written by us.
    """
    metadata, header_size, n_token_bytes, ranges = _parse_header(view, size)
    begin = header_size + n_token_bytes
    try:
        fields: dict[str, Any] = {name: metadata.get(name) for name in _FIELDS}
        for name in ("start", "end", "answer"):
            fields[name] = int(metadata[name])
        fields["tokens"] = tokens_from_bytes(view[header_size:begin])
        fields["snapshots"] = snapshots_of(metadata.get("snapshots"))
        state = State(**fields, digest=metadata["digest"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise StateError("state file is damaged (header makes no sense)") from None
    unsigned = bytes(view[:header_size]).replace(
        state.digest.encode(), _NO_DIGEST.encode(), 1
    )
    if _digest(unsigned, view[header_size:begin]) != state.digest:
        raise damaged()
    return state, ranges


def _parse_header(
    view: memoryview, size: int
) -> tuple[dict[str, str], int, int, list[tuple[int, int]]]:
    """Metadata, size of the header, bytes of the token ids, where the rest is.

    The last as (begin, end) of the payload and of each snapshot. Raises StateError.
    """
    header, header_size = _load_header(view)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise StateError("state file is not one of llm-kvbranch's")
    if (written_as := metadata.get("format")) != FORMAT:
        # Nothing but a number is repeated: reasons are printed, and kept
        known = re.fullmatch("llm-kvbranch/[0-9]{1,9}", str(written_as))
        raise StateError(
            f"state file has format {written_as}, this version reads {FORMAT}"
            if known
            else "state file is not one of llm-kvbranch's"
        )
    required = {"response_id", "fingerprint", "prefix", "render", "created", "payload"}
    try:
        "".join(metadata.values()).encode()  # no lone surrogates
        n_token_bytes = 4 * (int(metadata["end"]) - int(metadata["start"]))
        marks = [mark for mark, _ in snapshots_of(metadata.get("snapshots"))]
        names = ["state", *(f"snapshot.{mark}" for mark in marks)]
        offsets = [
            (first, last)
            for first, last in (header[name]["data_offsets"] for name in names)
            if type(first) is type(last) is int
        ]
        apart = any(one[1] != next_[0] for one, next_ in itertools.pairwise(offsets))
        expected = {"__metadata__", "tokens", *names}
        if len(offsets) != len(names) or header.keys() != expected or apart:
            raise StateError("state file is damaged (tensors out of place)")
        begin, end = offsets[0][0], offsets[-1][1]
        if (
            not required <= metadata.keys()
            or not re.fullmatch("[0-9a-f]{32}", metadata["digest"])
            or header["tokens"]["data_offsets"] != [0, n_token_bytes]
            or begin != n_token_bytes
            or not 0 < n_token_bytes <= end
            or any(not first <= last for first, last in offsets)
        ):
            raise StateError("state file is damaged (tensors out of place)")
        if size != header_size + end:
            short = size < header_size + end
            raise StateError(f"state file is {'truncated' if short else 'too long'}")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise StateError("state file is damaged (header makes no sense)") from None
    ranges = [(header_size + first, header_size + last) for first, last in offsets]
    return metadata, header_size, n_token_bytes, ranges


def _load_header(view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise StateError("state file is truncated")
    (length,) = struct.unpack("<Q", view[:8])
    if length > _MAX_HEADER:
        raise StateError("state file is not one of llm-kvbranch's")
    if 8 + length > len(view):
        raise StateError("state file is truncated")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise StateError("state file is damaged (header makes no sense)") from None
    if not isinstance(header, dict):
        raise StateError("state file is not one of llm-kvbranch's")
    return header, 8 + length
