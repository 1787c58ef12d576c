"""llama.cpp behind a small interface; the only importer of ``llama_cpp``.

``Weights`` is a GGUF file in memory, ``Engine`` a context over it. Nothing is
loaded by importing this package: the bindings come with the first ``Weights``.
"""

from .blob import cut
from .core import Engine, Feed, Kept
from .fit import MARGIN, check_known, layers_that_fit, tokens_that_fit
from .parameters import KV_TYPES, Rope, Settings
from .sampler import Sampler, Sampling, json_grammar
from .threads import default_threads
from .weights import Load, Weights

__all__ = [
    "KV_TYPES",
    "MARGIN",
    "Engine",
    "Feed",
    "Kept",
    "Load",
    "Rope",
    "Sampler",
    "Sampling",
    "Settings",
    "Weights",
    "check_known",
    "cut",
    "default_threads",
    "devices",
    "gguf",
    "json_grammar",
    "layers_that_fit",
    "lib",
    "tokens_that_fit",
]
