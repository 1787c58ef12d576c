"""New processes that answer a follow-up: when their first byte comes, and why then.

Each is started, asked and timed in the same way: from starting the process to the
first byte on its standard output. Where the time went is told by the calls of
llama.cpp that ``traced`` noted on the way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TRACED = Path(__file__).parent / "traced"
PARTS = ("start-up", "model load", "context", "restore", "prefill", "first token")


@dataclass
class Answered:
    "What a process said, when its first byte came, and the calls it made"

    ttft: float
    text: str
    started: float
    calls: list[tuple[str, float, float]] = field(default_factory=list)

    def parts(self) -> list[float]:
        """Seconds of each of ``PARTS``, which make up ``ttft``.

        What is not inside a call of llama.cpp belongs to what comes next: looking up
        a conversation to restoring it, sampling and printing to the first token.
        """
        first_byte = self.started + self.ttft
        calls = [call for call in self.calls if call[2] <= first_byte]

        def of(kind: str) -> list[tuple[str, float, float]]:
            return [call for call in calls if call[0] == kind]

        loads, decodes = of("load"), of("decode")
        if not (loads and decodes):
            return [self.ttft, *[0.0] * (len(PARTS) - 1)]
        load, read = loads[0][1], decodes[0][1]
        context = sum(end - begin for _, begin, end in of("context"))
        loaded, decoded = loads[-1][2], decodes[-1][2]
        return [
            load - self.started,
            loaded - load,
            context,
            read - loaded - context,
            decoded - read,
            first_byte - decoded,
        ]


def answer(
    command: Sequence[str],
    prompt: str,
    environment: Mapping[str, str],
    work: Path,
    enough: int | None = None,
) -> Answered:
    """Run a command that reads a prompt and answers.

    One that would not end by itself is killed after ``enough`` bytes.
    """
    trace = work / "trace"
    trace.unlink(missing_ok=True)
    paths = [str(TRACED), environment.get("PYTHONPATH", "")]
    more = {
        "KVBRANCH_TRACE": str(trace),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    started = time.perf_counter()
    with open(work / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**environment, **more},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(prompt.encode())
        process.stdin.close()
    said = os.read(process.stdout.fileno(), 1)
    ttft = time.perf_counter() - started
    if not said:
        process.wait()
        last = (work / "stderr").read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command[:4])} gave no answer: {' '.join(last)}")
    while piece := os.read(process.stdout.fileno(), 1 << 16):
        said += piece
        if enough is not None and len(said) >= enough:
            process.kill()
    process.stdout.close()
    process.wait()
    return Answered(ttft, said.decode("utf-8", "ignore"), started, calls_in(trace))


def calls_in(trace: Path) -> list[tuple[str, float, float]]:
    try:
        lines = trace.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [
        (kind, float(began), float(ended))
        for kind, began, ended in (line.split() for line in lines)
    ]
