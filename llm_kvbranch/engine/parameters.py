"""How a context is made: our settings as llama.cpp's parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .lib import llama
from .threads import default_threads

KV_TYPES = {  # enum ggml_type
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_AT_A_TIME = 128  # tokens whose attention scores are in memory at once
ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}


@dataclass(frozen=True)
class Rope:
    """Overrides of the model's rotary position embedding, by llama.cpp's names.

    None keeps the model's own value. They decide what the rows of a state mean.
    """

    scaling: str | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None

    def __str__(self) -> str:
        given = [f"{k} {v}" for k, v in asdict(self).items() if v is not None]
        return ", ".join(given) or "model"


@dataclass(frozen=True)
class Settings:
    """How a context is made.

    A state only fits a context with the same KV types, flash attention and rope; the
    rest may differ between capture and restore. ``n_batch`` is in tokens, ``n_seq`` is
    the number of sequences. Without ``offload_kqv`` the KV cache is in main memory,
    even for layers on a GPU.
    """

    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"
    n_batch: int = 512
    n_threads: int | None = None
    n_seq: int = 8
    offload_kqv: bool = True
    rope: Rope = Rope()


def no_context(settings: Settings, n_ctx: int, on_gpu: bool, reason: str) -> str:
    "Why llama.cpp made no context, and what to do about it where a GPU is why"
    types = f"{settings.type_k}/{settings.type_v}"
    text = f"llama.cpp cannot make a context of {n_ctx} tokens with KV type {types}"
    text += f": {reason}"
    if not on_gpu:
        return text
    if "flash attention" in reason.lower() and settings.flash_attn == "auto":
        return (
            f"{text}. This GPU has no flash attention for the model: set kv_type to "
            f"{settings.type_k}/f16, or n_gpu_layers to 0"
        )
    if "alloc" in reason or "memory" in reason:
        kept = ", or offload_kqv to false" if settings.offload_kqv else ""
        return f"{text}. Set a smaller n_ctx, kv_type or n_gpu_layers{kept}"
    return text


def rows_at_once(settings: Settings, on_cpu: bool) -> int:
    "How many rows of a batch llama.cpp computes together, at most"
    if settings.flash_attn == "off" and on_cpu:  # more take 1.3 times as long
        return min(settings.n_batch, _AT_A_TIME)
    return settings.n_batch


def context_parameters(settings: Settings, n_ctx: int, on_cpu: bool = False) -> Any:
    "llama_context_params for n_ctx cells; ``on_cpu`` if no layer is on a GPU"
    parameters = llama().llama_context_default_params()
    parameters.n_ctx = n_ctx
    parameters.n_batch = settings.n_batch
    parameters.n_ubatch = rows_at_once(settings, on_cpu)
    parameters.n_seq_max = settings.n_seq + 1  # and the scratch sequence
    parameters.kv_unified = True
    parameters.offload_kqv = settings.offload_kqv
    parameters.n_threads = settings.n_threads or default_threads()
    parameters.n_threads_batch = parameters.n_threads
    parameters.flash_attn_type = FLASH_ATTENTION[settings.flash_attn]
    parameters.type_k = KV_TYPES[settings.type_k]
    parameters.type_v = KV_TYPES[settings.type_v]
    parameters.no_perf = True
    for name, value in asdict(settings.rope).items():
        if value is None:
            continue
        if name == "scaling":
            parameters.rope_scaling_type = ROPE_SCALING[value]
        else:
            field = name if name.startswith("yarn") else f"rope_{name}"
            setattr(parameters, field, value)
    return parameters
