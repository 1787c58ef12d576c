"""Which models there are, and what can be set for each.

Owns discovery of GGUF files, the hub, presets, options and settings of a model, and the
doctor, which says whether a model fits this machine. It does not know conversations,
and loads no model.
"""

from .catalog import (
    Model,
)
from .options import (
    KVLlamaOptions,
    ModelSettings,
    answer_options,
    choose,
    context_of,
    load_of,
    parse,
    sampling_of,
    session_key,
    shown,
    template_of,
)
from .presets import (
    DEFAULT,
    PRESETS,
)

__all__ = [
    "DEFAULT",
    "PRESETS",
    "KVLlamaOptions",
    "Model",
    "ModelSettings",
    "answer_options",
    "catalog",
    "choose",
    "context_of",
    "doctor",
    "hub",
    "load_of",
    "parse",
    "sampling_of",
    "session_key",
    "shown",
    "template_of",
]
