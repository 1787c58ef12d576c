"""How many threads llama.cpp computes with, and how long they wait for each other.

The idea: its threads synchronise some hundred times per token. A thread that spins
until the others arrive loses no time if each thread has a processor. If not, it takes
processor time away from the threads that it waits for. So the number of spins depends
on what else is running when llama.cpp is loaded, which is when libgomp reads it.

Measured on two processors with a model of 135M parameters: alone, 154 tokens per second
with libgomp's default, 114 to 132 with few spins; beside another llama.cpp, 52 and 71;
beside two programs that never sleep, 4 and 66.

The invariant: llama.cpp never computes in a process that was forked after it had done
so. Threads are not copied by a fork, but libgomp would wait for them forever, and a
GPU's driver does not work there either.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..errors import KVBranchError

LOAD = Path("/proc/loadavg")
_FEW = "300"  # spins; libgomp's default is some hundred thousand, a millisecond
_LOOKS = 5  # a millisecond apart, so that short-lived work is not counted
_owner: int | None = None  # the process that has computed with threads or on a GPU


def default_threads() -> int:
    "The number of processors that this process may use"
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def choose_spins() -> None:
    """Make llama.cpp's threads spin less if other programs need the processors too.

    Must be called before libgomp is loaded. Does nothing if the user has chosen.
    """
    chosen = os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    if not chosen and default_threads() + _others() > (os.cpu_count() or 1):
        os.environ["GOMP_SPINCOUNT"] = _FEW


def _others() -> int:
    "Threads of other programs that are running now, 0 if that is not known"
    looks = []
    try:
        for i in range(_LOOKS):
            if i:
                time.sleep(0.001)
            running, _, _ = LOAD.read_text().split()[3].partition("/")
            looks.append(int(running) - 1)  # without this one
    except (OSError, ValueError, IndexError):
        return 0
    return min(looks)


def own_process() -> None:
    """Called before computing with several threads or on a GPU.

    Raises KVBranchError in a process that was forked after its parent did so.
    """
    global _owner  # noqa: PLW0603  (of a process there is one)
    if _owner is None:
        _owner = os.getpid()
    check_process()


def check_process() -> None:
    "Raise KVBranchError if this process was forked after its parent has computed"
    if is_forked():
        raise KVBranchError(
            "kvllama cannot run in a process forked from one that has used it: use "
            'multiprocessing\'s start method "spawn" or "forkserver", or use kvllama '
            "in the child only"
        )


def is_forked() -> bool:
    "Whether this process is a child of the one that has computed"
    return _owner not in (None, os.getpid())
