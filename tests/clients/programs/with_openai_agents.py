"""openai-agents with its chat completions model."""

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
)
from pydantic import BaseModel

MODEL = OpenAIChatCompletionsModel("kvllama", openai.AsyncOpenAI(max_retries=0))
CALLED = []


class City(BaseModel):
    city: str


@function_tool
def get_weather(city: str) -> str:
    "The weather in a city"
    CALLED.append(city)
    return "It rains."


@function_tool
def get_time(zone: str) -> str:
    "The time in a time zone"
    CALLED.append(zone)
    return "Noon."


def _agent(tools=(get_weather,), output_type=None, **settings):
    CALLED.clear()
    return Agent(
        name="Assistant",
        model=MODEL,
        tools=list(tools),
        output_type=output_type,
        model_settings=ModelSettings(**settings),
    )


def _calls(result):
    return [i.raw_item.name for i in result.new_items if i.type == "tool_call_item"]


async def tool_of_its_own_choice():
    result = await Runner.run(_agent(), "How is the weather in Paris?")
    assert _calls(result) == ["get_weather"]
    assert CALLED == ["Paris"]
    assert "It rains" in result.final_output


async def tool_of_its_own_choice_streamed():
    result = Runner.run_streamed(_agent(), "How is the weather in Paris?")
    async for _ in result.stream_events():
        pass
    assert _calls(result) == ["get_weather"]
    assert "It rains" in result.final_output


async def tool_required():
    agent = _agent(tool_choice="required")
    result = await Runner.run(agent, "How is the weather in Paris?")
    assert _calls(result)[0] == "get_weather"
    assert CALLED
    assert all(isinstance(city, str) for city in CALLED)
    assert result.final_output


async def tool_named():
    agent = _agent([get_weather, get_time], tool_choice="get_time")
    result = await Runner.run(agent, "How is the weather in Paris?")
    assert _calls(result)[0] == "get_time"


async def tool_streamed():
    agent = _agent(tool_choice="required")
    result = Runner.run_streamed(agent, "How is the weather in Paris?")
    text = ""
    async for event in result.stream_events():
        data = getattr(event, "data", None)
        if getattr(data, "type", None) == "response.output_text.delta":
            text += data.delta
    assert _calls(result)[0] == "get_weather"
    assert result.final_output
    assert text.endswith(result.final_output)


async def one_call_at_a_time():
    agent = _agent(tool_choice="required", parallel_tool_calls=False)
    agent.tool_use_behavior = "stop_on_first_tool"
    result = await Runner.run(agent, "How is the weather in Paris and in Rome?")
    assert _calls(result) == ["get_weather"]
    assert result.final_output == "It rains."


async def output_type():
    result = await Runner.run(_agent([], City), "Which city is France's capital?")
    assert isinstance(result.final_output, City)


async def output_type_after_a_tool():
    agent = _agent([get_weather], City, tool_choice="required")
    result = await Runner.run(agent, "How is the weather in Paris?")
    assert _calls(result)[0] == "get_weather"
    assert isinstance(result.final_output, City)


async def refusal_of_an_unknown_tool():
    try:
        await Runner.run(_agent(tool_choice="get_news"), "How is the weather?")
    except openai.BadRequestError as error:
        assert "get_news" in error.body["message"]
        assert error.body["type"] == "invalid_request_error"
        assert "\n" not in error.body["message"]
    else:
        raise AssertionError("not refused")
