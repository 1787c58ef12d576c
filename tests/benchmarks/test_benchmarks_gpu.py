"""The GPU benchmark, run completely, but with a tiny model and without a GPU.

Its figures mean nothing here. These tests check that it measures what it says, and that
it would report wrong restored rows.
"""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import build, measuring
from benchmarks.gpu import model as gpu_model
from benchmarks.gpu import task as gpu_task
from llm_kvbranch.engine import Feed, Load, Weights

SIZES = [48, 70]
ARGUMENTS = ["--no-tests", "--shape=tiny", "--kv=q8_0", "--repeat=1", "--tokens=48,70"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def result(work: Path) -> dict[str, Any]:
    "The results after measuring everything once"
    out = work / "out"
    assert gpu.main([*ARGUMENTS, "--work", str(work), "--out", str(out)]) == 0
    return facts_of(out)


def facts_of(out: Path) -> dict[str, Any]:
    body = json.loads((out / "gpu.json").read_text())
    return {**body["facts"], "machine": body["machine"]}


class TestModel:
    "Guards against figures from a model that is not realistic"

    @pytest.mark.parametrize("kind", gpu_model.TYPES)
    def test_every_token_matters(self, tmp_path: Path, kind: str) -> None:
        path, n = tmp_path / "model.gguf", 500
        gpu_model.write_model(path, gpu_model.SHAPES["tiny"], kind)
        weights = Weights(Load(path))
        tokens = gpu_task.some_tokens(weights, n)
        task = gpu_task.Task("check", str(path), n=n, threads=1)
        with gpu_task.engine_of(task, weights, 512) as engine:

            def logits(tokens: Any) -> Any:
                "Logits in standard deviations"
                engine.cut(0, 0)
                (index,) = engine.decode([Feed(0, 0, tokens)])
                pointer = engine._llama.llama_get_logits_ith(engine._context, index)
                seen = np.ctypeslib.as_array(pointer, (weights.n_vocab,))
                assert np.isfinite(seen).all()
                return seen / seen.std()

            before, effects = logits(tokens), []
            half = gpu_task.some_tokens(weights, n // 2, seed=8) + tokens[n // 2 :]
            assert (logits(half) - before).std() > 0.5
            assert before[tokens[-1]] < 3  # otherwise it would repeat itself forever
            for position in (0, 100, 250, 400, 498):
                changed = tokens[:]
                changed[position] += 1
                effects.append((logits(changed) - before).std())
        assert min(effects) > 0.01
        assert np.mean(effects) > 0.15

    def test_the_same_file_every_time(self, tmp_path: Path) -> None:
        for name in ("1", "2"):
            path = tmp_path / f"{name}.gguf"
            gpu_model.write_model(path, gpu_model.SHAPES["tiny"], "q8_0")
        one, two = (path.read_bytes() for path in tmp_path.glob("*.gguf"))
        assert one == two
        assert 2_000_000 < len(one) < 4_000_000

    def test_it_has_the_shape_it_is_named_for(self) -> None:
        tensors = gpu_model._tensors(gpu_model.SHAPES["llama-3.2-3b"])
        n = sum(int(np.prod(tensor.shape)) for tensor in tensors)
        assert n == 3_212_749_824 + 64  # Llama 3.2 3B and its rope factors
        assert gpu_model.SHAPES["llama-3.2-3b"].state_bytes(2) == 114_688


class TestMeasuring:
    "Guards against a benchmark that runs but reports something else"

    def test_every_size_is_there(self, result: dict[str, Any]) -> None:
        assert [(run["kv"], run["tokens"]) for run in result["runs"]] == [
            ("q8_0", n) for n in SIZES
        ]
        shape = gpu_model.SHAPES["tiny"]
        for run in result["runs"]:
            rows = shape.state_bytes(measuring.KV_BYTES["q8_0"])
            assert rows < run["bytes_per_token"] < 1.2 * rows + 1000 / run["tokens"]

    def test_what_was_restored_goes_on_like_what_was_live(
        self, result: dict[str, Any]
    ) -> None:
        for run in result["runs"]:
            assert run["same_tokens"]
            assert run["same_rows"]

    def test_all_was_timed(self, result: dict[str, Any]) -> None:
        for run in result["runs"]:
            times = [run["write_s"], *run["capture_s"]]
            for n_batch in gpu_task.BATCHES:
                times += run[f"prefill_{n_batch}_s"]
            for modes in (run["restore"], run["fresh"]["warm"]):
                for restored in modes:
                    steps = [restored[step] for step in gpu_task.STEPS]
                    assert sum(steps) == pytest.approx(restored["all"])
                    times += steps
            assert len(times) == 2 + 2 + 3 + 3
            assert len(run["fresh"]["prefill"]) == 1
            assert all(0 < seconds < 60 for seconds in times)
            assert run["ratio"] == pytest.approx(
                run["restore"][0]["all"]
                / min(run[f"prefill_{n}_s"][0] for n in gpu_task.BATCHES)
            )

    def test_nothing_tells_where_it_ran(
        self, result: dict[str, Any], work: Path
    ) -> None:
        for path in (work / "out").glob("gpu.[jm]*"):
            assert str(Path.home()) not in path.read_text()
            assert str(work) not in path.read_text()
        assert result["machine"]["offloads"] in (True, False)
        assert result["machine"]["devices"]

    def test_the_table_has_a_row_for_each(
        self, result: dict[str, Any], work: Path
    ) -> None:
        lines = (work / "out" / "gpu.md").read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("| KV"))
        assert [line.split(" | ")[:2] for line in lines[at + 2 : at + 4]] == [
            ["| q8_0", str(n)] for n in SIZES
        ]
        assert len({line.count("|") for line in lines[at : at + 4]}) == 1

    def test_a_second_run_goes_on_where_the_first_ended(
        self,
        result: dict[str, Any],
        work: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        measured, out = [], work / "again"

        def measure_one(_arguments: Any, _work: Any, kv: str, n: int) -> Any:
            measured.append((kv, n))
            return {"kv": kv, "tokens": n, "skipped": "not now"}

        monkeypatch.setattr(measuring, "measure_one", measure_one)
        monkeypatch.setattr(
            measuring, "do", lambda _: {"load_s": 0, "offloaded_bytes": 0}
        )
        more = [*ARGUMENTS, "--tokens=48,70,99"]
        assert gpu.main([*more, "--work", str(work), "--out", str(out)]) == 0
        assert measured == [("q8_0", 99)]
        runs = facts_of(out)["runs"]
        assert runs[:2] == result["runs"]
        assert "99 tokens: skipped: not now" in (out / "gpu.md").read_text()


class TestHonesty:
    "Guards against a check that cannot fail"

    @pytest.mark.parametrize("where", ["restore", "warm", "cold"])
    @pytest.mark.parametrize("what", ["tokens", "rows"])
    def test_a_difference_anywhere_is_told(self, where: str, what: str) -> None:
        live = {"tokens": [1, 2, 3], "rows": "a"}
        run: dict[str, Any] = {
            "tokens": 10,
            "state_bytes": 100,
            "capture_s": [1.0],
            "live": live,
            "restore": [{"all": 1.0, "after": live}],
            "fresh": {
                "prefill": [{"all": 2.0}],
                "warm": [{"all": 1.0, "after": live}],
                "cold": [{"all": 1.0, "after": live}],
            },
            **{f"prefill_{n}_s": [4.0] for n in gpu_task.BATCHES},
        }
        facts = measuring.derived(copy.deepcopy(run))
        assert facts["same_tokens"]
        assert facts["same_rows"]
        assert (facts["ratio"], facts["fresh_ratio"]) == (0.25, 0.5)
        results = run[where] if where == "restore" else run["fresh"][where]
        results[-1]["after"] = {**live, what: "other"}
        assert not measuring.derived(run)[f"same_{what}"]

    def test_what_fails_says_why_but_not_where(self, tmp_path: Path) -> None:
        task = gpu_task.Task("warm", str(tmp_path / "none.gguf"), n=10)
        with pytest.raises(
            measuring.Failed, match=r"no model file none\.gguf"
        ) as caught:
            measuring.do(task)
        assert tmp_path.name not in str(caught.value)

    def test_what_does_not_fit_is_skipped(
        self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert measuring.no_room(tmp_path, 1000) is None
        assert "are free" in measuring.no_room(tmp_path, 1 << 60)
        monkeypatch.setattr(measuring, "memory", lambda _: 2000)
        assert "of memory" in measuring.no_room(tmp_path, 1000)


class TestBuilding:
    "Guards against measuring a llama.cpp other than the one just built"

    def test_what_was_built_comes_before_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outer = tmp_path / "outer"
        outer.mkdir()
        (outer / "built.py").write_text("where = 'outside'")
        (outer / "only_outside.py").touch()
        monkeypatch.setenv("PYTHONPATH", str(outer))
        build.make_environment(tmp_path)
        (inner,) = tmp_path.glob("env/lib/*/site-packages")
        (inner / "built.py").write_text("where = 'inside'")
        monkeypatch.delenv("PYTHONPATH")
        program = "import built, only_outside, numpy, llm; print(built.where)"
        output = subprocess.run(
            [str(build.environment_python(tmp_path)), "-c", program],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert output == "inside\n"

    def test_what_is_missing_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        command = ["--phase", "build", "--backend", "vulkan", "--sdist", str(tmp_path)]
        with pytest.raises(SystemExit, match="glslc"):
            gpu.main([*command, "--work", str(tmp_path / "work")])
