"""A client that gives up too soon, and asks again: it gets its answer in the end."""

from __future__ import annotations

import json

import pytest

from ..support.servers import MODEL
from ..support.serving import Serving

pytestmark = pytest.mark.model

SECONDS = 0.7  # until it gives up: less than 512 tokens take
TRIES = 40
LINES = " ".join(f"Line {i} of a long text." for i in range(70))


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    "A server that computes in one thread, so that prompts take their time"
    home = tmp_path_factory.mktemp("home")
    directory = home / "llm" / "kvbranch"
    directory.mkdir(parents=True, mode=0o700)
    settings = {"models": {MODEL: {"n_threads": 1}}}
    (directory / "settings.json").write_text(json.dumps(settings))
    with Serving(home, "--port", "0", "--no-log") as serving:
        yield serving


def ask(serving, seconds):
    "The answer, None if it takes longer"
    connection = serving.connection(timeout=seconds)
    body = {
        "messages": [{"role": "user", "content": LINES}],
        "temperature": 0,
        "max_tokens": 1,
    }
    headers = {
        "authorization": f"Bearer {serving.token}",
        "content-type": "application/json",
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())
    except TimeoutError:
        return None
    finally:
        connection.close()


def test_it_arrives(serving):
    "Fails if a prompt is read from the start again, or not at all, at each try"
    n_tries, answer = 0, None
    while answer is None and n_tries < TRIES:
        answer, n_tries = ask(serving, SECONDS), n_tries + 1
    assert answer is not None
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 600
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2
    assert n_tries > 2
