"""The same prompt gives the same answer, bit for bit, however its rows come about."""

from __future__ import annotations

import random

import pytest

from benchmarks.exact import prompt
from llm_kvbranch.engine import FEW, MANY, Classes, Load, Settings, Weights
from llm_kvbranch.inference import trial
from llm_kvbranch.inference.exact import GENERATED, Fit, fit_of
from llm_kvbranch.models.catalog import embedded_model

from ..support.toys import architectures

TILED, PLAIN = Classes(2, 64, 512), Classes(2, 2, 128)


class TestFit:
    "Fails if rows are reused that a fresh run would have computed otherwise"

    def kinds(self, *runs: tuple[int, int]) -> bytes:
        return b"".join(bytes([kind]) * n for kind, n in runs)

    @pytest.mark.parametrize(
        ("n", "classes", "end"),
        [
            (1000, TILED, 936),
            (64, TILED, 0),
            (63, TILED, 61),
            (2, TILED, 0),
            (1, TILED, 0),
            (1000, PLAIN, 998),
            (1000, Classes(), 999),
        ],
    )
    def test_what_is_read_again_of_a_prompt(self, n, classes, end):
        kinds = self.kinds((classes.of(n), n))
        assert fit_of(n, 0, classes, [kinds]).reusable(kinds) == end

    def test_of_a_follow_up(self):
        history = self.kinds((MANY, 500), (GENERATED, 100))
        for n in (20, 63, 64, 200):
            fit = fit_of(600 + n, 600, TILED, [history])
            assert fit.reusable(history) == 600, "nothing of the history"
            again = history + self.kinds((TILED.of(n), n))
            assert fit.reusable(again) == 600 + n - TILED.least(n)

    def test_what_was_generated_is_history(self):
        "Also if no turn is known that generated it"
        kinds = self.kinds((MANY, 500), (GENERATED, 100), (FEW, 10))
        assert fit_of(620, 0, TILED, [kinds]) == Fit(620, 600, FEW, 618)

    @pytest.mark.parametrize(("kind", "n"), [(FEW, 1000), (MANY, 40)])
    def test_rows_of_another_class(self, kind, n):
        fit = fit_of(n, 0, TILED)
        assert fit.reusable(self.kinds((kind, n))) == 0
        mixed = self.kinds((fit.kind, 10), (kind, n - 10))
        assert fit.reusable(mixed) == 10


@architectures("llama", "deepseek2", "granitehybrid", "mamba", "lfm2", "qwen35")
def test_toys(toy, tmp_path):
    draw = random.Random(3)
    answers = trial.Answers(toy.weights, Settings(n_threads=1), tmp_path, 12)
    for n_tokens in (10, 150, 400):
        for way, fresh, this in answers.ways(prompt(draw, n_tokens)):
            assert this.tokens == fresh.tokens, way
            if toy.cuts_anywhere:
                assert this.rows == fresh.rows, way


@architectures("llama")
@pytest.mark.parametrize("kind", [{"flash_attn": "off"}, {"type_k": "q8_0"}])
def test_other_settings(toy, tmp_path, kind):
    if "type_k" in kind:
        kind["type_v"] = kind["type_k"]
    draw = random.Random(4)
    answers = trial.Answers(toy.weights, Settings(n_threads=1, **kind), tmp_path, 12)
    for way, fresh, this in answers.ways(prompt(draw, 300)):
        assert (this.tokens, this.rows) == (fresh.tokens, fresh.rows), way


@architectures("llama")
def test_classes_are_found(toy):
    "What doctor --exact says of sizes is what the engine goes by"
    rows = trial.Rows(toy.weights, Settings(n_threads=1))
    found = rows.classes()
    assert sorted(n for sizes in found for n in sizes) == sorted(trial.SIZES)
    together = next(sizes for sizes in found if 64 in sizes)
    assert set(together) == {n for n in trial.SIZES if n >= 64}
    assert (
        next(sizes for sizes in found if 63 in sizes)
        == [n for n in reversed(trial.SIZES) if 2 <= n < 64]
        or min(next(sizes for sizes in found if 63 in sizes)) == 1
    )


@pytest.mark.slow
@pytest.mark.model
def test_smollm2(tmp_path):
    "A few prompts of the real model; benchmarks.exact tries 100"
    draw = random.Random(5)
    answers = trial.Answers(
        Weights(Load(embedded_model())), Settings(n_threads=2), tmp_path, 32
    )
    for n_tokens in (30, 700):
        for way, fresh, this in answers.ways(prompt(draw, n_tokens)):
            assert this.tokens == fresh.tokens, way
