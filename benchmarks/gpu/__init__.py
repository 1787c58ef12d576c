"""Restoring against prefilling for a model of 3B's shape, where there is a GPU.

``python -m benchmarks`` measures it if this build of llama.cpp has a GPU to offload
to; ``python -m benchmarks.gpu --build`` makes such a build first.
"""

from __future__ import annotations

from llm_kvbranch.engine.devices import devices

from ..harness.measurement import Measurement, Run
from . import report
from .measuring import ensure_model
from .measuring import measure as measure_all

SIZES = "1024,4096,16384,32768"


def measure(run: Run) -> None:
    run.begin(1)
    if not any(device.takes_layers for device in devices()):
        run.result.dashes["gpu"] = (
            "this build of llama.cpp has no GPU to offload to: "
            "python -m benchmarks.gpu --build makes one that has, where there is a GPU"
        )
        return
    from .__main__ import parse

    sizes = run.choose(SIZES, "512,1024")
    shape = run.choose("llama-3.2-3b", "tiny")
    arguments = parse(["--no-tests", f"--tokens={sizes}", f"--shape={shape}"])
    run.result.machine = report.facts()
    model = ensure_model(arguments, run.work)
    run.result.facts = {"model": model, "runs": measure_all(arguments, run.work)}
    run.progress.step("GPU")


MEASUREMENT = Measurement(
    "gpu",
    "Restoring against prefilling on a GPU",
    minutes=0,
    measure=measure,
    bars=report.bars,
    table=report.table,
    plot=report.plot,
)
