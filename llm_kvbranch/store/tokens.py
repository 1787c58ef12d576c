"""Token ids as arrays, bytes and hashes.

The idea: a state belongs to exact token ids, so ids are compared, hashed and
stored, never text.

This module does not know what a token means or where its rows are.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any

import xxhash

BLOCK = 32  # tokens for each row that finds a state by its tokens


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


def block_hashes(fingerprint: str, tokens: array[int]) -> list[int]:
    """Chained hashes of the tokens at 0, BLOCK, 2 * BLOCK, ... as signed int64.

    Entry k covers tokens [0, k * BLOCK). 64 bits, because a hit is confirmed
    token by token.
    """
    data = token_bytes(tokens)
    last = xxhash.xxh3_64_digest(fingerprint.encode())
    digests = [last]
    step = 4 * BLOCK
    for begin in range(0, len(data) - step + 1, step):
        last = xxhash.xxh3_64_digest(last + data[begin : begin + step])
        digests.append(last)
    return [int.from_bytes(digest, "big", signed=True) for digest in digests]
