"""Tools: called, answered, logged, and continued from.

The real model, with the template of one that was taught to call tools, and a grammar
that makes it do so: SmolLM2-135M would not by itself.
"""

from __future__ import annotations

import json

import llm
import pytest
import sqlite_utils
from llm.migrations import migrate

from llm_kvbranch import model as model_module
from llm_kvbranch.errors import ChatError
from llm_kvbranch.log.history import History
from llm_kvbranch.models import catalog

from ..support.servers import MODEL, Server

pytestmark = pytest.mark.model

TEMPLATE = """
{%- if tools -%}
  {{- "<|im_start|>system\nCall these by JSON in <tool_call></tool_call>:" -}}
  {%- for tool in tools %}{{ "\n" ~ (tool | tojson) }}{% endfor -%}
  {{- "<|im_end|>\n" -}}
{%- endif -%}
{%- for turn in messages -%}
  {%- if turn.role == "tool" -%}
    {{- "<|im_start|>user\n<tool_response>\n" ~ turn.content ~ "\n</tool_response>" -}}
    {{- "<|im_end|>\n" -}}
  {%- else -%}
    {{- "<|im_start|>" ~ turn.role ~ "\n" ~ turn.content -}}
    {%- for call in turn.tool_calls or [] -%}
      {{- "\n" if turn.content }}{{ "<tool_call>\n" ~ (call.function | tojson) -}}
      {{- "\n</tool_call>" -}}
    {%- endfor -%}
    {{- "<|im_end|>\n" -}}
  {%- endif -%}
{%- endfor -%}
{{- "<|im_start|>assistant\n" if add_generation_prompt -}}
"""
CALL = r"""root ::= text "<tool_call>\n{\"name\": \"weather\", \"arguments\": """ + (
    r"""{\"city\": \"" city "\"}}\n</tool_call>"
text ::= "" | "I will look.\n"
city ::= [A-Z] [a-z]{2,8}"""
)
GREEDY = {"temperature": 0, "max_tokens": 40}


def weather(city: str) -> str:
    "The weather in a city"
    return f"It rains in {city}, and it will for days."


@pytest.fixture
def taught(user_path, monkeypatch):
    "kvllama with that template; a function that forgets what is in memory"
    monkeypatch.setattr(model_module, "_sessions", {})
    template = user_path / "tools.jinja"
    template.write_text(TEMPLATE)
    catalog.put_setting(catalog.model(), "chat_template", str(template))

    def later():
        model_module._sessions.clear()
        return llm.get_model("kvllama")

    return later


@pytest.fixture
def db(user_path):
    db = sqlite_utils.Database(user_path / "logs.db")
    migrate(db)
    return db


def piece_of():
    (session,) = model_module._sessions.values()
    return session.engine.weights.piece


def tokens_of_last():
    "All tokens of the conversation in memory"
    (session,) = model_module._sessions.values()
    return max((slot.tokens for slot in session.slots.all()), key=len)


class TestCalling:
    "Guards against calls shown as text, logged differently, or read again"

    def test_it_is_a_call(self, taught, db):
        response = taught().prompt(
            "How is the weather?", tools=[weather], grammar=CALL, **GREEDY
        )
        assert "tool_call" not in response.text()
        (call,) = response.tool_calls()
        assert call.name == "weather"
        assert call.arguments["city"].istitle()
        response.log_to_db(db)
        facts = response.response_json["kvbranch"]
        assert facts["finish_reason"] == "tool_calls"
        assert facts["miss_reason"] is None

    def test_its_result_is_read_and_nothing_else(self, taught, db):
        conversation = taught().conversation(tools=[weather])
        first = conversation.prompt("How is the weather?", grammar=CALL, **GREEDY)
        first.text()
        first.log_to_db(db)
        conversation.model = taught()
        second = conversation.prompt(
            tool_results=first.execute_tool_calls(), temperature=0, max_tokens=12
        )
        second.text()
        second.log_to_db(db)
        facts = [r.response_json["kvbranch"] for r in (first, second)]
        assert facts[1]["miss_reason"] is None
        assert facts[1]["restored_tokens"] == facts[0]["state_end"]
        assert facts[1]["resident_tokens"] == 0
        assert facts[1]["prefilled_tokens"] < 60
        said = b"".join(map(piece_of(), tokens_of_last()))
        assert said.count(b"<tool_call>") == 2  # with the one in the instructions
        assert b"It rains in" in said


class TestServed:
    "Guards against calls that OpenAI clients do not understand, whole or streamed"

    TOOL = {  # noqa: RUF012
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }

    @pytest.fixture
    def server(self, tmp_path):
        home = tmp_path / "home"
        folder = home / "llm" / "kvbranch"
        folder.mkdir(parents=True)
        (folder / "tools.jinja").write_text(TEMPLATE)
        template = {"chat_template": str(folder / "tools.jinja"), "n_threads": 1}
        settings = {"models": {MODEL: template}}
        (folder / "settings.json").write_text(json.dumps(settings))
        with Server(home) as server:
            yield server
            server.end()

    @pytest.mark.parametrize("stream", [False, True])
    def test_call_and_result(self, server, stream):
        messages = [{"role": "user", "content": "How is the weather?"}]
        with server.openai() as client:

            def ask(**more):
                options = {"model": "kvllama", "tools": [self.TOOL], **GREEDY, **more}
                return client.chat.completions.create(messages=messages, **options)

            grammar = {"extra_body": {"grammar": CALL}}
            if stream:
                choices = [c for x in ask(stream=True, **grammar) for c in x.choices]
                (reason,) = [c.finish_reason for c in choices if c.finish_reason]
                content = "".join(c.delta.content or "" for c in choices)
                (call,) = [t for c in choices for t in c.delta.tool_calls or ()]
            else:
                choice = ask(**grammar).choices[0]
                reason, content = choice.finish_reason, choice.message.content
                (call,) = choice.message.tool_calls
            assert reason == "tool_calls"
            assert "tool_call" not in (content or "")
            assert call.function.name == "weather"
            assert json.loads(call.function.arguments)["city"].istitle()
            said = {"id": call.id, "type": "function", "function": call.function}
            messages += [
                {"role": "assistant", "content": content, "tool_calls": [said]},
                {"role": "tool", "tool_call_id": call.id, "content": "It rains"},
            ]
            after = ask()
        history = History(sqlite_utils.Database(server.home / "logs.db"))
        turns = list(history.db["turns"].rows_where(order_by="id"))
        first, second = (history.facts(turn["id"]) for turn in turns)
        cached = after.usage.prompt_tokens_details.cached_tokens
        assert cached == first["state_end"]
        assert second["miss_reason"] is None
        assert turns[0]["thread_id"] == turns[1]["thread_id"]


class TestRefusal:
    "Guards against offering tools to a model whose template has none"

    def test_a_template_without_tools(self, user_path, monkeypatch):
        monkeypatch.setattr(model_module, "_sessions", {})
        response = llm.get_model("kvllama").prompt("Hi", tools=[weather])
        with pytest.raises(ChatError, match="does not support tools"):
            response.text()
