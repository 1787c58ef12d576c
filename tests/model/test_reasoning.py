"""Thinking, text and calls, from the tokens to llm's log, its commands and a server.

A toy with a scripted answer and the template of Qwen 3.
"""

from __future__ import annotations

import contextlib
import json

import llm
import pytest
import sqlite_utils
from click.testing import CliRunner
from llm import cli as llm_cli
from llm.migrations import migrate

from llm_kvbranch import model as model_module
from llm_kvbranch.models import catalog
from llm_kvbranch.store import Store

from ..support import scripted
from ..support.servers import Server

THOUGHT = "<think>\nShall I look?\n</think>\n\n"
RAIN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SUN = RAIN.replace("Rome", "Oslo")
OPTIONS = ("-o", "temperature", "0", "-o", "n_threads", "1")
# What the model writes -> the kinds of parts that it is logged as
ANSWERS = {
    "text": ("It rains.", ["text"]),
    "thinking and text": (f"{THOUGHT}It rains.", ["reasoning", "text"]),
    "only thinking": ("<think>\nShall I look?\n</think>\n\n", ["reasoning"]),
    "a call": (RAIN, ["tool_call"]),
    "thinking and a call": (f"{THOUGHT}{RAIN}", ["reasoning", "tool_call"]),
    "text around a call": (
        f"{THOUGHT}I look.\n{RAIN}\nThere it rains.",
        ["reasoning", "text", "tool_call", "text"],
    ),
    "two calls": (f"{RAIN}\n{SUN}", ["tool_call", "tool_call"]),
    "nothing": ("", []),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return scripted.write(tmp_path_factory.mktemp("toy") / "scripted.gguf")


@pytest.fixture
def db(user_path):
    db = sqlite_utils.Database(user_path / "logs.db")
    migrate(db)
    return db


@pytest.fixture
def says(user_path, monkeypatch, toy, no_fsync):
    "Sets what kvllama says"
    monkeypatch.setattr(model_module, "_sessions", {})
    monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(toy))
    catalog.put_setting(catalog.model(), "chat_template", str(scripted.template()))

    def say(text="", **answers):
        scripted.say(monkeypatch, answers or {"": text})

    return say


ran = []


def weather(city: str) -> str:
    "The weather in a city"
    ran.append(city)
    return f"It rains in {city}."


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


def ask(question="How is the weather?", **more):
    model = llm.get_model("kvllama")
    options = {"temperature": 0, "n_threads": 1, **more}
    return model.prompt(question, tools=[weather], **options)


def facts(response):
    return response.response_json["kvbranch"]


class TestLogged:
    "Fails if a state is not found again by the hash that llm logs its answer under"

    @pytest.mark.parametrize("name", ANSWERS)
    def test_hashes(self, says, db, user_path, name):
        text, kinds = ANSWERS[name]
        says(text)
        response = ask()
        response.text()
        response.log_to_db(db)
        (turn,) = db["turns"].rows
        with contextlib.closing(Store(user_path / "kvbranch")) as store:
            (entry,) = store.entries()
        assert entry.state.tip_hash == turn["tip_message_hash"]
        logged = [row["type"] for row in db.query(_PARTS, [turn["tip_message_hash"]])]
        assert logged == kinds or (not kinds and not logged[1:])

    async def test_the_async_model_says_the_same(self, says):
        text, _ = ANSWERS["text around a call"]
        says(text)
        model = llm.get_async_model("kvllama")
        asked = model.prompt("Hi", tools=[weather], temperature=0, n_threads=1)
        parts = (await asked.messages())[0].parts
        expected = ask("Hi").messages()[0].parts
        assert [type(part) for part in parts] == [type(part) for part in expected]
        assert parts[0] == expected[0]
        assert parts[1] == expected[1]
        assert [call.arguments for call in await asked.tool_calls()] == [
            {"city": "Rome"}
        ]

    def test_thinking_is_no_text(self, says):
        says(f"{THOUGHT}It rains.")
        response = ask()
        assert response.text() == "It rains."
        reasoning, text = response.messages()[0].parts
        assert (reasoning.text, text.text) == ("Shall I look?", "It rains.")
        assert (
            facts(response)["thinking_tokens"]
            == response.token_details["reasoning_tokens"]
        )
        assert 3 < facts(response)["thinking_tokens"] < 12


_PARTS = "select type from parts where message_hash = ? order by position"


