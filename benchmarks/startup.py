"""What this plugin adds to the start of llm: imports of our modules, in milliseconds.

    python -m benchmarks.startup [RUNS]

Prints the time that each of our modules takes to import, without what it imports in
turn, as ``python -X importtime`` measures it (it does not see the hooks themselves, nor
the commands of ``llm kvbranch``). Medians of some runs, for commands that users of llm
run whether they use kvllama or not. The bar is 2 ms a command, on a quiet machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from statistics import median

# Garbage collection would be blamed on the module that is imported when it happens
PROGRAM = "import gc; gc.disable(); from llm.cli import cli; cli()"
COMMANDS = {
    "llm --help": ["--help"],
    "llm logs": ["logs"],
    "llm models": ["models"],
    "llm -m another": ["-m", "another", "Hi"],
    "llm kvbranch --help": ["kvbranch", "--help"],
}
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(llm_kvbranch\S*)$", re.M)


def imports(arguments: list[str], environment: dict[str, str]) -> dict[str, int]:
    "Microseconds by module, of one run"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return {module: int(time) for time, module in LINE.findall(done.stderr)}


def main() -> None:
    n_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    runs: dict[str, list[dict[str, int]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "LLM_USER_PATH": home,
            "LLM_LOAD_PLUGINS": "llm-kvbranch",
            "PYTHONPYCACHEPREFIX": home,
        }
        # Compiled modules are what users have
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for name, arguments in COMMANDS.items():
            imports(arguments, environment)
            runs[name] = [imports(arguments, environment) for _ in range(n_runs)]
    modules = dict.fromkeys(m for all_ in runs.values() for one in all_ for m in one)
    print(f"| ms, median of {n_runs} runs | {' | '.join(COMMANDS)} |")
    print("| --- |" + " ---: |" * len(COMMANDS))
    sums = dict.fromkeys(COMMANDS, 0.0)
    for module in modules:
        cells = []
        for name in COMMANDS:
            times = [one[module] / 1000 for one in runs[name] if module in one]
            sums[name] += median(times or [0])
            cells.append(f"{median(times):.2f}" if times else "")
        print(f"| {module} | {' | '.join(cells)} |")
    print(f"| together | {' | '.join(f'{each:.2f}' for each in sums.values())} |")


if __name__ == "__main__":
    main()
