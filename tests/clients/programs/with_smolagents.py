"""smolagents: its ToolCallingAgent always requires a call."""

import os

from smolagents import OpenAIModel, ToolCallingAgent, tool
from smolagents.memory import ActionStep

MODEL = OpenAIModel(
    model_id="kvllama",
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
)


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The name of the city
    """
    return f"It rains in {city}."


def _steps(agent):
    return [step for step in agent.memory.steps if isinstance(step, ActionStep)]


def tool_calling_agent():
    agent = ToolCallingAgent(tools=[get_weather], model=MODEL, max_steps=3)
    agent.run("How is the weather in Paris?")
    steps = _steps(agent)
    assert steps
    assert all(step.tool_calls for step in steps if step.step_number <= 3)
    assert not [step.error for step in steps if step.error and step.step_number <= 3]


def tool_calling_agent_streamed():
    agent = ToolCallingAgent(
        tools=[get_weather], model=MODEL, max_steps=2, stream_outputs=True
    )
    agent.run("How is the weather in Paris?")
    steps = _steps(agent)
    assert steps
    assert not [step.error for step in steps if step.error and step.step_number <= 2]