class TestRun:
    "Fails if a tool is run that the model did not, for certain, want to run"

    def run(self, **options):
        model = llm.get_model("kvllama")
        chain = model.conversation(tools=[weather]).chain(
            "How is the weather?", options={"temperature": 0, "n_threads": 1, **options}
        )
        text = chain.text()
        return text, [facts(each)["finish_reason"] for each in chain._responses]

    def test_whole_calls(self, says):
        says(weather=f"{THOUGHT}{RAIN}\n{SUN}", rains="Take an umbrella.")
        text, reasons = self.run()
        assert ran == ["Rome", "Oslo"]
        assert text == "Take an umbrella."
        assert reasons == ["tool_calls", "stop"]

    def test_thought_of(self, says):
        says(f"<think>\nI could {RAIN} but\n</think>\n\nIt is sunny.")
        assert self.run() == ("It is sunny.", ["stop"])
        assert ran == []

    def test_cut_at_any_token(self, says):
        "Also after a complete call"
        says(f"{THOUGHT}{RAIN}\n{SUN}")
        response = ask()
        response.text()
        n = facts(response)["generated_tokens"]
        for n_tokens in range(1, n):
            _, reasons = self.run(max_tokens=n_tokens)
            assert reasons == ["length"]
        assert ran == []

    def test_a_stop_string_counts_in_the_answer_only(self, says):
        says("<think>\nIt rains\n</think>\n\nYes, it rains today.")
        response = ask(stop="rains")
        assert response.text() == "Yes, it "
        assert response.messages()[0].parts[0].text == "It rains"

    def test_a_stop_string_after_a_call(self, says):
        says(f"{RAIN}\nThere it rains.")
        _, reasons = self.run(stop="There")
        assert (reasons, ran) == (["stop"], [])


class TestBudget:
    "Fails if thinking goes on, ends without its mark, or the answer does not follow"

    @pytest.mark.parametrize("budget", [0, 1, 5])
    def test_it_is_closed(self, says, budget):
        says(f"<think>\n{'Hm, well. ' * 30}")
        response = ask(thinking_budget=budget, max_tokens=budget + 20)
        text = response.text()
        found = facts(response)
        assert found["thinking_cut"] is True
        assert budget <= found["thinking_tokens"] < budget + 8
        assert text
        thought = [p for p in response.messages()[0].parts if hasattr(p, "redacted")]
        assert len("".join(p.text for p in thought)) <= 6 * (budget + 1)
        (session,) = model_module._sessions.values()
        tokens = max((slot.tokens for slot in session.slots.all()), key=len)
        assert list(tokens).count(6) == 1  # </think>, the token

    def test_thinking_within_it(self, says):
        says(f"{THOUGHT}It rains.")
        response = ask(thinking_budget=50)
        assert response.text() == "It rains."
        assert facts(response)["thinking_cut"] is None


class TestSchema:
    "Fails if thinking has to be JSON, or the answer after it need not be"

    @pytest.mark.parametrize("name", ["deepseek-r1", "qwen3"])
    def test_it_holds_where_the_answer_begins(self, says, name):
        "One prompt opens the thinking, after the other the answer begins at once"
        template = str(scripted.template(name))
        catalog.put_setting(catalog.model(), "chat_template", template)
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
        schema |= {"required": ["ok"], "additionalProperties": False}
        response = llm.get_model("kvllama").prompt(
            "Is it?",
            schema=schema,
            temperature=0,
            n_threads=1,
            thinking_budget=8,
            max_tokens=60,
        )
        assert json.loads(response.text())["ok"] in (True, False)
        kinds = [part.to_dict()["type"] for part in response.messages()[0].parts]
        assert kinds == ["reasoning"] * (name == "deepseek-r1") + ["text"]
        assert facts(response)["thinking_cut"] == (name == "deepseek-r1" or None)


def command(*arguments, fails=0, **more):
    result = CliRunner().invoke(llm_cli.cli, [*arguments], **more)
    assert result.exit_code == fails, result.output
    return result


