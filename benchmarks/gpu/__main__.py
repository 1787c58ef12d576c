"""Restoring against prefilling where the model is on a GPU: one command does it all.

    python -m benchmarks.gpu --build --work DIR --out DIR
    python -m benchmarks.gpu --phase measure --work DIR --tokens 1024,4096
    python -m benchmarks.gpu --shape tiny --tokens 512,1024 --no-tests
    python -m benchmarks.gpu --build --software --phase tests --work DIR

The last one needs no GPU: it builds for Vulkan and uses Mesa's software device, which
is slow, but makes GPU backends of llama.cpp take part in the tests. On Debian it takes
``apt-get install glslc libvulkan-dev mesa-vulkan-drivers``.

It runs in a checkout, with what the tests need (``.[test]``), on Linux or macOS.
Phases, each of which finds what the others left in ``--work``:

- ``build``, only when asked for: llama-cpp-python for the GPU found, into
  ``DIR/env``, an environment that has everything the present one has, too. All
  other phases run there from then on. ``--sdist`` (a file or a folder) builds
  without network, with the scikit-build-core, cmake and ninja that are there. A
  build that was interrupted goes on.
- ``tests``: those that a GPU has to pass (``suite.py``), with all layers, a part of
  them, and the KV cache in main memory. ``DIR/tests.log`` has what pytest said.
- ``model``: a model of ``--shape`` with random weights (``model.py``).
- ``measure``: for each KV type and number of tokens (``measuring.py``).

What is compared is the time until the next token is drawn, all else being
loaded. *Prefill* decodes all tokens; *restore* finds the state in a store, maps
and verifies its file, hands the rows to llama.cpp, and decodes the last token,
without which there are no logits. The first in a new process pay for whatever
the GPU's driver does first; *cold* is when the file is not in the page cache.
What follows must be the same: tokens, and the bytes of their rows, which depend
on everything before them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from llm_kvbranch.errors import KVBranchError

from ..harness import report as harness
from ..harness.machine import versions
from ..harness.result import Result
from . import MEASUREMENT, report
from .build import BACKENDS, build, in_environment, run_there
from .measuring import KV_BYTES, ensure_model, measure
from .model import SHAPES, TYPES
from .suite import PARTS, run_suite

PHASES = ("build", "tests", "model", "measure")


def parse(argv: list[str]) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    add = parser.add_argument
    add("--phase", nargs="+", choices=PHASES, default=list(PHASES[1:]))
    add("--work", type=Path, help="folder to keep model and build in (else temporary)")
    add("--out", type=Path, help="folder for the results")
    add("--build", action="store_true", help="build llama-cpp-python first")
    add("--backend", choices=BACKENDS, help="to build for (else the GPU found)")
    add("--sdist", type=Path, help="of llama-cpp-python: build without network")
    add("--jobs", type=int, help="compilers at a time (else one for each core)")
    add("--cuda", default="native", help="CUDA architectures, such as 90")
    add("--software", action="store_true", help="use Mesa's software device")
    add("--no-tests", action="store_true")
    names = [part.name for part in PARTS]
    add("--tests", nargs="+", choices=names, help="of the tests, these only")
    add("--processes", type=int, default=1, help="that run tests at the same time")
    add("--shape", choices=SHAPES, default="llama-3.2-3b")
    add("--type", choices=TYPES, default="q8_0", help="of the weights")
    add("--kv", nargs="+", choices=KV_BYTES, default=["f16", "q8_0"])
    add("--tokens", type=numbers, default=[1024, 4096, 16384, 32768])
    add("--repeat", type=int, default=3, help="times that all is measured")
    add("--threads", type=int, help="of the CPU (else one for tiny, all for others)")
    arguments = parser.parse_args(argv)
    if arguments.shape == "tiny":  # there is nothing to share out
        arguments.threads = arguments.threads or 1
    if min(arguments.tokens) < 2:
        parser.error("--tokens: at least 2")
    if arguments.software:
        arguments.backend = "vulkan"
        # Software devices are not taken unless they are named
        os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
    if arguments.build:
        arguments.phase.append("build")
    if arguments.no_tests:
        arguments.phase = [phase for phase in arguments.phase if phase != "tests"]
    return arguments


def run(arguments: argparse.Namespace, argv: list[str], work: Path) -> int:
    if "build" in arguments.phase:
        build(arguments, work)
    if not in_environment(work):
        return run_there(argv, work)
    machine = report.facts()
    print(report.machine_line(machine), flush=True)
    passed = True
    if "tests" in arguments.phase:
        suite = run_suite(
            work, arguments.tests, arguments.processes, arguments.software
        )
        passed = all(run["ok"] for run in suite["runs"])
    model = None
    if {"model", "measure"} & set(arguments.phase):
        model = ensure_model(arguments, work)
    if "measure" not in arguments.phase:
        return 0 if passed else 1
    result = Result(MEASUREMENT.name, MEASUREMENT.title, date=harness.today())
    result.machine, result.versions = machine, versions()
    result.facts = {"model": model, "runs": measure(arguments, work)}
    tests = work / "tests.json"
    if tests.exists():
        result.facts["tests"] = json.loads(tests.read_text())
    print(f"\n{report.table(result)}\n")
    if arguments.out:
        harness.publish(MEASUREMENT, result, arguments.out)
    return 0 if all(bar.met for bar in report.bars(result)) else 1


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        if arguments.work:
            arguments.work.mkdir(parents=True, exist_ok=True)
            return run(arguments, argv, arguments.work.resolve())
        with tempfile.TemporaryDirectory(prefix="kvbranch-") as work:
            return run(arguments, argv, Path(work).resolve())
    except KVBranchError as error:  # what was built cannot be loaded, say
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
