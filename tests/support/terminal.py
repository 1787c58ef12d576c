"""A command in a terminal: typed at, and read until it says something."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping

SECONDS = 120


class Terminal:
    "``llm`` in a pseudo-terminal"

    def __init__(
        self, *arguments: str, env: Mapping[str, str], columns: int = 80, rows: int = 24
    ):
        ours, theirs = pty.openpty()
        fcntl.ioctl(
            theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0)
        )
        self._fd = ours
        self.raw = b""  # everything it has written
        self._seen = 0
        env = {k: v for k, v in env.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={"TERM": "xterm-256color", **env},
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")

    def read_until(self, words: str) -> str:
        "What it writes up to some words, without colours"
        end = time.monotonic() + SECONDS
        while True:
            text = self.text[self._seen :]
            found = text.find(words)
            if found >= 0:
                self._seen += found + len(words)
                return text[: found + len(words)]
            assert time.monotonic() < end, text
            assert self._read(), f"ended without {words!r}: {text}"

    def read_all(self) -> str:
        "What it writes until it ends, without colours"
        while self._read():
            pass
        self.process.wait(SECONDS)
        return self.text

    @property
    def text(self) -> str:
        plain = re.sub(
            r"\x1b\[[\d;?]*[A-Za-z]", "", self.raw.decode("utf-8", "replace")
        )
        return plain.replace("\r\n", "\n")

    def _read(self) -> bool:
        "Wait for more; False at its end"
        ready, _, _ = select.select([self._fd], [], [], SECONDS)
        piece = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            piece = os.read(self._fd, 65536) if ready else b""
        self.raw += piece
        return bool(piece)
