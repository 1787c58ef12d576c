"""Memory that files are read into.

The idea: files are read, not mapped. A file that is truncated while it is mapped, or a
bad sector below it, ends the process with SIGBUS, which Python cannot catch; a read
returns an error. Getting fresh memory from the system takes as long as filling it, so
a buffer is kept for the next file, in huge pages if the system has them.

The invariant: a buffer belongs to one reader at a time, and is not used again while
anything still refers to its bytes.

This module does not know what is read.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

_HUGE = 1 << 21  # bytes: the size of a huge page
_idle: list[mmap.mmap] = []  # at most one


@contextlib.contextmanager
def buffer(nbytes: int) -> Iterator[memoryview]:
    "Writable memory of at least so many bytes; raises OSError if there is none"
    memory = _take(nbytes)
    view = memoryview(memory)
    try:
        yield view
    finally:
        with contextlib.suppress(BufferError):
            view.release()
        if not _idle and _is_free(memory):
            with contextlib.suppress(AttributeError, OSError):
                memory.madvise(mmap.MADV_FREE)  # the system may need it more
            _idle.append(memory)


def _take(nbytes: int) -> mmap.mmap:
    with contextlib.suppress(IndexError):
        memory = _idle.pop()  # one operation, so no other thread can have it, too
        if len(memory) >= nbytes:
            return memory
        memory.close()
    size = -(-max(nbytes, 1) // _HUGE) * _HUGE
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # pragma: no cover  (Windows)
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not on macOS, not built in
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _is_free(memory: mmap.mmap) -> bool:
    "Whether no view of it is left; an exception's traceback can hold one"
    try:
        memory.resize(len(memory))  # which is refused while there are any
    except (BufferError, OSError, SystemError):  # or not possible on this system
        return False
    return True
