"""Measure everything, or some of it, beside what people would use instead.

    python -m benchmarks                     all of it
    python -m benchmarks --quick             see that it works
    python -m benchmarks --only cold decode
    python -m benchmarks list
    python -m benchmarks report              tables and plots again, from the JSON

What it needs is made below --build the first time: llama-server and llama-bench
(some minutes, with cmake and a C++ compiler), and an environment for the peers'
packages. What cannot be made is left out, and said. The exit code is 1 where a bar is
missed, an answer is wrong or a measurement fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from . import answers, measurements
from .harness import machine, report
from .harness.measurement import Measurement, Run, Tools
from .harness.result import Result, read
from .harness.turns import Progress
from .peers import tools as peers

HERE = Path(__file__).resolve().parent
BUSY = 0.5  # processes that want a processor, on average of a minute


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = [one.name for one in measurements.ALL]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=["run", "list", "report"], default="run")
    add("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    add("--quick", action="store_true", help="few rounds, small sizes")
    add("--out", type=Path, help="where results go (default: benchmarks/results)")
    add(
        "--build",
        type=Path,
        default=HERE.parent / "build" / "benchmarks",
        metavar="DIR",
        help="where the peers are made and kept (default: build/benchmarks)",
    )
    add("--llama-server", type=Path, metavar="PATH", help="one that is built already")
    arguments = parser.parse_args(argv)
    if arguments.llama_server and not arguments.llama_server.is_file():
        parser.error(f"there is no {arguments.llama_server}")
    if arguments.out is None:  # what is not to be quoted does not go where it would be
        there = "quick" if arguments.quick else "results"
        arguments.out = (arguments.build if arguments.quick else HERE) / there
    return arguments


def listing(chosen: list[Measurement]) -> str:
    lines = [f"{one.name:11} {one.minutes:4.0f} min  {one.title}" for one in chosen]
    total = sum(one.minutes for one in chosen)
    return "\n".join([*lines, f"{'':11} {total:4.0f} min  on two cores"])


def measure(
    one: Measurement,
    tools: Tools,
    versions: dict[str, str],
    arguments: argparse.Namespace,
) -> Result:
    "Run a measurement and write what it found"
    result = Result(
        one.name,
        one.title,
        quick=arguments.quick,
        date=report.today(),
        machine=machine.facts(),
        versions=versions,
    )
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="kvbranch-") as work:
        run = Run(result, tools, Path(work), progress, arguments.quick, arguments)
        try:
            one.measure(run)
        finally:
            progress.end()
    report.publish(one, result, arguments.out)
    print(f"\n## {one.title}\n\n{one.table(result)}\n", flush=True)
    return result


def verdicts(one: Measurement, result: Result) -> list[str]:
    "What is short of what it should be; prints a line for every bar"
    bars = one.bars(result)
    print("\n".join(bar.line() for bar in bars) or "no bars")
    missed = [bar.line() for bar in bars if bar.met is False]
    return missed + answers.wrong(result)


def run(arguments: argparse.Namespace, chosen: list[Measurement]) -> list[str]:
    "Measure; what is short"
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.build = arguments.build.resolve()
    if arguments.llama_server:
        arguments.llama_server = arguments.llama_server.resolve()
    os.chdir(HERE.parent)  # python -m looks there first, in all that is started
    if any(one.peers for one in chosen):
        tools = peers.find(arguments.build, arguments.llama_server)
    else:
        tools = peers.alone()
    for what, why in tools.missing.items():
        print(f"without {what}: {why}", file=sys.stderr)
    versions = {**machine.versions(), **peers.versions(tools)}
    if (load := os.getloadavg()[0]) > BUSY:
        print(f"others are busy here (load {load:.1f}): so are all figures")
    short: list[str] = []
    for one in chosen:
        try:
            result = measure(one, tools, versions, arguments)
        except Exception as error:
            traceback.print_exc()
            short.append(f"FAILED  {one.name}: {error}")
        else:
            short += verdicts(one, result)
    return short


def again(arguments: argparse.Namespace, chosen: list[Measurement]) -> list[str]:
    "Tables and plots from what was measured before; what is short"
    short: list[str] = []
    for one in chosen:
        result = read(arguments.out / f"{one.name}.json")
        if result is not None:
            report.publish(one, result, arguments.out)
            short += verdicts(one, result)
    return short


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    chosen = [
        one
        for one in measurements.ALL
        if not arguments.only or one.name in arguments.only
    ]
    if arguments.command == "list":
        print(listing(chosen))
        return 0
    do = again if arguments.command == "report" else run
    short = do(arguments, chosen)
    report.summary(measurements.ALL, arguments.out)
    print("\n" + ("\n".join(short) or "nothing falls short"))
    print(f"{arguments.out}; now: cog -r README.md", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
