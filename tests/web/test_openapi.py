"""The OpenAPI document, and the real server checked against it by schemathesis."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llm_kvbranch.web.api.openapi import document
from llm_kvbranch.web.routes import ROUTES

from ..support.servers import PATIENCE, Server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]
INTERNAL = {  # for this project's own commands, and for datasette
    "/-/kvbranch/run",
    "/-/kvbranch/commit",
    "/-/kvbranch/tail",
    "/openapi.json",
}


class TestDocument:
    "Fails if the document is wrong about the API"

    def test_it_is_one(self):
        validate(document())

    def test_it_holds_what_is_served(self):
        served = {
            re.sub(r"\\(.)", r"\1", pattern).strip("^$"): view
            for pattern, view in ROUTES
        }
        described = document()["paths"]
        assert (
            set(described)
            == {path for path, view in served.items() if hasattr(view, "method")}
            - INTERNAL
        )
        for path, methods in described.items():
            assert set(methods) == {served[path].method.lower()}

    def test_every_name_in_it_says_something(self):
        "All references resolve, and every schema is used"
        whole = document()
        text = str(whole["paths"]) + str(whole["components"])
        used = set(re.findall(r"#/components/schemas/(\w+)", text))
        assert used == set(whole["components"]["schemas"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with Server(home, "--slots", "4", "--queue", "1000") as server:
        for _ in range(2):
            server.chat("Why is the sky blue?")
        yield server
        server.end()


def mend(case, real):
    """Make a case one whose answer takes no time.

    A ``real`` case is also about a response that exists, and its messages fit
    together, which no schema can express.
    """
    query, body = case.query or {}, case.body
    if real:
        for name in {"id", "root"} & query.keys():
            query[name] = ["last", "last"] if "compare" in case.path else "last"
    if not isinstance(body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None or _is_number(body[name]):
            body[name] = 2
    if _is_number(body.get("n")):
        body["n"] = min(body["n"], 2)
    if real:
        _make_real(case.path, body)


def _make_real(path, body):
    body.pop("grammar", None)
    for name in ("message_id", "id"):
        if isinstance(body.get(name), str):
            body[name] = "last"
    if path == "/-/kvbranch/prune":
        body["dry_run"] = True  # the other cases need the responses
    if path == "/focus":
        body["char_start"], body["char_end"] = 0, 1
    if path == "/v1/chat/branch":
        body["parent_id"] = "last"
        for name in ("parent_slot_id", "token_range", "char_range", "occurrence"):
            body.pop(name, None)
    if isinstance(body.get("messages"), list):
        for message in body["messages"]:
            if isinstance(message, dict) and message.get("role") == "tool":
                message["tool_call_id"] = "1"
        body["messages"].append({"role": "user", "content": "Hi"})


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.model
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
@pytest.mark.parametrize("n", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_the_server_does_as_the_document_says(server, operation, mode, n):
    "Valid or not, every request gets a documented status, content type and body"
    headers, statuses = {"authorization": f"Bearer {server.token}"}, Counter()
    asks = any(each.is_required for each in operation.query)

    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    @settings(
        max_examples=n if operation.body or asks else 4,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # shrinking a failure takes minutes
        suppress_health_check=list(HealthCheck),
    )
    def check(case, real):
        mend(case, real)
        response = case.call(base_url=server.url, headers=headers, timeout=PATIENCE)
        case.validate_response(response, checks=CHECKS)
        statuses[response.status_code] += 1

    check()
    assert statuses[200] or mode is GenerationMode.NEGATIVE, statuses
    assert statuses[400] or mode is GenerationMode.POSITIVE or not operation.body
    server.until_idle()
