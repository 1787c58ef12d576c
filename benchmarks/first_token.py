"""Cold-process time to first token: a first turn against a follow-up to it.

    python benchmarks/first_token.py [--tokens 1200 5000] [--repeat 3]

Each figure is the wall time from starting ``llm`` in a new process to the first
byte of the answer on its standard output, so it holds Python, llm, the model's
load and everything else. First turns and follow-ups alternate; the ratio is
that of the medians. ``--bare`` loads no other llm plugin.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLM = [sys.executable, "-m", "llm"]
WORDS = "The quick brown fox number {} jumps over the lazy dog {} times. "


def document(n_tokens: int, salt: int) -> str:
    "About n_tokens of text that begins like no other"
    text = f"Report {salt}. "
    i = 0
    while len(text) < n_tokens * 2.88:
        text += WORDS.format(i, i * i + salt)
        i += 1
    return text


def first_byte(arguments: list[str], prompt: str, environment: dict[str, str]) -> float:
    "Seconds until the process writes its first byte"
    started = time.perf_counter()
    process = subprocess.Popen(
        [*LLM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(prompt.encode())
    process.stdin.close()
    if not os.read(process.stdout.fileno(), 1):
        sys.exit("llm gave no answer")
    elapsed = time.perf_counter() - started
    process.stdout.read()
    process.wait()
    return elapsed


def show(environment: dict[str, str]) -> dict[str, float]:
    output = subprocess.run(
        [*LLM, "kvbranch", "show", "last", "--json"],
        env=environment,
        capture_output=True,
        check=True,
    ).stdout
    facts: dict[str, float] = json.loads(output)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1200, 5000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    options = ["-o", "max_tokens", "16", "-o", "temperature", "0"]
    home = Path(tempfile.mkdtemp(prefix="kvbranch-"))
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    if arguments.bare:
        environment["LLM_LOAD_PLUGINS"] = "llm-kvbranch"
    try:
        first_byte(["-m", "kvllama", *options], "warm up", environment)
        print("tokens   first turn   follow-up    ratio   restored  prefilled")
        for n_tokens in arguments.tokens:
            first, follow = [], []
            for salt in range(arguments.repeat):
                first.append(
                    first_byte(
                        ["-m", "kvllama", *options],
                        document(n_tokens, 1000 * n_tokens + salt),
                        environment,
                    )
                )
                follow.append(
                    first_byte(
                        ["-c", *options], "What is the report about?", environment
                    )
                )
            facts = show(environment)
            one, two = statistics.median(first), statistics.median(follow)
            print(
                f"{facts['prompt_tokens']:6}   {one:8.2f} s   {two:7.2f} s   "
                f"{two / one:6.3f}   {facts['restored_tokens']:8}  "
                f"{facts['prefilled_tokens']:9}"
            )
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
