"""``tool_choice`` and ``parallel_tool_calls`` of a server with Qwen 3's template."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from ..support import walks
from ..support.servers import MODEL, Server, user

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("tools")
    folder = home / "llm" / "kvbranch"
    folder.mkdir(parents=True)
    template = Path(walks.__file__).parent / "templates" / "qwen3.jinja"
    settings = {"models": {MODEL: {"chat_template": str(template), "n_threads": 1}}}
    (folder / "settings.json").write_text(json.dumps(settings))
    with Server(home) as server:
        yield server
        server.end()


@pytest.fixture
def talk(server):
    def talk(prompt, **more):
        given = {"model": "kvllama", "temperature": 0, "max_tokens": 16, **more}
        with server.openai() as client:
            reply = client.chat.completions.create(messages=[user(prompt)], **given)
            return list(reply) if more.get("stream") else reply

    return talk


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}


def test_a_named_function_is_called_once(talk):
    named = {"type": "function", "function": {"name": "get_weather"}}
    reply = talk("Hi", tools=[WEATHER, TIME], tool_choice=named, max_tokens=200)
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("C", "F")


def test_a_required_call_streams(talk):
    chunks = talk(
        "Hi",
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        max_tokens=200,
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["get_weather"]
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(("parallel", "n_calls"), [(None, 2), (True, 2), (False, 1)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_its_own_choice(talk, parallel, n_calls, stream):
    "It wants to call twice; without parallel calls it ends after the first"
    call = (
        '<tool_call>\\n{\\"name\\": \\"get_time\\", \\"arguments\\": {}}\\n</tool_call>'
    )
    more = {} if parallel is None else {"parallel_tool_calls": parallel}
    reply = talk(
        "What time is it?",
        tools=[TIME],
        max_tokens=200,
        stream=stream,
        extra_body={"grammar": f'root ::= "{call}\\n{call}"'},
        **more,
    )
    if stream:
        choices = [choice for chunk in reply for choice in chunk.choices]
        calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    else:
        choices = reply.choices
        calls = choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_time"] * n_calls
    assert len({call.id for call in calls}) == n_calls
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tool_choice": "required"}, "needs tools"),
        (
            {
                "tools": [TIME],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "other",
        ),
        ({"tools": [TIME], "tool_choice": "required", "regex": "a"}, "regex"),
    ],
)
def test_a_tool_choice_that_cannot_be_is_refused(talk, body, words):
    given = dict(body)
    extra = {"regex": given.pop("regex")} if "regex" in given else {}
    with pytest.raises(openai.BadRequestError) as raised:
        talk("Hi", **given, extra_body=extra)
    assert words in raised.value.body["message"]
    assert "\n" not in raised.value.body["message"]
