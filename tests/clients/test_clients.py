"""Clients of other projects, unchanged, against a real server with a real model.

The programs beside this file hold what is asserted: calls of tools and structured
answers as each client asks for them by default, whole and streamed, and refusals as
the client's own exceptions. Run them with ``pytest -m clients tests/clients``.
"""

from __future__ import annotations

import json

import pytest

from ..support.servers import MODEL, Server
from .environments import HERE, Client, NotInstalledError, Running

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.model]

# The versions that were last tried: raise them together with the tests
CLIENTS = [
    Client("with_openai_agents.py", ("openai-agents==0.24.0",)),
    Client("with_pydantic_ai.py", ("pydantic-ai-slim[openai]==2.68.0",)),
    Client("with_instructor.py", ("instructor==1.17.0",)),
    Client("with_langchain.py", ("langchain-openai==1.7.4",)),
    Client("with_smolagents.py", ("smolagents[openai]==1.26.0",)),
    Client(
        "with_ai_sdk.mjs",
        (
            "ai@6.0.326",
            "@ai-sdk/openai@3.0.141",
            "@ai-sdk/openai-compatible@2.0.92",
            "zod@4.6.7",
        ),
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A server whose model is offered tools by its template, and draws greedily"
    home = tmp_path_factory.mktemp("clients")
    folder = home / "llm" / "kvbranch"
    folder.mkdir(parents=True)
    settings = {
        "chat_template": str(HERE / "tools.jinja"),
        "n_threads": 1,
        "temperature": 0,
        "max_tokens": 300,
    }
    (folder / "settings.json").write_text(json.dumps({"models": {MODEL: settings}}))
    with Server(home) as server:
        yield server
        server.end()


@pytest.fixture(scope="module")
def running(server, tmp_path_factory):
    "The program of a client, started on first use"
    started = {}
    env = {
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": server.token,
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }

    def start(client):
        if client not in started:
            started[client] = Running(client, tmp_path_factory.mktemp("home"), env)
        return started[client]

    yield start
    for each in started.values():
        each.close()


@pytest.mark.parametrize(
    ("client", "case"),
    [(client, case) for client in CLIENTS for case in client.cases()],
    ids=lambda value: value if isinstance(value, str) else value.path.stem,
)
def test_client(running, client, case):
    try:
        run = running(client)
    except NotInstalledError as error:
        pytest.skip(f"{client.requirements[0]} cannot be installed: {error}")
    run(case)
