"""llama.cpp behind a small interface; the only importer of ``llama_cpp``.

``Weights`` is a GGUF file in memory, ``Engine`` a context over it. Nothing is
loaded by importing this package: the bindings come with the first ``Weights``.
"""

from .core import Engine, Feed, Kept
from .parameters import KV_TYPES, Rope, Settings
from .sampler import Sampler, Sampling, json_grammar
from .weights import Load, Weights

__all__ = [
    "KV_TYPES",
    "Engine",
    "Feed",
    "Kept",
    "Load",
    "Rope",
    "Sampler",
    "Sampling",
    "Settings",
    "Weights",
    "json_grammar",
]
