"""The API as an OpenAPI 3.1 document, made from the models that validate requests.

This module does not know how requests are answered.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from .. import schemas
from ..endpoint import Call, json_response, view
from .page_paths import page_paths
from .parts import (
    BOOLEAN,
    ERROR,
    NUMBER,
    TEXT,
    array_of,
    get,
    maybe,
    object_of,
    post,
)

_CHAT = "A chat completion: JSON, or server-sent events if stream is true"


def document() -> dict[str, Any]:
    "The document, which describes everything but the internal protocol"
    posts = {
        "/v1/chat/completions": ("Answer messages", schemas.ChatRequest),
        "/v1/chat/branch": ("Branch from a point in an answer", schemas.BranchRequest),
        "/generate": ("Start a conversation", schemas.GenerateRequest),
        "/continue": ("Continue after a response", schemas.ContinueRequest),
        "/focus": ("Ask about a part of an answer", schemas.FocusRequest),
        "/retry": ("Answer the same prompt again", schemas.RetryRequest),
    }
    changes = {
        "/-/kvbranch/mark": (
            "Star a response or write a note",
            schemas.MarkRequest,
            _mark(),
        ),
        "/-/kvbranch/prune": (
            "Delete a response and everything after it",
            schemas.PruneRequest,
            _prune(),
        ),
    }
    models: list[Any] = [each[1] for each in (*posts.values(), *changes.values())]
    _, defined = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {
        path: {"post": _post(about, model)} for path, (about, model) in posts.items()
    }
    for path, (about, model, result) in changes.items():
        paths[path] = {"post": _change(about, model, result)}
    paths["/v1/models"] = {"get": get("The served model", _list())}
    paths["/branch/tree"] = {"get": get("Trees of responses", _trees(), _TREE)}
    paths["/-/kvbranch/slots"] = {"get": get("What each slot holds", _slots())}
    paths |= {path: {"get": described} for path, described in page_paths().items()}
    paths["/metrics"] = {"get": get("Prometheus metrics", TEXT, kind="text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm-kvbranch",
            "version": "1",
            "description": "OpenAI's chat API, with branching",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {**defined["$defs"], "Error": ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


_EVENT = {  # for streams, clients apply the schema to each event
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "A chat.completion.chunk as JSON; [DONE] at the end",
        }
    },
}
_TREE = [
    {"name": "id", "in": "query", "schema": TEXT, "description": "A response id"},
    {
        "name": "n",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100},
        "description": "How many trees, if no id is given",
    },
]


def _post(about: str, model: Any) -> dict[str, Any]:
    content = {
        "application/json": {"schema": _completion()},
        "text/event-stream": {"schema": _EVENT},
    }
    return post(about, model, _CHAT, content, 429)


def _change(about: str, model: Any, result: dict[str, Any]) -> dict[str, Any]:
    return post(about, model, about, {"application/json": {"schema": result}}, 409)


def _mark() -> dict[str, Any]:
    return object_of(id=TEXT, starred=BOOLEAN, note=maybe(TEXT))


def _prune() -> dict[str, Any]:
    return object_of(
        responses=NUMBER,
        states=NUMBER,
        nbytes=NUMBER,
        nbytes_text=TEXT,
        kept=array_of(TEXT),
    )


def _completion() -> dict[str, Any]:
    message = object_of(role={"const": "assistant"}, content=TEXT)
    choice = object_of(
        index=NUMBER,
        message=message,
        finish_reason={"enum": ["stop", "length", "tool_calls"]},
        response_id=TEXT,
    )
    return object_of(
        id=TEXT,
        object={"const": "chat.completion"},
        created=NUMBER,
        model=TEXT,
        choices=array_of(choice),
        usage=object_of(
            prompt_tokens=NUMBER, completion_tokens=NUMBER, total_tokens=NUMBER
        ),
    )


def _list() -> dict[str, Any]:
    model = object_of(id=TEXT, object={"const": "model"}, owned_by=TEXT)
    return object_of(object={"const": "list"}, data=array_of(model))


def _trees() -> dict[str, Any]:
    node = object_of(id=TEXT, thread_id=TEXT, model=TEXT, prompt=TEXT)
    return object_of(trees=array_of(object_of(root=TEXT, nodes=array_of(node))))


def _slots() -> dict[str, Any]:
    slot = object_of(id=NUMBER, state=TEXT, n_tokens=NUMBER, n_shared=NUMBER)
    return object_of(slots=array_of(slot), n_cells=NUMBER, n_used=NUMBER)


@view("GET")
async def openapi_json(call: Call) -> Any:
    "This API as an OpenAPI document"
    return json_response(document())
