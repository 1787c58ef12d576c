"""What a llama.cpp sequence blob must look like before llama.cpp reads it.

The idea: ``llama_state_seq_set_data`` checks shapes and types, not positions or
counts: a blob with a wrong position is accepted and gives wrong answers. So the
structure is walked here first, field by field. Layout (llama.cpp state format
3, ``llama_kv_cache::state_write``), all little endian:

    u32 magic, i32 id of the sequence it was captured from
    u32 n_stream (1), u32 cell_count
    cell_count x (i32 position, u32 n_seq_id (1), i32 seq_id)
    u32 v_trans, u32 n_layer
    n_layer x (i32 type, u64 row size, cell_count rows)             keys
    n_layer x (i32 type, u64 row size, cell_count rows)             values, or
    n_layer x (i32 type, u32 element size, u32 n_embd, elements)    if v_trans

Sliding-window models append a second such block; recurrent ones another kind.
Of those only the first block is checked here; the digest of the file and
llama.cpp's own checks cover the rest.
"""

from __future__ import annotations

import struct
from array import array

from ..errors import StateError


def check(payload: memoryview, start: int, end: int, whole: bool) -> None:
    """Raise StateError unless the blob holds exactly positions [start, end).

    ``whole``: the attention block is all there is (no window, no recurrence).
    """
    try:
        after = _check_attention(payload, 8, start, end)
    except struct.error:
        raise StateError("state payload is cut short") from None
    if whole and after != len(payload):
        raise StateError("state payload has the wrong size")


def _check_attention(payload: memoryview, at: int, start: int, end: int) -> int:
    "Check one attention block at an offset; returns the offset after it"
    n_stream, count = struct.unpack_from("<II", payload, at)
    if n_stream != 1 or count != end - start:
        raise StateError("state payload holds another number of tokens")
    at += 8
    cells = array("i")
    cells.frombytes(payload[at : at + 12 * count])
    at += 12 * count
    if len(cells) != 3 * count:
        raise StateError("state payload is cut short")
    if cells[0::3] != array("i", range(start, end)):
        raise StateError("state payload holds other positions")
    if cells[1::3] != array("i", [1]) * count:
        raise StateError("state payload belongs to several sequences")
    v_trans, n_layer = struct.unpack_from("<II", payload, at)
    at += 8
    for _ in range(n_layer):
        _, row = struct.unpack_from("<iQ", payload, at)
        at += 12 + row * count
    for _ in range(n_layer):
        if v_trans:
            _, size, width = struct.unpack_from("<iII", payload, at)
            at += 12 + size * width * count
        else:
            _, row = struct.unpack_from("<iQ", payload, at)
            at += 12 + row * count
    return at
