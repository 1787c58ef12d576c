"""All that is measured, in the order in which it is."""

from . import cold, decode, disk, resident, scale, streams

ALL = [
    cold.MEASUREMENT,
    resident.MEASUREMENT,
    disk.MEASUREMENT,
    decode.MEASUREMENT,
    streams.MEASUREMENT,
    scale.MEASUREMENT,
]
