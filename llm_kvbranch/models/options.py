"""The options of an answer and the settings of a model, by llama.cpp's names.

The idea: every option of one answer (``-o``) can also be set for a model. A model has a
few more settings of its own: its chat template, adapters, positions, and how it is
split over GPUs.

This module does not know where settings are kept, nor what they mean to the engine.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
from pathlib import Path
from typing import Any, Literal, Optional, Union

import llm
from pydantic import Field, ValidationError, field_validator

from ..errors import SettingError

MOST = 2**31 - 1  # of llama.cpp's integers
_DEEPEST = 64  # levels of a JSON value


class KVLlamaOptions(llm.Options):
    "The options of an answer"

    temperature: Optional[float] = Field(
        default=None,
        ge=0,
        le=1000,
        description="Randomness of sampling; 0 always takes the most likely token "
        "(default 0.8)",
    )
    top_k: Optional[int] = Field(
        default=None,
        ge=0,
        le=MOST,
        description="Sample from the k most likely tokens, 0 for all (default 40)",
    )
    top_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the most likely tokens whose probabilities add up to "
        "this (default 0.95)",
    )
    min_p: Optional[float] = Field(
        default=None,
        ge=0,
        le=1,
        description="Exclude tokens less likely than this fraction of the most likely "
        "one (default 0.05)",
    )
    typical_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Locally typical sampling, 1 to disable (default 1)",
    )
    repeat_penalty: Optional[float] = Field(
        default=None,
        gt=0,
        le=1000,
        description="Divide the score of recent tokens by this, 1 to disable "
        "(default 1)",
    )
    presence_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtract this from the score of recent tokens (default 0)",
    )
    frequency_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtract this from the score of recent tokens for each time they "
        "occurred (default 0)",
    )
    repeat_last_n: Optional[int] = Field(
        default=None,
        ge=-1,
        le=1 << 20,  # llama.cpp allocates this many
        description="Number of tokens that count as recent, -1 for all (default 64)",
    )
    seed: Optional[int] = Field(
        default=None,
        ge=0,
        le=0xFFFFFFFE,
        description="Random seed (default: a new one each time)",
    )
    max_tokens: Optional[int] = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Maximum length of the answer in tokens",
    )
    stop: Optional[Union[str, list[str]]] = Field(
        default=None,
        description="Stop before this text; give several as a JSON list",
    )
    regex: Optional[str] = Field(
        default=None,
        description="Regular expression that the whole answer must match",
    )
    grammar: Optional[str] = Field(
        default=None,
        description="GBNF grammar that the answer must match",
    )
    think: Optional[
        Literal["true", "false", "minimal", "low", "medium", "high", "xhigh", "max"]
    ] = Field(
        default=None,
        description="Whether to think before answering, or how hard: true, false, low, "
        "medium, high; what a model knows depends on its chat template (default: the "
        "template's)",
    )
    reasoning_effort: Optional[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
    ] = Field(
        default=None,
        description="How hard to think, as clients of OpenAI's API say it: the nearest "
        "that the chat template knows, if any",
    )
    thinking_budget: Optional[int] = Field(
        default=None,
        ge=0,
        le=MOST,
        description="Maximum length of the thinking in tokens; the answer follows",
    )
    keep_thinking: Optional[bool] = Field(
        default=None,
        description="Keep the thinking of earlier answers in the conversation even if "
        "the chat template drops it (default false)",
    )
    chat_template_kwargs: Optional[dict[str, Any]] = Field(
        default=None,
        description="Variables for the chat template, as a JSON object",
    )
    date: Optional[str] = Field(
        default=None,
        description="Date that the chat template may write: today, a day as "
        "YYYY-MM-DD, or none for the template's own (default today)",
    )
    n_ctx: Optional[int] = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Context length: maximum tokens of prompt and answer together "
        "(default: what the model was trained for). Memory is allocated as needed",
    )
    n_gpu_layers: Optional[int] = Field(
        default=None,
        ge=-1,
        le=MOST,
        description="Number of layers to offload to the GPU, -1 for all (default -1)",
    )
    n_threads: Optional[int] = Field(
        default=None,
        ge=1,
        le=512,  # llama.cpp's limit
        description="Number of threads (default: the available processors)",
    )
    n_batch: Optional[int] = Field(
        default=None,
        ge=32,
        le=8192,
        description="Batch size for prompts, in tokens (default 512)",
    )
    kv_type: Optional[str] = Field(
        default=None,
        description="Type of the KV cache: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1, "
        "q4_0, iq4_nl; or one each for K and V, as in q8_0/q4_0 (default f16)",
    )
    flash_attn: Optional[bool] = Field(
        default=None,
        description="Flash attention (default: llama.cpp decides). On the CPU, turning "
        "it off reads one long conversation faster and several at once slower",
    )

    server: Optional[bool] = Field(
        default=None,
        description="Use llm kvbranch serve if it is running with this model and these "
        "settings (default true)",
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

    @field_validator("think", mode="before")
    @classmethod
    def _think(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, bool) else value

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _chat_template_kwargs(cls, value: Any) -> Any:
        try:
            value = json.loads(value) if isinstance(value, str) else value
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError):
            raise ValueError("it is not valid JSON") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if value is not None and not isinstance(value, dict):
            raise ValueError('it is not a JSON object, like {"name": "value"}')
        if _depth(value) > _DEEPEST:
            raise ValueError("it is nested too deeply")
        return value

    @field_validator("date")
    @classmethod
    def _date(cls, value: str | None) -> str | None:
        if value in (None, "today", "none"):
            return value
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(
                f"{value!r} is not today, none, or a day like 2026-01-31"
            ) from None

    @field_validator("kv_type")
    @classmethod
    def _kv_type(cls, value: str | None) -> str | None:
        from ..engine import KV_TYPES

        for name in (value or "f16").split("/", 1):
            if name not in KV_TYPES:
                raise ValueError(f"{name!r} is not one of {', '.join(KV_TYPES)}")
        return value


class ModelSettings(KVLlamaOptions):
    "The settings of a model: the options of an answer, and some of its own"

    chat_template: Optional[str] = Field(
        default=None,
        description="File with a Jinja chat template to use instead of the model's",
    )
    lora: Optional[Union[str, list[str]]] = Field(
        default=None,
        description="LoRA adapter, as FILE or FILE:SCALE; give several as a JSON list",
    )
    rope_scaling: Optional[Literal["none", "linear", "yarn", "longrope"]] = Field(
        default=None,
        description="Scaling method for positions beyond the trained context",
    )
    rope_freq_base: Optional[float] = Field(
        default=None, gt=0, description="RoPE base frequency"
    )
    rope_freq_scale: Optional[float] = Field(
        default=None,
        gt=0,
        description="RoPE frequency scale: 0.5 doubles the context",
    )
    yarn_orig_ctx: Optional[int] = Field(
        default=None,
        ge=1,
        description="YaRN: context length of the training",
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
        description="How to split the model over several GPUs (default layer)",
    )
    tensor_split: Optional[Union[str, list[float]]] = Field(
        default=None,
        description="Proportion of the model for each GPU, as in 3,1",
    )
    main_gpu: Optional[int] = Field(
        default=None, ge=0, description="GPU to use with split_mode none"
    )
    offload_kqv: Optional[bool] = Field(
        default=None,
        description="Keep the KV cache of layers on the GPU there (default true). If "
        "false it is in main memory: slower, and leaves room for more layers",
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


# Settings that are not options of an answer
OWN = tuple(
    name
    for name in ModelSettings.model_fields
    if name not in KVLlamaOptions.model_fields
)


def adapter(text: str) -> tuple[Path, float]:
    "File and scale of a LoRA adapter, written as FILE or FILE:SCALE"
    name, colon, scale = text.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):
            return Path(name), float(scale)
    return Path(text), 1.0


def parse(key: str, value: Any) -> Any:
    "A validated setting, as it is saved; raises SettingError"
    if key not in ModelSettings.model_fields:
        near = difflib.get_close_matches(key, ModelSettings.model_fields, n=1)
        raise SettingError(
            f"There is no setting {key}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + ". List them with llm kvbranch models settings"
        )
    try:
        return getattr(ModelSettings(**{key: value}), key)
    except ValidationError as error:
        raise SettingError(f"{key}: {reason(error)}") from None


def shown(value: Any) -> str:
    "A setting as it is written on the command line"
    return value if isinstance(value, str) else json.dumps(value)


def _depth(value: Any) -> int:
    "How many levels a JSON value has"
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _file(name: str) -> str:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


def reason(error: ValidationError) -> str:
    "What pydantic found wrong first"
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
