"""The verbs: going on from any response, or from any point inside one.

The idea: a branch is a list of messages and where it came from, nothing else.
No model is told that it is answering a branch: a model that keeps state by
content, as kvllama does, finds the state of the messages it is sent, and any
other model of llm's answers them too.

The invariant: the response that a verb starts from, its thread and its state
stay as they are. A new thread, its first turn and where it came from are logged
together, after the answer.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llm

from ..errors import HistoryError
from . import excerpt as excerpts
from .history import History, Logged, message_text

_FOCUS = "About this part of your answer:\n\n"
_FRESH = "About this text:\n\n"
QUOTING = (_FOCUS + ">", _FRESH + ">")
"What prompts begin with that quote a part of an answer"


def question(prompt: str) -> str:
    "What a prompt asks, without the part of an answer that it quotes"
    if prompt.startswith(QUOTING):
        return prompt.rpartition("\n\n")[2]
    return prompt


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


@dataclass(frozen=True)
class Branch:
    """What to ask, after which messages, and where that comes from.

    ``thread_id`` is the thread to go on in, None for a new one. ``start`` and
    ``end`` are the excerpt's place in the parent's answer, in characters.
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
class Place:
    "A part of an answer: by its words, or by its characters [start, end)"

    words: str | None = None
    occurrence: int | None = None
    range: tuple[int, int] | None = None

    def find(self, text: str) -> tuple[int, int] | None:
        "Where it is in an answer, None if no place was given; HistoryError"
        if self.words is not None and self.range is not None:
            raise HistoryError("Give an excerpt or a range, not both")
        if self.range is not None:
            return excerpts.check_range(text, *self.range)
        if self.words is not None:
            return excerpts.find(text, self.words, self.occurrence)
        if self.occurrence is not None:
            raise HistoryError("--occurrence needs an --excerpt")
        return None


def continue_(history: History, reference: str, prompt: str) -> Branch:
    "A new turn after a response: in its thread at the tip, in a fork elsewhere"
    parent = history.response(reference)
    thread_id = parent.thread_id if history.is_tip(parent) else None
    messages = [*parent.sent, *parent.answered]
    return Branch(parent, "continue", messages, prompt, thread_id)


def branch(history: History, reference: str, prompt: str, place: Place) -> Branch:
    "A fork after a response, which is cut right behind the place if one is given"
    parent = history.response(reference)
    found = place.find(parent.text)
    if found is None:
        messages = [*parent.sent, *parent.answered]
        return Branch(parent, "branch", messages, prompt, mode="reuse_kv")
    start, end = found
    return Branch(
        parent,
        "branch",
        [*parent.sent, llm.assistant(parent.text[:end])],
        prompt,
        mode="reuse_kv",
        excerpt=parent.text[start:end],
        start=start,
        end=end,
    )


def fresh(
    history: History,
    reference: str,
    prompt: str,
    place: Place,
    n_tokens: int = 0,
    tail: Callable[[str, str, int], str] = lambda model, text, n: text,
) -> Branch:
    """A new context that holds nothing but a part of an answer, quoted.

    The part is the place, or the whole answer; with ``n_tokens`` it is that many
    tokens of the answer up to where the place ends. ``tail(model id, text, n)``
    gives the last n tokens of a text.
    """
    parent = history.response(reference)
    found = place.find(parent.text) or (0, len(parent.text))
    start, end = found
    if n_tokens:
        start = end - len(tail(parent.model, parent.text[:end], n_tokens))
    quoted = parent.text[start:end]
    if not quoted.strip():
        raise HistoryError(f"Response {parent.id} has no text to quote")
    return Branch(
        parent,
        "branch",
        [],
        f"{_FRESH}{_quote(quoted)}\n\n{prompt}",
        mode="fresh",
        excerpt=quoted,
        start=start,
        end=end,
    )


def last_words(text: str, n: int) -> str:
    "The last n words of a text, for models whose tokens are not known"
    words = list(re.finditer(r"\S+", text))
    return text[words[-n].start() :] if len(words) > n else text


def focus(history: History, reference: str, prompt: str, place: Place) -> Branch:
    "A fork that keeps the whole answer and asks about a part of it, quoted"
    parent = history.response(reference)
    found = place.find(parent.text)
    if found is None:
        raise HistoryError("focus needs an --excerpt or a --range of the answer")
    start, end = found
    quoted = parent.text[start:end]
    return Branch(
        parent,
        "focus",
        [*parent.sent, *parent.answered],
        f"{_FOCUS}{_quote(quoted)}\n\n{prompt}",
        excerpt=quoted,
        start=start,
        end=end,
    )


def retry(history: History, reference: str) -> Branch:
    "The same prompt again: a sibling of a response"
    parent = history.response(reference)
    if not parent.sent:
        raise HistoryError(f"Response {parent.id} has no prompt to send again")
    *before, last = parent.sent
    if last.role == "user" and last == llm.user(text := message_text(last)):
        # As a prompt, for plugins that look at nothing else
        return Branch(parent, "retry", before, text)
    return Branch(parent, "retry", parent.sent, None)


def ask(
    branch: Branch,
    model: Any,
    system: str | None = None,
    stream: bool = True,
    nth: int = 0,
    **options: Any,
) -> Any:
    """The response of a model to a branch, which is not started yet.

    ``nth`` counts siblings: llm's ids of one millisecond differ in their last
    character only, so each gets a millisecond of its own, to be told apart by
    the beginning of its id.
    """
    messages = list(branch.messages)
    if system is not None:
        messages = [m for m in messages if m.role != "system"]
        messages.insert(0, llm.system(system))
    conversation = model.conversation()
    if branch.thread_id is not None:
        conversation.id = branch.thread_id
    conversation.loaded_messages = messages
    if nth:
        conversation.id = _later_id(nth)
    response = conversation.prompt(branch.prompt, stream=stream, **options)
    if nth:
        response.id = _later_id(nth)
    return response


def ask_messages(
    messages: Sequence[Any],
    model: Any,
    schema: dict[str, Any] | None = None,
    nth: int = 0,
    tools: Sequence[Any] = (),
    **options: Any,
) -> Any:
    "The response of a model to messages, in a new thread; not started yet"
    conversation = model.conversation()
    if nth:
        conversation.id = _later_id(nth)
    *before, last = messages
    if last.role == "user" and last == llm.user(text := message_text(last)):
        conversation.loaded_messages = before
        prompt: str | None = text
    else:
        conversation.loaded_messages = list(messages)
        prompt = None
    response = conversation.prompt(prompt, schema=schema, tools=list(tools), **options)
    if nth:
        response.id = _later_id(nth)
    return response


def _later_id(n: int) -> str:
    from ulid import ULID

    return str(ULID.from_timestamp(time.time() + n / 1000)).lower()


def log(history: History, branch: Branch, response: Any) -> str:
    "Log a finished response to a branch and store its state; the thread's id"
    thread_id = log_only(history, branch, response)
    if commit := getattr(response, "commit_state", None):
        commit(thread_id)
    return thread_id


def log_only(history: History, branch: Branch, response: Any) -> str:
    "Log a finished response to a branch; the thread's id"
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
        # A sibling has a thread of its own from the beginning
        branch.parent.tip_hash if thread_id == branch.thread_id else None,
    )
