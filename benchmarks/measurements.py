"""All that is measured, in the order in which it is."""

from . import (
    breakeven,
    cold,
    constrained,
    decode,
    disk,
    gpu,
    resident,
    scale,
    store_depth,
    streams,
)

ALL = [
    cold.MEASUREMENT,
    resident.MEASUREMENT,
    disk.MEASUREMENT,
    decode.MEASUREMENT,
    constrained.MEASUREMENT,
    streams.MEASUREMENT,
    scale.MEASUREMENT,
    store_depth.MEASUREMENT,
    breakeven.MEASUREMENT,
    gpu.MEASUREMENT,
]
