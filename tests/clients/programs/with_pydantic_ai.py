"""pydantic-ai: by default, an output type is a tool that must be called."""

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    ModelHTTPError,
    NativeOutput,
    ToolCallPart,
    UsageLimits,
)
from pydantic_ai.models.openai import OpenAIChatModel

MODEL = OpenAIChatModel("kvllama")
LIMITS = UsageLimits(request_limit=6)


class City(BaseModel):
    city: str
    country: str


class Number(BaseModel):
    number: int


def _calls(result):
    return [
        part.tool_name
        for message in result.all_messages()
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]


def _give_weather(agent):
    "Give an agent a tool; returns the list of cities that it will be called for"
    called = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        "The weather in a city"
        called.append(city)
        return "It rains."

    return called


async def text():
    result = await Agent(MODEL).run("Name a city.")
    assert result.output


async def output_type():
    agent = Agent(MODEL, output_type=City)
    result = await agent.run("Paris is the capital of France.")
    assert isinstance(result.output, City)
    assert _calls(result) == ["final_result"]
    assert result.usage.output_tokens > 0


async def output_type_streamed():
    agent = Agent(MODEL, output_type=City)
    async with agent.run_stream("Paris is the capital of France.") as result:
        seen = [output async for output in result.stream_output(debounce_by=None)]
        output = await result.get_output()
    assert seen
    assert isinstance(output, City)


async def several_output_types():
    agent = Agent(MODEL, output_type=[City, Number])
    result = await agent.run("Paris is the capital of France.")
    assert isinstance(result.output, City | Number)


async def literal_output_type():
    agent = Agent(MODEL, output_type=Literal["red", "green"])
    result = await agent.run("Which colour has grass?")
    assert result.output in ("red", "green")


async def native_output():
    agent = Agent(MODEL, output_type=NativeOutput(City))
    result = await agent.run("Paris is the capital of France.")
    assert isinstance(result.output, City)


async def tool_then_output_type():
    agent = Agent(MODEL, output_type=City)
    called = _give_weather(agent)
    result = await agent.run("How is the weather in Paris?", usage_limits=LIMITS)
    assert isinstance(result.output, City)
    assert called
    assert _calls(result)[-1] == "final_result"


async def tool_then_text():
    agent = Agent(MODEL)
    called = _give_weather(agent)
    result = await agent.run("How is the weather in Paris?", usage_limits=LIMITS)
    assert called
    assert result.output


async def refusal_of_a_schema():
    agent = Agent(MODEL, output_type=NativeOutput(City))
    bad = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "nothing"}},
    }
    try:
        await agent.run("Hi", model_settings={"extra_body": {"response_format": bad}})
    except ModelHTTPError as error:
        assert error.status_code == 400
        assert error.body["type"] == "invalid_request_error"
        assert "\n" not in error.body["message"]
    else:
        raise AssertionError("not refused")
