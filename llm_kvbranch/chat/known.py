"""Forms of tool calls that models are known to write, whatever their template says.

The idea: templates differ from what models were trained to write, some do not show
calls at all, and some models write another model's form. These forms cannot be mistaken
for anything else, or count only as the whole answer.

This module does not know templates.
"""

# ruff: noqa: RUF001 (DeepSeek's tags have wide bars)

from __future__ import annotations

from .formats import NAME, Form, Json, Object, Python, Tagged
from .scanning import ANY

_QWEN = Tagged("<parameter=", ">\n", "\n</parameter>")
_KIMI = f":{ANY}<|tool_call_argument_begin|>"
_KIMI_ID = f"functions.{NAME}:{ANY}"
_DEEPSEEK = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"

TAGGED = (
    # Hermes, Qwen 2.5 and 3, and many more
    Form(Object(), before="<tool_call>", after="</tool_call>"),
    Form(Object(), begin="<tool_call> [", between=",", end="] </tool_call>"),
    Form(Json(), before="<tool_call>", after="</tool_call>"),
    # Qwen 3 Coder and later ones, which may leave out the first tag
    Form(
        _QWEN,
        before="<tool_call> <function=",
        middle=">",
        after="</function> </tool_call>",
    ),
    Form(_QWEN, before="<function=", middle=">", after="</function>"),
    # Llama 3.1, functionary
    Form(Json(), before="<function=", middle=">", after="</function>"),
    Form(Object(), before="<|python_tag|>"),
    Form(Python(), before="<|python_tag|>"),
    # Mistral
    Form(Object(), begin="[TOOL_CALLS] [", between=",", end="]", id=ANY),
    Form(Json(), before="[TOOL_CALLS]", middle="[ARGS]"),
    Form(Json(), before="[TOOL_CALLS]", middle=f"[CALL_ID]{ANY}[ARGS]", id=ANY),
    Form(Json(), before="[TOOL_CALLS]"),
    # Kimi K2, which may leave out the section's tag
    Form(
        Json(),
        begin="<|tool_calls_section_begin|>",
        before="<|tool_call_begin|>functions.",
        middle=_KIMI,
        after="<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
        id=_KIMI_ID,
    ),
    Form(Json(), before="<|tool_call_begin|>functions.", middle=_KIMI, id=_KIMI_ID),
    # DeepSeek R1
    Form(
        Json(),
        begin="<｜tool▁calls▁begin｜>",
        before=_DEEPSEEK,
        middle="```json",
        after="``` <｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
    ),
    # LFM2
    Form(
        Python(), begin="<|tool_call_start|> [", between=",", end="] <|tool_call_end|>"
    ),
    Form(
        Object(), begin="<|tool_call_start|> [", between=",", end="] <|tool_call_end|>"
    ),
)

WHOLE = (
    Form(Object(), whole=True),
    Form(Object(), begin="[", between=",", end="]", whole=True),
    Form(Object(), begin="```json", end="```", whole=True),
    Form(Object(), begin="```json [", between=",", end="] ```", whole=True),
    Form(Object(), begin="```", end="```", whole=True),
    Form(Object(), begin="``` [", between=",", end="] ```", whole=True),
    Form(Python(), begin="[", between=",", end="]", whole=True),
    Form(Python(), whole=True),
    Form(Json(), whole=True),
    Form(Json(), middle="[ARGS]", whole=True),
)
