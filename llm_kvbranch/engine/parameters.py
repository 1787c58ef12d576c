"""How a context is made: our settings, as llama.cpp's parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
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
_NO_FLASH = ("f16", "bf16", "f32")  # values that can be had without flash attention
_AT_A_TIME = 128  # tokens whose scores for all cells are in memory at once
ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}


@dataclass(frozen=True)
class Rope:
    """Overrides of the model's rotary positions, by llama.cpp's names.

    None is what the model says. They decide what a state's rows mean.
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
    """How the context is made. Of these, the KV types, flash attention and rope
    decide which states fit; the others may differ between capture and restore.
    ``n_ubatch`` is how many tokens of a batch are computed at a time, None for all.
    """

    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"
    n_batch: int = 512
    n_ubatch: int | None = None
    n_threads: int | None = None
    n_seq: int = 8
    rope: Rope = Rope()


def for_cpu(settings: Settings) -> Settings:
    """The settings with what is left open chosen for a model that no GPU computes.

    On the CPU llama.cpp's flash attention takes its tokens one by one where a batch has
    fewer than 64: all that a branch has to read, and all that answers running together
    decode. Measured on two cores behind 2,400 tokens, without it against with it: 20
    tokens take 0.56 of the time with SmolLM2-135M and 0.79 with layers as those of
    Llama 3.2 3B, eight answers' next ones 0.60 and 0.78, one answer's 0.99 and 0.93.
    A long prompt takes the same time as long as few tokens are computed at once.
    """
    if settings.flash_attn == "auto" and settings.type_v in _NO_FLASH:
        settings = replace(settings, flash_attn="off")
    if settings.flash_attn == "off" and settings.n_ubatch is None:
        settings = replace(settings, n_ubatch=min(settings.n_batch, _AT_A_TIME))
    return settings


def context_parameters(settings: Settings, n_ctx: int) -> Any:
    "llama_context_params for a context of n_ctx cells"
    parameters = llama().llama_context_default_params()
    parameters.n_ctx = n_ctx
    parameters.n_batch = settings.n_batch
    parameters.n_ubatch = settings.n_ubatch or settings.n_batch
    parameters.n_seq_max = settings.n_seq + 1  # and the scratch sequence
    parameters.kv_unified = True
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
