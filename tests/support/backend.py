"""What the backend under test promises: equal bits, or numbers that are nearly equal.

llama.cpp's CPU backend computes a row in a batch of another size, or beside other
sequences, to the same bits within limits that the tests know. GPU backends choose their
kernels by such things, so what was computed differently differs by rounding there. What
was *copied*, as rows into a state and back, must be the same bits everywhere.

This is the only place that decides how exact a test can be.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest

from llm_kvbranch.engine import Engine, devices

from .toys import CLOSE, apart, row_values

# How far rows may be apart, relative to their size. Measured on Mesa's software device:
# 0.005 to 0.03 from the CPU's; rows of other tokens are 1 or more apart
ROUNDING = 0.05
# How much likelier another token may be than the one drawn, in logits
CLOSE_ON_GPU = 0.2


@functools.cache
def on_gpu() -> bool:
    "Whether this build of llama.cpp has a device that layers can be on"
    return any(device.takes_layers for device in devices.devices())


def close() -> float:
    return CLOSE_ON_GPU if on_gpu() else CLOSE


def stops_within_a_batch() -> contextlib.AbstractContextManager[Any]:
    "What surrounds a decode that is stopped: a GPU may compute the batch to its end"
    if on_gpu():
        return contextlib.suppress(KeyboardInterrupt)
    return pytest.raises(KeyboardInterrupt)


def same_rows(engine: Engine, one: Any, other: Any, start: int, end: int) -> bool:
    """Whether two payloads of rows [start, end) that were computed differently agree.

    Bit for bit on the CPU, with the order of their cells.
    """
    if not on_gpu():
        return bool(one == other)
    values = (row_values(engine, payload, start, end) for payload in (one, other))
    return apart(*values) <= ROUNDING
