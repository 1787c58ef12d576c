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

Sliding-window models append a second such block, with the last positions only.
The recurrent part (the whole of a recurrent model's blob, the end of a hybrid
one's) begins ``u32 cell_count (1), i32 position, u32 n_seq_id (0)``; any other
count aborts the process. What follows is checked by llama.cpp itself.
"""

from __future__ import annotations

import struct
from array import array

from ..errors import StateError

_HEADER = 8  # bytes before the first block


def check(
    payload: memoryview, start: int, end: int, n_swa: int, kind: str = "attention"
) -> None:
    """Raise StateError unless the blob holds exactly positions [start, end).

    ``kind`` is "attention", "recurrent" or "hybrid"; ``n_swa`` is the size of
    the sliding window in tokens, 0 for none.
    """
    try:
        at = _HEADER
        if kind != "recurrent":
            at = _check_attention(payload, at, start, end)
            if n_swa:
                held = struct.unpack_from("<I", payload, at + 4)[0]
                if not 0 < held <= end - start:
                    raise StateError("state payload holds another number of tokens")
                at = _check_attention(payload, at, end - held, end)
        if kind != "attention":
            _check_recurrent(payload, at, end)
        elif at != len(payload):
            raise StateError("state payload has the wrong size")
    except (struct.error, OverflowError):
        raise StateError("state payload is cut short") from None


def _check_attention(payload: memoryview, at: int, start: int, end: int) -> int:
    "Check one attention block at an offset; returns the offset after it"
    n_stream, count = struct.unpack_from("<II", payload, at)
    if n_stream != 1 or count != end - start:
        raise StateError("state payload holds another number of tokens")
    at += 8
    if at + 12 * count > len(payload):
        raise StateError("state payload is cut short")
    cells = array("i")
    cells.frombytes(payload[at : at + 12 * count])
    at += 12 * count
    # In any order: sequences that took turns leave holes, filled out of order
    if array("i", sorted(cells[0::3])) != array("i", range(start, end)):
        raise StateError("state payload holds other positions")
    if cells[1::3] != array("i", [1]) * count:
        raise StateError("state payload belongs to several sequences")
    v_trans, n_layer = struct.unpack_from("<II", payload, at)
    at += 8
    if v_trans > 1 or 24 * n_layer > len(payload) - at:
        raise StateError("state payload is damaged")
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
    if at > len(payload):
        raise StateError("state payload is cut short")
    return at


def _check_recurrent(payload: memoryview, at: int, end: int) -> None:
    "Check the beginning of a recurrent block at an offset"
    count, position, n_seq = struct.unpack_from("<IiI", payload, at)
    if (count, position, n_seq) != (1, end - 1, 0):
        raise StateError("state payload holds another recurrent state")
