"""One response's KV rows as one file.

The idea: a state file holds the KV rows of the tokens that one response added
to its context, positions [start, end), and those tokens' ids. It is a
safetensors container (``tokens`` I32, ``state`` U8) whose metadata says which
tokens come before it, so any tool that reads safetensors can open it. Where rows
alone are not enough to continue from (sliding windows, recurrent layers), the rest
of the model's memory at some positions is stored as ``snapshot.<position>``.

The invariant: a file is written once, whole, and never changed. Every byte is
covered by a digest (xxh3-128) that is checked before the byte is used: the
header holds one of the payload, one of each snapshot, and one of itself with the
token ids, so any part can be trusted without reading the others. A digest detects
accidents, not forgery.

This module does not know what the payload means (the engine does), where files
are kept (the store does), SQLite or llama.cpp.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import xxhash

from ..errors import StateError, UnreadableStateError
from .buffers import buffer
from .digests import Check
from .header import Header, Range, State, build, header_size, parse, truncated
from .tokens import token_bytes

SUFFIX = ".safetensors"
_PIECE = 1 << 21  # bytes read at a time
_ALIGNMENT = 64


def write_state(
    path: Path, state: State, payload: Any, snapshots: Mapping[int, Any] | None = None
) -> tuple[State, int]:
    """Write a new state file (mode 0600) and flush it to the disk.

    Returns the state with its digests, and the size of the file in bytes.
    ``payload`` and the ``snapshots``, by position, are any buffers. ``path`` must
    not exist: the caller renames the complete file to where it belongs. Raises
    OSError as the file system reports it, with nothing left behind.
    """
    tokens, snapshots = token_bytes(state.tokens), snapshots or {}
    marks = sorted(snapshots)
    parts = [memoryview(payload), *(memoryview(snapshots[mark]) for mark in marks)]
    parts = [part.cast("B") for part in parts]
    digests = [xxhash.xxh3_128_hexdigest(part) for part in parts]
    taken = tuple(zip(marks, digests[1:], strict=True))
    state = replace(state, payload=digests[0], snapshots=taken)
    header, digest = build(state, tokens, [len(part) for part in parts])
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for piece in (header, tokens, *parts):
                _write_all(file, piece)
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    nbytes = len(header) + len(tokens) + sum(map(len, parts))
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


@contextlib.contextmanager
def open_state(
    path: Path, marks: Sequence[int] | None = None, check: Check | None = None
) -> Iterator[tuple[State, memoryview, dict[int, memoryview]]]:
    """Read a state file and yield (State, payload, snapshots by position).

    Of the snapshots only those at ``marks`` are read, or all of them by default.
    Everything is verified first, except for the payload where a ``check`` is given:
    then its rows must not count before the check is settled. The views live as long as
    the context, and are writable only because ctypes asks for that. Raises StateError
    with the reason when the file is missing, truncated, damaged or in another format,
    UnreadableStateError when it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        with _open(path) as (file, size):
            header, state = _read_header(file, size)
            wanted = [
                (mark, digest, place)
                for (mark, digest), place in _parts(header, state)
                if mark is None or marks is None or mark in marks
            ]
            sizes = [_aligned(end - begin) for *_, (begin, end) in wanted]
            memory, parts, at = stack.enter_context(buffer(sum(sizes))), {}, 0
            for (mark, digest, place), room in zip(wanted, sizes, strict=True):
                parts[mark] = part = memory[at : at + place[1] - place[0]]
                stack.callback(_release, part)
                at += room
                if mark is None and check is not None:
                    stack.callback(check.leave)
                    _read(file, place, digest, part, check)
                else:
                    _read_verified(file, place, digest, part)
        snapshots = {mark: part for mark, part in parts.items() if mark is not None}
        yield state, parts[None], snapshots


def read_state(path: Path) -> State:
    "What a file says about itself, once every byte of it is verified"
    with _open(path) as (file, size), buffer(_PIECE) as memory:
        header, state = _read_header(file, size)
        for (_, digest), place in _parts(header, state):
            _read_verified(file, place, digest, memory[:_PIECE])
        return state


def read_head(path: Path) -> tuple[State, int]:
    """What a file says about itself, and its size in bytes.

    Header and token ids are verified, the payload is not read.
    """
    with _open(path) as (file, size):
        return read_head_of(file, size), size


def read_head_of(file: IO[bytes], size: int) -> State:
    "What the state in an open file of ``size`` bytes says about itself"
    return _read_header(file, size)[1]


def _read_header(file: Any, size: int) -> tuple[Header, State]:
    data = file.read(8)
    data += file.read(header_size(data) - 8)
    header = parse(data, size)
    begin, end = header.tokens
    return header, header.state(file.read(end - begin))


def _parts(
    header: Header, state: State
) -> Iterable[tuple[tuple[int | None, str], Range]]:
    "Position (None for the payload), digest and place of everything behind the tokens"
    return zip([(None, state.payload), *state.snapshots], header.parts, strict=True)


def _read_verified(file: Any, place: Range, digest: str, memory: memoryview) -> None:
    check = Check()
    try:
        _read(file, place, digest, memory, check)
        check.settle()
    finally:
        check.leave()


def _read(
    file: Any, place: Range, digest: str, memory: memoryview, check: Check
) -> None:
    "Read a part of a file for a check; less memory than that is used again and again"
    begin, end = place
    check.start(end - begin if len(memory) >= end - begin else 0, digest)
    file.seek(begin)
    at, left = 0, end - begin
    while left:
        at = at if at < len(memory) else 0
        n = file.readinto(memory[at : at + min(_PIECE, left)])
        if not n:
            raise truncated()  # since its size was looked up
        check.add(memory[at : at + n])
        at, left = at + n, left - n


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _release(part: memoryview) -> None:
    # A view of it that is still held must not hide what went wrong
    with contextlib.suppress(BufferError):
        part.release()


def is_missing(path: Path) -> bool:
    "Whether there is no such file; False if that cannot be found out"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, int]]:
    "A file for reading, and its size; OSErrors become StateErrors"
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise StateError("state file is empty")
            yield file, size
    except FileNotFoundError:
        raise StateError("state file is missing") from None
    except OSError as error:
        raise UnreadableStateError(
            f"state file is unreadable ({error.strerror})"
        ) from None
