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
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from ..errors import StateError, UnreadableStateError
from .digests import Check, verify
from .header import State, build, header_size, parse
from .tokens import token_bytes

SUFFIX = ".safetensors"


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
    """Map a state file and yield (State, payload, snapshots by position).

    Of the snapshots only those at ``marks`` are read, or all of them by default.
    Everything is verified first, except for the payload where a ``check`` is given:
    then its rows must not count before the check is settled. The views are into a
    private mapping: they live as long as the context, and are writable only because
    ctypes asks for that. Raises StateError with the reason when the file is missing,
    truncated, damaged or in another format, UnreadableStateError when it cannot be
    read.
    """
    with _open(path) as (file, size):
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    view = memoryview(mapping)
    parts: dict[int | None, memoryview] = {}
    try:
        header = parse(view, size)
        state = header.state(view[slice(*header.tokens)])
        digests = [(None, state.payload), *state.snapshots]
        for (mark, digest), place in zip(digests, header.parts, strict=True):
            if mark is None or marks is None or mark in marks:
                parts[mark] = part = view[slice(*place)]
                if mark is None and check is not None:
                    check.start(part, digest)
                else:
                    verify(part, digest)
        snapshots = {mark: part for mark, part in parts.items() if mark is not None}
        yield state, parts[None], snapshots
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


def read_state(path: Path) -> State:
    "What a file says about itself, once every byte of it is verified"
    with open_state(path) as (state, _, _):
        return state


def read_head(path: Path) -> tuple[State, int]:
    """What a file says about itself, and its size in bytes.

    Header and token ids are verified, the payload is not read.
    """
    with _open(path) as (file, size):
        data = file.read(8)
        data += file.read(header_size(data) - 8)
        header = parse(data, size)
        begin, end = header.tokens
        return header.state(file.read(end - begin)), size


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
