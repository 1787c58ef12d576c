"""llama.cpp behind a small interface; the only importer of ``llama_cpp``.

Owns ``Weights`` (a GGUF file in memory), ``Engine`` (a context over it), sampling, what
a GGUF file's header says, and which devices there are. Importing it loads nothing: the
bindings are loaded with the first ``Weights``. It does not know messages, state files,
or why something is decoded.
"""

from .blob import cut
from .classes import FEW, MANY, ONE, Classes
from .core import Engine, Feed, Kept
from .fit import MARGIN, check_known, layers_that_fit, tokens_that_fit
from .parameters import KV_TYPES, Rope, Settings
from .sampler import Sampler, Sampling
from .threads import default_threads
from .weights import Load, Weights

__all__ = [
    "FEW",
    "KV_TYPES",
    "MANY",
    "MARGIN",
    "ONE",
    "Classes",
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
    "layers_that_fit",
    "lib",
    "tokens_that_fit",
]
