"""``llm chat -T`` over ten turns, with the templates of models that call tools.

The idea: a toy says what its template makes of an ideal conversation, a few characters
a token, and ``llm chat`` runs the tools that it calls. Another rendering of the
template states what each prompt must be, and how much of it was read or said before.

The templates come with llama.cpp, and are read from llama-cpp-python's source
distribution; one is our own.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import llm
import pytest
from click.testing import CliRunner
from llm import cli as llm_cli
from llm.plugins import pm

from llm_kvbranch import model as model_module
from llm_kvbranch.inference.assembly import DROPPED
from llm_kvbranch.inference.generation import Generation
from llm_kvbranch.log import History, open_log
from llm_kvbranch.models import catalog

from ..chat import llamacpp
from ..support import scripted, synth

SYSTEM = "Answer in short sentences."
N_TURNS = 10
ANOTHER = 5  # turns, after which another process goes on
MOVED = "the model's chat template renders a continued conversation differently"


@dataclass(frozen=True)
class Family:
    """How a model answers.

    ``thinks`` is how it thinks where its template does not show that. ``controls`` are
    the control tokens of its vocabulary; the first two begin and end a text.
    """

    template: str
    controls: tuple[str, ...]
    thinks: str | None = None
    option: str | None = None  # think
    after_results: bool = True  # whether it thinks about results
    parallel: bool = True
    speaks: bool = True  # before it calls
    moves: bool = False  # the template writes the tools at the last question
    source: str = ""

    @property
    def text(self) -> str:
        return self.source or llamacpp.templates()[self.template]


CHATML = ("<|im_start|>", "<|im_end|>")
OURS = Family(
    "qwen3",
    (*CHATML, "<think>", "</think>", "<tool_call>", "</tool_call>"),
    thinks="",
    source=scripted.template().read_text(),
)
FAMILIES = {
    "Qwen3.5": Family(
        "Qwen3.5-4B",
        (*CHATML, "<think>", "</think>", "<tool_call>", "</tool_call>"),
        thinks="",
    ),
    "gpt-oss": Family(
        "openai-gpt-oss-120b",
        ("<|start|>", "<|return|>", "<|end|>", "<|call|>")
        + ("<|message|>", "<|channel|>", "<|constrain|>"),
        thinks="",
        parallel=False,
        speaks=False,
    ),
    "Gemma 4": Family(
        "google-gemma-4-31B-it",
        ("<bos>", "<turn|>", "<|turn>", "<|channel>", "<channel|>", "<|think|>")
        + ("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>")
        + ("<|tool_response>", "<tool_response|>", '<|"|>'),
        thinks="<|channel>thought\n{thought}\n<channel|>",
        option="true",
        speaks=False,
    ),
    "Mistral Small 3.2": Family(
        "Mistral-Small-3.2-24B-Instruct-2506",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
        + ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[TOOL_RESULTS]", "[TOOL_CONTENT]")
        + ("[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        speaks=False,
        moves=True,
    ),
    "Llama 3.2": Family(
        "meta-llama-Llama-3.2-3B-Instruct",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        parallel=False,
        speaks=False,
    ),
    "LFM2.5": Family(
        "LFM2.5-8B-A1B",
        (*CHATML, "<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"),
        thinks="",
    ),
    "DeepSeek V3.1": Family(
        "deepseek-ai-DeepSeek-V3.1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>")  # noqa: RUF001
        + ("<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>")  # noqa: RUF001
        + ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")  # noqa: RUF001
        + ("<｜tool▁calls▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),  # noqa: RUF001
        thinks="{thought}",
        option="true",
        after_results=False,
    ),
    "GLM 4.6": Family(
        "GLM-4.6",
        ("[gMASK]", "<|user|>", "<sop>", "<|system|>", "<|assistant|>")
        + ("<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
        thinks="",
    ),
}


# -- what is said --------------------------------------------------------

DEGREES = {"Rome": 31, "Oslo": -4, "Zürich": 12}
ran: list[tuple[str, dict[str, Any]]] = []


def weather(city: str) -> str:
    "The weather in a city"
    ran.append(("weather", {"city": city}))
    return f"{DEGREES[city]} degrees, \"mild\"\nin {city}"


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
            yield f"Question {n}?", [Answer(f"No tool for {n}.", f"It is {n}, no doubt.")]
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
            {name: m[name] for name in m if name not in ("reasoning_content", "thinking")}
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


# -- the chat ------------------------------------------------------------


class Scripted:
    "Draws the tokens of a conversation's answers, and notes what was decoded"

    def __init__(self, talk: Talk, monkeypatch: pytest.MonkeyPatch):
        self.talk = talk
        self.prompts: list[array[int]] = []
        self.answers: list[array[int]] = []
        self.vocabulary: Any = None
        scripted = self

        def draw(generation: Generation, index: int) -> int:
            n = generation.n_generated
            if n == 0:
                scripted.begin(generation)
            generation._sampler.accept(token := scripted.answers[-1][n])
            return token

        monkeypatch.setattr(Generation, "draw", draw)

    def begin(self, generation: Generation) -> None:
        said = [m for m in generation.request.messages if m.role == "assistant"]
        assert len(said) == len(self.prompts)
        self.vocabulary = generation.model.engine.weights
        self.prompts.append(generation.plan.tokens[:])
        self.answers.append(self.spelled(self.talk.rounds[len(said)].raw))

    def spelled(self, text: str) -> array[int]:
        "Three characters a token, which is not how the vocabulary would read a text"
        tokens = array("i")
        for part in re.split(f"({'|'.join(map(re.escape, self.controls))})", text):
            pieces = [part[i : i + 3] for i in range(0, len(part), 3)]
            for piece in [part] if part in self.controls else pieces:
                tokens += self.vocabulary.tokenize(piece, special=True)
        return tokens

    @property
    def controls(self) -> tuple[str, ...]:
        return self.talk.family.controls

    def texts(self, tokens: array[int]) -> list[str]:
        return [self.vocabulary.text(token) for token in tokens]


class Tools:
    "A plugin with the two tools"

    @llm.hookimpl
    def register_tools(self, register) -> None:
        register(weather)
        register(add)


@pytest.fixture
def tools() -> Iterator[None]:
    plugin = Tools()
    pm.register(plugin)
    yield
    pm.unregister(plugin)


def chat(family: Family, questions: list[str], *arguments: str) -> tuple[list[str], str]:
    "What a chat prints about each question; what it prints of thinking"
    options = ["-o", "temperature", "0", "-o", "n_threads", "1", "-o", "date"]
    options += ["2026-03-01", "-T", "weather", "-T", "add"]
    if family.option:
        options += ["-o", "think", family.option]
    done = CliRunner().invoke(
        llm_cli.cli,
        ["chat", "-m", "kvllama", *options, *arguments],
        input="\n".join([*questions, "quit", ""]),
    )
    assert done.exit_code == 0, done.output
    assert "Error" not in done.stderr
    said = [part.partition("\n")[2] for part in done.stdout.split("\n> ")[1:]]
    return said[: len(questions)], done.stderr


def ten_turns(family: Family, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(family, folder, monkeypatch)
    talk = Talk(family)
    ran.clear()
    model = Scripted(talk, monkeypatch)
    thoughts = [each.answer.thought for each in talk.rounds if each.answer.thought]

    printed, reasoning = chat(family, talk.questions[:ANOTHER], "-s", SYSTEM, "-R")
    assert not any(thought in reasoning for thought in thoughts)
    model_module._sessions.clear()
    more, reasoning = chat(family, talk.questions[ANOTHER:], "-c")
    after = sum(talk.counts[:ANOTHER])
    for each in talk.rounds[after:]:
        assert each.answer.thought in reasoning

    assert ran == [call for each in talk.rounds for call in each.answer.calls]
    rounds = iter(talk.rounds)
    for n_rounds, shown in zip(talk.counts, [*printed, *more], strict=True):
        texts = [next(rounds).answer.said for _ in range(n_rounds)]
        assert shown.strip() == " ".join(filter(None, texts))
    check_log(talk)
    check_prompts(talk, model)


def write(family: Family, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The toy, as the model that kvllama uses"
    texts = dict(enumerate(family.controls, start=1))
    metadata: dict[str, Any] = {}
    if "<|observation|>" in family.controls:
        end = family.controls.index("<|observation|>") + 1
        metadata = {"tokenizer.ggml.eot_token_id": end}
    path = synth.write("llama", folder / "toy.gguf", metadata=metadata, texts=texts)
    (folder / "template.jinja").write_text(family.text)
    monkeypatch.setattr(model_module, "_sessions", {})
    monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(path))
    template = str(folder / "template.jinja")
    catalog.put_setting(catalog.model(), "chat_template", template)


def logged() -> tuple[History, list[str]]:
    history = History(open_log(str(Path(os.environ["LLM_USER_PATH"]) / "logs.db")))
    return history, [row["id"] for row in history.db["turns"].rows_where(order_by="id")]


def check_log(talk: Talk) -> None:
    "All of the conversation, in llm's own parts"
    history, ids = logged()
    assert len(ids) == len(talk.rounds)
    last = history.response(ids[-1])
    found = [part for message in last.messages for part in _parts(message)]
    assert found == [part for message in talk.messages for part in _ideal(message)]
    reasons = [history.facts(id)["finish_reason"] for id in ids]
    calls = [bool(each.answer.calls) for each in talk.rounds]
    assert reasons == ["tool_calls" if called else "stop" for called in calls]


def _parts(message: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for part in (each.to_dict() for each in message.parts):
        if part["type"] == "tool_call":
            found.append(("call", (part["name"], part["arguments"])))
        else:
            kind = message.role if part["type"] == "text" else part["type"]
            found.append((kind, part.get("text") or part.get("output")))
    return found


def _ideal(message: dict[str, Any]) -> list[tuple[str, Any]]:
    kind = "tool_result" if message["role"] == "tool" else message["role"]
    parts = [("reasoning", message.get("thinking")), (kind, message["content"])]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    found = [part for part in parts if part[1]]
    return [*found, *(("call", (each["name"], each["arguments"])) for each in calls)]


def check_prompts(talk: Talk, model: Scripted) -> None:
    "Prompts are the template's, and what stands in one already is not read again"
    history, ids = logged()
    before: list[str] = []
    for n, (each, id) in enumerate(zip(talk.rounds, ids, strict=True)):
        facts = history.facts(id)
        prompt = model.texts(model.prompts[n])
        if "".join(prompt) != each.prompt: print(n, "GOT", "".join(prompt)[-900:]); print("WANT", each.prompt[-900:])
        known = "".join(before)
        if talk.family.moves and before:
            assert each.prompt.endswith("".join(prompt).removeprefix(known))
        else:
            assert "".join(prompt) == each.prompt
        assert facts["prompt_tokens"] == len(prompt)
        n_kept = _n_inside(before, each.prompt)
        reused = facts["restored_tokens"]
        print(n, len(prompt), len(before), n_kept, reused, facts["resident_tokens"], facts["miss_reason"], facts["reread_tokens"])
        before = [*prompt, *model.texts(model.answers[n][:-1])]


def _n_inside(before: list[str], prompt: str) -> int:
    "How many tokens that were read or said before a prompt begins with"
    n = 0
    for n_inside, text in enumerate(before):
        if not prompt.startswith(text, n):
            return n_inside
        n += len(text)
    return len(before)


pytestmark = pytest.mark.usefixtures("no_fsync", "tools")


def test_ten_turns(tmp_path, monkeypatch) -> None:
    ten_turns(OURS, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_ten_turns_of(name, tmp_path, monkeypatch) -> None:
    ten_turns(FAMILIES[name], tmp_path, monkeypatch)
