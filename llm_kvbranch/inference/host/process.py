"""The engine's process as its host sees it: started, written to, read from, ended.

The idea: a process that hangs does not block its host. A thread writes the messages
that are queued, another passes on what the process prints, and the host's own thread
reads what it answers.

The invariant: a process that was started is reaped, however it ends.

This module does not know what is written or read.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .board import Board, Work
from .wire import to_line

SILENT_SECONDS = 30.0  # without a sign of life, until it counts as hung
_CONTINUE_SECONDS = 3.0  # and until it is sent SIGCONT, in case it was stopped
_SIGKILL = 9
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from llm_kvbranch.inference.host.worker import main; main(sys.argv[1])"
)


class EngineProcess:
    """A process that runs ``worker``.

    ``ready`` is true once it takes requests. ``killed`` says why the host killed it,
    None if it did not. ``said`` has the last lines that it printed.
    """

    def __init__(self) -> None:
        self.killed: str | None = None
        self.said: deque[str] = deque(maxlen=20)
        self.ready = False
        self._board = Board()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path), self._board.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A backtrace takes seconds, and goes to the terminal
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
                start_new_session=True,  # Ctrl-C is for the host
            )
        except BaseException:
            self._board.remove()
            raise
        self._started = time.monotonic()
        self._n_oom_kills = _oom_kills()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=each, name="kvbranch-engine-io", daemon=True)
            for each in (self._write, self._pass_on)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: dict[str, Any]) -> None:
        "Queue a message; it is lost if the process ends first"
        self._queue.put(to_line(message))

    def messages(self) -> Iterator[dict[str, Any]]:
        "Its messages, until it has ended"
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # cut short by its end
                yield json.loads(line)
        self._process.wait()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(1)
        self._board.remove()

    def work(self) -> Work:
        "What it is doing, or was doing when it ended"
        return self._board.read()

    def why(self) -> str:
        "Why it ended, in a few words"
        if self.killed is not None:
            return self.killed
        code = self._process.returncode
        if code is not None and code < 0:
            why = f"killed by {signal.Signals(-code).name}"
            if code == -_SIGKILL and not self.is_accident:
                why += ", perhaps because memory ran out"
        else:
            why = f"exit code {code}"
        telling = [line for line in self.said if "ASSERT" in line or "rror" in line]
        return f"{why}: {telling[-1][-200:]}" if telling else why

    @property
    def is_accident(self) -> bool:
        "Whether it was killed from outside, and not by Linux because memory ran out"
        killed = self._process.returncode == -_SIGKILL and self.killed is None
        return killed and _oom_kills() == self._n_oom_kills is not None

    def kill(self, why: str) -> None:
        if self.killed is None and self._process.poll() is None:
            self.killed = why
            with contextlib.suppress(OSError):
                self._process.kill()

    def look_after(self, now: float) -> None:
        """Kill it if it hangs; continue it if it was stopped.

        Called every second or so. ``now`` is time.monotonic().
        """
        if self._process.returncode is not None:
            return
        silent = now - max(self._board.last_beat(), self._started)
        work = self._board.read()
        if silent > SILENT_SECONDS:
            self.kill(f"it showed no sign of life for {SILENT_SECONDS:.0f} s")
        elif silent > _CONTINUE_SECONDS and hasattr(signal, "SIGCONT"):
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, signal.SIGCONT)
        elif work.is_endless(now):
            self.kill(f"{work} took more than {work.seconds:.0f} s")

    def wait(self, seconds: float) -> bool:
        "Whether it ended within some seconds"
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            while (data := self._queue.get()) is not None:
                stdin.write(data)
                if self._queue.empty():
                    stdin.flush()
        with contextlib.suppress(OSError):
            stdin.close()

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace")
            self.said.append(text.strip())
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()


def _oom_kills() -> int | None:
    "How many processes Linux has killed because memory ran out, None if unknown"
    with contextlib.suppress(OSError, ValueError):
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    return None
