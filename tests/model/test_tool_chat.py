"""``llm chat -T`` over ten turns, with the templates of models that call tools.

The idea: a toy says what its template makes of an ideal conversation, a few characters
a token, and ``llm chat`` runs the tools that it calls. Another rendering of the
template states what each prompt must be, and how much of it was read or said before.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

from ..support import synth
from .talks import FAMILIES, OURS, SYSTEM, Family, Talk, add, ran, weather

ANOTHER = 5  # turns, after which another process goes on


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


def chat(
    family: Family, questions: list[str], *arguments: str
) -> tuple[list[str], str]:
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
    "Prompts are the template's, and what one has already is not read again"
    history, ids = logged()
    fresh = sum(talk.counts[:ANOTHER])
    before: list[str] = []
    for n, (each, id) in enumerate(zip(talk.rounds, ids, strict=True)):
        facts, prompt = history.facts(id), model.texts(model.prompts[n])
        text, known = "".join(prompt), "".join(before)
        if talk.family.moves and before:
            # What was read stays; what follows is the template's
            assert text.startswith(known)
            assert each.prompt.endswith(text.removeprefix(known))
            n_kept = len(before)
        else:
            assert text == each.prompt
            n_kept = _n_inside(before, text)
        assert facts["prompt_tokens"] == len(prompt)
        assert facts["restored_tokens"] == n_kept
        assert facts["resident_tokens"] == (0 if n == fresh else n_kept)
        assert facts["miss_reason"] == (None if n_kept == len(before) else DROPPED)
        if n and not talk.rounds[n - 1].answer.calls:
            own = model.answers[n - 1][-6:-1]  # not as the vocabulary would read them
            assert own.tobytes() in model.prompts[n].tobytes()
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
