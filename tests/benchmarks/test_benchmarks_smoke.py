"""A tiny run of each measurement with our own package alone.

The figures mean nothing here. Peers are left out, as where they cannot be built, and so
are the measurements that only apply to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import measurements
from benchmarks.__main__ import parse
from benchmarks.harness import machine, report
from benchmarks.harness.measurement import Measurement, Run, Tools
from benchmarks.harness.result import Result, read
from benchmarks.harness.turns import Progress
from benchmarks.peers.tools import smollm2

pytestmark = [pytest.mark.model, pytest.mark.slow]
REASON = "left out here"
# The values each must have, and how many targets are decided without peers
VALUES = {
    "cold": (["first turn/250", "follow-up/kvllama/250", "part/floor/250/prefill"], 1),
    "resident": (["hot/branch/kvllama", "restart/evicted/follow-up/kvllama"], 0),
    "disk": (["bytes/kvllama", "rate/read", "rate/copy", "rate/disk write"], 2),
    "decode": (["rate/kvllama", "siblings/8", "beside/kvllama"], 1),
    "constrained": (["rate/0/free", "rate/0.8/schema", "draw/0/schema"], 2),
    "streams": (["streams/8/kvllama", "stall/kvllama", "command/beyond"], 1),
    "scale": (["op/put/600", "size/rebuild/300", "tree/tree/40"], 11),
    "depth": (["turn/put/20", "turn/wal/20", "op/verify/20", "op/import/10"], 1),
    "breakeven": (["prefill/tiny/4", "cold/SmolLM2-135M/32"], 2),
}


def run(one: Measurement, work: Path) -> Result:
    "The results of a quick run"
    missing = {"peers": REASON, "llama.cpp": REASON}
    tools = Tools(smollm2(), 1, missing=missing)
    result = Result(one.name, one.title, quick=True, machine=machine.facts())
    progress, options = Progress(quiet=True), parse(["--quick"])
    one.measure(Run(result, tools, work, progress, quick=True, options=options))
    return result


@pytest.mark.parametrize("name", VALUES)
def test_it_measures_and_tells(name: str, tmp_path: Path) -> None:
    (one,) = (each for each in measurements.ALL if each.name == name)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    result = run(one, work)
    values, n_decided = VALUES[name]
    for value in values:
        assert result.raw[value], value
        assert all(number > 0 for number in result.raw[value])
    bars = one.bars(result)
    assert sum(bar.met is not None for bar in bars) >= n_decided
    for bar in bars:  # measurements that need peers say why they were skipped
        assert bar.met is not None or bar.why
    assert all(check["right"] for check in result.checks), result.checks
    report.publish(one, result, out)
    text = (out / f"{name}.md").read_text()
    assert "kvllama" in text or name in ("scale", "depth", "breakeven")
    assert read(out / f"{name}.json") == result
    nothing_tells_where(text + (out / f"{name}.json").read_text(), work)


def nothing_tells_where(text: str, work: Path) -> None:
    assert str(Path.home()) not in text
    assert str(work) not in text


def test_what_is_missing_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    (one,) = (each for each in measurements.ALL if each.name == "decode")
    result: Any = run(one, tmp_path)
    assert result.dashes["llama-bench"] == REASON
    assert "llama-bench" not in result.contenders
    assert f"llama-bench: {REASON}" in report.page(one, result)
