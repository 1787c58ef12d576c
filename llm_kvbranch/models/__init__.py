"""Which models there are, and what can be set for each.

Owns finding and downloading GGUF files, short names for downloads, options, settings,
and the doctor, which checks whether a model fits this machine. It does not know
conversations, and loads no model but to try whether its answers repeat.

llm imports this package for every command that names a model, whichever it is. So names
are imported when they are first used: building the options alone takes 20 ms.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Model
    from .describe import check_model, describe_models, short_count
    from .effective import (
        answer_options,
        choose,
        context_of,
        load_of,
        sampling_of,
        session_key,
        template_of,
    )
    from .options import KVLlamaOptions, ModelSettings, parse, shown
    from .presets import DEFAULT, PRESETS

__all__ = [
    "DEFAULT",
    "PRESETS",
    "KVLlamaOptions",
    "Model",
    "ModelSettings",
    "answer_options",
    "catalog",
    "check_model",
    "choose",
    "context_of",
    "describe_models",
    "doctor",
    "exact",
    "gpu",
    "hub",
    "load_of",
    "parse",
    "sampling_of",
    "session_key",
    "short_count",
    "shown",
    "template_of",
]

_NAMES = {
    "catalog": "Model",
    "describe": "check_model describe_models short_count",
    "effective": "answer_options choose context_of load_of sampling_of session_key "
    "template_of",
    "options": "KVLlamaOptions ModelSettings parse shown",
    "presets": "DEFAULT PRESETS",
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names.split():
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
