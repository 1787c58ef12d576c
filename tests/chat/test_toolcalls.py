"""Tool calls are found in what models write, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.chat.toolcalls import ToolStream, parse

NAMES = {"get_weather", "now"}
WEATHER = ("get_weather", {"city": "Paris", "days": 2})
JSON = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}'

SAID = {
    "Hermes, Qwen 2.5 and 3": f"<tool_call>\n{JSON}\n</tool_call>",
    "the end tag left out": f"<tool_call>\n{JSON}",
    "Llama 3": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}',
    "Llama 3 with a tag": f"<|python_tag|>{JSON}",
    "Mistral": f"[TOOL_CALLS][{JSON}]",
    "Mistral, its tag a control token": f" [{JSON}]",
    "Mistral's newer ones": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}',
    "their tags control tokens": 'get_weather{"city": "Paris", "days": 2}',
    "LFM2": '[get_weather(city="Paris", days=2)]',
    "Qwen 3 coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n"
    "</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    "fenced": f"```json\n{JSON}\n```",
    "arguments as a string": '{"name": "get_weather", "arguments": '
    '"{\\"city\\": \\"Paris\\", \\"days\\": 2}"}',
    "OpenAI's form": f'[{{"type": "function", "function": {JSON}}}]',
}

NO_CALLS = [
    "The weather is fine.",
    '{"name": "Rex", "age": 3}',
    '{"name": "launch", "arguments": {}}',
    "[1, 2, 3]",
    "[launch(x=1)]",
    "get_weather is what I would call",
    '<tool_call>{"name": "launch", "arguments": {}}</tool_call>',
    "<tool_call>nonsense</tool_call>",
    "<tool_call>",
    "{",
    "```\ncode\n```",
    "[get_weather(__import__('os'))]",
    "now",
]


def read(pieces, names=NAMES):
    stream = ToolStream(names)
    given = [stream.feed(piece) for piece in pieces] + [stream.end()]
    assert "".join(given) == stream.text
    return stream, "".join(given)


class TestCalls:
    "Fails if a call is not found: the user would see it as text"

    @pytest.mark.parametrize("model", SAID)
    def test_every_way(self, model):
        (call,) = parse(SAID[model], NAMES)
        assert (call.name, call.arguments) == WEATHER
        assert call.id.startswith("call_")

    @pytest.mark.parametrize("model", SAID)
    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_in_pieces(self, model, size):
        text = SAID[model]
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        stream, given = read(pieces)
        assert not given.strip()
        assert [(call.name, call.arguments) for call in stream.calls] == [WEATHER]

    def test_several(self):
        text = (
            f'<tool_call>{JSON}</tool_call>\n<tool_call>{{"name": "now"}}</tool_call>'
        )
        first, second = parse(text, NAMES)
        assert (first.name, second.name) == ("get_weather", "now")
        assert second.arguments == {}
        assert first.id != second.id
        assert len(list(parse(f"{JSON}; {JSON}", NAMES))) == 2
        assert len(list(parse(f"[{JSON}, {JSON}]", NAMES))) == 2

    def test_after_text(self):
        stream, given = read(["Let me ", "see.\n\n<tool_", f"call>{JSON}</tool_call>"])
        assert given == stream.text == "Let me see."
        assert len(stream.calls) == 1


class TestText:
    "Fails if text is lost, held back for long, or taken for a call"

    @pytest.mark.parametrize("text", NO_CALLS)
    @pytest.mark.parametrize("size", [1, 4, 1000])
    def test_is_given_out_whole(self, text, size):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        stream, given = read(pieces)
        assert not stream.calls
        assert given == text

    def test_comes_at_once(self):
        stream = ToolStream(NAMES)
        assert stream.feed("The weather") == "The weather"
        assert stream.feed(" in <b>Paris</b>") == " in <b>Paris</b>"
        assert stream.feed(" is <tool") == " is"
        assert stream.feed("box") == " <toolbox"

    def test_without_tools(self):
        stream, given = read([SAID["Mistral"]], set())
        assert given == SAID["Mistral"]
        assert not stream.calls

    @given(st.lists(st.text(alphabet='<>{}[]()"=tol_calnw \n', max_size=9)))
    def test_whatever_it_is(self, pieces):
        stream, given = read(pieces)
        if not stream.calls:
            assert given == "".join(pieces)
