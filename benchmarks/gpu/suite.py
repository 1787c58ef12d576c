"""The tests that a GPU has to pass, with models and KV caches in several places.

Each run is pytest with the plugin ``tests/support/placement.py``, which puts layers and
KV caches where a test does not say. Toys of random weights do most of it: they have
every kind of memory, and are quick even on a software device.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_kvbranch.engine.lib import build as llama_build

from .build import ROOT

OUTCOMES = ("passed", "failed", "error", "skipped")
PLACES = {  # and what pytest is told about them
    "all layers": ("--gpu-layers=-1",),
    "part of the layers": ("--gpu-layers=3",),
    "KV in main memory": ("--gpu-layers=-1", "--kv-in-main-memory"),
}
EVERYWHERE = tuple(PLACES)
# Tests of what SmolLM2 answers, and of its file's size
OF_SMOLLM2 = (
    "tests/engine/test_engine.py::TestSampling::test_penalties_see_the_prompt",
    "tests/engine/test_engine.py::TestBadModels::test_a_truncated_file",
)


@dataclass(frozen=True)
class Part:
    "Tests that are run together, and the places where they are"

    name: str
    tests: tuple[str, ...]
    places: tuple[str, ...] = EVERYWHERE
    options: tuple[str, ...] = ()
    # Which of them a software device runs, as pytest's -k: "" for all, None for none
    quick: str | None = ""


PARTS = (
    Part("CPU and GPU", ("gpu",), EVERYWHERE[:1]),  # chooses places itself
    Part(
        "engine",
        ("engine/test_engine.py",),
        options=("--toy-model", *(f"--deselect={name}" for name in OF_SMOLLM2)),
        quick="TestRestore or TestKVTypes or TestContext or TestStopping",
    ),
    Part(
        "restored equals live",
        ("inference/test_restored_equals_live.py",),
        options=("--toy-model",),
        quick="0",
    ),
    Part(
        "architectures",
        ("engine/test_architectures.py",),
        quick="test_a_restored_answer or TestSeveralAtOnce or "
        "(test_a_branch_is_answered and 0.5)",
    ),
    Part(
        "SmolLM2",
        ("engine/test_engine.py",),
        EVERYWHERE[:1],
        quick="test_a_chain_is_worth_the_whole or (TestKVTypes and q4_0)",
    ),
    Part(
        "commands and server",
        ("cli/test_cli.py", "web/test_served.py"),
        EVERYWHERE[:1],
        quick=None,
    ),
)


def run_suite(
    work: Path, names: list[str], processes: int, software: bool
) -> dict[str, Any]:
    "Run the named parts, or all; returns what passed where"
    if software:  # compiling its shaders takes minutes
        os.environ.setdefault("MESA_SHADER_CACHE_DIR", str(work / "shaders"))
    (work / "tests.log").unlink(missing_ok=True)
    runs = []
    for part in PARTS:
        which = part.quick if software else ""
        if which is None or (names and part.name not in names):
            continue
        for place in part.places:
            runs.append(_run(part, place, work / "tests.log", processes, which))
            print(f"  {line(runs[-1])}", flush=True)
    result = {"llama_cpp": llama_build(), "runs": runs}
    (work / "tests.json").write_text(json.dumps(result, indent=2))
    print(summary(result), flush=True)
    return result


def _run(
    part: Part, place: str, log: Path, processes: int, which: str
) -> dict[str, Any]:
    "One run of pytest, its output added to the log"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "-ra", "--strict-markers", "--timeout=1800"]
    if processes > 1:
        command += ["-n", str(processes), "--dist", "loadfile"]
    command += ["-k", which] if which else []
    command += ["-p", "tests.support.placement", *PLACES[place], *part.options]
    command += [f"tests/{name}" for name in part.tests]
    started = time.perf_counter()
    process = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True
    )
    with open(log, "a") as file:
        file.write(f"== {part.name}, {place}\n{process.stdout}{process.stderr}\n")
    lines = process.stdout.splitlines() or [""]
    if process.returncode:
        print("\n".join(lines[-30:]), process.stderr[-3000:])
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
    return {
        "part": part.name,
        "place": place,
        "seconds": round(time.perf_counter() - started, 1),
        "ok": process.returncode == 0,
        **dict.fromkeys(OUTCOMES, 0),
        **{outcome: int(n) for n, outcome in found},
    }


def line(run: dict[str, Any]) -> str:
    "A run in words, without what did not happen"
    numbers = [f"{run[name]} {name}" for name in OUTCOMES if run[name]]
    what = ", ".join(numbers) or "no test was run"
    return f"{run['part']}, {run['place']}: {what} in {run['seconds']:.0f} s"


def summary(result: dict[str, Any]) -> str:
    "All runs in one line"
    runs = result["runs"]
    total = {name: sum(run[name] for run in runs) for name in OUTCOMES}
    numbers = ", ".join(f"{total[name]} {name}" for name in OUTCOMES)
    seconds = sum(run["seconds"] for run in runs)
    return f"Tests on the GPU: {numbers} in {len(runs)} runs, {seconds:.0f} s"


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    "A row of a table for each run"
    for run in result["runs"]:
        numbers = [str(run[name]) for name in OUTCOMES]
        yield [run["part"], run["place"], *numbers, f"{run['seconds']:.0f}"]
