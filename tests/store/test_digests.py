"Large states are checked by a thread while their rows are copied"

import threading

import pytest
import xxhash

from llm_kvbranch.errors import StateError
from llm_kvbranch.store.digests import Check

SIZES = [0, 1, 1 << 16, (1 << 22) - 1, 1 << 22, (1 << 23) + 5]


def bytes_of(size):
    data = bytes(i % 251 for i in range(1021)) * (size // 1021 + 1)
    return bytearray(data[:size])


@pytest.mark.parametrize("size", SIZES)
def test_the_same_bytes(size):
    data = bytes_of(size)
    check = _started(data, xxhash.xxh3_128_hexdigest(data))
    check.settle()
    check.settle()


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_byte(size, place):
    data = bytes_of(size)
    digest = xxhash.xxh3_128_hexdigest(data)
    data[place] ^= 1
    with pytest.raises(StateError, match="damaged"):
        _check(data, digest)


def _check(data, digest):
    _started(data, digest).settle()


def _started(data, digest):
    check, view = Check(), memoryview(data)
    check.start(len(data), digest)
    for at in range(0, len(data), 1 << 20):
        check.add(view[at : at + (1 << 20)])
    return check


def test_the_bytes_are_let_go():
    "Fails if a thread still reads what is read into again"
    data = bytes_of(1 << 24)
    view, before = memoryview(data), threading.active_count()
    check = Check()
    check.start(len(data), "another")
    check.add(view)
    assert threading.active_count() == before + 1
    check.leave()
    view.release()
    assert threading.active_count() == before


def test_nothing_to_check():
    check = Check()
    check.settle()
    check.leave()
