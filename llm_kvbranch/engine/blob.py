"""llama.cpp's sequence blobs, checked before llama.cpp reads them.

The idea: ``llama_state_seq_set_data`` checks shapes and types, but not positions or
counts. It accepts a blob with a wrong position, and gives wrong answers. So the
structure is checked here first, field by field. The layout (llama.cpp state format 3,
``llama_kv_cache::state_write``), all little endian:

    u32 magic, i32 id of the sequence it was captured from
    u32 n_stream (1), u32 cell_count
    cell_count x (i32 position, u32 n_seq_id (1), i32 seq_id), or, where positions
                 have several dimensions (M-RoPE), 3 x i32 more before the seq_id
    u32 v_trans, u32 n_layer
    n_layer x (i32 type, u64 row size, cell_count rows)             keys
    n_layer x (i32 type, u64 row size, cell_count rows)             values, or
    n_layer x (i32 type, u32 element size, u32 n_embd, elements)    if v_trans

With multi-head latent attention (MLA) values are part of the keys, and none follow.
Sliding-window models append a second such block, with the last positions only.
The recurrent part (all of a recurrent model's blob, the end of a hybrid model's) is
``u32 cell_count (1), i32 position, u32 n_seq_id (0)``, then ``u32 s_trans (0), u32
n_layer``, then for every layer that has a state ``i32 type, u64 row size, row``, up to
the end. A few architectures have more there, which only llama.cpp checks. Any other
count of cells aborts the process.

What is appended belongs to one position only, so it is kept apart: *rows* are a blob
that ends like an empty sequence's (its ``tail``), a *snapshot* is a blob of only what
is appended (``LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY``).
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from array import array
from dataclasses import dataclass, field

from ..errors import StateError
from .lib import row_validator, stderr

_MAGIC = 0xAF143CD8  # io_magic in llama-context.cpp
HEADER = 8  # bytes before the first block
CELL, CELL_2D = 12, 24  # bytes that describe a cell
_F32 = 0  # enum ggml_type


@dataclass(frozen=True)
class Area:
    """One layer's keys, values or recurrent state within a blob.

    ``nbytes`` bytes from ``at`` on, in ``n_rows`` rows of ``ggml_type``. A row holds
    one cell, or if ``transposed`` one element of every cell. ``header`` is where the
    area's description begins.
    """

    header: int
    at: int
    nbytes: int
    n_rows: int
    ggml_type: int
    transposed: bool = False


@dataclass
class _Block:
    "One block of attention cells: its offset, its cells' positions, its areas"

    at: int
    positions: array[int] = field(default_factory=lambda: array("i"))
    areas: list[Area] = field(default_factory=list)
    end: int = 0


@dataclass(frozen=True)
class Layout:
    """What a model's blobs look like.

    ``kind`` is "attention", "recurrent" or "hybrid"; ``n_swa`` is the size of
    the sliding window in tokens, 0 for none; ``types`` are the ggml types of
    keys and values; ``cell`` is how many bytes describe a cell; ``tail`` is how rows
    end. ``has_values`` is false if only keys are cached.
    """

    kind: str = "attention"
    n_swa: int = 0
    types: tuple[int, int] | None = None
    cell: int = CELL
    tail: bytes = b""
    has_values: bool = True


def check(payload: memoryview, start: int, end: int, layout: Layout) -> list[Area]:
    """The areas of rows that are exactly those of positions [start, end).

    Raises StateError if they are not.
    """
    try:
        areas, at = [], _begin(payload)
        if layout.kind != "recurrent":
            block = _attention(payload, at, start, end, layout)
            areas, at = block.areas, block.end
        if payload[at:] != layout.tail:
            raise StateError("state payload has the wrong size")
    except (struct.error, OverflowError):
        raise StateError("state payload is cut short") from None
    return areas


def check_snapshot(payload: memoryview, position: int, layout: Layout) -> list[Area]:
    """The areas of a snapshot of a sequence that ends before a position.

    Raises StateError if it is not one.
    """
    areas: list[Area] = []
    try:
        at = _begin(payload)
        if layout.n_swa:
            held = struct.unpack_from("<I", payload, at + 4)[0]
            if not 0 < held <= position:
                raise StateError("state payload holds another number of tokens")
            block = _attention(payload, at, position - held, position, layout)
            areas, at = block.areas, block.end
        if layout.kind != "attention":
            areas += _recurrent(payload, at, position)
        elif at != len(payload):
            raise StateError("state payload has the wrong size")
    except (struct.error, OverflowError):
        raise StateError("state payload is cut short") from None
    return areas


def window_start(snapshot: memoryview, position: int) -> int:
    "The first position in a snapshot of a window that was checked"
    return position - int(struct.unpack_from("<I", snapshot, HEADER + 4)[0])


def all_finite(view: memoryview, areas: list[Area]) -> bool:
    "Whether no area holds a NaN or an infinite value"
    validate = row_validator()
    base = ctypes.addressof(ctypes.c_uint8.from_buffer(view))
    with stderr():
        return all(
            validate(area.ggml_type, base + area.at, area.nbytes) for area in areas
        )


def is_transposed(payload: bytearray, layout: Layout) -> bool:
    "Whether rows with at least one cell hold their values transposed"
    (count,) = struct.unpack_from("<I", payload, HEADER + 4)
    at = HEADER + 8 + layout.cell * count
    return bool(struct.unpack_from("<I", payload, at)[0])


def with_tail(payload: bytearray, start: int, end: int, layout: Layout) -> bytearray:
    "The rows [start, end) in a blob of llama.cpp, without what is appended"
    at = HEADER
    if layout.kind != "recurrent":
        at = _attention(memoryview(payload), at, start, end, layout).end
    return payload[:at] + layout.tail


def _begin(payload: memoryview) -> int:
    if struct.unpack_from("<I", payload, 0)[0] != _MAGIC:
        raise StateError("state payload is not one of llama.cpp's")
    return HEADER


def _attention(
    payload: memoryview,
    at: int,
    start: int,
    end: int,
    layout: Layout,
) -> _Block:
    "The attention block at an offset, checked to hold positions [start, end)"
    block = _Block(at)
    n_stream, count = struct.unpack_from("<II", payload, at)
    if n_stream != 1 or count != end - start:
        raise StateError("state payload holds another number of tokens")
    at += 8
    if at + layout.cell * count > len(payload):
        raise StateError("state payload is cut short")
    cells, width = array("i"), layout.cell // 4
    cells.frombytes(payload[at : at + layout.cell * count])
    at += layout.cell * count
    block.positions = cells[0::width]
    # In any order: sequences that take turns leave holes, which are filled later
    if array("i", sorted(block.positions)) != array("i", range(start, end)):
        raise StateError("state payload holds other positions")
    if cells[1::width] != array("i", [1]) * count:
        raise StateError("state payload belongs to several sequences")
    v_trans, n_layer = struct.unpack_from("<II", payload, at)
    at += 8
    n_parts = 1 + layout.has_values
    if v_trans > 1 or 12 * n_parts * n_layer > len(payload) - at:
        raise StateError("state payload is damaged")
    for part in range(n_parts):
        for _ in range(n_layer):
            area = _area(payload, at, count, bool(part and v_trans))
            at = area.at + area.nbytes
            if at > len(payload):
                raise StateError("state payload is cut short")
            if layout.types and area.ggml_type != layout.types[part]:
                raise StateError("state payload has another KV type")
            block.areas.append(area)
    block.end = at
    return block


def _area(payload: memoryview, at: int, count: int, transposed: bool) -> Area:
    "The area whose description begins at an offset"
    if transposed:
        kind, size, width = struct.unpack_from("<iII", payload, at)
        return Area(at, at + 12, size * width * count, width, kind, True)
    kind, row = struct.unpack_from("<iQ", payload, at)
    return Area(at, at + 12, row * count, count, kind)


def _recurrent(payload: memoryview, at: int, end: int) -> list[Area]:
    """The areas of the recurrent block at an offset, which reaches to the end.

    None of them if it holds more than this module knows of.
    """
    count, position, n_seq, s_trans, n_layer = struct.unpack_from("<IiIII", payload, at)
    if (count, position, n_seq) != (1, end - 1, 0):
        raise StateError("state payload holds another recurrent state")
    if s_trans or n_layer > 1 << 16:
        raise StateError("state payload is damaged")
    at += 20
    areas = []
    while at + 12 <= len(payload):
        area = _area(payload, at, 1, transposed=False)
        at = area.at + area.nbytes
        areas.append(area)
    known = at == len(payload) and all(area.ggml_type == _F32 for area in areas)
    return areas if known else []


def cut(payload: memoryview, start: int, end: int, upto: int) -> bytearray:
    """The rows [start, upto) out of a blob of rows [start, end).

    Raises StateError like ``check``.
    """
    try:
        if _is_tail(payload[_begin(payload) :]):
            return bytearray(payload)  # a recurrent model has no rows
        block, cell = _block_of(payload, start, end)
    except (struct.error, OverflowError):
        raise StateError("state payload is cut short") from None
    rest = payload[block.end :]
    kept = [i for i, position in enumerate(block.positions) if position < upto]
    result = bytearray(payload[:HEADER])
    result += struct.pack("<II", 1, len(kept))
    cells = block.at + 8
    for i in kept:
        result += payload[cells + cell * i : cells + cell * (i + 1)]
    layers = cells + cell * (end - start)
    result += payload[layers : layers + 8]
    for area in block.areas:
        result += payload[area.header : area.at]
        if not area.nbytes:  # a damaged blob may claim any number of empty rows
            continue
        size = area.nbytes // area.n_rows
        if area.transposed:
            size //= end - start  # of one element
            for row in range(area.n_rows):
                begin = area.at + row * size * (end - start)
                for first, last in _runs(kept):
                    result += payload[begin + first * size : begin + last * size]
        else:
            for first, last in _runs(kept):
                result += payload[area.at + first * size : area.at + last * size]
    return result + rest


def _is_tail(rest: memoryview) -> bool:
    "Whether this is a window without cells or recurrent layers without a state"
    if rest[:8] == struct.pack("<II", 1, 0):
        rest = rest[8:]
        if not rest:
            return True
    if len(rest) < 12:
        return False
    count, s_trans, n_layer = struct.unpack_from("<III", rest)
    described = len(rest) - 12  # at most two types and three row sizes per layer
    return not (count or s_trans or described % 4) and described <= 32 * n_layer


def _block_of(payload: memoryview, start: int, end: int) -> tuple[_Block, int]:
    "The block of rows, and how many bytes describe a cell, for any model"
    failure: Exception | None = None
    for has_values, cell in itertools.product((True, False), (CELL, CELL_2D)):
        try:
            layout = Layout(cell=cell, has_values=has_values)
            block = _attention(payload, HEADER, start, end, layout)
            if (rest := payload[block.end :]) and not _is_tail(rest):
                raise StateError("state payload has the wrong size")
        except (StateError, struct.error, OverflowError) as error:
            failure = failure or error
        else:
            return block, cell
    assert failure is not None
    raise failure


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    "Ascending numbers as half-open ranges"
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
