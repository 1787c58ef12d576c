"""The same prompt in several ways: how many answers are the same as a fresh run's.

    python -m benchmarks.exact --prompts 100

The prompts have 100 to 2,000 tokens, the answers 64, at temperature 0. A table says how
many answers had the same tokens, and how many the same rows, bit for bit. The model is
SmolLM2, in this process; "restored" is a new context with nothing but the store.

This module does not know how answers are made or compared.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llm_kvbranch.engine import Load, Settings, Weights
from llm_kvbranch.inference import trial
from llm_kvbranch.models.catalog import embedded_model

N_TOKENS = 64  # of an answer
WORDS = [
    *("sea", "tide", "harbour", "gull", "lamp", "paper", "engine", "field", "winter"),
    *("bread", "river", "stone", "window", "letter", "garden", "music", "copper"),
]
_LONG = "Explain that in more detail, and give three examples of it, please. " * 5


def prompt(draw: random.Random, n_tokens: int) -> trial.Prompt:
    "A document of random words, two questions about it, and a short or long follow-up"
    sentences: list[str] = []
    while len(sentences) < n_tokens / 11:
        words = draw.choices(WORDS, k=draw.randrange(5, 11))
        sentences.append(" ".join(words).capitalize() + ".")
    questions = "Which word comes up most?", "Write a short poem about it."
    then = draw.choice(["Why?", "And the second most?", _LONG])
    return trial.Prompt(" ".join(sentences), questions, then)


def count(
    answers: trial.Answers, prompts: Iterator[trial.Prompt]
) -> dict[str, Counter[str]]:
    "For each way, how many were ``tried``, and had the same ``answer`` and ``rows``"
    found: dict[str, Counter[str]] = {}
    for each in prompts:
        for way, fresh, this in answers.ways(each):
            counts = found.setdefault(way, Counter())
            counts["tried"] += 1
            counts["answer"] += fresh.tokens == this.tokens
            counts["rows"] += fresh.rows == this.rows
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--flash-attn", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    draw = random.Random(5)
    prompts = (prompt(draw, draw.randrange(60, 1930)) for _ in range(given.prompts))
    settings = Settings(flash_attn=given.flash_attn, n_threads=given.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = Weights(Load(embedded_model()))
        answers = trial.Answers(weights, settings, Path(folder), N_TOKENS)
        found = count(answers, prompts)
    print("| way | the same answer | the same rows |\n| --- | --- | --- |")
    for way, counts in found.items():
        n = counts["tried"]
        print(f"| {way} | {counts['answer']} of {n} | {counts['rows']} of {n} |")
    return int(any(c["answer"] < c["tried"] for c in found.values()))


if __name__ == "__main__":
    sys.exit(main())
