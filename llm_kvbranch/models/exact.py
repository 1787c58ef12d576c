"""Whether the same prompt gives the same answer, tried with the default model.

The idea: the model is loaded, rows are computed in several ways and compared, and one
short prompt is answered in all the ways in which its rows can come about. What is found
is put into sentences that say what it means for answers.

This module does not know how findings are printed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from ..engine import Weights
from ..inference import trial
from . import catalog
from .effective import choose, context_of, load_of, template_of
from .options import KVLlamaOptions

_TOKENS = 32  # of each answer
_DOCUMENT = (
    "The harbour opens at six. The first boat brings bread, paper and letters; the "
    "second one takes the children to school. At noon the gulls wait for the fishers, "
    "who sell what they caught on the stones below the lamp. "
)
_PROMPT = trial.Prompt(
    _DOCUMENT * 4,
    ("Who waits at noon, and for whom?", "Write a poem about this harbour."),
    "Why?",
)


def try_answers() -> dict[str, Any]:
    """What was found, as plain values.

    ``classes`` are sizes of batches that round alike; ``ways`` has for each way to
    answer a prompt whether the answer was the ``same``, and its rows the same
    ``bits``. ``influences`` says what an answer's bits depend on; ``notes`` say what
    that means.
    """
    model, started = catalog.model(), time.monotonic()
    chosen = choose(KVLlamaOptions(), model.settings)
    settings = context_of(chosen)
    weights = Weights(load_of(model.path, chosen))
    found: dict[str, Any] = {"model": model.name, "classes": [], "influences": {}}
    keeps_rows = weights.kind == "attention" and not weights.n_swa
    if keeps_rows:
        rows = trial.Rows(weights, settings)
        found["classes"] = rows.classes()
        found["influences"] = rows.influences()
    with tempfile.TemporaryDirectory(prefix="kvbranch-exact-") as folder:
        answers = trial.Answers(
            weights, settings, Path(folder), _TOKENS, template_of(chosen)
        )
        found["ways"] = [
            {
                "way": way,
                "same": this.tokens == fresh.tokens,
                "bits": this.rows == fresh.rows,
            }
            for way, fresh, this in answers.ways(_PROMPT)
        ]
    found["notes"] = _notes(found, weights)
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def _notes(found: dict[str, Any], weights: Weights) -> list[str]:
    "What may make an answer differ, and what can be done about it"
    notes, influences = [], found["influences"]
    if weights.gpu_layers:
        notes.append(
            "Layers are on a GPU, whose kernels may round by the shape of a batch. "
            "For exact answers use the CPU: n_gpu_layers 0"
        )
    if weights.n_swa:
        notes.append(
            "This model has a sliding window. When it is put back from a snapshot, its "
            "rows are at other places, which can change last bits"
        )
    if influences.get("beside"):
        notes.append(
            "Answers that are computed at the same time share batches, which round "
            "differently: ask for one at a time, or serve with --slots 1"
        )
    if influences.get("after"):
        notes.append(
            "Other conversations in memory change how a long one rounds (from 512 "
            "tokens on)"
        )
    if influences.get("threads"):
        notes.append(
            "The number of threads changes how a long conversation rounds (from 512 "
            "tokens on): set n_threads to keep it"
        )
    if influences.get("after") or influences.get("threads"):
        notes.append("With flash_attn off, long conversations are hardly affected")
    return notes
