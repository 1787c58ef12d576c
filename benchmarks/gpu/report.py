"""What is told of restoring against prefilling on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from llm_kvbranch.engine.devices import devices
from llm_kvbranch.engine.lib import build as llama_build

from ..harness import machine, plots
from ..harness.bars import Bar
from ..harness.machine import output_of
from ..harness.result import Result
from ..harness.table import markdown
from .measuring import FRESH, in_words, median_of, ms
from .suite import summary
from .task import BATCHES, STEPS


def facts() -> dict[str, Any]:
    "What it ran on, with its devices; nothing that names a person or a place"
    seen = [asdict(device) for device in devices()]
    for device in seen:
        del device["free"]
    return {
        **machine.facts(),
        "devices": seen,
        "offloads": any(device.takes_layers for device in devices()),
        "driver": output_of(
            *("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        ),
        "llama_cpp": llama_build(),
    }


def machine_line(known: dict[str, Any]) -> str:
    driver = f", driver {known['driver']}" if known["driver"] else ""
    return (
        f"{device_line(known)}{driver}. {machine.line(known)}, "
        f"llama.cpp {known['llama_cpp']}"
    )


def device_line(machine: dict[str, Any]) -> str:
    gpus = [d for d in machine["devices"] if d["kind"] in ("GPU", "iGPU")]
    if not gpus:
        return "No GPU in this build: nothing is offloaded, all figures are the CPU's"
    return "; ".join(
        f"{gpu['name']}: {gpu['description']}, {gpu['total'] / 2**30:.0f} GiB"
        for gpu in gpus
    )


def middle(run: dict[str, Any], what: str) -> str:
    return ms(statistics.median(run[what]))


def new_process(run: dict[str, Any]) -> str:
    results = [run["fresh"].get(mode) for mode in FRESH]
    return " / ".join(ms(median_of(some)) if some else "-" for some in results)


def steps(run: dict[str, Any]) -> str:
    return " + ".join(ms(median_of(run["restore"], step)) for step in STEPS)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "KV": lambda run: run["kv"],
    "tokens": lambda run: f"{run['tokens']:,}",
    "bytes / token": lambda run: f"{run['bytes_per_token']:,.0f}",
    f"prefill, n_batch {BATCHES[1]}": lambda run: middle(
        run, f"prefill_{BATCHES[1]}_s"
    ),
    f"prefill, n_batch {BATCHES[0]}": lambda run: middle(
        run, f"prefill_{BATCHES[0]}_s"
    ),
    "capture": lambda run: middle(run, "capture_s"),
    "GB/s": lambda run: f"{run['capture_bytes_per_s'] / 1e9:.1f}",
    "write": lambda run: ms(run["write_s"]),
    "restore": lambda run: ms(median_of(run["restore"])),
    f"= {' + '.join(STEPS)}": steps,
    "restore / prefill": lambda run: f"{run['ratio']:.3f}",
    f"new process: {' / '.join(FRESH)}": new_process,
    "decode, tokens/s": lambda run: f"{run['decode_tokens_per_s']:.0f}",
    "same tokens": lambda run: "yes" if run["same_tokens"] else "NO",
    "same rows": lambda run: "yes" if run["same_rows"] else "NO",
}


def measured(result: Result) -> list[dict[str, Any]]:
    "The sizes that were not skipped"
    return [run for run in result.facts.get("runs", []) if "skipped" not in run]


def bars(result: Result) -> list[Bar]:
    runs = measured(result)
    if not result.facts.get("runs"):
        return []
    same = [run["same_tokens"] and run["same_rows"] for run in runs]
    value = sum(same) / len(same) if same else None
    what = "sizes after which restored rows go on exactly like those in memory, of all"
    return [Bar(what, value, least=1.0, why="" if same else "all were skipped")]


def table(result: Result) -> str:
    "A row for each KV type and size, times in ms, and all that is to be said of it"
    if "runs" not in result.facts:
        return result.dashes.get("gpu", "")
    model, tests = result.facts["model"], result.facts.get("tests")
    rows = [[cell(run) for cell in COLUMNS.values()] for run in measured(result)]
    parts = [
        markdown(list(COLUMNS), rows),
        "Medians, in ms where no other unit is named.",
        *(
            f"{run['kv']}, {run['tokens']:,} tokens: {in_words(run)}."
            for run in result.facts["runs"]
            if "skipped" in run
        ),
        f"Model: {model['shape']}, random weights, {model['type']}, "
        f"{model['bytes'] / 1e9:.2f} GB, of which {model['offloaded_bytes'] / 1e9:.2f} "
        f"went to a GPU, loaded in {model['load_s']:.1f} s.",
        *([f"{summary(tests)}."] if tests else []),
        f"{machine_line(result.machine)}.",
    ]
    return "\n\n".join(parts)


def plot(result: Result) -> Any:
    "Time to the next token against tokens, both logarithmic"
    runs = measured(result)
    kinds = list(dict.fromkeys(run["kv"] for run in runs))
    title = "Restoring against prefilling: milliseconds to the next token"
    if not kinds or (figure := plots.figure(title, len(kinds), 5.5, 4.2)) is None:
        return None
    sheet, panels = figure
    for panel, kv in zip(panels, kinds, strict=True):
        some = sorted((r for r in runs if r["kv"] == kv), key=lambda run: run["tokens"])
        series = {
            name: [
                (float(run["tokens"]), 1000 * statistics.median(times))
                for run in some
                if (times := seconds(run))
            ]
            for name, seconds in LINES.items()
        }
        plots.lines(panel, f"KV {kv}", series, "tokens")
    return sheet


# Of the plot: title, where the seconds are
LINES: dict[str, Callable[[dict[str, Any]], list[float]]] = {
    f"prefill, n_batch {BATCHES[1]}": lambda run: run[f"prefill_{BATCHES[1]}_s"],
    f"prefill, n_batch {BATCHES[0]}": lambda run: run[f"prefill_{BATCHES[0]}_s"],
    "restore": lambda run: totals(run["restore"]),
    "prefill in a new process": lambda run: totals(run["fresh"].get("prefill")),
    "restore in a new process": lambda run: totals(run["fresh"].get("warm")),
    "the same, file not cached": lambda run: totals(run["fresh"].get("cold")),
}


def totals(results: list[dict[str, float]] | None) -> list[float]:
    return [result["all"] for result in results or ()]
