"""What this plugin costs every ``llm`` command: ``llm --help`` with and without.

    python benchmarks/startup.py [--repeat 30]

Runs alternate, no other plugin is loaded in either. Medians and their
difference are printed, and in brackets the difference of the least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time


def run(plugins: str) -> tuple[float, float]:
    "Milliseconds of one llm --help: (wall time, processor time)"
    environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins}
    before = os.times()
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm", "--help"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - started
    after = os.times()
    processor = (
        after.children_user
        + after.children_system
        - before.children_user
        - before.children_system
    )
    return 1000 * wall, 1000 * processor


def import_time() -> float:
    "Milliseconds spent importing this package's own modules"
    environment = {**os.environ, "LLM_LOAD_PLUGINS": "llm-kvbranch"}
    lines = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llm", "--help"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stderr.splitlines()
    ours = [line.split("|") for line in lines if "llm_kvbranch" in line]
    return sum(int(own.split(":")[1]) for own, _, _ in ours) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=30)
    repeat = parser.parse_args().repeat
    run("")
    without, with_it = [], []
    for i in range(repeat):
        pair = [("", without), ("llm-kvbranch", with_it)]
        for plugins, times in pair if i % 2 else reversed(pair):
            times.append(run(plugins))
    for name, column in (("wall time", 0), ("processor time", 1)):
        a, b = ([t[column] for t in times] for times in (without, with_it))
        print(
            f"{name:15} without {statistics.median(a):6.1f} ms   "
            f"with {statistics.median(b):6.1f} ms   "
            f"cost {statistics.median(b) - statistics.median(a):5.1f} ms   "
            f"(least {min(b) - min(a):5.1f} ms)"
        )
    imports = statistics.median(import_time() for _ in range(5))
    print(f"of which importing its modules: {imports:.1f} ms")


if __name__ == "__main__":
    main()
