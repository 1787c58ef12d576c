"""Messages to tokens, through the model's own chat template.

The idea: a turn that the model wrote is never tokenised again. The template is
rendered with a sentinel at the end of the last known answer. Only the text after the
sentinel is tokenised; what comes before it are the stored token ids. This works with
templates that trim text, insert the date, drop earlier thinking or rewrite history:
the model continues from what it really read and wrote.

The invariants: tokens are spliced only if the sentinel changes nothing else in the
rendering, and later messages come after it. And only the template's own text can
become control tokens: message content that spells one is cut inside it, so that it is
tokenised as text.

This module does not know where the known tokens come from, or what the prompt is for.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import xxhash

from ..errors import ChatError
from .dialect import Dialect, learn
from .history import Arguments, to_chat
from .jinja import CUT, NUMBER, render
from .rendering import Rendering

# For a model without a template; llama.cpp's default too
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Like CUT, no message can contain them. A template that changes case or escapes text
# changes the sentinel, so that it is found only where text is output unchanged.
_SENTINEL = f'\ue002aZ"\\&{NUMBER}\ue003'
_LATER = f"\ue004{NUMBER}\ue005"

# Templates look for these in answers; they neither begin nor end a turn
_THINKING = frozenset(("<think>", "</think>", "[THINK]", "[/THINK]"))
_LOOKS_LIKE_CONTROL = re.compile(r"<\|[^|<>\s]+\|>")
_PATIENCE = 20_000  # characters that tokenise faster than control tokens are listed

# How gpt-oss begins a part of its answer; its template expects the bare parts
_CHANNEL = "<|channel|>"
_CHANNELS = re.compile(
    r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>(\w+).*?<\|message\|>"
)


_PLAIN = Rendering()


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
        self._patience = _PATIENCE

    @property
    def takes_tools(self) -> bool:
        "Whether the template tells the model about tools"
        return "tools" in self.source

    @functools.cached_property
    def dialect(self) -> Dialect:
        "How the template writes thinking and calls"
        return learn(self.source, self._show)

    def render_id(self, rendering: Rendering = _PLAIN) -> str:
        "An id of template, tools and values: with equal ids, messages render alike"
        about: list[Any] = [self.source, list(rendering.tools)]
        if rendering.values:
            about.append(dict(rendering.values))
        settings = json.dumps(about, sort_keys=True)
        return xxhash.xxh3_64_hexdigest(settings.encode())

    def encode(
        self,
        messages: Sequence[Any],
        rendering: Rendering = _PLAIN,
    ) -> array[int]:
        """Token ids of a whole prompt (llm messages), ready for the answer.

        Raises ChatError when the template rejects the messages.
        """
        chats = [chat for message in messages for chat in self._safe(message)]
        rendered = self._render(chats, rendering, datetime.datetime.now())
        bos = self.vocab.bos_text
        starts_itself = bool(bos) and rendered.startswith(bos)
        first, *others = rendered.split(CUT)
        tokens = self.vocab.tokenize(first, special=True, bos=not starts_itself)
        return tokens + self._inner(others)

    def encode_after(
        self,
        messages: Sequence[Any],
        index: int,
        prefix: array[int],
        rest: str,
        rendering: Rendering = _PLAIN,
        whole: bool = False,
    ) -> array[int] | None:
        """Token ids of a prompt whose beginning is known.

        ``prefix`` are the ids of everything up to and into the assistant message at
        ``index``; ``rest`` is the end of that message's text, which they do not cover.
        ``whole`` says that they cover its tool calls too. Returns None if the template
        leaves that answer out, changes its text, or puts later messages before it:
        then nothing can be spliced.
        """
        after = self._after(messages, index, rendering, whole)
        if after is None:
            return None
        tokens = self._inner((self._cut_controls(rest) + after).split(CUT))
        if not rest and tokens[:1] == prefix[-1:] and self._is_control(after, tokens):
            del tokens[0]  # the answer was cut right after the token that ends it
        return prefix + tokens

    def _after(
        self,
        messages: Sequence[Any],
        index: int,
        rendering: Rendering,
        whole: bool,
    ) -> str | None:
        "What the template puts after an answer; None if that is not certain"
        groups = [self._safe(message) for message in messages]
        if whole:
            groups[index][0].pop("tool_calls", None)
        if "reasoning_content" in to_chat(messages[index])[0]:
            return None  # the known tokens have its text only
        said = groups[index][0]["content"]
        now = datetime.datetime.now()

        def show(sentinel: str, later: str = "") -> str:
            marks = [""] * index + [sentinel] + [later] * (len(messages) - index - 1)
            chats = [
                {**chat, "content": chat["content"] + mark}
                for group, mark in zip(groups, marks, strict=True)
                for chat in group
            ]
            return self._render(chats, rendering, now)

        try:
            rendered = show("")
            before, found, after = show(_SENTINEL).partition(_SENTINEL)
            ahead = show(_SENTINEL, _LATER).partition(_SENTINEL)[0]
        except ChatError:
            return None  # the template rejects the sentinel
        # A new system prompt, say, may have been put at the very top
        if not found or _LATER in ahead:
            return None
        # The template may trim white space at the end of the answer
        space = said[len(said.rstrip()) :]
        begin = before.removesuffix(space)
        middle = rendered.removeprefix(begin).removesuffix(after)
        if space.startswith(middle) and rendered == begin + middle + after:
            return after
        return None

    def _render(
        self,
        chats: list[dict[str, Any]],
        rendering: Rendering,
        now: datetime.datetime,
    ) -> str:
        values: dict[str, Any] = _map_text(self._cut_controls, dict(rendering.values))
        if rendering.tools:
            values["tools"] = _map_text(self._cut_controls, list(rendering.tools))
        return render(
            self.source,
            now,
            messages=chats,
            add_generation_prompt=True,
            bos_token=self.vocab.bos_text,
            eos_token=self.vocab.eos_text,
            **values,
        )

    def _show(self, messages: list[dict[str, Any]], **values: Any) -> str:
        "A conversation of our own, as the template writes it"
        for message in messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = Arguments(function["arguments"])
        bos, eos = self.vocab.bos_text, self.vocab.eos_text
        values = {"bos_token": bos, "eos_token": eos, **values}
        return render(self.source, messages=messages, **values)

    def _inner(self, parts: Sequence[str]) -> array[int]:
        """Tokens of texts that continue another text.

        Some vocabularies put a space in front of a text. With a line break in front,
        the space goes before that, and the line break's own tokens are left out.
        """
        tokens: array[int] = array("i")
        lead = self.vocab.tokenize("\n", special=False)
        for part in parts:
            led = self.vocab.tokenize("\n" + part, special=True)
            if led[: len(lead)] == lead:
                tokens += led[len(lead) :]
            else:
                tokens += self.vocab.tokenize(part, special=True)
        return tokens

    def _safe(self, message: Any) -> list[dict[str, Any]]:
        "A message for the template, whose text cannot become control tokens"
        chats = to_chat(message)
        cut: Callable[[str], str] = self._cut_controls
        if message.role == "assistant":
            cut = functools.partial(self._cut_controls, whole=_THINKING)
            if _CHANNEL in self.source:
                chats = [_without_channels(chat) for chat in chats]
        return [_map_text(cut, chat) for chat in chats]

    @functools.cached_property
    def _controls(self) -> frozenset[str]:
        """The texts that are read as control tokens.

        Also what looks like one in the template: llama.cpp reads some types of tokens
        in any text, and gpt-oss's turns begin with one.
        """
        looking = _LOOKS_LIKE_CONTROL.findall(self.source)
        return frozenset(c for c in (*self.vocab.control_texts, *looking) if c[1:])

    @functools.cached_property
    def _starts(self) -> tuple[re.Pattern[str], list[int]]:
        "A pattern for the first characters of control tokens, and their lengths"
        letters = "|".join(re.escape(c) for c in sorted({c[0] for c in self._controls}))
        return re.compile(letters or "$^"), sorted({len(c) for c in self._controls})

    def _cut_controls(self, text: str, whole: frozenset[str] = frozenset()) -> str:
        "The text, with a cut inside everything that would be read as a control token"
        tokenize = self.vocab.tokenize
        known = "_starts" in vars(self)
        if not known and len(text) <= self._patience and "<|" not in text:
            self._patience -= len(text)
            if tokenize(text, special=True) == tokenize(text, special=False):
                return text
        begins, lengths = self._starts
        parts, done = [], 0
        for found in begins.finditer(text):
            at = found.start()
            controls = {text[at : at + n] for n in lengths} & self._controls
            if controls - whole:
                parts.append(text[done : at + 1])
                done = at + 1
        return CUT.join([*parts, text[done:]])

    def _is_control(self, text: str, tokens: array[int]) -> bool:
        "Whether the first of a text's tokens is a control token"
        return any(
            text.startswith(control)
            and self.vocab.tokenize(control, special=True) == tokens[:1]
            for control in self._controls
        )


def _without_channels(chat: dict[str, Any]) -> dict[str, Any]:
    "An answer of gpt-oss, its thinking separated from its final text"
    first, *rest = _CHANNELS.split(chat["content"].removesuffix("<|end|>"))
    if not rest:
        return chat
    said, thought = first, chat.get("thinking", "")
    for channel, text in zip(rest[::2], rest[1::2], strict=True):
        if channel == "final":
            said += text
        else:
            thought += text
    return {**chat, "content": said, **({"thinking": thought} if thought else {})}


def _map_text(change: Callable[[str], str], value: Any) -> Any:
    "Apply a function to every string in a message"
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, item) for item in value]
    if isinstance(value, dict):
        changed = {change(key): _map_text(change, item) for key, item in value.items()}
        return type(value)(changed)
    return value
