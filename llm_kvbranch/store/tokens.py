"""Token ids as arrays, bytes and hashes.

The idea: a state belongs to exact token ids, so ids are compared, hashed and
stored, never text.

This module does not know what a token means or where its rows are.
"""

from __future__ import annotations

import copy
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


class Prefix:
    """The hashes of some leading tokens, to which more tokens can be added.

    A block's hash covers all tokens up to its end. It has 64 bits, because a hit is
    confirmed token by token.
    """

    def __init__(self, fingerprint: str):
        self.n = 0
        self.fingerprint = fingerprint
        self._all = xxhash.xxh3_128()
        self._last = xxhash.xxh3_64_digest(fingerprint.encode())
        self._rest = b""  # after the last whole block

    def copy(self) -> Prefix:
        other = copy.copy(self)
        other._all = self._all.copy()
        return other

    def add(self, tokens: array[int]) -> list[int]:
        """Add tokens; returns the hashes of the blocks that they complete.

        Before these comes the hash of the blocks that were complete already.
        """
        data = token_bytes(tokens)
        self._all.update(data)
        self.n += len(tokens)
        data = self._rest + data
        step, end, last = 4 * BLOCK, len(data) - len(data) % (4 * BLOCK), self._last
        digests = [last]
        for begin in range(0, end, step):
            last = xxhash.xxh3_64_digest(last + data[begin : begin + step])
            digests.append(last)
        self._last, self._rest = last, data[end:]
        return [_signed(digest) for digest in digests]

    @property
    def digest(self) -> str:
        "The same as prefix_digest of all tokens"
        return str(self._all.hexdigest())


def _signed(digest: bytes) -> int:
    return int.from_bytes(digest, "big", signed=True)


def block_hashes(fingerprint: str, tokens: array[int]) -> list[int]:
    """Chained hashes of the tokens at 0, BLOCK, 2 * BLOCK, ... as signed int64.

    Entry k covers tokens [0, k * BLOCK).
    """
    return Prefix(fingerprint).add(tokens)
