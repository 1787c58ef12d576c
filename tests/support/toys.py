"""Loaded toy models, and a context decoded from scratch to compare with.

The idea: restored state must lead to the same tokens as decoding the whole context
again, and must be the same state. Other batch sizes round differently, so another token
may be likelier by up to ``CLOSE``; with a wrong state the margin is far larger. States
are compared value by value (``off``).

``synth`` writes the models; this module does not know messages, stores or sessions.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from llm_kvbranch.engine import (
    Engine,
    Feed,
    Kept,
    Load,
    Sampling,
    Settings,
    Weights,
)
from llm_kvbranch.engine.blob import HEADER, Area, check, check_snapshot
from llm_kvbranch.store.header import State

from . import synth

GREEDY = Sampling(temperature=0)
SETTINGS = Settings(n_threads=1, n_seq=3)
CLOSE = 0.05  # in logits; the likeliest tokens are typically 0.2 apart
_TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # enum ggml_type

WINDOWED = ("gemma3",)
RECURRENT = ("mamba", "granitehybrid", "lfm2", "qwen35")
ENDS_ONLY = (*WINDOWED, *RECURRENT)  # can be resumed only where a state ends


@dataclass
class Toy:
    "The loaded model of one architecture"

    name: str
    load: Load
    weights: Weights

    @property
    def cuts_anywhere(self) -> bool:
        return self.name not in ENDS_ONLY

    @property
    def window(self) -> int:
        return synth.WINDOW if self.name in WINDOWED else 0

    def reachable(self, state: State, kept: int) -> int:
        "How many of ``kept`` tokens can be reused, of which the last are a state's"
        if self.cuts_anywhere:
            return kept
        marks = [state.start, *state.marks]
        before = max(mark for mark in marks if mark <= kept)
        after = min(mark for mark in marks if mark >= kept)
        return kept if after - before <= self.window else before


def architectures(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("toy", names or list(synth.MODELS), indirect=True)


@dataclass
class Decoded:
    """A decoded context, and what was observed on the way.

    ``beaten_by`` has, for each token of the answer, how much likelier another token
    was: 0 where greedy decoding agrees.
    """

    engine: Engine
    beaten_by: list[float] = field(default_factory=list)
    snapshots: dict[int, bytearray] = field(default_factory=dict)


def decode(
    weights: Weights,
    tokens: array[int],
    answer: int,
    marks: Container[int] = (),
    begun: Engine | None = None,
) -> Decoded:
    """Decode a prompt in batches, then the answer's tokens one by one.

    The answer begins at position ``answer``; snapshots are taken at the ``marks``
    inside it. ``begun`` is an engine that already has a part of the prompt.
    """
    engine = begun or Engine(weights, SETTINGS)
    engine.reserve(len(tokens), [Kept(0)])
    decoded, step = Decoded(engine), SETTINGS.n_batch
    for begin in range(engine.length(0), answer, step):
        prompt = tokens[begin : min(answer, begin + step)]
        (index,) = engine.decode([Feed(0, begin, prompt)])
    for position in range(answer, len(tokens)):
        scores = logits(engine, index)
        decoded.beaten_by.append(float(scores.max() - scores[tokens[position]]))
        feed = Feed(0, position, tokens[position : position + 1])
        (index,) = engine.decode([feed])
        if position + 1 in marks:
            decoded.snapshots[position + 1] = engine.snapshot(0)
    return decoded


def logits(engine: Engine, index: int) -> Any:
    "The logits that sampling sees, which the engine does not expose"
    pointer = engine._llama.llama_get_logits_ith(engine._context, index)
    return np.ctypeslib.as_array(pointer, (engine.weights.n_vocab,))


# -- states as numbers -------------------------------------------------


def row_values(engine: Engine, payload: Any, start: int, end: int) -> list[Any]:
    "Captured rows [start, end) as numbers, an array for each layer"
    layout, view = engine._layout, memoryview(payload)
    cell = 0 if layout.kind == "recurrent" else layout.cell
    return _arrays(view, check(view, start, end, layout), cell)


def snapshot_values(engine: Engine, snapshot: Any, position: int) -> list[Any]:
    "A snapshot as numbers"
    layout, view = engine._layout, memoryview(snapshot)
    areas = check_snapshot(view, position, layout)
    assert areas, "nothing would be compared"
    return _arrays(view, areas, layout.cell if layout.n_swa else 0)


def _arrays(view: memoryview, areas: list[Area], cell: int) -> list[Any]:
    """Areas as arrays, with rows in order of position.

    ``cell`` is the size of a row's cell description in bytes, 0 if there is none.
    """
    order: Any = slice(None)
    if cell:
        (n,) = struct.unpack_from("<I", view, HEADER + 4)
        cells = np.frombuffer(view, "<i4", n * cell // 4, HEADER + 8)
        order = np.argsort(cells[:: cell // 4])
    found = []
    for area in areas:
        kind = _TYPES[area.ggml_type]
        data = np.frombuffer(view, kind, area.nbytes // kind.itemsize, area.at)
        if area.nbytes:
            rows = data.reshape(area.n_rows, -1)
            rows = rows.T if area.transposed else rows
            found.append(rows[order].astype(np.float64))
    return found


def off(ones: list[Any], others: list[Any]) -> float:
    """The largest difference of two values, relative to their layer's RMS.

    Infinite if the shapes differ.
    """
    pairs = list(zip(ones, others, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return np.inf
    differences = (
        float(abs(one - other).max() / np.sqrt((other**2).mean()))
        for one, other in pairs
    )
    return max(differences, default=0.0)


def apart(ones: list[Any], others: list[Any]) -> float:
    "The difference of two values as a whole, relative to their layer's RMS"
    pairs = list(zip(ones, others, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return np.inf
    differences = (
        float(np.sqrt(((one - other) ** 2).mean() / (other**2).mean()))
        for one, other in pairs
    )
    return max(differences, default=0.0)
