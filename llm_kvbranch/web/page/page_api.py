"""The JSON that the page is made of: trees, conversations, what was found in them.

This module holds what each address gives; how a log is read is in log.
"""

from __future__ import annotations

from typing import Any

from ...log import Forest, History, Node, transcript
from ...log import search as log_search
from ..api.endpoint import json_response
from ..api.openai import RequestError
from ..serving.log import Log, reading
from .page_data import (
    describe_columns,
    describe_found,
    describe_path,
    describe_tree,
    slots_of,
)

_MOST = 4  # answers beside each other


@reading
async def tree(log: Log, request: Any) -> Any:
    "The whole tree that a response is in"
    hot, wanted = slots_of(log.server), _wanted(request)
    return json_response(await log.read(lambda h: describe_tree(h, wanted, hot)))


@reading
async def path(log: Log, request: Any) -> Any:
    "Everything that was said from the first response of a tree to one of them"
    hot, wanted = slots_of(log.server), _wanted(request)
    return json_response(await log.read(lambda h: describe_path(h, wanted, hot)))


@reading
async def search(log: Log, request: Any) -> Any:
    "Responses that some words are in, of the log or of one tree"
    words, root = request.args.get("q") or "", request.args.get("root")

    def read(history: History) -> Any:
        forest = Forest(history, 0)
        among = None
        if root:
            top = forest.tree(history.resolve(root, threads=True))
            among = [node.id for node in top.walk()]
        found = log_search.search_responses(history.db, words, among)
        forest.ancestry.load(each.id for each in found)
        return {"results": [describe_found(each, forest) for each in found]}

    return json_response(await log.read(read))


@reading
async def compare(log: Log, request: Any) -> Any:
    "Answers beside each other"
    wanted = request.args.getlist("id")
    if not 2 <= len(wanted) <= _MOST:
        raise RequestError(400, f"id: give 2 to {_MOST} responses", "id")
    return json_response(await log.read(lambda h: describe_columns(h, wanted)))


@reading
async def export(log: Log, request: Any) -> Any:
    "A conversation or a tree as a file"
    from datasette.utils.asgi import Response

    wanted = _wanted(request)
    what = _choice(request, "what", "path", ("path", "tree"))
    kind = _choice(request, "as", "markdown", tuple(transcript.FORMATS))

    def read(history: History) -> tuple[str, str]:
        id = history.resolve(wanted, threads=True)
        forest = Forest(history)
        root = forest.tree(id)
        node = _find(root, id) if what == "path" else root
        write = transcript.path_text if what == "path" else transcript.tree_text
        text = write(history, node, kind)
        return text, transcript.file_name(node, what, kind)

    text, name = await log.read(read)
    media = "application/json" if kind == "json" else "text/markdown"
    return Response(
        text.encode("utf-8", "replace"),
        headers={
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        },
        content_type=f"{media}; charset=utf-8",
    )


def _find(root: Node, id: str) -> Node:
    return next(node for node in root.walk() if node.id == id)


def _wanted(request: Any) -> str:
    "The response that is asked for"
    value = request.args.get("id")
    if not value:
        raise RequestError(400, "id: is missing", "id")
    return str(value)


def _choice(request: Any, name: str, usual: str, choices: tuple[str, ...]) -> str:
    value = str(request.args.get(name) or usual)
    if value not in choices:
        raise RequestError(400, f"{name}: is one of {', '.join(choices)}", name)
    return value
