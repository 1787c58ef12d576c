"""What OpenAPI descriptions are put together from."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def refused(*statuses: int) -> dict[str, Any]:
    about = {
        400: "The request makes no sense",
        401: "Another token",
        403: "No token, or a page of another site asked",
        404: "No such response",
        409: "An answer that goes on from there is on its way",
        405: "Another method",
        413: "The body is too large",
        415: "The body is no JSON",
        429: "Too many are waiting: see Retry-After",
        503: "The server is shutting down, or serves no model",
    }
    schema = {"$ref": "#/components/schemas/Error"}
    content = {"application/json": {"schema": schema}}
    return {str(s): {"description": about[s], "content": content} for s in statuses}


def get(
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
            **refused(400, 401, 403, 404, 405, 503),
        },
    }


def post(
    about: str, model: Any, told: str, content: dict[str, Any], *statuses: int
) -> dict[str, Any]:
    """What takes a schema's JSON, and tells something of some types.

    ``statuses`` are what it may be refused with beside the usual.
    """
    asked = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {
        "summary": about,
        "requestBody": {"required": True, "content": {"application/json": asked}},
        "responses": {
            "200": {"description": told, "content": content},
            **refused(*sorted((400, 401, 403, 404, 405, 413, 415, 503, *statuses))),
        },
    }


def object_of(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }


def array_of(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def maybe(schema: dict[str, Any]) -> dict[str, Any]:
    "A value of a simple type, or null"
    return {**schema, "type": [schema["type"], "null"]}


def query(
    name: str, about: str, schema: dict[str, Any], required: bool = False
) -> dict[str, Any]:
    "A parameter of an address"
    return {
        "name": name,
        "in": "query",
        "required": required,
        "schema": schema,
        "description": about,
    }