class TestCommands:
    "Fails if thinking is mixed with the answer, or cannot be hidden or seen again"

    def test_prompt_and_logs(self, says, db):
        says(f"{THOUGHT}It rains.")
        shown = command("Hi", "-m", "kvllama", *OPTIONS)
        assert shown.stdout == "It rains.\n"
        assert "Shall I look?" in shown.stderr
        hidden = command("Hi", "-m", "kvllama", "-R", *OPTIONS)
        assert (hidden.stdout, hidden.stderr) == ("It rains.\n", "")
        assert "Shall I look?" in command("logs", "-n", "1").stdout
        (row,) = json.loads(command("logs", "-n", "1", "--json").stdout)
        assert row["response"] == "It rains."
        assert "Shall I look?" in json.dumps(row)

    def test_ours(self, says, db):
        says(f"{THOUGHT}It rains.")
        command("Hi", "-m", "kvllama", *OPTIONS)
        shown = command("kvbranch", "continue", "last", "And?")
        assert shown.stdout == "It rains.\n"
        assert shown.stderr.endswith("Shall I look?\n")
        hidden = command("kvbranch", "retry", "last", "-R")
        assert (hidden.stdout, hidden.stderr) == ("It rains.\n", "")
        told = json.loads(command("kvbranch", "retry", "last", "--json").stdout)
        assert told["reasoning"] == "Shall I look?"
        assert told["text"] == "It rains."
        assert told["thinking_tokens"] > 3
        exported = command("kvbranch", "tree", "last").stdout
        assert "Shall I look?" not in exported

    def test_chat(self, says, db, tmp_path):
        tool = tmp_path / "tool.py"
        tool.write_text('def weather(city: str) -> str:\n    return "It is wet."\n')
        says(How=f"{THOUGHT}{RAIN}", wet=f"{THOUGHT}Umbrella!", Thanks="Welcome.")
        done = command(
            *("chat", "-m", "kvllama", "--functions", str(tool), *OPTIONS, "-R"),
            input="How is the weather?\nThanks\nexit\n",
        )
        assert "Umbrella!" in done.stdout
        assert "Welcome." in done.stdout
        assert "Shall I" not in done.output
        reasons = [
            json.loads(row["response_json"])["kvbranch"]["finish_reason"]
            for row in db["turns"].rows_where(order_by="rowid")
        ]
        assert reasons == ["tool_calls", "stop", "stop"]


class TestServed:
    "Fails if a client of the server sees something else than a command without one"

    TOOL = {  # noqa: RUF012
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
            },
        },
    }

    @pytest.fixture
    def server(self, tmp_path, monkeypatch, toy):
        home = tmp_path / "home"
        (home / "llm").mkdir(parents=True)
        with monkeypatch.context() as there:
            there.setenv("LLM_USER_PATH", str(home / "llm"))
            there.setenv("LLM_KVBRANCH_MODEL", str(toy))
            catalog.put_setting(catalog.model(), "n_threads", 1)
            template = str(scripted.template())
            catalog.put_setting(catalog.model(), "chat_template", template)
        answer = f"{THOUGHT}I look.\n{RAIN}\n{SUN}"
        scripted.say(monkeypatch, {"weather": answer, "wet": f"{THOUGHT}Umbrella!"})
        scripted.in_processes(monkeypatch, tmp_path)
        with Server(home, LLM_KVBRANCH_MODEL=str(toy)) as server:
            yield server
            server.end()

    def test_all(self, server, monkeypatch, toy):
        question = "How is the weather?"
        options = {"tools": [self.TOOL], "max_tokens": 200}
        whole = server.chat(question, **options)
        message = whole.choice["message"]
        assert message["reasoning_content"] == "Shall I look?"
        assert message["content"] == "I look."
        called = [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]]
        assert called == [{"city": "Rome"}, {"city": "Oslo"}]
        assert whole.choice["finish_reason"] == "tool_calls"
        usage = whole.json["usage"]["completion_tokens_details"]
        assert usage["reasoning_tokens"] == whole.facts["thinking_tokens"] > 3

        with server.streaming(question, **options) as events:
            choices = [c for e in events if e for c in e["choices"]]
        deltas = [choice["delta"] for choice in choices]
        for name in ("reasoning_content", "content"):
            said = "".join(delta.get(name) or "" for delta in deltas)
            assert said == message[name]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert [call["index"] for call in calls] == [0, 1]
        assert [call["function"] for call in calls] == [
            call["function"] for call in message["tool_calls"]
        ]
        # A call comes when it is complete, not with the end
        first = next(i for i, delta in enumerate(deltas) if "tool_calls" in delta)
        assert choices[first]["finish_reason"] is None
        assert "tool_calls" in deltas[first + 1] or first + 2 < len(deltas)

        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "It is wet"}
            for call in message["tool_calls"]
        ]
        after = server.chat(
            [{"role": "user", "content": question}, message, *results], **options
        )
        assert after.choice["message"]["reasoning_content"] == "Shall I look?"
        assert after.text == "Umbrella!"
        assert after.facts["miss_reason"] is None
        assert after.cached >= whole.json["usage"]["prompt_tokens"]

        # Another process of the same user
        monkeypatch.setattr(model_module, "_sessions", {})
        monkeypatch.setenv("LLM_USER_PATH", str(server.home))
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(toy))
        response = ask()
        kinds = [part.to_dict()["type"] for part in response.messages()[0].parts]
        assert kinds == ["reasoning", "text", "tool_call", "tool_call"]
        assert len(response.tool_calls()) == 2
        assert facts(response)["served"]
        assert not model_module._sessions
