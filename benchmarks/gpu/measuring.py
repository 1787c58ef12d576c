"""Restoring against prefilling, for each KV type and number of tokens.

Each size is measured in processes of their own, so that one which runs out of memory
takes nothing along; sizes that are measured already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llm_kvbranch.engine.devices import devices
from llm_kvbranch.engine.lib import build as llama_build

from ..harness.machine import memory
from .build import ROOT
from .model import SHAPES, write_model
from .task import BATCHES, Task

KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
FRESH = ("prefill", "warm", "cold")  # in a new process; the last two restore


def model_path(arguments: argparse.Namespace, work: Path) -> Path:
    return work / f"{arguments.shape}-random-{arguments.type}.gguf"


def ensure_model(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    "The model, written unless it is there, and looked at by llama.cpp"
    path, started = model_path(arguments, work), time.perf_counter()
    if not path.exists():
        write_model(
            path,
            SHAPES[arguments.shape],
            arguments.type,
            lambda text: print(f"  {text}", flush=True),
        )
        seconds = time.perf_counter() - started
        print(f"wrote {path.name}, {path.stat().st_size / 1e9:.2f} GB, {seconds:.1f} s")
    try:
        found = do(Task("check", str(path), threads=arguments.threads))
    except Failed as error:
        sys.exit(f"The model is no good: {error}")
    print(
        f"loaded in {found['load_s']:.1f} s, {found['offloaded_bytes'] / 1e9:.2f} GB of"
        f" it to a GPU; its logits depend on the prompt",
        flush=True,
    )
    return {
        "shape": arguments.shape,
        "type": arguments.type,
        "bytes": path.stat().st_size,
        **found,
    }


class Failed(Exception):
    "Why a task was not done"


def do(task: Task) -> dict[str, Any]:
    "What a new process finds out; raises Failed"
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.task"],
        cwd=ROOT,
        check=False,
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
    )
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return result
    said = (process.stderr.strip() or "nothing said").splitlines()[-1]
    said = re.sub(r"(/[\w.+-]+)+/", "", said)  # which folder is nobody's business
    raise Failed(f"{task.mode}: {said} (exit status {process.returncode})")


def measure(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    "All sizes with all KV types, those that are not measured yet"
    path, model = work / "measured.json", model_path(arguments, work)
    about = {
        "llama_cpp": llama_build(),
        "devices": [device.description for device in devices()],
        "model": model.name,
        "repeat": arguments.repeat,
        "threads": arguments.threads,
    }
    known: list[dict[str, Any]] = []
    if path.exists() and (found := json.loads(path.read_text()))["about"] == about:
        known = found["runs"]
    runs = []
    for kv in arguments.kv:
        for n in arguments.tokens:
            run = next((r for r in known if (r["kv"], r["tokens"]) == (kv, n)), None)
            if run is None:
                run = measure_one(arguments, work, kv, n)
                if "skipped" not in run:
                    known.append(run)
                    path.write_text(json.dumps({"about": about, "runs": known}))
            print(f"  {kv} {n:,} tokens: {in_words(run)}", flush=True)
            runs.append(run)
    return runs


def measure_one(
    arguments: argparse.Namespace, work: Path, kv: str, n: int
) -> dict[str, Any]:
    "One KV type and number of tokens"
    run: dict[str, Any] = {"kv": kv, "tokens": n}
    shape = SHAPES[arguments.shape]
    nbytes = n * shape.state_bytes(KV_BYTES[kv])
    if reason := no_room(work, int(nbytes)):
        return {**run, "skipped": reason}
    # New processes take their time: several for the first KV type only
    first = kv == arguments.kv[0]
    with tempfile.TemporaryDirectory(prefix="store-", dir=work) as store:
        task = Task(
            "live",
            model=str(model_path(arguments, work)),
            kv=kv,
            n=n,
            store=store,
            repeat=arguments.repeat,
            threads=arguments.threads,
        )
        try:
            run |= do(task)
            run["fresh"] = {mode: [] for mode in (FRESH if first else ("warm",))}
            for mode, results in run["fresh"].items():
                for _ in range(arguments.repeat if first else 1):
                    result = do(replace(task, mode=mode))
                    if "all" in result:
                        results.append(result)
        except Failed as error:
            return {"kv": kv, "tokens": n, "skipped": str(error)}
    return {**run, **derived(run)}


def no_room(work: Path, nbytes: int) -> str | None:
    "Why rows of that many bytes cannot be measured, None if they can"
    free = shutil.disk_usage(work).free
    if free < 1.1 * nbytes:
        return f"its file takes {nbytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    # On the host: as llama.cpp gives them, as they are read, as a CPU has them
    free = memory("MemAvailable")
    if free and free < 3 * nbytes:
        return f"it takes {3 * nbytes / 1e9:.1f} GB of memory of {free / 1e9:.1f}"
    return None


def derived(run: dict[str, Any]) -> dict[str, Any]:
    "What follows from the times: rates, ratios, whether anything differs"
    prefill = min(statistics.median(run[f"prefill_{n}_s"]) for n in BATCHES)
    everywhere = run["restore"] + run["fresh"]["warm"] + run["fresh"].get("cold", [])
    after = [times.pop("after") for times in everywhere]
    live, new = run.pop("live"), run["fresh"]
    result = {
        "bytes_per_token": run["state_bytes"] / run["tokens"],
        "capture_bytes_per_s": run["state_bytes"] / statistics.median(run["capture_s"]),
        "ratio": median_of(run["restore"]) / prefill,
        "same_tokens": all(one["tokens"] == live["tokens"] for one in after),
        "same_rows": all(one["rows"] == live["rows"] for one in after),
    }
    if new.get("prefill"):
        result["fresh_ratio"] = median_of(new["warm"]) / median_of(new["prefill"])
    return result


def median_of(results: list[dict[str, float]], what: str = "all") -> float:
    return statistics.median(result[what] for result in results)


def in_words(run: dict[str, Any]) -> str:
    if reason := run.get("skipped"):
        return f"skipped: {reason}"
    restored, ratio = median_of(run["restore"]), run["ratio"]
    same = "the same follows" if run["same_tokens"] else "SOMETHING ELSE FOLLOWS"
    return (
        f"restored in {ms(restored)} ms instead of prefilled in "
        f"{ms(restored / ratio)} ms ({ratio:.3f}); {same}"
    )


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f}"
