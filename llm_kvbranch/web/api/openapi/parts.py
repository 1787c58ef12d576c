"""The building blocks of OpenAPI descriptions.

This module does not know which addresses there are.
"""

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
    "The responses that refuse a request, by status"
    about = {
        400: "Invalid request",
        401: "Wrong token",
        403: "No token, or a cross-site request",
        404: "No such response",
        409: "A running answer continues from there",
        405: "Method not allowed",
        413: "Body too large",
        415: "The body is not JSON",
        429: "Too many requests are waiting: see Retry-After",
        503: "The server is shutting down, or no model is served",
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
    about: str, model: Any, result: str, content: dict[str, Any], *statuses: int
) -> dict[str, Any]:
    """An operation whose body is a schema's JSON, and the content of its response.

    ``statuses`` are those it may be refused with beside the usual ones.
    """
    body = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {
        "summary": about,
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {"description": result, "content": content},
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
    "A schema of a simple type, or null"
    return {**schema, "type": [schema["type"], "null"]}


def query(
    name: str, about: str, schema: dict[str, Any], required: bool = False
) -> dict[str, Any]:
    "A query parameter"
    return {
        "name": name,
        "in": "query",
        "required": required,
        "schema": schema,
        "description": about,
    }
