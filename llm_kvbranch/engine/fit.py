"""How much of a model fits into memory, and why a model could not be loaded.

All of this is estimated from the file's header; llama.cpp has the last word.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelLoadError
from .devices import Device
from .gguf import Header, read_header
from .lib import listen, llama, signals_held, take_errors

MARGIN = 512 << 20  # bytes left for compute buffers and other programs
_F16 = 1  # enum ggml_type
_CONTEXT = 8192  # tokens that a GPU should have room for


def layers_that_fit(
    header: Header,
    gpus: Sequence[Device],
    types: tuple[int, int] = (_F16, _F16),
    n_ctx: int = _CONTEXT,
) -> int:
    """How many layers fit on the GPUs, counting the output layer.

    Each with its KV rows of ``n_ctx`` tokens; ``types`` are the ggml types of keys and
    values. llama.cpp offloads the last layers first.
    """
    room = sum(max(0, gpu.free - MARGIN) for gpu in gpus)
    n_ctx = min(n_ctx, header.n_ctx_train or n_ctx)
    rows = [*(n_ctx * nbytes for nbytes in header.kv_bytes(*types)), 0]
    n = 0
    for weights, kv in zip(
        reversed(header.layer_bytes()), reversed(rows), strict=False
    ):
        room -= weights + kv
        if room < 0:
            break
        n += 1
    return n


def tokens_that_fit(
    header: Header, nbytes: int, types: tuple[int, int] = (_F16, _F16)
) -> int:
    """How many tokens' KV rows fit into ``nbytes`` beside the weights.

    At most as many as the model was trained for.
    """
    room = nbytes - MARGIN - header.nbytes - header.recurrent_bytes()
    each = sum(header.kv_bytes(*types))
    most = header.n_ctx_train or 1 << 20
    if room <= 0:
        return 0
    return min(most, room // each) if each else most


def check_known(path: Path, tokenizer: bool = True) -> None:
    """Raise ModelLoadError if this build does not know the architecture or tokenizer.

    llama.cpp has no list of what it knows, so the vocabulary alone is loaded. That
    takes time that grows with the vocabulary; without ``tokenizer`` it is skipped.
    """
    lib = llama()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    instead = (lib.llama_model_kv_override * 2)()  # the second one ends the list
    if not tokenizer:
        instead[0].key = b"tokenizer.ggml.model"
        instead[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        instead[0].value.val_str = b"no_vocab"
        kind = type(parameters.kv_overrides)
        parameters.kv_overrides = ctypes.cast(instead, kind)
    listen()
    with signals_held():
        model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise ModelLoadError(explain(path, take_errors()))
    lib.llama_model_free(model)


def explain(path: Path, reason: str) -> str:
    "Why llama.cpp did not load a model, and what to do about it"
    try:
        header = read_header(path)
    except ModelLoadError as error:
        return str(error)
    if header.unfit:
        return f"{path.name} {header.unfit}"
    if unknown := _unknown(path, header.architecture, reason):
        return unknown
    if "alloc" in reason or "out of memory" in reason:
        return (
            f"Not enough memory for {path.name} ({header.nbytes / 1e9:.1f} GB): "
            f"use a smaller model or quantisation ({reason})"
        )
    return f"llama.cpp cannot load {path.name}: {reason}"


def _unknown(path: Path, architecture: str, reason: str) -> str | None:
    "What this build of llama.cpp does not know about a model"
    upgrade = "llm install --upgrade llama-cpp-python"
    unknown = "unknown model architecture" in reason
    # Some of Ollama's files can only be read by Ollama
    is_ollamas = path.parent.name == "blobs" and path.name.startswith("sha256-")
    if is_ollamas and (unknown or "wrong number of tensors" in reason):
        return (
            f"This build of llama.cpp cannot load Ollama's file of this model "
            f"({architecture}): get another with llm kvbranch models download, or "
            f"{upgrade} ({reason})"
        )
    if unknown:
        return (
            f"This build of llama.cpp does not know the architecture of {path.name}, "
            f"{architecture}: {upgrade}"
        )
    if "unknown pre-tokenizer type" in reason:
        return (
            f"This build of llama.cpp does not know the tokenizer of {path.name}: "
            f"{upgrade} ({reason})"
        )
    return None
