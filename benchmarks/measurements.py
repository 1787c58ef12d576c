"""All that is measured, in the order in which it is."""

from . import breakeven, cold, decode, disk, gpu, resident, scale, streams

ALL = [
    cold.MEASUREMENT,
    resident.MEASUREMENT,
    disk.MEASUREMENT,
    decode.MEASUREMENT,
    streams.MEASUREMENT,
    scale.MEASUREMENT,
    breakeven.MEASUREMENT,
    gpu.MEASUREMENT,
]
