"""What can be chosen for an answer and set for a model, in llama.cpp's terms.

The idea: everything that may be given with ``-o`` for one answer may be set for a
model once, and a few things more that are the model's own: its chat template,
adapters, positions, and how it is spread over GPUs. What is given goes before what
is set, that before what the file says of itself, that before our defaults.

This module does not know where settings are kept.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import llm
from pydantic import Field, ValidationError, field_validator

from ..errors import SettingError

if TYPE_CHECKING:
    from ..engine import Load, Sampling, Settings


class KVLlamaOptions(llm.Options):
    "What llama.cpp users expect to set, by llama.cpp's names"

    temperature: Optional[float] = Field(
        default=None,
        ge=0,
        description="Randomness of the choice, 0 always takes the "
        "likeliest token (default 0.8)",
    )
    top_k: Optional[int] = Field(
        default=None,
        ge=0,
        description="Choose among the k likeliest tokens, 0 for all (default 40)",
    )
    top_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Choose among the likeliest tokens "
        "that together reach this probability (default 0.95)",
    )
    min_p: Optional[float] = Field(
        default=None,
        ge=0,
        le=1,
        description="Leave out tokens less likely than "
        "this share of the likeliest one (default 0.05)",
    )
    typical_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Locally typical sampling, 1 is off (default 1)",
    )
    repeat_penalty: Optional[float] = Field(
        default=None,
        gt=0,
        description="Divide the score of recent tokens by this, 1 is off (default 1)",
    )
    presence_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Lower the score of tokens that occurred recently (default 0)",
    )
    frequency_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Lower the score of recent tokens "
        "each time they occurred (default 0)",
    )
    repeat_last_n: Optional[int] = Field(
        default=None,
        ge=-1,
        description="How many tokens count as recent, -1 for all (default 64)",
    )
    seed: Optional[int] = Field(
        default=None,
        ge=0,
        le=0xFFFFFFFE,
        description="Seed of the choice; random if not given",
    )
    max_tokens: Optional[int] = Field(
        default=None,
        ge=1,
        description="Longest answer, in tokens",
    )
    stop: Optional[Union[str, list[str]]] = Field(
        default=None,
        description="End the answer before this text; several as a JSON list",
    )
    grammar: Optional[str] = Field(
        default=None,
        description="GBNF grammar that the answer must follow",
    )
    n_ctx: Optional[int] = Field(
        default=None,
        ge=1,
        description="Most tokens that prompt and answer may have "
        "together (default: what the model was trained for). Memory is taken as "
        "needed, not for all of it",
    )
    n_gpu_layers: Optional[int] = Field(
        default=None,
        ge=-1,
        description="Layers to offload to the GPU, -1 for all (default -1)",
    )
    n_threads: Optional[int] = Field(
        default=None,
        ge=1,
        description="Threads to compute with (default: the processors available)",
    )
    n_batch: Optional[int] = Field(
        default=None,
        ge=32,
        le=8192,
        description="Tokens to prefill at a time (default 512)",
    )
    kv_type: Optional[str] = Field(
        default=None,
        description="Type of the KV cache: f16, bf16, f32, q8_0, q5_1, "
        "q5_0, q4_1, q4_0, iq4_nl; or K/V apart as in q8_0/q4_0 (default f16)",
    )
    flash_attn: Optional[bool] = Field(
        default=None,
        description="Flash attention on or off (default: llama.cpp decides). Off, one "
        "long conversation is read sooner on the CPU, and several at once later",
    )

    server: Optional[bool] = Field(
        default=None,
        description="Let llm kvbranch serve answer if it runs here with this model "
        "and these settings (default true)",
    )

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("["):
            try:
                parsed = json.loads(value)
            except ValueError:
                return value
            if isinstance(parsed, list) and all(isinstance(s, str) for s in parsed):
                return parsed
        return value

    @field_validator("kv_type")
    @classmethod
    def _kv_type(cls, value: str | None) -> str | None:
        from ..engine import KV_TYPES

        for name in (value or "f16").split("/", 1):
            if name not in KV_TYPES:
                raise ValueError(f"{name!r} is not one of {', '.join(KV_TYPES)}")
        return value


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


class ModelSettings(KVLlamaOptions):
    "What can be set for a model: the options of an answer, and what is its own"

    chat_template: Optional[str] = Field(
        default=None,
        description="File with a jinja chat template to use in place of the model's",
    )
    lora: Optional[Union[str, list[str]]] = Field(
        default=None,
        description="LoRA adapter to apply, as FILE or FILE:SCALE; several as a "
        "JSON list",
    )
    rope_scaling: Optional[Literal["none", "linear", "yarn", "longrope"]] = Field(
        default=None,
        description="How positions beyond the trained context are scaled",
    )
    rope_freq_base: Optional[float] = Field(
        default=None, gt=0, description="Base frequency of the rotary positions"
    )
    rope_freq_scale: Optional[float] = Field(
        default=None,
        gt=0,
        description="Factor on the rotary frequencies: 0.5 doubles the context",
    )
    yarn_orig_ctx: Optional[int] = Field(
        default=None, ge=1, description="YaRN: context that the model was trained for"
    )
    yarn_ext_factor: Optional[float] = Field(
        default=None, description="YaRN: extrapolation mix factor"
    )
    yarn_attn_factor: Optional[float] = Field(
        default=None, description="YaRN: magnitude scaling factor"
    )
    yarn_beta_fast: Optional[float] = Field(
        default=None, description="YaRN: low correction dimension"
    )
    yarn_beta_slow: Optional[float] = Field(
        default=None, description="YaRN: high correction dimension"
    )
    split_mode: Optional[Literal["none", "layer", "row", "tensor"]] = Field(
        default=None,
        description="How several GPUs share the model (default layer)",
    )
    tensor_split: Optional[Union[str, list[float]]] = Field(
        default=None,
        description="Proportions of the model for each GPU, as in 3,1",
    )
    main_gpu: Optional[int] = Field(
        default=None, ge=0, description="The GPU that is used with split_mode none"
    )

    @field_validator("chat_template")
    @classmethod
    def _chat_template(cls, value: str | None) -> str | None:
        return None if value is None else _file(value)

    @field_validator("lora")
    @classmethod
    def _lora(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else [value]
        adapters = []
        for item in value or ():
            name, scale = adapter(str(item))
            adapters.append(_file(str(name)) + ("" if scale == 1 else f":{scale:g}"))
        return adapters or None

    @field_validator("tensor_split")
    @classmethod
    def _tensor_split(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [float(share) for share in value.split(",")]
        if any(share < 0 for share in value or ()):
            raise ValueError("a proportion cannot be negative")
        return value


# Fields of ModelSettings that an answer cannot choose for itself
OWN = tuple(
    name
    for name in ModelSettings.model_fields
    if name not in KVLlamaOptions.model_fields
)


# What may differ from answer to answer without another session
_OF_AN_ANSWER = (*_SAMPLING, "max_tokens", "stop", "n_ctx", "server")


def answer_options(chosen: ModelSettings) -> dict[str, Any]:
    "Of what was chosen, what is an answer's own, as plain values"
    values = chosen.model_dump(exclude_none=True)
    return {k: v for k, v in values.items() if k in _OF_AN_ANSWER and k != "server"}


def session_key(path: Path, chosen: ModelSettings) -> dict[str, Any]:
    "What has to be equal for another process's session to be as good, as plain values"
    values = chosen.model_dump(exclude_none=True)
    kept = {k: v for k, v in values.items() if k not in _OF_AN_ANSWER}
    about = path.stat()
    file = [str(path.resolve()), about.st_size, about.st_mtime_ns]
    return {"file": file, "settings": kept}


def adapter(text: str) -> tuple[Path, float]:
    "The file and the scale of a LoRA adapter written as FILE or FILE:SCALE"
    name, colon, scale = text.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):
            return Path(name), float(scale)
    return Path(text), 1.0


def parse(key: str, value: Any) -> Any:
    "A setting as it is to be kept; raises SettingError"
    if key not in ModelSettings.model_fields:
        near = difflib.get_close_matches(key, ModelSettings.model_fields, n=1)
        raise SettingError(
            f"There is no setting {key}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + ". llm kvbranch models settings lists them"
        )
    try:
        return getattr(ModelSettings(**{key: value}), key)
    except ValidationError as error:
        raise SettingError(f"{key}: {_reason(error)}") from None


def shown(value: Any) -> str:
    "A setting as a person would write it"
    return value if isinstance(value, str) else json.dumps(value)


def choose(options: KVLlamaOptions, settings: dict[str, Any]) -> ModelSettings:
    """What holds for an answer: the options given, else what is set for the model.

    Raises SettingError for settings that make no sense.
    """
    given = options.model_dump(exclude_none=True)
    known = {k: v for k, v in settings.items() if k in ModelSettings.model_fields}
    try:
        return ModelSettings(**{**known, **given})
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise SettingError(
            f"{key} is set to {known.get(key)!r} for this model: {_reason(error)}. "
            "Mend it with llm kvbranch models settings"
        ) from None


def load_of(path: Path, chosen: ModelSettings) -> Load:
    "Where the weights come from and go to"
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
    "How the context is made"
    from ..engine import Rope, Settings

    given = {
        name: value
        for name in ("n_batch", "n_threads")
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
    chosen: ModelSettings, model: dict[str, float], **more: Any
) -> Sampling:
    "How tokens are drawn; ``model`` is what the file recommends"
    from ..engine import Sampling

    given = {
        name: value
        for name in _SAMPLING
        if (value := getattr(chosen, name)) is not None
    }
    return Sampling(**{**model, **given, **more})


def template_of(chosen: ModelSettings) -> str | None:
    "The chat template that is set for a model; raises SettingError"
    if chosen.chat_template is None:
        return None
    try:
        return Path(chosen.chat_template).read_text()
    except (OSError, ValueError) as error:
        raise SettingError(
            f"Cannot read the chat template {chosen.chat_template}: {error}"
        ) from None


def _file(name: str) -> str:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


def _reason(error: ValidationError) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
