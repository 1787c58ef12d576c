"""One response's KV rows as one file.

The idea: a state file holds the KV rows of the tokens that one response added
to its context, positions [start, end), and those tokens' ids. It is a
safetensors container (``tokens`` I32, ``state`` U8) whose metadata says which
tokens come before it, so any tool that reads safetensors can open it.

The invariant: a file is written once, whole, and never changed. One digest
(xxh3-128) covers every byte of it, header included, and every byte is checked
before any of them is used. A digest detects accidents, not forgery.

This module does not know what the payload means (that is the engine's), where
files live (the store's), nor anything of SQLite or llama.cpp.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import secrets
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from .errors import StateError

FORMAT = "llm-kvbranch/1"
SUFFIX = ".safetensors"

# A header is a few hundred bytes; a length field that claims more than this
# is damage, not a header.
_MAX_HEADER = 1 << 20
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
    turned messages into text (chat template and tools).
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
    created: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.answer <= self.end:
            raise StateError("state positions are out of order")
        if self.start == self.end or len(self.tokens) != self.end - self.start:
            raise StateError("state does not hold one token for each position")

    def metadata(self) -> dict[str, str]:
        "The safetensors metadata: strings only, absent keys for None"
        return {
            "format": FORMAT,
            "digest": self.digest or _NO_DIGEST,
            **{
                name: str(value)
                for name in _FIELDS
                if (value := getattr(self, name)) is not None
            },
        }


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
    "created",
)


def write_state(path: Path, state: State, payload: Any) -> tuple[str, int]:
    """Write a state file, whole or not at all; returns (digest, file bytes).

    The bytes go to a temporary file beside ``path`` (mode 0600), are flushed to
    the disk and renamed into place, so a crash leaves nothing or everything.
    ``payload`` is any buffer. Raises OSError as the file system reports it,
    with nothing left behind.
    """
    data = token_bytes(state.tokens)
    view = memoryview(payload).cast("B")
    header = _header(state, len(data), len(view))
    digest = _digest(header, data, view)
    header = header.replace(_NO_DIGEST.encode(), digest.encode(), 1)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for piece in (header, data, view):
                _write_all(file, piece)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)
    return digest, len(header) + len(data) + len(view)


def _write_all(file: Any, data: Any) -> None:
    "Raw writes may be short (2 GiB at a time on Linux)"
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_directory(directory: Path) -> None:
    "Make the rename durable where directories can be synced at all"
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _header(state: State, n_token_bytes: int, n_payload: int) -> bytes:
    "The 8-byte length and the JSON header, padded so that tensors are aligned"
    unsigned = {**state.metadata(), "digest": _NO_DIGEST}
    header = json.dumps(
        {
            # First, so that the placeholder replaced later is the digest's own
            "__metadata__": {"digest": unsigned.pop("digest"), **unsigned},
            "tokens": {
                "dtype": "I32",
                "shape": [len(state.tokens)],
                "data_offsets": [0, n_token_bytes],
            },
            "state": {
                "dtype": "U8",
                "shape": [n_payload],
                "data_offsets": [n_token_bytes, n_token_bytes + n_payload],
            },
        }
    ).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header


def _digest(header: bytes, tokens: Any, payload: Any) -> str:
    digest = xxhash.xxh3_128(header)
    digest.update(tokens)
    digest.update(payload)
    return digest.hexdigest()


@contextlib.contextmanager
def open_state(path: Path) -> Iterator[tuple[State, memoryview]]:
    """Map a state file and give (State, payload) once every byte is verified.

    The payload is a view into a private mapping: it lives as long as the
    context, and is writable only because ctypes asks for that. Raises
    StateError with the reason when the file is missing, cut, changed, foreign
    in format or from a newer version.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise StateError("state file is empty")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise StateError("state file is missing") from None
    except OSError as error:
        raise StateError(f"state file is unreadable ({error.strerror})") from None
    view = memoryview(mapping)
    payload = view[:0]
    try:
        state, header_size = _parse(view)
        begin = header_size + 4 * len(state.tokens)
        payload = view[begin:]
        header = bytes(view[:header_size])
        unsigned = header.replace(state.digest.encode(), _NO_DIGEST.encode(), 1)
        if _digest(unsigned, view[header_size:begin], payload) != state.digest:
            raise StateError("state file is damaged (digest does not match)")
        yield state, payload
    finally:
        # A buffer still exported (an exception's traceback can hold one) only
        # delays the unmapping; it must not hide what went wrong.
        with contextlib.suppress(BufferError):
            payload.release()
            view.release()
            mapping.close()


def _parse(view: memoryview) -> tuple[State, int]:
    "State and header size; raises StateError on anything not written by us"
    header, header_size = _parse_header(view)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise StateError("state file is not one of llm-kvbranch's")
    if (written_as := metadata.get("format")) != FORMAT:
        known = str(written_as).startswith("llm-kvbranch/")
        raise StateError(
            f"state file has format {written_as}, this version reads {FORMAT}"
            if known
            else "state file is not one of llm-kvbranch's"
        )
    try:
        "".join(metadata.values()).encode()  # no lone surrogates
        start, end = int(metadata["start"]), int(metadata["end"])
        answer = int(metadata["answer"])
        n_token_bytes = 4 * (end - start)
        total = header["state"]["data_offsets"][1]
        if header["tokens"]["data_offsets"] != [0, n_token_bytes] or (
            header["state"]["data_offsets"][0] != n_token_bytes
        ):
            raise StateError("state file is damaged (tensors out of place)")
        if len(view) != header_size + total:
            found, due = len(view), header_size + total
            raise StateError(
                f"state file is {'truncated' if found < due else 'too long'}"
            )
        tokens = tokens_from_bytes(view[header_size : header_size + n_token_bytes])
        strings: dict[str, Any] = {
            name: metadata.get(name)
            for name in _FIELDS
            if name not in ("start", "end", "answer")
        }
        state = State(
            start=start,
            end=end,
            answer=answer,
            tokens=tokens,
            digest=metadata["digest"],
            **strings,
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise StateError("state file is damaged (header makes no sense)") from None
    required = {"response_id", "fingerprint", "prefix", "render", "created"}
    if not required <= metadata.keys() or not re.fullmatch(
        "[0-9a-f]{32}", state.digest
    ):
        raise StateError("state file is damaged (header makes no sense)")
    return state, header_size


def _parse_header(view: memoryview) -> tuple[dict[str, Any], int]:
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


def read_state(path: Path) -> State:
    "The verified State of a file without its payload; raises StateError"
    with open_state(path) as (state, _):
        return state
