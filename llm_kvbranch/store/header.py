"""What a state file says about itself, and the header that says it.

The idea: a state file is a safetensors container. Its header is JSON: metadata,
which is a ``State`` without its token ids, and where each tensor is.

The invariant: nothing in a header is believed before the header's digest, which
covers the token ids as well, has been verified. All errors are StateErrors.

This module does not know files: it makes bytes and reads bytes.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from array import array
from dataclasses import dataclass, fields
from typing import Any

import xxhash

from ..errors import StateError
from .digests import damaged
from .tokens import tokens_from_bytes

FORMAT = "llm-kvbranch/3"

# A header is a few hundred bytes; a length field that claims more than this
# is damage, not a header.
_MAX_HEADER = 1 << 20
_MAX_POSITION = (1 << 63) - 1  # the largest integer in the index
_NO_DIGEST = "0" * 32

Range = tuple[int, int]  # begin and end of some bytes of a file
Key = tuple[str, str]  # (fingerprint, response id), which no two states share


@dataclass(frozen=True, kw_only=True)
class State:
    """What a state file says about itself.

    Rows [start, end) belong to ``tokens`` (end - start ids). ``answer`` is the
    position of the first generated token, start <= answer <= end. ``prefix``
    is the digest of the ids at [0, start); ``parent_id`` names the response
    whose chain supplied them. ``input_hash`` and ``tip_hash`` are llm's message
    hashes of the prompt's chain and of the answer; ``render`` identifies what
    turned messages into text (chat template and tools). ``thread_id`` is llm's,
    ``origin`` says who brought the state here if it was made elsewhere.
    ``payload`` is the digest of the KV rows. ``snapshots`` are positions (of the
    next token) and digests of snapshots. ``digest`` covers the whole file: the
    header, with the digests in it, and the token ids.

    The fields are in the order in which a header has them. The index has a column
    for each.
    """

    response_id: str
    parent_id: str | None = None
    fingerprint: str
    start: int
    end: int
    answer: int
    prefix: str
    input_hash: str | None = None
    tip_hash: str | None = None
    render: str = ""
    thread_id: str | None = None
    origin: str | None = None
    created: str = ""
    payload: str = ""
    snapshots: tuple[tuple[int, str], ...] = ()
    tokens: array[int]
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
        "The positions of the snapshots, ascending"
        return tuple(position for position, _ in self.snapshots)

    @property
    def key(self) -> Key:
        return self.fingerprint, self.response_id

    def metadata(self) -> dict[str, str]:
        "The safetensors metadata: strings only, absent keys for None"
        values = {name: getattr(self, name) for name in _METADATA}
        values["snapshots"] = snapshots_text(self.snapshots) or None
        return {name: str(value) for name, value in values.items() if value is not None}


_METADATA = [f.name for f in fields(State) if f.name not in ("tokens", "digest")]
_NUMBERS = ("start", "end", "answer")
_REQUIRED = {"response_id", "fingerprint", "prefix", "render", "created", "payload"}


def fingerprint_of(facts: dict[str, str]) -> str:
    "The name for everything that must be equal for a state to fit"
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True).encode())


def snapshots_text(snapshots: tuple[tuple[int, str], ...]) -> str:
    "Positions and digests of snapshots as one string"
    return " ".join(f"{position}:{digest}" for position, digest in snapshots)


def snapshots_of(text: str | None) -> tuple[tuple[int, str], ...]:
    "Inverse of snapshots_text; raises ValueError"
    found = []
    for item in (text or "").split():
        position, _, digest = item.partition(":")
        if not _is_digest(digest):
            raise ValueError(item)
        found.append((int(position), digest))
    return tuple(found)


# -- writing -----------------------------------------------------------


def build(state: State, tokens: bytes, sizes: list[int]) -> tuple[bytes, str]:
    """The header of a state, with its 8-byte length, and the digest in it.

    ``sizes`` are those of the payload and the snapshots, in bytes.
    """
    shapes = [("tokens", "I32", len(state.tokens), len(tokens))]
    shapes += [
        (name, "U8", size, size)
        for name, size in zip(_tensors(state.marks), sizes, strict=True)
    ]
    # First, so that the placeholder replaced below is the digest's own
    header: dict[str, Any] = {
        "__metadata__": {"digest": _NO_DIGEST, "format": FORMAT, **state.metadata()}
    }
    begin = 0
    for name, dtype, shape, nbytes in shapes:
        header[name] = {
            "dtype": dtype,
            "shape": [shape],
            "data_offsets": [begin, begin + nbytes],
        }
        begin += nbytes
    data = json.dumps(header).encode()
    data += b" " * (-(8 + len(data)) % 64)  # so that tensors are aligned
    data = struct.pack("<Q", len(data)) + data
    digest = _digest(data, tokens)
    return data.replace(_NO_DIGEST.encode(), digest.encode(), 1), digest


def _tensors(marks: tuple[int, ...]) -> list[str]:
    "Names of the tensors after the token ids, in order"
    return ["state", *(f"snapshot.{mark}" for mark in marks)]


def _digest(header: Any, tokens: Any) -> str:
    digest = xxhash.xxh3_128(header)
    digest.update(tokens)
    return digest.hexdigest()


def _is_digest(text: str) -> bool:
    return bool(re.fullmatch("[0-9a-f]{32}", text))


# -- reading -----------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """A header that makes sense, but is not verified before ``state`` is.

    ``tokens`` is where the token ids are, ``parts`` where the payload and each
    snapshot are.
    """

    data: bytes
    metadata: dict[str, str]
    tokens: Range
    parts: list[Range]

    def state(self, tokens: bytes | memoryview) -> State:
        "What the file says about itself, verified; ``tokens`` are its token ids"
        try:
            values: dict[str, Any] = {n: self.metadata.get(n) for n in _METADATA}
            values |= {name: int(self.metadata[name]) for name in _NUMBERS}
            values["snapshots"] = snapshots_of(self.metadata.get("snapshots"))
            digest = self.metadata["digest"]
            state = State(tokens=tokens_from_bytes(tokens), digest=digest, **values)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise _invalid() from None
        unsigned = self.data.replace(digest.encode(), _NO_DIGEST.encode(), 1)
        if _digest(unsigned, tokens) != digest:
            raise damaged()
        return state


def header_size(start: bytes | memoryview) -> int:
    "Bytes of a header with its length, from the first 8 bytes of a file"
    if len(start) < 8:
        raise truncated()
    (length,) = struct.unpack("<Q", start[:8])
    if length > _MAX_HEADER:
        raise _foreign()
    return 8 + int(length)


def parse(data: bytes | memoryview, size: int) -> Header:
    "The header at the beginning of a file of ``size`` bytes"
    begin = header_size(data)
    if begin > len(data):
        raise truncated()
    header = _load(bytes(data[8:begin]))
    metadata = _check_metadata(header)
    _check_format(metadata.get("format"))
    try:
        marks = tuple(mark for mark, _ in snapshots_of(metadata.get("snapshots")))
        names = ["tokens", *_tensors(marks)]
        if header.keys() != {"__metadata__", *names}:
            raise _misplaced()
        tokens, *parts = (_check_offsets(header[name]) for name in names)
        _check_values(metadata, tokens)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _invalid() from None
    _check_contiguous([tokens, *parts])
    _check_size(size, begin + parts[-1][1])
    ranges = [(begin + first, begin + last) for first, last in (tokens, *parts)]
    return Header(bytes(data[:begin]), metadata, ranges[0], ranges[1:])


def _load(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        raise _invalid() from None
    if not isinstance(header, dict):
        raise _foreign()
    return header


def _check_metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        raise _foreign()
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _foreign()
    return metadata


def _check_format(written_as: str | None) -> None:
    if written_as == FORMAT:
        return
    # Only a number is repeated: reasons are printed, and kept
    if not re.fullmatch("llm-kvbranch/[0-9]{1,9}", str(written_as)):
        raise _foreign()
    raise StateError(f"state file has format {written_as}; this version reads {FORMAT}")


def _check_offsets(tensor: Any) -> Range:
    first, last = tensor["data_offsets"]
    if not type(first) is type(last) is int:
        raise _misplaced()
    return first, last


def _check_values(metadata: dict[str, str], tokens: Range) -> None:
    "Raise KeyError or ValueError too"
    "".join(metadata.values()).encode()  # no lone surrogates
    n_token_bytes = 4 * (int(metadata["end"]) - int(metadata["start"]))
    if tokens != (0, n_token_bytes) or n_token_bytes <= 0:
        raise _misplaced()
    if not metadata.keys() >= _REQUIRED or not _is_digest(metadata["digest"]):
        raise _misplaced()


def _check_contiguous(ranges: list[Range]) -> None:
    if any(first > last for first, last in ranges):
        raise _misplaced()
    if any(one[1] != other[0] for one, other in itertools.pairwise(ranges)):
        raise _misplaced()


def _check_size(size: int, expected: int) -> None:
    if size < expected:
        raise truncated()
    if size > expected:
        raise StateError("state file is too long")


def truncated() -> StateError:
    return StateError("state file is truncated")


def _foreign() -> StateError:
    return StateError("state file is not in llm-kvbranch's format")


def _misplaced() -> StateError:
    return StateError("state file is damaged (tensors out of place)")


def _invalid() -> StateError:
    return StateError("state file is damaged (invalid header)")
