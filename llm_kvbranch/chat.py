"""Messages to tokens, through the model's own chat template.

The idea: a turn that the model wrote is never tokenised again. The template is
rendered with a sentinel in place of the last known answer, and only the text
after the sentinel is tokenised; what comes before is the stored token ids. This
survives templates that trim, stamp the date or rewrite history.

The invariant: only the template's own text can become control tokens. Message
content that spells one out is cut inside it, so it is tokenised as text.

This module does not know where known tokens come from, nor what is done with
the result.
"""

from __future__ import annotations

import functools
import json
import secrets
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import xxhash

from .errors import ChatError

# What llama.cpp falls back to as well for a model without a template
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Private-use characters around a random word: no message can contain them
_WORD = secrets.token_hex(8)
_CUT = f"\ue000{_WORD}\ue001"
_SENTINEL = f"\ue002{_WORD}\ue003"


class Vocabulary(Protocol):
    "What is needed of a model here"

    @property
    def bos_text(self) -> str: ...
    @property
    def eos_text(self) -> str: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def control_texts(self) -> tuple[str, ...]: ...

    def tokenize(self, text: str, special: bool, bos: bool = False) -> array[int]: ...


class Chat:
    "The chat template of one model"

    def __init__(self, vocab: Vocabulary, template: str | None = None):
        self.vocab = vocab
        self.source = template or vocab.chat_template or CHATML

    def render_id(self, tools: Sequence[dict[str, Any]] = ()) -> str:
        "Names what turns messages into text; equal ids render alike"
        settings = json.dumps([self.source, list(tools)], sort_keys=True)
        return xxhash.xxh3_64_hexdigest(settings.encode())

    def encode(
        self,
        messages: Sequence[Any],
        tools: Sequence[dict[str, Any]] = (),
    ) -> array[int]:
        """Token ids of a whole prompt (llm messages), ready for the answer.

        Raises ChatError when the template rejects the messages.
        """
        rendered = self._render([self._safe(m) for m in messages], tools)
        bos = self.vocab.bos_text
        starts_itself = bool(bos) and rendered.startswith(bos)
        return self._tokenize(rendered, bos=not starts_itself)

    def encode_after(
        self,
        messages: Sequence[Any],
        index: int,
        prefix: array[int],
        rest: str,
        tools: Sequence[dict[str, Any]] = (),
    ) -> array[int] | None:
        """Token ids of a prompt whose beginning is known.

        ``prefix`` are the ids of everything up to and into the assistant
        message at ``index``; ``rest`` is the end of that message's text that
        they do not cover. None when the template leaves that answer out, so
        that nothing can be spliced.
        """
        marked = [
            *map(to_chat, messages[:index]),
            [{**to_chat(messages[index])[0], "content": _SENTINEL}],
            *map(self._safe, messages[index + 1 :]),
        ]
        _, found, after = self._render(marked, tools).rpartition(_SENTINEL)
        if not found:
            return None
        return prefix + self._tokenize(self._cut_controls(rest) + after)

    def _render(
        self, messages: list[list[dict[str, Any]]], tools: Sequence[dict[str, Any]]
    ) -> str:
        flat = [message for group in messages for message in group]
        return render(
            self.source,
            messages=flat,
            tools=list(tools) or None,
            add_generation_prompt=True,
            bos_token=self.vocab.bos_text,
            eos_token=self.vocab.eos_text,
        )

    def _tokenize(self, text: str, bos: bool = False) -> array[int]:
        tokens: array[int] = array("i")
        for part in text.split(_CUT):
            tokens += self.vocab.tokenize(part, special=True, bos=bos)
            bos = False
        return tokens

    def _safe(self, message: Any) -> list[dict[str, Any]]:
        "A message for the template, its text unable to become control tokens"
        return [_map_text(self._cut_controls, m) for m in to_chat(message)]

    def _cut_controls(self, text: str) -> str:
        "The text with a cut inside whatever would be read as a control token"
        vocab = self.vocab
        if vocab.tokenize(text, special=True) == vocab.tokenize(text, special=False):
            return text
        cuts = set()
        for control in vocab.control_texts:
            if len(control) < 2:
                continue
            at = text.find(control)
            while at >= 0:
                cuts.add(at + 1)
                at = text.find(control, at + 1)
        parts, begin = [], 0
        for cut in sorted(cuts):
            parts.append(text[begin:cut])
            begin = cut
        return _CUT.join([*parts, text[begin:]])


def to_chat(message: Any) -> list[dict[str, Any]]:
    """An llm message in the form chat templates take.

    Usually one dictionary; a message with several tool results becomes one for
    each. Raises ChatError for an attachment.
    """
    parts = message.to_dict()["parts"]
    if results := [part for part in parts if part["type"] == "tool_result"]:
        return [
            {
                "role": "tool",
                "name": part["name"],
                "content": part["output"],
                "tool_call_id": part.get("tool_call_id"),
            }
            for part in results
        ]
    texts, reasoning, calls = [], [], []
    for part in parts:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "reasoning":
            reasoning.append(part["text"])
        elif part["type"] == "tool_call":
            calls.append(
                {
                    "type": "function",
                    "id": part.get("tool_call_id"),
                    "function": {
                        "name": part["name"],
                        "arguments": part["arguments"],
                    },
                }
            )
        else:
            raise ChatError(f"kvllama cannot read a message part of {part['type']}")
    chat: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if any(reasoning):
        chat["reasoning_content"] = "".join(reasoning)
    if calls:
        chat["tool_calls"] = calls
    return [chat]


def message_text(message: Any) -> str:
    "The text of a message, as the template gets it"
    return "".join(str(chat["content"]) for chat in to_chat(message))


def _map_text(change: Any, value: Any) -> Any:
    "Apply a function to every string in a message, its role and type aside"
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, item) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in ("role", "type") else _map_text(change, item)
            for key, item in value.items()
        }
    return value


def render(source: str, **values: Any) -> str:
    "Render a chat template the way Hugging Face does; raises ChatError"
    try:
        return str(_compile(source).render(**values))
    except Exception as error:  # a template is foreign code: it may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ChatError(f"The model's chat template failed: {reason}") from None


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    import datetime

    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(
        form
    )
    return environment.from_string(source)
