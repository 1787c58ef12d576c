"""llama.cpp's own test cases of model output, run against ``chat/reader.py``.

The idea: ``tests/test-chat.cpp`` in llama-cpp-python's source distribution has about
460 answers of about 50 models, each with its thinking, text and calls. The file is read
from there; none of it is copied here. Each answer is fed to a Reader in small pieces,
as a model writes it.

The invariant: no case is lost; a chain of calls that cannot be evaluated raises.

This module does not know how many must pass: ``test_llamacpp.py`` does. As a command
(``python -m tests.chat.llamacpp``) it prints figures per template and the differences.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import tools as peers
from llm_kvbranch.chat import template
from llm_kvbranch.chat.dialect import Dialect, Thinking, learn
from llm_kvbranch.chat.reader import Reader
from llm_kvbranch.errors import ChatError

from .cplusplus import Chain, Object, Program

# Path of an unpacked source distribution to use instead of downloading one
SOURCE = "LLAMA_CPP_PYTHON_SOURCE"

THINKING = "COMMON_CHAT_CONTINUATION_REASONING"
ANSWER = "COMMON_CHAT_CONTINUATION_CONTENT"
USER = {"role": "user", "content": "Hey there!"}


@functools.cache
def source() -> Path:
    "The folder of llama.cpp in the source distribution; OSError without network"
    if named := os.environ.get(SOURCE):
        return Path(named) / "vendor" / "llama.cpp"
    cache = os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())
    try:
        folder = peers.source(Path(cache) / "llm-kvbranch-tests")
    except (subprocess.CalledProcessError, peers.Missing) as error:
        raise OSError("llama-cpp-python's source cannot be downloaded") from error
    return folder / "vendor" / "llama.cpp"


@dataclass
class Said:
    "What is in an answer; calls are names, arguments (JSON) and ids"

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(eq=False)
class Case:
    "An answer as a model writes it, and what llama.cpp reads in it"

    line: int
    template: str
    text: str
    expected: Said = field(default_factory=Said)
    tools: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=lambda: [USER])
    continues: str = ""  # THINKING or ANSWER if the answer continues the last message
    thinks: bool = True  # enable_thinking, which llama.cpp's tests leave true
    separates: bool = False  # whether llama.cpp was asked to separate thinking
    partial: bool = False
    schema: str = ""

    @property
    def name(self) -> str:
        return f"{self.template}:{self.line}"

    @property
    def complete_calls(self) -> list[tuple[str, Any]]:
        "Names and arguments of the calls, if the answer is not cut off"
        if self.partial:
            return []
        return [
            (name, json.loads(text or "{}")) for name, text, _ in self.expected.calls
        ]


@functools.cache
def cases() -> tuple[Case, ...]:
    "All cases, in the file's order"
    text = (source() / "tests" / "test-chat.cpp").read_text()
    helpers: dict[str, Callable[..., Any]] = {
        "peg_tester": lambda path, *_: Object("tester", [path]),
        "simple_assist_msg": _answer,
        "message_with_reasoning_content_and_multiple_tool_calls": _answer_with_calls,
    }
    program = Program(text, helpers)
    chains = program.run("test_template_output_peg_parsers", False)
    return tuple(_case(chain) for chain in chains if chain.calls[-1][0] == "run")


@functools.cache
def templates() -> dict[str, str]:
    "Name -> text of the templates that come with llama.cpp"
    folder = source() / "models" / "templates"
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}


def _answer(
    content: str, reasoning: str = "", name: str = "", arguments: str = "", id: str = ""
) -> Object:
    calls = [[name, arguments, id]] if name or id else []
    return Object("common_chat_msg", ["assistant", content, [], calls, reasoning])


def _answer_with_calls(reasoning: str, content: str, calls: list[list[str]]) -> Object:
    return Object("common_chat_msg", ["assistant", content, [], calls, reasoning])


def _said(message: Object) -> Said:
    parts = _message(message)
    return Said(
        parts["content"], parts["reasoning_content"], _calls(parts["tool_calls"])
    )


def _calls(values: Sequence[Sequence[Any]]) -> list[tuple[str, str, str]]:
    "An id left out, or written as {}, means none"
    return [(v[0], v[1], (v[2] if len(v) > 2 else "") or "") for v in values]


def _message(message: Object) -> dict[str, Any]:
    names = ("role", "content", "content_parts", "tool_calls", "reasoning_content")
    empty: dict[str, Any] = dict.fromkeys(names, "") | {"tool_calls": []}
    given = dict(zip(names, message.values, strict=False))
    return {**empty, **given, **message.fields}


def _as_template_takes_it(message: Object) -> dict[str, Any]:
    parts = _message(message)
    calls = [
        {
            "type": "function",
            "id": id or None,
            "function": {"name": name, "arguments": json.loads(arguments)},
        }
        for name, arguments, id in _calls(parts["tool_calls"])
    ]
    found = {"role": parts["role"], "content": parts["content"]}
    if parts["reasoning_content"]:
        found["reasoning_content"] = found["thinking"] = parts["reasoning_content"]
    if calls:
        found["tool_calls"] = calls
    if parts.get("tool_call_id"):
        found["tool_call_id"] = parts["tool_call_id"]
    return found


def _tool(value: Object | list[str]) -> dict[str, Any]:
    name, description, parameters = value.values if isinstance(value, Object) else value
    function = {"name": name, "description": description}
    return {
        "type": "function",
        "function": {**function, "parameters": json.loads(parameters)},
    }


# Name of a call -> the field of a case it sets
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "test": ("text", str),
    "tools": ("tools", lambda tools: [_tool(tool) for tool in tools]),
    "enable_thinking": ("thinks", bool),
    "reasoning_format": ("separates", lambda name: not name.endswith("_NONE")),
    "is_partial": ("partial", bool),
    "json_schema": ("schema", str),
    "messages": ("messages", lambda given: [_as_template_takes_it(m) for m in given]),
    "continue_final_message": ("continues", str),
    "expect": ("expected", _said),
}
_EXPECTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "expect_content": ("content", str),
    "expect_reasoning": ("reasoning", str),
    "expect_tool_calls": ("calls", _calls),
}
_OTHER = {"run", "parallel_tool_calls", "tool_choice", "expect_reconstruction"}
_OTHER |= {"add_generation_prompt"}


def _case(chain: Chain) -> Case:
    case = Case(chain.line, Path(chain.base.values[0]).stem, "")
    for name, arguments in chain.calls:
        if name in _FIELDS:
            key, read = _FIELDS[name]
            setattr(case, key, read(*arguments))
        elif name in _EXPECTED:
            key, read = _EXPECTED[name]
            setattr(case.expected, key, read(*arguments))
        else:
            assert name in _OTHER, name
    return case


# What llama.cpp's conversion always makes a control token, and what is one in the
# models that have it. Everything else is text.
RULE = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?[A-Z_]+\]|</?s>"
    r"|<SPECIAL_\d+>|\]~!?b[\[\]]|\[e~\["  # Nemotron's, MiniMax's
)
# Tags that are tokens of their own in most models, control tokens in some
TAGS = re.compile(RULE.pattern + r"|</?[a-z_]+(?::[a-z_]+)?>")
NONE = re.compile(r"(?!)")
# How an answer is fed: which parts are control tokens, and the size of other pieces
FEEDS = {"rule": (RULE, 3), "tags": (TAGS, 4), "text": (NONE, 1)}

_MARK = "\ue000mark\ue001"


def pieces(text: str, feed: str) -> list[tuple[str, bool]]:
    "An answer in pieces, each with whether it is a control token"
    controls, size = FEEDS[feed]
    found, at = [], 0
    for match in [*controls.finditer(text), None]:
        end = match.start() if match else len(text)
        found += [(text[i : min(i + size, end)], False) for i in range(at, end, size)]
        if match:
            found.append((match[0], True))
            at = match.end()
    return found


def rendered(case: Case, messages: Sequence[dict[str, Any]], ask: bool = True) -> str:
    "Render messages with the case's template; raises ChatError"
    values: dict[str, Any] = {"enable_thinking": case.thinks}
    if case.tools:
        values["tools"] = case.tools
    return renderer(case.template)(messages, add_generation_prompt=ask, **values)


def renderer(name: str) -> Callable[..., str]:
    "A function that renders messages with a template; it raises ChatError"

    def render(messages: Sequence[dict[str, Any]], **values: Any) -> str:
        # llama.cpp gives firefunction's template these as well
        given = {"functions": json.dumps(values.get("tools", [])), "datetime": "now"}
        given |= {"bos_token": "<s>", "eos_token": "</s>"}
        return template.render(
            templates()[name], messages=messages, **{**given, **values}
        )

    return render


@functools.cache
def dialect_of(name: str) -> Dialect:
    return learn(templates()[name], renderer(name))


@functools.cache
def prompt(case: Case) -> str:
    """What the template writes between the last question and the answer.

    If the answer is continued, followed by what it has so far, as the model wrote it.
    """
    history = case.messages[:-1] if case.continues else case.messages
    marked = [*history[:-1], {**history[-1], "content": history[-1]["content"] + _MARK}]
    try:
        begun = rendered(case, marked).partition(_MARK)[2]
    except ChatError:  # the template does not accept tools
        begun = rendered(replace(case, tools=[]), marked).partition(_MARK)[2]
    if not case.continues:
        return begun
    last = case.messages[-1]
    thinking = dialect_of(case.template).thinking or Thinking("<think>", "</think>")
    if case.continues == ANSWER:
        content = last["content"] + _MARK
        shown = [*marked, {**last, "content": content}]
        parts = rendered(case, shown, ask=False).split(_MARK)
        if len(parts) == 3 and not thinking.starts_open(parts[1]):
            return parts[1]
    if not thinking.starts_open(begun):
        begun += thinking.open
    begun += last["reasoning_content"]
    return (
        begun + thinking.close + last["content"] if case.continues == ANSWER else begun
    )


@functools.cache
def ending(case: Case) -> str | None:
    "The token that ends the answer, as far as the template shows it"
    if case.partial:
        return None
    if "<|channel|>" in templates()[case.template]:
        return "<|call|>" if case.expected.calls else "<|return|>"
    return turn_end(case.template) or "</s>"


@functools.cache
def turn_end(name: str) -> str | None:
    "The control token that a template writes after an answer, if any"
    messages = [USER, {"role": "assistant", "content": _MARK}]
    text = renderer(name)(messages, add_generation_prompt=False)
    found = RULE.search(text.partition(_MARK)[2])
    return found[0] if found else None


def expected(case: Case) -> Said:
    "What must be read: not what the prompt of a continued answer already has"
    if not case.continues:
        return case.expected
    before = case.messages[-1]
    return Said(
        case.expected.content.removeprefix(before["content"]),
        case.expected.reasoning.removeprefix(before.get("reasoning_content", "")),
        case.expected.calls,
    )


def answer_of(case: Case, feed: str) -> list[tuple[str, bool]]:
    "An answer in pieces, without the token that ends it"
    return pieces(case.text.removesuffix(ending(case) or ""), feed)


def read(
    case: Case,
    feed: str = "rule",
    count: int | None = None,
    ended_by: str | None = None,
) -> Reader:
    "A reader that was fed the first pieces of an answer, which then ended"
    reader = Reader(dialect_of(case.template), case.tools, prompt(case))
    for text, control in answer_of(case, feed)[:count]:
        reader.feed(text, control)
    reader.end(ended_by)
    return reader


def differences(case: Case, feed: str = "rule") -> dict[str, tuple[Any, Any]]:
    "What differs, as (expected, got): calls, reasoning, content"
    reader = read(case, feed, ended_by=ending(case))
    said = expected(case)
    pairs = {
        "calls": (
            case.complete_calls,
            [(call.name, call.arguments) for call in reader.calls],
        ),
        "reasoning": (said.reasoning.strip(), reader.reasoning.strip()),
        "content": (said.content.strip(), reader.text.strip()),
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def table(feed: str) -> dict[str, Counter[str]]:
    "Template -> how many cases have calls and thinking, and how many were understood"
    counts: dict[str, Counter[str]] = {}
    for case in cases():
        found = differences(case, feed)
        count = counts.setdefault(case.template, Counter())
        count["cases"] += 1
        count["content"] += "content" not in found
        if case.complete_calls:
            count["with calls"] += 1
            got = found.get("calls", (None, None))[1]
            count["calls"] += got is None
            count["wrong"] += bool(got)
        else:
            count["invented"] += "calls" in found
        if case.expected.reasoning:
            count["with thinking"] += 1
            count["thinking"] += "reasoning" not in found
    return counts


COLUMNS = "cases", "content", "with calls", "calls", "wrong", "invented"
COLUMNS += "with thinking", "thinking"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chat.llamacpp", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--feed", choices=FEEDS, default="rule")
    parser.add_argument("--template", default="", help="part of a template's name")
    parser.add_argument("-v", action="store_true", help="show the differences")
    chosen = parser.parse_args(arguments)
    counts = table(chosen.feed)
    names = [name for name in counts if chosen.template.lower() in name.lower()]
    _print("| template | " + " | ".join(COLUMNS) + " |")
    _print("|---|" + "---:|" * len(COLUMNS))
    total: Counter[str] = Counter()
    for name in names:
        total += counts[name]
    for name, count in [*((name, counts[name]) for name in names), ("all", total)]:
        _print(f"| {name} | " + " | ".join(str(count[c]) for c in COLUMNS) + " |")
    for case in cases():
        if chosen.v and case.template in names:
            _show(case, differences(case, chosen.feed))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _show(case: Case, found: dict[str, tuple[Any, Any]]) -> None:
    if not found:
        return
    cut = ", cut off" if case.partial else ""
    _print(
        f"\n{case.name}{cut}\n  prompt    {prompt(case)[-200:]!r}\n"
        f"  says      {case.text!r}"
    )
    for key, (wanted, got) in found.items():
        note = "" if case.separates or key == "calls" else " (not asked to separate)"
        _print(f"  {key}{note}\n    expected {wanted!r}\n    got      {got!r}")


if __name__ == "__main__":
    main()
