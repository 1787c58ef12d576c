"""The verbs: continue, branch, focus, retry and a fresh start, from any response.

The idea: a branch is a list of messages and a record of where it came from, nothing
else. No model is told that it answers a branch: kvllama finds the state of whatever
messages it gets, and every other model of llm's can answer them as well.

The invariant: the parent response, its thread and its state never change. A new
thread, its first turn and the record are logged together, after the answer.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import llm

from ..errors import AmbiguousExcerptError, HistoryError
from . import excerpt as excerpts
from .history import History, Logged
from .text import FOCUS, FRESH, message_text, quoting


@dataclass(frozen=True)
class Branch:
    """What to ask after which messages, and where that branched from.

    ``thread_id`` is the thread to continue, None for a new one. ``start`` and
    ``end`` are the excerpt's range of characters in the parent's answer, None if it is
    in the thinking before that.
    """

    parent: Logged
    verb: str
    messages: Sequence[Any]
    prompt: str | None
    thread_id: str | None = None
    mode: str | None = None
    excerpt: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Spot:
    "The range [start, end) of a response's text or, if it ``is_thought``, its thinking"

    text: str
    start: int
    end: int
    is_thought: bool = False

    @property
    def words(self) -> str:
        return self.text[self.start : self.end]

    @property
    def range(self) -> tuple[int | None, int | None]:
        "As a branch has it"
        return (None, None) if self.is_thought else (self.start, self.end)


@dataclass(frozen=True)
class Place:
    """A part of an answer: its words, or its range of characters [start, end).

    Words may also be in the thinking that comes before the answer.
    """

    words: str | None = None
    occurrence: int | None = None
    range: tuple[int, int] | None = None

    def find(self, parent: Logged) -> Spot | None:
        "Where it is in a response, None for an empty place; raises HistoryError"
        try:
            found = self._find(parent.text)
        except AmbiguousExcerptError:
            raise
        except HistoryError:
            if spot := self._find_thought(parent.thinking):
                return spot
            raise
        return None if found is None else Spot(parent.text, *found)

    def _find_thought(self, thinking: str) -> Spot | None:
        "Where its words are in some thinking, None if they are not"
        if self.words is None or not thinking:
            return None
        try:
            found = excerpts.find(thinking, self.words, self.occurrence, "thinking")
        except AmbiguousExcerptError:
            raise
        except HistoryError:
            return None
        return Spot(thinking, *found, is_thought=True)

    def _find(self, text: str) -> tuple[int, int] | None:
        if self.words is not None and self.range is not None:
            raise HistoryError("Give an excerpt or a range, not both")
        if self.range is not None:
            return excerpts.check_range(text, *self.range)
        if self.words is not None:
            return excerpts.find(text, self.words, self.occurrence)
        if self.occurrence is not None:
            raise HistoryError("An occurrence needs an excerpt")
        return None


# -- plan ----------------------------------------------------------------


def continue_(history: History, reference: str, prompt: str) -> Branch:
    "A new turn: in the thread of a response if it is the tip, otherwise in a fork"
    parent = history.response(reference)
    thread_id = parent.thread_id if history.is_tip(parent) else None
    return Branch(parent, "continue", parent.messages, prompt, thread_id)


def branch(history: History, reference: str, prompt: str, place: Place) -> Branch:
    "A fork after a response, whose answer is cut at the end of the place, if any"
    parent = history.response(reference)
    spot = place.find(parent)
    if spot is None:
        return Branch(parent, "branch", parent.messages, prompt, mode="reuse_kv")
    start, end = spot.range
    return Branch(
        parent,
        "branch",
        [*parent.sent, _cut(parent, spot)],
        prompt,
        mode="reuse_kv",
        excerpt=spot.words,
        start=start,
        end=end,
    )


def _cut(parent: Logged, spot: Spot) -> Any:
    "The answer up to the end of a part of it: its thinking, and its text after that"
    kind, left, parts = "reasoning" if spot.is_thought else "text", spot.end, []
    for part in (part for message in parent.answered for part in message.parts):
        if (of := part.to_dict()["type"]) == kind:
            left -= len(text := part.text[:left])
            # What a provider knows of a part holds for the whole of it
            parts.append(part if text == part.text else type(part)(text=text))
        elif of == "reasoning":
            parts.append(part)
        if not left:
            break
    return llm.assistant(*parts)


def fresh(
    history: History,
    reference: str,
    prompt: str,
    place: Place,
    n_tokens: int = 0,
    tail: Callable[[str, str, int], str] = lambda model, text, n: text,
) -> Branch:
    """A new context with nothing but a quoted part of an answer.

    The part is the place, or the whole answer. With ``n_tokens`` it is that many
    tokens of the answer before the end of the place; ``tail(model id, text, n)``
    returns the last n tokens of a text.
    """
    parent = history.response(reference)
    spot = place.find(parent) or Spot(parent.text, 0, len(parent.text))
    if n_tokens:
        n = len(tail(parent.model, spot.text[: spot.end], n_tokens))
        spot = replace(spot, start=spot.end - n)
    quoted, (start, end) = spot.words, spot.range
    if not quoted.strip():
        raise HistoryError(f"Response {parent.id} has no text to quote")
    return Branch(
        parent,
        "branch",
        [],
        quoting(FRESH, quoted, prompt),
        mode="fresh",
        excerpt=quoted,
        start=start,
        end=end,
    )


def last_words(text: str, n: int) -> str:
    "The last n words of a text, for models whose tokens are unknown"
    words = list(re.finditer(r"\S+", text))
    return text[words[-n].start() :] if len(words) > n else text


def focus(history: History, reference: str, prompt: str, place: Place) -> Branch:
    "A fork that keeps the whole answer and asks about a quoted part of it"
    parent = history.response(reference)
    spot = place.find(parent)
    if spot is None:
        raise HistoryError("focus needs an excerpt or a range of the answer")
    quoted, (start, end) = spot.words, spot.range
    return Branch(
        parent,
        "focus",
        parent.messages,
        quoting(FOCUS, quoted, prompt),
        excerpt=quoted,
        start=start,
        end=end,
    )


def retry(history: History, reference: str) -> Branch:
    "The same prompt again: a sibling of a response"
    parent = history.response(reference)
    if not parent.sent:
        raise HistoryError(f"Response {parent.id} has no prompt to send again")
    return Branch(parent, "retry", *_split_prompt(parent.sent))


def _split_prompt(messages: Sequence[Any]) -> tuple[list[Any], str | None]:
    """Messages before the last one, and its text for plugins that read nothing else.

    All messages and None if the last one is more than a user's text.
    """
    *before, last = messages
    if last.role == "user" and last == llm.user(text := message_text(last)):
        return before, text
    return list(messages), None


# -- ask -----------------------------------------------------------------


def ask(
    branch: Branch,
    model: Any,
    system: str | None = None,
    stream: bool = True,
    nth: int = 0,
    **options: Any,
) -> Any:
    """A model's response to a branch, not started yet.

    ``nth`` counts siblings. llm's ids from the same millisecond differ only in their
    last character, so each sibling gets a later millisecond: a short prefix of its
    id is then enough.
    """
    messages = list(branch.messages)
    if system is not None:
        messages = [m for m in messages if m.role != "system"]
        messages.insert(0, llm.system(system))
    conversation = model.conversation()
    if branch.thread_id is not None:
        conversation.id = branch.thread_id
    conversation.loaded_messages = messages
    return _prompt(conversation, branch.prompt, nth, stream=stream, **options)


def ask_messages(
    messages: Sequence[Any],
    model: Any,
    schema: dict[str, Any] | None = None,
    nth: int = 0,
    tools: Sequence[Any] = (),
    **options: Any,
) -> Any:
    "A model's response to messages in a new thread, not started yet"
    conversation = model.conversation()
    conversation.loaded_messages, prompt = _split_prompt(messages)
    return _prompt(
        conversation, prompt, nth, schema=schema, tools=list(tools), **options
    )


def _prompt(conversation: Any, prompt: str | None, nth: int, **more: Any) -> Any:
    "The nth sibling's response, which has a thread of its own after the first"
    if nth:
        conversation.id = _later_id(nth)
    response = conversation.prompt(prompt, **more)
    if nth:
        response.id = _later_id(nth)
    return response


def _later_id(n: int) -> str:
    from ulid import ULID

    return str(ULID.from_timestamp(time.time() + n / 1000)).lower()


# -- log -----------------------------------------------------------------


def log(history: History, branch: Branch, response: Any) -> str:
    "Log a finished response to a branch and store its state; the thread's id"
    thread_id = log_only(history, branch, response)
    if commit := getattr(response, "commit_state", None):
        commit(thread_id)
    return thread_id


def log_only(history: History, branch: Branch, response: Any) -> str:
    "Log a finished response to a branch without its state; the thread's id"
    name = " ".join((branch.excerpt or branch.prompt or "retry").split())[:100]
    thread_id = str(response.conversation.id)
    return history.log(
        response,
        {
            "id": thread_id,
            "name": name,
            "forked_from": branch.parent.thread_id,
        },
        {
            "from_response": branch.parent.id,
            "verb": branch.verb,
            "mode": branch.mode,
            "excerpt": branch.excerpt,
            "start": branch.start,
            "end": branch.end,
            "created": str(datetime.datetime.now(datetime.timezone.utc)),
        },
        # Siblings after the first never continue the parent's thread
        branch.parent.tip_hash if thread_id == branch.thread_id else None,
    )
