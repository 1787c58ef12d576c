"""What this plugin costs every ``llm`` command: ``llm --help`` with and without.

    python benchmarks/startup.py [--repeat 20]

Runs alternate, no other plugin is loaded in either; medians and their
difference are printed, and the difference between the smallest of each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time


def run(plugins: str) -> float:
    "Milliseconds of one llm --help"
    environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm", "--help"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    run("")
    without, with_it = [], []
    for _ in range(repeat):
        without.append(run(""))
        with_it.append(run("llm-kvbranch"))
    for name, times in (("without", without), ("with", with_it)):
        print(
            f"{name:8} median {statistics.median(times):6.0f} ms   "
            f"least {min(times):6.0f} ms"
        )
    medians = statistics.median(with_it) - statistics.median(without)
    least = min(with_it) - min(without)
    print(f"cost     median {medians:6.1f} ms   least {least:6.1f} ms")


if __name__ == "__main__":
    main()
