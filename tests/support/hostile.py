"""Hostile input, read in a process of its own: within a second and 100 MB.

This module does not know what the input is, or what has to be said about it.
"""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import resource, sys, time
from llm_kvbranch.errors import KVBranchError
name = sys.argv[1]
{setup}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
try:
    {read}
    print("accepted")
except KVBranchError as error:
    print(error)
seconds = time.process_time() - began
assert seconds < 1, seconds
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 100_000, grown
"""


def said(setup: str, read: str, name: str) -> str:
    """What a process prints that reads the input called ``name``.

    "accepted", or why it is refused. ``setup`` is code whose cost does not count,
    ``read`` is an expression.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(setup=setup, read=read), name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout
