"""The settings in effect for an answer, and what they mean to the engine.

The idea: an option of the answer overrides a setting of the model, which overrides what
the model file recommends, which overrides our defaults.

This module does not know where settings are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import SettingError
from .options import OWN, KVLlamaOptions, ModelSettings, adapter, reason

if TYPE_CHECKING:
    from ..engine import Load, Sampling, Settings

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "repeat_last_n",
    "seed",
    "grammar",
)
# Settings that can change between answers of one session
_OF_AN_ANSWER = (
    *_SAMPLING,
    *("max_tokens", "stop", "regex", "n_ctx", "server"),
    *("think", "reasoning_effort", "thinking_budget", "keep_thinking"),
    *("chat_template_kwargs", "date"),
)


def answer_options(chosen: ModelSettings) -> dict[str, Any]:
    "The settings that belong to one answer, as plain values"
    values = chosen.model_dump(exclude_none=True)
    return {k: v for k, v in values.items() if k in _OF_AN_ANSWER and k != "server"}


def session_key(path: Path, chosen: ModelSettings) -> dict[str, Any]:
    "What must be equal to use the session of another process, as plain values"
    values = chosen.model_dump(exclude_none=True)
    kept = {k: v for k, v in values.items() if k not in _OF_AN_ANSWER}
    about = path.stat()
    file = [str(path.resolve()), about.st_size, about.st_mtime_ns]
    return {"file": file, "settings": kept}


def choose(options: KVLlamaOptions, settings: dict[str, Any]) -> ModelSettings:
    """The settings for an answer: its options, else those of the model.

    Raises SettingError for invalid settings.
    """
    given = options.model_dump(exclude_none=True)
    known = {k: v for k, v in settings.items() if k in ModelSettings.model_fields}
    try:
        return ModelSettings(**{**known, **given})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise SettingError(
            f"{key} is set to {known.get(key)!r} for this model: {reason(error)}. "
            "Change it with llm kvbranch models settings"
        ) from None


def load_of(path: Path, chosen: ModelSettings) -> Load:
    "How the weights are loaded"
    from ..engine import Load

    given = {
        name: value
        for name in ("n_gpu_layers", "main_gpu", "split_mode")
        if (value := getattr(chosen, name)) is not None
    }
    shares: Any = chosen.tensor_split or ()
    return Load(
        path,
        **given,
        tensor_split=tuple(shares),
        lora=tuple(adapter(item) for item in chosen.lora or ()),
    )


def context_of(chosen: ModelSettings) -> Settings:
    "How the context is created"
    from ..engine import Rope, Settings

    given = {
        name: value
        for name in ("n_batch", "n_threads", "offload_kqv")
        if (value := getattr(chosen, name)) is not None
    }
    types = (chosen.kv_type or "f16").split("/", 1)
    rope = {
        name.removeprefix("rope_"): value
        for name in OWN
        if name.startswith(("rope_", "yarn_"))
        and (value := getattr(chosen, name)) is not None
    }
    return Settings(
        type_k=types[0],
        type_v=types[-1],
        flash_attn={None: "auto", True: "on", False: "off"}[chosen.flash_attn],
        rope=Rope(**rope),
        **given,
    )


def sampling_of(
    chosen: KVLlamaOptions, model: dict[str, float], **more: Any
) -> Sampling:
    "How tokens are sampled; ``model`` is what the file recommends"
    from ..engine import Sampling

    given = {
        name: value
        for name in _SAMPLING
        if (value := getattr(chosen, name)) is not None
    }
    return Sampling(**{**model, **given, **more})


def template_of(chosen: ModelSettings) -> str | None:
    "The chat template set for a model; raises SettingError"
    if chosen.chat_template is None:
        return None
    try:
        return Path(chosen.chat_template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingError(
            f"The chat template {chosen.chat_template} is not valid UTF-8. Convert it, "
            "for example with: iconv -f latin1 -t utf-8"
        ) from None
    except (OSError, ValueError) as error:
        raise SettingError(
            f"Cannot read the chat template {chosen.chat_template}: {error}"
        ) from None
