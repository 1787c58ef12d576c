"""instructor: Mode.TOOLS, its default, and others."""

from collections.abc import Iterable
from typing import Literal

import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel

PARIS = [{"role": "user", "content": "Paris is the capital of France."}]


class City(BaseModel):
    city: str
    country: str


class Sentiment(BaseModel):
    label: Literal["good", "bad"]


def _client(mode=instructor.Mode.TOOLS):
    return instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)


def _ask(client, model=City, messages=PARIS, **more):
    return client.chat.completions.create(
        model="kvllama", response_model=model, messages=messages, max_retries=1, **more
    )


def tools():
    city, completion = _client().chat.completions.create_with_completion(
        model="kvllama", response_model=City, messages=PARIS, max_retries=1
    )
    assert isinstance(city, City)
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.name == "City"
    assert completion.choices[0].finish_reason in ("tool_calls", "stop")


def tools_strict():
    assert isinstance(_ask(_client(instructor.Mode.TOOLS_STRICT)), City)


def choice_of_labels():
    assert _ask(_client(), Sentiment).label in ("good", "bad")


def partial():
    found = _client().chat.completions.create_partial(
        model="kvllama", response_model=City, messages=PARIS
    )
    seen = list(found)
    assert seen
    assert seen[-1].city
    assert seen[-1].country


def iterable():
    # A model this small repeats a city without end, unless that is penalised
    found = _ask(_client(), Iterable[City], stream=False, frequency_penalty=1)
    found = list(found)
    assert found
    assert all(isinstance(city, City) for city in found)


def json_schema():
    assert isinstance(_ask(_client(instructor.Mode.JSON_SCHEMA)), City)


def refusal_of_an_unknown_tool():
    choice = {"type": "function", "function": {"name": "get_news"}}
    try:
        _client().chat.completions.create(
            model="kvllama",
            response_model=None,
            messages=PARIS,
            max_retries=1,
            tools=[{"type": "function", "function": {"name": "get_weather"}}],
            tool_choice=choice,
        )
    except (openai.BadRequestError, InstructorRetryException) as error:
        assert "get_news" in str(error)
    else:
        raise AssertionError("not refused")
