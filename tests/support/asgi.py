"""Requests to an ASGI application, without a server."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import unquote

HOST = ("host", "127.0.0.1:8177")
JSON = ("content-type", "application/json")
TOKEN = "a-token-of-the-tests"
BEARER = ("authorization", f"Bearer {TOKEN}")


class Answer:
    "The messages that an ASGI app sent, as a response"

    def __init__(self, messages):
        start, *rest = messages
        self.status = start["status"]
        self.headers = {
            bytes(name).decode().lower(): bytes(value).decode()
            for name, value in start["headers"]
        }
        names = [bytes(name).lower() for name, _ in start["headers"]]
        assert {each for each in names if names.count(each) > 1} <= {b"set-cookie"}
        self.body = b"".join(each.get("body", b"") for each in rest)

    @property
    def error(self):
        "The error, in OpenAI's format and nothing else"
        body = json.loads(self.body)
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]


def scope_of(method, path, headers, **more):
    raw, _, query = path.partition("?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [
            (name.encode(), value.encode("latin-1")) for name, value in headers
        ],
        **more,
    }


async def send_to(
    application, method, path, *headers, body=(b"",), leaves=False, **more
):
    """Send one request, its body in pieces, and return the response.

    A client that ``leaves`` does so after its body.
    """
    pieces = [
        {"type": "http.request", "body": piece, "more_body": i < len(body) - 1}
        for i, piece in enumerate(body)
    ]
    sent = []

    async def receive():
        if pieces:
            return pieces.pop(0)
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await application(scope_of(method, path, headers, **more), receive, send)
    return Answer(sent) if sent else None


def cookie(datasette, actor):
    return ("cookie", f"ds_actor={datasette.sign({'a': actor}, 'actor')}")


class Reply:
    "A response with httpx's names"

    def __init__(self, answer):
        self.status_code = answer.status
        self.headers = answer.headers
        self.content = answer.body

    @property
    def text(self):
        return self.content.decode("utf-8")

    def json(self):
        return json.loads(self.content)


class Client:
    "A browser logged in as an actor, or a program with a token"

    def __init__(self, datasette, actor=None):
        self.app = datasette.app()
        self.who = []
        if isinstance(actor, str):
            self.who = [("authorization", f"Bearer {actor}")]
        elif actor is not None:
            self.who = [cookie(datasette, actor)]

    async def get(self, path, method="GET"):
        return Reply(await send_to(self.app, method, path, HOST, *self.who))

    async def post(self, path, body):
        # On datasette 0.65 a cookie needs a CSRF token, or a bearer token beside it
        who = [*self.who]
        if not any(name == "authorization" for name, _ in who):
            who.append(("authorization", "Bearer x"))
        data = json.dumps(body).encode()
        return Reply(
            await send_to(self.app, "POST", path, HOST, JSON, *who, body=(data,))
        )


async def started(datasette):
    await datasette.invoke_startup()
    return datasette


def plugged():
    "Have datasette load this plugin"
    from datasette.plugins import pm

    from llm_kvbranch import web

    if not any(plugin is web for plugin in pm.get_plugins()):
        pm.register(web, name="llm_kvbranch")
