"""How many threads llama.cpp computes with, and how long they wait for each other.

The idea: its threads meet some hundred times a token. A thread that spins until the
others are there loses no time, where each has a processor. Where they have not, it
takes the time that it waits for away from them. So it depends on what else runs on the
machine when llama.cpp is loaded: libgomp reads this once.

Measured on two processors with a model of 135M: alone 154 tokens a second with
libgomp's own spins, 114 to 132 with few. Beside another llama.cpp 52 and 71, beside two
programs that never wait 4 and 66.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")
_FEW = "300"  # times; libgomp's own are some hundred thousand, a millisecond
_LOOKS = 5  # a millisecond apart: what runs only now and then is seldom there in all


def default_threads() -> int:
    "The processors this process may use"
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def choose_spins() -> None:
    """Have llama.cpp's threads spin less where processors are wanted by others too.

    To be called before libgomp is loaded. What the user has chosen is left alone.
    """
    chosen = os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    if not chosen and default_threads() + _others() > (os.cpu_count() or 1):
        os.environ["GOMP_SPINCOUNT"] = _FEW


def _others() -> int:
    "Threads of other programs that compute just now, 0 where that is not known"
    looks = []
    try:
        for i in range(_LOOKS):
            if i:
                time.sleep(0.001)
            running, _, _ = LOAD.read_text().split()[3].partition("/")
            looks.append(int(running) - 1)  # but for this one
    except (OSError, ValueError, IndexError):
        return 0
    return min(looks)
