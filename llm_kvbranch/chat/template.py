"""Messages to tokens, through the model's own chat template.

The idea: what the model wrote is never tokenised again. ``splice`` finds what the
template writes around an answer. Only that is tokenised; the answer's own token ids
are kept. This works with templates that trim text, insert the date, drop earlier
thinking or rewrite history.

The invariant: only the template's own text can become control tokens. Message content
that spells one is cut inside it, so that it is tokenised as text.

This module does not know where the known tokens come from, or what the prompt is for.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from ..errors import ChatError
from . import samples
from . import splice as splicing
from .capabilities import Capabilities, with_descriptions
from .controls import Controls, Vocabulary
from .dialect import Dialect, learn
from .history import CHANNEL, Arguments, chats_of, with_tools, without_channels
from .jinja import CUT, render, variables
from .splice import Own, shared
from .variables import NO_DATE, Rendering, Variables, other_dates

# For a model without a template; llama.cpp's default too
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Templates look for these in answers; they neither begin nor end a turn
_THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))

_PLAIN = Rendering()
_NEAR = 4096  # characters around a difference that are looked at


@dataclass(frozen=True)
class Known:
    """A part of an answer whose token ids are known.

    ``lead`` and ``rest`` are texts before and after them that belong to it as well.
    """

    own: Own
    tokens: array[int]
    lead: str = ""
    rest: str = ""


class Chat:
    "The chat template of one model"

    def __init__(self, vocab: Vocabulary, template: str | None = None):
        self.vocab = vocab
        self.source = template or vocab.chat_template or CHATML
        self._controls = Controls(vocab, self.source, self._samples)

    @property
    def takes_tools(self) -> bool:
        "Whether the template tells the model about tools, or writes calls of them"
        tools = self._takes.tools
        if tools is None:
            return "tools" in self.source
        return tools or self._leaves_out_tools

    @functools.cached_property
    def _leaves_out_tools(self) -> bool:
        "Whether it writes calls, but not which tools there are, as DeepSeek V3.1's"
        if self._takes.tools is not False or not self._takes.calls:
            return False
        return "tools" not in variables(self.source)[0]

    @functools.cached_property
    def dialect(self) -> Dialect:
        "How the template writes thinking and calls"
        return learn(self.source, self._show)

    @functools.cached_property
    def _takes(self) -> Capabilities:
        return Capabilities(self._show)

    @functools.cached_property
    def _variables(self) -> Variables:
        return Variables(self.source, self._show)

    def folds_system(self, messages: Sequence[Any]) -> bool:
        "Whether a system prompt is put into a question, since the template takes none"
        return any(m.role == "system" for m in messages) and self._takes.folds_system

    def check(self, rendering: Rendering) -> None:
        "Raise ChatError for what the template cannot be told"
        self._variables.chosen(rendering)

    def render_id(self, rendering: Rendering = _PLAIN) -> str:
        "An id of template, tools and values: with equal ids, messages render alike"
        about: list[Any] = [self.source, list(rendering.tools)]
        if values := self._variables.chosen(rendering):
            about.append(values)
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
        return self._first(self._renderer(rendering)(messages))

    def _first(self, text: str) -> array[int]:
        "Tokens of a text that a prompt begins with"
        bos = self.vocab.bos_text
        starts_itself = bool(bos) and text.startswith(bos)
        first, *others = text.split(CUT)
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
        ``whole`` says that they cover its thinking and tool calls too. Returns None if
        the template leaves that answer out, changes its text, or puts later messages
        before it: then nothing can be spliced.
        """
        kinds = [part.to_dict()["type"] for part in messages[index].parts]
        if "reasoning" in kinds and not whole:
            return None  # the known tokens have its text only
        known = Known(Own(index, whole=whole), prefix, rest=rest)
        spliced = self.splice(messages, [known], rendering)
        return spliced[0] if spliced is not None else None

    def splice(
        self,
        messages: Sequence[Any],
        known: Sequence[Known],
        rendering: Rendering = _PLAIN,
        read: tuple[int, array[int]] | None = None,
    ) -> tuple[array[int], int] | None:
        """Token ids of a prompt in which parts of answers are known, in order.

        Also returns where the last of these parts ends. ``read`` is the number of its
        first messages that were read before, and what was read: where the template
        writes the same now, those ids are kept. None if nothing can be spliced.
        """
        messages = [self._separated(message) for message in messages]
        render = self._renderer(rendering)
        owns = [each.own for each in known]
        texts = splicing.around(render, self._controls.begins, messages, owns)
        if texts is None:
            return None
        tokens: array[int] = array("i")
        if owns[0].begins != "prompt":
            text = texts[0] + self._controls.cut(known[0].lead)
            if read is None:
                tokens = self._first(text)
            elif (same := self._kept(read, render(messages[: read[0]]), text)) is None:
                return None
            else:
                tokens = same
        end = 0
        for n, each in enumerate(known):
            tokens += each.tokens
            end = len(tokens)
            text = self._controls.cut(each.rest) + texts[n + 1]
            if n + 1 < len(known):
                text += self._controls.cut(known[n + 1].lead)
            new = self._inner(text.split(CUT))
            if (
                not each.rest
                and new[:1] == tokens[-1:]
                and self._controls.is_first(text, new)
            ):
                del new[0]  # the answer was cut right after the token that ends it
            tokens += new
        return tokens, end

    def takes_back(
        self,
        messages: Sequence[Any],
        own: Own,
        written: str,
        rendering: Rendering = _PLAIN,
    ) -> bool:
        """Whether thinking was begun before an answer's own part, and now is not.

        ``written`` is what the answer has before that part. Templates open thinking
        for a model, or open and close it, and later leave that out.
        """
        thinking = self.dialect.thinking
        if thinking is None or not (mark := thinking.open.strip()):
            return False
        render = self._renderer(rendering)
        n_begun = (render(messages[: own.index]) + written).count(mark)
        if not n_begun:
            return False
        texts = splicing.around(render, self._controls.begins, messages, [own])
        return texts is not None and n_begun > texts[0].count(mark)

    def spell(self, tokens: array[int]) -> str:
        "The text of tokens, with that of control tokens"
        vocab, data = self.vocab, b""
        for token in tokens:
            data += vocab.piece(token) or vocab.control_text(token).encode()
        return data.decode("utf-8", "replace")

    def on_other_dates(
        self, messages: Sequence[Any], rendering: Rendering = _PLAIN
    ) -> Iterator[tuple[str, array[int]]]:
        """How the prompt began if it was rendered with another date: (date, tokens).

        Nothing if the template writes no date.
        """
        if not self._variables.may_write_date:
            return
        text, now = self._renderer(rendering)(messages), datetime.datetime.now()
        for date in other_dates(rendering.date, now):
            other = self._renderer(replace(rendering, date=date))(messages)
            if other != text:
                begin = other[: shared(text, other) + _NEAR]
                yield date or str(now.date()), self._first(begin)
            elif date is not None:
                return

    def keeping(
        self,
        messages: Sequence[Any],
        indexes: Iterable[int],
        rendering: Rendering = _PLAIN,
    ) -> frozenset[int]:
        "The indexes of the messages whose reasoning the template keeps"
        return splicing.keeping(self._renderer(rendering), messages, indexes)

    def _renderer(self, rendering: Rendering) -> splicing.Render:
        now = datetime.datetime.now()

        def render(messages: Sequence[Any]) -> str:
            separated = [self._separated(message) for message in messages]
            chats = chats_of(separated, self._takes)
            if rendering.tools and self._leaves_out_tools:
                chats = with_tools(chats, rendering.tools, self._takes)
            return self._render([self._safe(chat) for chat in chats], rendering, now)

        return render

    def _kept(
        self, read: tuple[int, array[int]], before: str, text: str
    ) -> array[int] | None:
        """The ids of a text that begins like one that was read, as far as it does.

        They differ from a control token on, before which no token ends differently.
        None if what was read does not end like the rendering ``before`` does.
        """
        _, tokens = read
        same = shared(before, text)
        places = self._controls.places(before, max(0, same - _NEAR), same + 1)
        at = max((p for p in places if self._controls.begins(text, p)), default=None)
        if at is None:
            return None
        old = self._inner(before[at:].split(CUT))
        if tokens[len(tokens) - len(old) :] != old:
            return None
        return tokens[: len(tokens) - len(old)] + self._inner(text[at:].split(CUT))

    def _render(
        self,
        chats: list[dict[str, Any]],
        rendering: Rendering,
        now: datetime.datetime,
    ) -> str:
        given, cut = self._variables, self._controls.cut
        tools = list(rendering.tools)
        if tools and self._takes.needs_descriptions:
            tools = with_descriptions(tools)
        values = {
            **given.dates(rendering.date, now),
            **_map_text(cut, given.chosen(rendering)),
            **given.tools(_map_text(cut, tools)),
        }
        values["add_generation_prompt"] = True
        values["bos_token"] = self.vocab.bos_text
        values["eos_token"] = self.vocab.eos_text
        try:
            return render(self.source, messages=chats, **values)
        except ChatError:
            if rendering.date != NO_DATE:
                raise
            values |= given.dates(None, now)
            render(self.source, messages=chats, **values)
            raise ChatError(
                "The model's chat template has no date of its own: set date to today, "
                "or to a day like 2026-01-31"
            ) from None

    def _show(self, messages: list[dict[str, Any]], **values: Any) -> str:
        "A conversation of our own, as the template writes it"
        for message in messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = Arguments(function["arguments"])
        bos, eos = self.vocab.bos_text, self.vocab.eos_text
        given = self._variables
        values |= given.tools(values.get("tools") or [])
        dates = given.dates(None, datetime.datetime.now())
        values = {"bos_token": bos, "eos_token": eos, **dates, **values}
        return render(self.source, messages=messages, **values)

    def _samples(self) -> str:
        "What the template writes, for conversations of all kinds"
        shown = []
        for messages, more in samples.conversations():
            with contextlib.suppress(ChatError):
                shown.append(self._show(messages, add_generation_prompt=True, **more))
        return "".join(shown)

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

    def _safe(self, chat: dict[str, Any]) -> dict[str, Any]:
        "A message for the template, whose text cannot become control tokens"
        safe: dict[str, Any] = _map_text(self._controls.cut, chat)
        if chat["role"] == "assistant" and isinstance(chat["content"], str):
            safe["content"] = self._controls.cut(chat["content"], self._looked_for)
        return safe

    @functools.cached_property
    def _looked_for(self) -> frozenset[str]:
        "The marks of thinking that the template looks for in the text of answers"
        found: set[str] = set()
        for begin, end in _THINKING:
            text = f"{begin}One.{end}Two."
            answered = [samples.asked(), samples.said(text)]
            for messages in (answered, [*answered, samples.asked()]):
                with contextlib.suppress(ChatError):
                    if text not in self._show(messages):
                        found |= {begin, end}
        return frozenset(found)

    def _separated(self, message: Any) -> Any:
        "A message, its thinking separated from its text where the template demands it"
        if message.role == "assistant" and CHANNEL in self.source:
            return without_channels(message)
        return message


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
