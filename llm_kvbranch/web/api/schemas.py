"""The bodies of requests: OpenAI's chat API, and branching.

The idea: these models validate requests, name what is wrong with them, and become the
OpenAPI document. Unknown fields are ignored, as OpenAI's clients expect, but fields
whose absence would change the answer are refused.

This module does not know llm's messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from ...log import marks
from ...models import KVLlamaOptions

_MOST = 2**31 - 1  # of llama.cpp's integers
Text = Annotated[str, Field(max_length=4_000_000)]


class TextContent(BaseModel):
    "A text part of a message"

    type: Literal["text"]
    text: Text


class FunctionCall(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class ToolCall(BaseModel):
    id: Optional[str] = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    "A message of a conversation; content is text, or a list of text parts"

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Union[Text, list[TextContent], None] = None
    reasoning_content: Optional[Text] = None
    name: Optional[str] = None
    tool_calls: Optional[list[ToolCall]] = None
    tool_call_id: Optional[str] = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class JsonSchema(BaseModel):
    name: Optional[str] = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: Optional[bool] = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Optional[JsonSchema] = None
    # Of a json_object, as llama-server has it
    schema_: Annotated[Optional[dict[str, Any]], Field(alias="schema")] = None


class StreamOptions(BaseModel):
    include_usage: Optional[bool] = False


class Function(BaseModel):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Optional[str] = None
    parameters: Optional[dict[str, Any]] = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    name: Annotated[str, Field(min_length=1)]


class NamedTool(BaseModel):
    type: Literal["function"]
    function: FunctionName


def _only(*values: Any) -> Any:
    "Values of an unsupported parameter that mean it is not used"
    return WithJsonSchema({"enum": list(values)})


class Generating(BaseModel):
    "How an answer is generated: OpenAI's parameters, and llama.cpp's"

    model_config = ConfigDict(extra="ignore")

    model: Optional[str] = None
    stream: Optional[bool] = False
    stream_options: Optional[StreamOptions] = None
    max_tokens: Annotated[Optional[int], Field(ge=1, le=_MOST)] = None
    max_completion_tokens: Annotated[Optional[int], Field(ge=1, le=_MOST)] = None
    temperature: Annotated[Optional[float], Field(ge=0, le=2)] = None
    top_p: Annotated[Optional[float], Field(gt=0, le=1)] = None
    top_k: Annotated[Optional[int], Field(ge=0, le=_MOST)] = None
    min_p: Annotated[Optional[float], Field(ge=0, le=1)] = None
    typical_p: Annotated[Optional[float], Field(gt=0, le=1)] = None
    repeat_penalty: Annotated[Optional[float], Field(gt=0, le=1000)] = None
    presence_penalty: Annotated[Optional[float], Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[Optional[float], Field(ge=-2, le=2)] = None
    seed: Annotated[Optional[int], Field(ge=-(2**63), lt=2**63)] = None
    stop: Union[str, Annotated[list[str], Field(max_length=16)], None] = None
    n: Annotated[Optional[int], Field(ge=1, le=64)] = None
    response_format: Optional[ResponseFormat] = None
    grammar: Annotated[Optional[str], Field(max_length=100_000)] = None
    regex: Annotated[Optional[str], Field(max_length=100_000)] = None
    n_ctx: Annotated[Optional[int], Field(ge=1, le=_MOST)] = None
    reasoning_effort: Optional[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
    ] = None
    chat_template_kwargs: Optional[dict[str, Any]] = None
    thinking_budget: Annotated[Optional[int], Field(ge=0, le=_MOST)] = None
    keep_thinking: Optional[bool] = None
    date: Annotated[Optional[str], Field(max_length=100)] = None
    user: Annotated[Optional[str], Field(max_length=1000)] = None
    logprobs: Annotated[Optional[bool], _only(False, None)] = None
    top_logprobs: Annotated[Optional[int], _only(0, None)] = None
    logit_bias: Annotated[Optional[dict[str, float]], _only({}, None)] = None

    @field_validator("logprobs", "top_logprobs", "logit_bias")
    @classmethod
    def _unsupported(cls, value: Any) -> Any:
        if value:
            raise ValueError("is not supported: leave it out")
        return value

    @field_validator("date", "chat_template_kwargs")
    @classmethod
    def _as_option(cls, value: Any, info: ValidationInfo) -> Any:
        "As the option of that name takes it"
        try:
            KVLlamaOptions(**{str(info.field_name): value})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(why) from None
        return value

    def options(self) -> dict[str, Any]:
        "kvllama's options"
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
            "stop",
            "grammar",
            "regex",
            "n_ctx",
            "reasoning_effort",
            "chat_template_kwargs",
            "thinking_budget",
            "keep_thinking",
            "date",
        )
        options = {name: getattr(self, name) for name in names}
        options["max_tokens"] = self.max_completion_tokens or self.max_tokens
        if isinstance(self.stop, str):  # kvllama may parse a string as JSON
            options["stop"] = [self.stop]
        if self.seed is not None:
            options["seed"] = self.seed % 0xFFFFFFFF
        return {name: value for name, value in options.items() if value is not None}


class ChatRequest(Generating):
    "POST /v1/chat/completions"

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    tools: Annotated[Optional[list[Tool]], Field(max_length=128)] = None
    tool_choice: Union[Literal["none", "auto", "required"], NamedTool, None] = None
    parallel_tool_calls: Optional[bool] = None


class GenerateRequest(Generating):
    "POST /generate: start a conversation"

    prompt: Annotated[Text, Field(min_length=1)]
    system: Optional[Text] = None


class BranchRequest(Generating):
    """POST /v1/chat/branch: branch from a response, or from a point inside one.

    ``parent_id`` is a response id, a unique prefix of one, or "last". ``token_range``
    and ``char_range`` are half-open ranges of the answer's tokens or characters.
    """

    parent_id: Optional[str] = None
    parent_slot_id: Annotated[Optional[int], Field(ge=0)] = None
    branch_mode: Literal["reuse_kv", "fresh"] = "reuse_kv"
    text_excerpt: Optional[Text] = None
    occurrence: Annotated[Optional[int], Field(ge=1)] = None
    token_range: Optional[tuple[int, int]] = None
    char_range: Optional[tuple[int, int]] = None
    context_window: Annotated[int, Field(ge=0)] = 0
    prompt: Annotated[Text, Field(min_length=1)]
    system: Optional[Text] = None

    @field_validator("token_range", "char_range")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError("must be [start, end) with 0 <= start < end")
        return value


class FocusRequest(Generating):
    "POST /focus: ask about a part of an answer"

    message_id: str
    char_start: Annotated[int, Field(ge=0)]
    char_end: Annotated[int, Field(ge=1)]
    followup: Annotated[Text, Field(min_length=1)]
    system: Optional[Text] = None


class ContinueRequest(Generating):
    "POST /continue: continue after a response"

    message_id: str
    prompt: Annotated[Text, Field(min_length=1)]
    system: Optional[Text] = None


class RetryRequest(Generating):
    "POST /retry: answer the same prompt again"

    message_id: str
    system: Optional[Text] = None


class MarkRequest(BaseModel):
    """POST /-/kvbranch/mark: set a star or a note.

    Omitted fields stay as they are; a null or empty note removes it.
    """

    id: str
    starred: Optional[bool] = None
    note: Annotated[Optional[str], Field(max_length=marks.MAX_NOTE)] = None


class PruneRequest(BaseModel):
    """POST /-/kvbranch/prune: delete a response and everything after it.

    ``state`` deletes state files, which can be recomputed; ``log`` deletes the
    responses as well, for good.
    """

    id: str
    what: Literal["state", "log"]
    dry_run: bool = False
