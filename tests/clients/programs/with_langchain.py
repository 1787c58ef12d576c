"""LangChain's ChatOpenAI."""

from functools import reduce
from operator import add

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

MODEL = ChatOpenAI(model="kvllama", max_retries=0, stream_usage=True)
PARIS = "How is the weather in Paris, the capital of France?"


class City(BaseModel):
    "A city"

    city: str
    country: str


@tool
def get_weather(city: str) -> str:
    "The weather in a city"
    return f"It rains in {city}."


@tool
def get_time(zone: str) -> str:
    "The time in a time zone"
    return "Noon."


def _refused(name, function):
    try:
        function()
    except openai.BadRequestError as error:
        assert name in error.body["message"], error.body
        assert "\n" not in error.body["message"]
        assert error.body["type"] == "invalid_request_error"
    else:
        raise AssertionError("not refused")


def tool_of_its_own_choice():
    messages = [HumanMessage("How is the weather in Paris?")]
    bound = MODEL.bind_tools([get_weather])
    messages.append(bound.invoke(messages))
    (call,) = messages[-1].tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    messages.append(get_weather.invoke(call))
    answer = reduce(add, bound.stream(messages))
    assert "It rains" in answer.text
    assert not answer.tool_calls
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0


def any_tool():
    answer = MODEL.bind_tools([get_weather, get_time], tool_choice="any").invoke(PARIS)
    assert answer.tool_calls
    assert not answer.invalid_tool_calls
    assert {call["name"] for call in answer.tool_calls} <= {"get_weather", "get_time"}


def named_tool():
    bound = MODEL.bind_tools([get_weather, get_time], tool_choice="get_time")
    answer = bound.invoke(PARIS)
    assert {call["name"] for call in answer.tool_calls} == {"get_time"}
    assert all(isinstance(call["args"]["zone"], str) for call in answer.tool_calls)


def one_call():
    bound = MODEL.bind_tools(
        [get_weather], tool_choice="any", parallel_tool_calls=False
    )
    (call,) = bound.invoke(
        "How is the weather in Paris, in Rome and in Oslo?"
    ).tool_calls
    assert call["name"] == "get_weather"


def streamed_tool():
    bound = MODEL.bind_tools([get_weather], tool_choice="any")
    answer = reduce(add, bound.stream(PARIS))
    assert answer.tool_calls
    assert not answer.invalid_tool_calls
    assert answer.tool_calls[0]["args"]["city"]


def result_of_a_tool():
    messages = [HumanMessage(PARIS)]
    bound = MODEL.bind_tools([get_weather], tool_choice="any")
    messages.append(bound.invoke(messages))
    for call in messages[-1].tool_calls:
        messages.append(ToolMessage("It rains.", tool_call_id=call["id"]))
    answer = MODEL.bind_tools([get_weather], tool_choice="none").invoke(messages)
    assert answer.text
    assert not answer.tool_calls
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0


def structured_by_function_calling():
    structured = MODEL.with_structured_output(City, method="function_calling")
    assert isinstance(structured.invoke(PARIS), City)


def structured_by_json_schema():
    structured = MODEL.with_structured_output(City, method="json_schema")
    assert isinstance(structured.invoke(PARIS), City)


def structured_strictly():
    structured = MODEL.with_structured_output(
        City, method="function_calling", strict=True, include_raw=True
    )
    found = structured.invoke(PARIS)
    assert isinstance(found["parsed"], City)
    assert found["parsing_error"] is None


def structured_stream():
    structured = MODEL.with_structured_output(City, method="function_calling")
    *_, last = structured.stream(PARIS)
    assert isinstance(last, City)


def refusal_of_an_unknown_tool():
    choice = {"type": "function", "function": {"name": "get_news"}}
    bound = MODEL.bind_tools([get_weather]).bind(tool_choice=choice)
    _refused("get_news", lambda: bound.invoke(PARIS))
    _refused("get_news", lambda: list(bound.stream(PARIS)))


def refusal_of_a_choice_without_tools():
    _refused("tools", lambda: MODEL.invoke(PARIS, tool_choice="required"))


def refusal_of_a_schema():
    schema = {"title": "City", "type": "object", "properties": {"city": {"type": 5}}}
    structured = MODEL.with_structured_output(schema, method="json_schema")
    _refused("type 5", lambda: structured.invoke(PARIS))


def refusal_of_a_schema_of_a_tool():
    bad = {"type": "function", "function": {"name": "get_news"}}
    bad["function"]["parameters"] = {"type": "object", "properties": {"a": {"type": 5}}}
    bound = MODEL.bind_tools([bad], tool_choice="any")
    _refused("get_news", lambda: bound.invoke(PARIS))
