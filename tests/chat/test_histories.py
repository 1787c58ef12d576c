"""Follow-ups with each of the templates that come with llama.cpp.

The idea: a model with the template says something, and is asked again in a later
process. ``llamacpp.py`` has the templates. The template itself renders the expected
prompt from the ideal history, with a word in place of the answer.

The invariant: a follow-up continues from what the model read and wrote, and only what
the template writes after an answer is prefilled.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.parts import ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llm_kvbranch.chat import Reader, Rendering
from llm_kvbranch.chat.history import Arguments, with_tools
from llm_kvbranch.chat.template import Chat
from llm_kvbranch.engine import Load
from llm_kvbranch.errors import ChatError
from llm_kvbranch.inference.assembly import DROPPED
from llm_kvbranch.inference.planning import Planner
from llm_kvbranch.inference.session import Session
from llm_kvbranch.store.store import Store

from ..support.fake import EOG, FakeEngine, FakeVocab
from ..support.life import Answer
from . import llamacpp
from .llamacpp import RULE, Case, read, renderer, turn_end

try:
    TEMPLATES = list(llamacpp.templates())
except OSError as error:
    pytest.skip(str(error), allow_module_level=True)

WORD = "Xanadu"
SYSTEM, USER = llm.system("Be brief."), llm.user("What is the sea?")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}},
            "required": ["city"],
        },
    },
}


def ending(template: str) -> str:
    "The control token that a template writes after an answer"
    return turn_end(template) or "<|nothing|>"


class Vocab(FakeVocab):
    "Control tokens are what looks like one in a template; all else is bytes"

    def __init__(self, template: str):
        super().__init__()
        texts = [ending(template), *RULE.findall(llamacpp.templates()[template])]
        self.ids = {text: EOG + n for n, text in enumerate(dict.fromkeys(texts))}
        assert len(self.ids) < 98
        self.control_texts = tuple(self.ids)
        self.bos_text, self.eos_text = "<s>", ending(template)

    def tokenize(self, text, special, bos=False):
        tokens = array("i")
        for part in re.split(f"({RULE.pattern})", text) if special else [text]:
            if special and part in self.ids:
                tokens.append(self.ids[part])
            else:
                tokens += super().tokenize(part, special=False)
        return tokens


class Scripted(FakeEngine):
    "Generates given tokens first, then those that follow from its rows"

    def __init__(self, template: str, script=()):
        super().__init__()
        self.weights = Vocab(template)
        self.script = list(script)

    def sample(self, sampler, index):
        drawn = super().sample(sampler, index)
        return self.script.pop(0) if self.script else drawn


def session_of(template: str, root: Path, script=()) -> Session:
    "A session as a new process would have it"
    engine = Scripted(template, script)
    planner = Planner(
        Chat(engine.weights, llamacpp.templates()[template]),
        Store(root),
        "fake",
        engine.cuts_anywhere,
    )
    return Session(engine, planner, print, Load(Path("fake.gguf")))


def spell(vocab: Vocab, tokens) -> str:
    names = {number: text.encode() for text, number in vocab.ids.items()}
    return b"".join(names.get(t) or vocab.piece(t) for t in tokens).decode()


def wrote(template, root, text, messages, ended=True, **options) -> Answer:
    "An answer of exactly that text, ended by the model or by max_tokens"
    vocab = Vocab(template)
    # Byte by byte, which is not how this vocabulary would read the text
    script = [t for char in text for t in vocab.tokenize(char, special=False)]
    script += [EOG] if ended else []
    session = session_of(template, root, script)
    return Answer(session, messages, max_tokens=len(script), **options)


@dataclass(frozen=True)
class Scenario:
    answers: tuple[str, ...]
    system: bool = False
    ended: bool = True
    tools: tuple[dict[str, Any], ...] = ()
    question: str = "Go on?"


SCENARIOS = {
    "one answer": Scenario(("Salt water.",)),
    "a system prompt": Scenario(("Salt water.",), system=True),
    "three turns": Scenario(("Salt water.", "Rain.", "No."), system=True),
    "white space": Scenario((" Salt \t",), question=" Go on? \n"),
    "leading line breaks": Scenario(("\n\nSalt\n\n",)),
    "cut": Scenario(("Salt wa",), ended=False),
    "cut at a space": Scenario(("Salt ",), ended=False),
    "cut twice": Scenario(("Salt wa", "Rai"), ended=False),
    "tools without a call": Scenario(("Salt water.",), tools=(TOOL,)),
    "markdown": Scenario(("# Sea\n\n* `a[0]` is **salt**\n\n```py\nf({})\n```",)),
    "tags": Scenario(("It is <b>salt</b> &amp; <i>wet</i>, a < b.",)),
    "no ASCII": Scenario(("Das Meer — ist 海 🌊.",), question="Und 山?"),
}


def _chat(message: llm.Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.parts[0].text}


def ideal(template: str, scenario: Scenario, questions, n: int) -> str:
    "What the template renders after the last of n answers"
    chats = [_chat(SYSTEM)] if scenario.system else []
    for question, said in zip(questions, scenario.answers[:n], strict=False):
        chats += [_chat(question), {"role": "assistant", "content": said}]
    chats[-1]["content"] = WORD
    chats.append(_chat(questions[n]))
    values: dict[str, Any] = {"eos_token": ending(template)}
    if scenario.tools:
        values["tools"] = list(scenario.tools)
    rendered = renderer(template)(chats, add_generation_prompt=True, **values)
    return rendered.rpartition(WORD)[2]


def says(template: str, chat: Chat, messages, scenario: Scenario, said: str) -> str:
    "What the model writes: it first closes thinking that the prompt opened"
    rendering = Rendering(tools=scenario.tools)
    prompt = spell(chat.vocab, chat.encode(messages, rendering))
    thinking = chat.dialect.thinking
    if thinking and thinking.starts_open(prompt):
        return f"Hm.{thinking.close}{said}"
    return said


@pytest.mark.slow
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_follow_up_is_the_answer_and_what_the_template_adds(template, name, tmp_path):
    scenario = SCENARIOS[name]
    questions = [USER, *[llm.user(scenario.question)] * len(scenario.answers)]
    messages = [*([SYSTEM] if scenario.system else []), USER]
    chat = Chat(Vocab(template), llamacpp.templates()[template])
    if scenario.tools and not chat.takes_tools:
        pytest.skip("takes no tools")
    if chat.folds_system(messages):
        pytest.skip("takes no system prompt")
    try:
        chat.encode(messages, Rendering(tools=scenario.tools))
    except ChatError as error:
        pytest.skip(str(error))
    options = {"tools": scenario.tools} if scenario.tools else {}
    before = None
    for n, said in enumerate([*scenario.answers, "End."]):
        text = says(template, chat, messages, scenario, said)
        answer = wrote(template, tmp_path, text, messages, scenario.ended, **options)
        if before is not None:
            follows(template, before, answer, ideal(template, scenario, questions, n))
        messages = [*answer.chain, *questions[n + 1 : n + 2]]
        before = answer


def follows(template: str, before: Answer, after: Answer, tail: str) -> None:
    """A follow-up has an answer's own tokens, and what the template adds.

    Nothing before them changes, except that the template may drop thinking.
    """
    known, plan = before.generation.tokens, after.generation.plan.tokens
    vocab = Vocab(template)
    if after.facts["miss_reason"] != DROPPED:
        assert after.facts["miss_reason"] is None
        assert plan[: len(known)] == known
        assert spell(vocab, plan[len(known) :]) == tail
        assert after.facts["restored_tokens"] == len(known)
        return
    text = before.text.strip()
    own = [t for char in text for t in vocab.tokenize(char, special=False)]
    at = len(plan) - len(own)
    while at >= 0 and list(plan[at : at + len(own)]) != own:
        at -= 1
    assert at >= 0
    assert spell(vocab, plan[at + len(own) :]).lstrip() == tail.lstrip()
    assert 0 < after.facts["restored_tokens"] <= at


# -- histories without state ---------------------------------------------


def as_logged(reader: Reader) -> llm.Message:
    "The answer that was read, as llm logs it"
    parts: list[Any] = []
    for part in reader.parts:
        if part.kind == "text":
            parts.append(TextPart(text=part.text))
        elif part.kind == "reasoning":
            parts.append(ReasoningPart(text=part.text))
        else:
            call = part.call
            parts.append(ToolCallPart(call.name, call.arguments, call.id))
    return llm.Message(role="assistant", parts=parts)


def history(case: Case) -> tuple[str, str] | None:
    """The answer and what follows it: as rendered from the log, and the ideal one.

    The ideal one has what llama.cpp reads in the answer. None if the template refuses
    it, or if there is thinking and llama.cpp was not asked to separate it.
    """
    source = llamacpp.templates()[case.template]
    reader = read(case, ended_by=llamacpp.ending(case))
    if reader.reasoning and not case.separates:
        return None
    messages, ids = [USER, as_logged(reader)], [call.id for call in reader.calls]
    said, made = case.expected, []
    for n, (name, arguments) in enumerate(case.complete_calls):
        id = (ids + ["123456789"] * 9)[n]
        function = {"name": name, "arguments": Arguments(arguments)}
        made.append({"type": "function", "id": id, "function": function})
    answer: dict[str, Any] = {"role": "assistant", "content": said.content.strip()}
    if said.reasoning.strip():
        answer["reasoning_content"] = answer["thinking"] = said.reasoning.strip()
        if "== 'thinking'" in source:  # Mistral's later templates take it so
            thought = {"type": "thinking", "thinking": said.reasoning.strip()}
            shown = {"type": "text", "text": answer["content"]}
            answer["content"] = [thought, *([shown] if shown["text"] else [])]
    if made:
        answer["tool_calls"] = made
    chats = [_chat(USER), answer]
    results = []
    for call in made:
        name, id = call["function"]["name"], call["id"]
        results.append(ToolResultPart(name=name, output="42", tool_call_id=id))
        chats.append(
            {"role": "tool", "name": name, "content": "42", "tool_call_id": id}
        )
    if results:
        messages.append(llm.Message(role="tool", parts=results))
    messages.append(llm.user("Go on?"))
    chats.append({"role": "user", "content": "Go on?"})
    values: dict[str, Any] = {}
    if re.search(r"(?<![.\w])enable_thinking\b(?!=)", source):
        values["enable_thinking"] = case.thinks
    vocab = Vocab(case.template)
    chat, render = Chat(vocab, source), renderer(case.template)
    try:
        if made and not names_tools(render, case):
            chats = with_tools(chats, case.tools, chat._takes)
        ideal = render(
            chats,
            add_generation_prompt=True,
            eos_token=vocab.eos_text,
            **values,
            **({"tools": case.tools} if case.tools else {}),
        )
    except ChatError:
        return None
    rendering = Rendering(tools=tuple(case.tools), values=values)
    try:
        rendered = spell(vocab, chat.encode(messages, rendering))
    except ChatError as error:
        rendered = str(error)
    return rendered, ideal


def names_tools(render: Callable[..., str], case: Case) -> bool:
    "Whether the template lists the tools; some write only the calls"
    name = case.tools[0]["function"]["name"]
    return name in render([_chat(USER)], tools=case.tools, add_generation_prompt=True)


def compared() -> dict[str, bool]:
    "Cases with thinking or calls -> whether their history is the ideal one"
    found = {}
    for case in llamacpp.cases():
        counts = case.complete_calls or case.expected.reasoning
        if counts and not case.partial and not case.continues:
            texts = history(case)
            if texts is not None:
                found[case.name] = texts[0].removeprefix("<s>") == texts[
                    1
                ].removeprefix("<s>")
    return found


@pytest.mark.slow
def test_without_state_a_history_is_the_ideal_one():
    found = compared()
    assert len(found) >= 172
    wrong = [name for name, right in found.items() if not right]
    assert len(wrong) / len(found) <= 4 / 172, wrong
