"""Short names for models to download: one for every size of machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    "A model with a short name; ``note`` says what it is for"

    name: str
    repo: str
    file: str
    nbytes: int
    note: str


# fmt: off
PRESETS = {preset.name: preset for preset in (
    Preset("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF",
           "smollm2-360m-instruct-q8_0.gguf", 386_404_992,
           "to try things out on any machine"),
    Preset("qwen3-0.6b", "Qwen/Qwen3-0.6B-GGUF",
           "Qwen3-0.6B-Q8_0.gguf", 639_446_688,
           "small; thinks before it answers"),
    Preset("llama-3.2-1b", "bartowski/Llama-3.2-1B-Instruct-GGUF",
           "Llama-3.2-1B-Instruct-Q4_K_M.gguf", 807_694_464,
           "for little memory or an old machine"),
    Preset("llama-3.2-3b", "bartowski/Llama-3.2-3B-Instruct-GGUF",
           "Llama-3.2-3B-Instruct-Q4_K_M.gguf", 2_019_377_696,
           "for any laptop"),
    Preset("gemma-3-4b", "ggml-org/gemma-3-4b-it-GGUF",
           "gemma-3-4b-it-Q4_K_M.gguf", 2_489_757_856,
           "for many languages"),
    Preset("qwen3-4b", "bartowski/Qwen_Qwen3-4B-Instruct-2507-GGUF",
           "Qwen_Qwen3-4B-Instruct-2507-Q4_K_M.gguf", 2_497_280_736,
           "for code and long instructions"),
    Preset("qwen3-8b", "Qwen/Qwen3-8B-GGUF",
           "Qwen3-8B-Q4_K_M.gguf", 5_027_783_488,
           "for 16 GB of memory; thinks before it answers"),
    Preset("gpt-oss-20b", "ggml-org/gpt-oss-20b-GGUF",
           "gpt-oss-20b-mxfp4.gguf", 12_109_566_560,
           "for 24 GB of memory; thinks before it answers"),
)}
# fmt: on
DEFAULT = "llama-3.2-3b"
