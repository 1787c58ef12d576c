"""A model that says what a test wants, in this process and in that of an engine.

The idea: a toy whose vocabulary has control tokens for thinking and calls, and whose
tokens are those of a script in place of drawn ones. Everything else runs as always.

The invariant: which token comes next depends on the question and on how many tokens
the answer has, so an engine that was started again goes on where the script was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from llm_kvbranch.inference.generation import Generation

from . import synth

CONTROLS = {5: "<think>", 6: "</think>", 7: "<tool_call>", 8: "</tool_call>"}
_VARIABLE = "SCRIPTED_ANSWERS"
_END = "<|im_end|>"


def write(path: Path) -> Path:
    "The model; use it with a template that writes these control tokens, as Qwen 3"
    return synth.write("llama", path, texts=CONTROLS)


def template(name: str = "qwen3") -> Path:
    return Path(__file__).parent / "templates" / f"{name}.jinja"


def say(monkeypatch, answers: dict[str, str]) -> None:
    "Answer questions, or results of tools, that contain a key with its text"
    monkeypatch.setenv(_VARIABLE, json.dumps(answers))
    monkeypatch.setattr(Generation, "draw", draw)


def in_processes(monkeypatch, folder: Path, more: str = "") -> None:
    "Have the engine's processes do so too; ``more`` is code for them"
    root = Path(__file__).parents[2]
    (folder / "sitecustomize.py").write_text(
        f"""
import sys
if "worker" in " ".join(sys.orig_argv):
    sys.path.insert(0, {str(root)!r})
    from llm_kvbranch.inference.generation import Generation
    from tests.support import scripted
    Generation.draw = scripted.draw
{more}
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def draw(generation: Generation, index: int) -> int:
    "In place of Generation.draw: the script's next token"
    script = _script(generation)
    n = generation.n_generated
    token = script[n] if n < len(script) else script[-1]
    generation._sampler.accept(token)
    return token


def _script(generation: Generation) -> list[int]:
    message = generation.request.messages[-1].to_dict()
    said = " ".join(p.get("text") or p.get("output") or "" for p in message["parts"])
    answers = json.loads(os.environ[_VARIABLE])
    text = next((each for key, each in answers.items() if key in said), "I see.")
    return list(generation.model.engine.weights.tokenize(text + _END, special=True))
