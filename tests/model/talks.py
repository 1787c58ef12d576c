"""Ideal conversations of ten turns with models that call tools.

The idea: a template shows how its model writes an answer: the rendering with the answer
begins with the prompt, and what follows is the answer. Only what the template never
shows, such as thinking that it always drops, is stated here by family.

The templates come with llama.cpp, and are read from llama-cpp-python's source
distribution; one is our own. This module does not know llm's commands, or tokens.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jinja2
import llm
import pytest

from ..chat import llamacpp
from ..support import scripted

SYSTEM = "Answer in short sentences."
N_TURNS = 10
TOLD = """

## Tools
You have access to the following tools:

### weather
Description: The weather in a city
Parameters: {"properties": {"city": {"type": "string"}}, "required": ["city"], \
"type": "object"}

### add
Description: The sum of two numbers
Parameters: {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, \
"required": ["a", "b"], "type": "object"}"""


@dataclass(frozen=True)
class Family:
    """How a model answers.

    ``thinks`` is how it thinks where its template does not show that. ``names`` are
    those of its vocabulary's control tokens; the first two begin and end a text.
    """

    template: str
    names: str
    thinks: str | None = None
    option: str | None = None  # think
    after_results: bool = True  # whether it thinks about results
    parallel: bool = True
    speaks: bool = True  # before it calls
    moves: bool = False  # the template writes the tools at the last question
    untold: bool = False  # the template does not write which tools there are
    source: str = ""

    @property
    def controls(self) -> tuple[str, ...]:
        return tuple(self.names.split())

    @property
    def text(self) -> str:
        return self.source or llamacpp.templates()[self.template]


CHATML = "<|im_start|> <|im_end|>"
OURS = Family(
    "qwen3",
    f"{CHATML} <think> </think> <tool_call> </tool_call>",
    thinks="",
    source=scripted.template().read_text(),
)
FAMILIES = {
    "Qwen3.5": Family(
        "Qwen3.5-4B",
        f"{CHATML} <think> </think> <tool_call> </tool_call>",
        thinks="",
    ),
    "gpt-oss": Family(
        "openai-gpt-oss-120b",
        "<|start|> <|return|> <|end|> <|call|> <|message|> <|channel|> <|constrain|>",
        thinks="",
        parallel=False,
        speaks=False,
    ),
    "Gemma 4": Family(
        "google-gemma-4-31B-it",
        "<bos> <turn|> <|turn> <|channel> <channel|> <|think|> <|tool> "
        "<tool|> <|tool_call> <tool_call|> <|tool_response> "
        '<tool_response|> <|"|>',
        thinks="<|channel>thought\n{thought}\n<channel|>",
        option="true",
        speaks=False,
    ),
    "Mistral Small 3.2": Family(
        "Mistral-Small-3.2-24B-Instruct-2506",
        "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] "
        "[TOOL_CALLS] [CALL_ID] [ARGS] [TOOL_RESULTS] [TOOL_CONTENT] "
        "[/TOOL_RESULTS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]",
        speaks=False,
        moves=True,
    ),
    "Llama 3.2": Family(
        "meta-llama-Llama-3.2-3B-Instruct",
        "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|>",
        parallel=False,
        speaks=False,
    ),
    "LFM2.5": Family(
        "LFM2.5-8B-A1B",
        f"{CHATML} <|tool_call_start|> <|tool_call_end|> <think> </think>",
        thinks="",
    ),
    "DeepSeek V3.1": Family(
        "deepseek-ai-DeepSeek-V3.1",
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> "
        "<｜Assistant｜> <think> </think> <｜tool▁calls▁begin｜> "
        "<｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> "
        "<｜tool▁calls▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>",
        thinks="{thought}",
        option="true",
        after_results=False,
        untold=True,
    ),
    "GLM 4.6": Family(
        "GLM-4.6",
        "[gMASK] <|user|> <sop> <|system|> <|assistant|> "
        "<|observation|> <think> </think> <tool_call> </tool_call>",
        thinks="",
    ),
}


# -- what is said --------------------------------------------------------

DEGREES = {"Rome": 31, "Oslo": -4, "Zürich": 12}
ran: list[tuple[str, dict[str, Any]]] = []


def weather(city: str) -> str:
    "The weather in a city"
    ran.append(("weather", {"city": city}))
    return f'{DEGREES[city]} degrees, "mild"\nin {city}'


def add(a: int, b: int) -> int:
    "The sum of two numbers"
    ran.append(("add", {"a": a, "b": b}))
    return a + b


@dataclass
class Answer:
    "What the model says at one time"

    thought: str = ""
    said: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass
class Round:
    "An answer, with the history it is an answer to and its text as the model writes it"

    answer: Answer
    messages: list[dict[str, Any]]
    prompt: str = ""
    raw: str = ""


def turns(family: Family) -> Iterator[tuple[str, list[Answer]]]:
    "Questions, each with the answers up to the last one"
    for n in range(N_TURNS):
        city, other = list(DEGREES)[n % 3], list(DEGREES)[(n + 1) % 3]
        first, second = DEGREES[city], DEGREES[other]
        here, there = ("weather", {"city": city}), ("weather", {"city": other})
        sums = ("add", {"a": first, "b": second})
        last = f"It has {first} degrees in {city}. " + f"Turn {n} it is, I say. " * 3
        both = f"Together {first + second}, in <b>{city}</b> & {other}.\n\nSo be it."
        kind = n % 5
        if kind == 0:  # no tool
            yield (
                f"Question {n}?",
                [Answer(f"No tool for {n}.", f"It is {n}, no doubt.")],
            )
        elif kind == 1:
            said = f"I look at {city}." if family.speaks else ""
            rounds = [Answer(f"Ask for {city}.", said, [here])]
            yield f"How is {city}?", [*rounds, Answer(f"So {first}.", last.strip())]
        elif kind == 2 and family.parallel:
            calls = [Answer(f"Ask for both, {n}.", "", [here, there])]
            yield f"And {city} or {other}?", [*calls, Answer("Both.", both)]
        elif kind in (2, 3):
            calls = [
                Answer(f"{city} first, {n}.", "", [here]),
                Answer(f"Then {other}, {n}.", "", [there]),
                Answer(f"Add them, {n}.", "", [sums]),
            ]
            yield f"The sum of {city} and {other}?", [*calls, Answer("Sum.", both)]
        else:
            calls = [Answer(f"Just add {n}.", "", [("add", {"a": n, "b": -n})])]
            yield f"What is {n} - {n}?", [*calls, Answer(f"Nothing, {n}.", "It is 0.")]


class Talk:
    "The ideal conversation with one model"

    def __init__(self, family: Family):
        self.family = family
        self.tools = [_tool(function) for function in (weather, add)]
        self.rounds: list[Round] = []
        self.questions: list[str] = []
        self.counts: list[int] = []  # rounds in each turn
        messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        for question, answers in turns(family):
            messages.append({"role": "user", "content": question})
            self.questions.append(question)
            self.counts.append(len(answers))
            for n, answer in enumerate(answers):
                if family.thinks is None or (n and not family.after_results):
                    answer.thought = ""
                self._round(messages, answer)
        self.messages = messages

    def _round(self, messages: list[dict[str, Any]], answer: Answer) -> None:
        found = Round(answer, list(messages), self.rendered(messages))
        message: dict[str, Any] = {"role": "assistant", "content": answer.said}
        if answer.thought:
            message["reasoning_content"] = message["thinking"] = answer.thought
        ids = [f"id{len(self.rounds):04}{n:03}" for n in range(len(answer.calls))]
        if answer.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": id,
                    "function": {"name": name, "arguments": arguments},
                }
                for id, (name, arguments) in zip(ids, answer.calls, strict=True)
            ]
        messages.append(message)
        found.raw = self._raw(found, messages)
        self.rounds.append(found)
        for id, (name, arguments) in zip(ids, answer.calls, strict=True):
            output = str(globals()[name](**arguments))
            messages.append(
                {"role": "tool", "tool_call_id": id, "name": name, "content": output}
            )

    def _raw(self, found: Round, messages: list[dict[str, Any]]) -> str:
        "An answer as its model writes it, with the token that ends it"
        # Some templates drop earlier thinking once there is an answer
        plain = [
            {
                name: m[name]
                for name in m
                if name not in ("reasoning_content", "thinking")
            }
            for m in found.messages
        ]
        prompt = self.rendered(plain)
        whole = self.rendered([*plain, messages[-1]], ask=False)
        assert whole.startswith(prompt)
        raw, end = whole[len(prompt) :], self.family.controls[1]
        if found.answer.thought and found.answer.thought not in raw:
            assert self.family.thinks
            raw = self.family.thinks.format(thought=found.answer.thought) + raw
        ends = ("<|call|>", "<|tool_response>") if found.answer.calls else ()
        for each in (*ends, end):
            if raw.rstrip().endswith(each):
                return raw.rstrip()
        return raw.rstrip() + ("<|observation|>" if found.answer.calls else end)

    def rendered(self, messages: list[dict[str, Any]], ask: bool = True) -> str:
        environment = jinja2.Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        source = re.sub(r"{%- (end)?generation -%}", "{#- -#}", self.family.text)
        if self.family.untold:
            messages = [{"role": "system", "content": SYSTEM + TOLD}, *messages[1:]]
        more = {"enable_thinking": True, "thinking": True} if self.family.option else {}
        return environment.from_string(source).render(
            messages=messages,
            tools=self.tools,
            add_generation_prompt=ask,
            bos_token=self.family.controls[0],
            eos_token=self.family.controls[1],
            strftime_now=datetime.date(2026, 3, 1).strftime,
            raise_exception=pytest.fail,
            **more,
        )


def _json(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **more)


def _tool(function: Any) -> dict[str, Any]:
    tool = llm.Tool.function(function)
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
        },
    }
