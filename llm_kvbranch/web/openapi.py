"""The API as an OpenAPI 3.1 document, made of what checks the requests."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from . import schemas

_CHAT = "A chat completion: JSON, or server-sent events where stream is true"
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}


def document() -> dict[str, Any]:
    "The document; it describes what clients may use, not what is internal"
    posts = {
        "/v1/chat/completions": ("Answer messages", schemas.ChatRequest),
        "/v1/chat/branch": ("Go on from a point in an answer", schemas.BranchRequest),
        "/generate": ("Begin a conversation", schemas.GenerateRequest),
        "/continue": ("A new turn after a response", schemas.ContinueRequest),
        "/focus": ("Ask about a part of an answer", schemas.FocusRequest),
        "/retry": ("The same prompt again", schemas.RetryRequest),
    }
    models: list[Any] = [model for _, model in posts.values()]
    _, defined = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {
        path: {"post": _post(about, model)} for path, (about, model) in posts.items()
    }
    paths["/v1/models"] = {"get": _get("The model that is served", _list())}
    paths["/branch/tree"] = {"get": _get("Trees of responses", _trees(), _TREE)}
    paths["/-/kvbranch/slots"] = {"get": _get("What each slot holds", _slots())}
    paths["/metrics"] = {"get": _get("Prometheus metrics", _TEXT, kind="text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm-kvbranch",
            "version": "1",
            "description": "The OpenAI chat API, and branching beside it",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {**defined["$defs"], "Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_EVENT = {  # as what reads such streams takes a schema: of each event
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "A chat.completion.chunk as JSON; [DONE] is the end",
        }
    },
}
_TREE = [
    {"name": "id", "in": "query", "schema": _TEXT, "description": "A response"},
    {
        "name": "n",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100},
        "description": "How many trees without an id",
    },
]


def _refused(*statuses: int) -> dict[str, Any]:
    about = {
        400: "The request makes no sense",
        401: "Another token",
        403: "No token, or a page of another site asked",
        404: "No such response",
        405: "Another method",
        413: "The body is too large",
        415: "The body is no JSON",
        429: "Too many are waiting: see Retry-After",
        503: "The server is shutting down, or serves no model",
    }
    schema = {"$ref": "#/components/schemas/Error"}
    content = {"application/json": {"schema": schema}}
    return {str(s): {"description": about[s], "content": content} for s in statuses}


def _post(about: str, model: Any) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "summary": about,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        },
        "responses": {
            "200": {
                "description": _CHAT,
                "content": {
                    "application/json": {"schema": _completion()},
                    "text/event-stream": {"schema": _EVENT},
                },
            },
            **_refused(400, 401, 403, 404, 405, 413, 415, 429, 503),
        },
    }


def _get(
    about: str,
    schema: dict[str, Any],
    parameters: list[Any] | None = None,
    kind: str = "application/json",
) -> dict[str, Any]:
    content = {kind: {"schema": schema}}
    return {
        "summary": about,
        "parameters": parameters or [],
        "responses": {
            "200": {"description": about, "content": content},
            **_refused(400, 401, 403, 404, 405, 503),
        },
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }


def _array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _completion() -> dict[str, Any]:
    message = _object(role={"const": "assistant"}, content=_TEXT)
    choice = _object(
        index=_NUMBER,
        message=message,
        finish_reason={"enum": ["stop", "length", "tool_calls"]},
        response_id=_TEXT,
    )
    return _object(
        id=_TEXT,
        object={"const": "chat.completion"},
        created=_NUMBER,
        model=_TEXT,
        choices=_array(choice),
        usage=_object(
            prompt_tokens=_NUMBER, completion_tokens=_NUMBER, total_tokens=_NUMBER
        ),
    )


def _list() -> dict[str, Any]:
    model = _object(id=_TEXT, object={"const": "model"}, owned_by=_TEXT)
    return _object(object={"const": "list"}, data=_array(model))


def _trees() -> dict[str, Any]:
    node = _object(id=_TEXT, thread_id=_TEXT, model=_TEXT, prompt=_TEXT)
    return _object(trees=_array(_object(root=_TEXT, nodes=_array(node))))


def _slots() -> dict[str, Any]:
    slot = _object(id=_NUMBER, state=_TEXT, n_tokens=_NUMBER, n_shared=_NUMBER)
    return _object(slots=_array(slot), n_cells=_NUMBER, n_used=_NUMBER)
