"""The JSON behind the page: trees, conversations, search results, exports.

The idea: an endpoint checks its arguments and reads the log; ``page_data`` describes
what it found.

This module does not know how a log is read.
"""

from __future__ import annotations

import functools
from typing import Any

from ...log import Forest, History, Node, Turn, read_more_turns, transcript
from ...log import search as log_search
from ..api import Call, view
from ..errors import RequestError
from .page_data import (
    describe_columns,
    describe_found,
    describe_path,
    describe_tree,
    slots_of,
)

_MOST = 4  # answers side by side
_EXPORTED = 500  # turns that an export reads at once
FEWER_WORDS = "search for fewer or rarer words"
TOO_LARGE = "this tree is too large for it"


@view("GET")
async def tree(call: Call) -> Any:
    "The whole tree that a response is in"
    slots, reference = await slots_of(call.log.server), _reference(call)
    return await call.read_json(lambda h: describe_tree(h, reference, slots), TOO_LARGE)


@view("GET")
async def path(call: Call) -> Any:
    "The conversation from the root of a tree to a response"
    slots, reference = await slots_of(call.log.server), _reference(call)
    return await call.read_json(lambda h: describe_path(h, reference, slots), TOO_LARGE)


@view("GET")
async def search(call: Call) -> Any:
    "Responses that contain some words, in the log or in one tree"
    args = call.request.args
    words, root = checked_words(args.get("q") or ""), args.get("root")

    def read(history: History) -> Any:
        forest = Forest(history, 0)
        among = None
        if root:
            top = forest.tree(history.resolve(root, threads=True))
            among = [node.id for node in top.walk()]
        found = log_search.search_responses(history.db, words, among)
        forest.ancestry.load(each.id for each in found)
        return {"results": [describe_found(each, forest) for each in found]}

    return await call.read_json(read, FEWER_WORDS)


@view("GET")
async def compare(call: Call) -> Any:
    "Answers side by side"
    references = call.request.args.getlist("id")
    if not 2 <= len(references) <= _MOST:
        raise RequestError(400, f"id: give 2 to {_MOST} responses", "id")
    return await call.read_json(lambda h: describe_columns(h, references))


@view("GET")
async def export(call: Call) -> Any:
    """A conversation or a tree as a file.

    The time limit is for each part of it, as it is for each page of datasette's CSV.
    Nothing is sent before all is read, so that no file is incomplete.
    """
    from datasette.utils.asgi import Response

    reference = _reference(call)
    what = _choice(call, "what", "path", ("path", "tree"))
    kind = _choice(call, "as", "markdown", tuple(transcript.FORMATS))

    def find(history: History) -> tuple[list[Node], str]:
        id = history.resolve(reference, threads=True)
        root = Forest(history).tree(id)
        node = _find(root, id) if what == "path" else root
        nodes = node.path() if what == "path" else list(root.walk())
        return nodes, transcript.file_name(node, what, kind)

    nodes, name = await call.read(find, TOO_LARGE)
    turns: dict[str, Turn] = {}
    for start in range(0, len(nodes), _EXPORTED):
        await call.read(
            functools.partial(
                read_more_turns, nodes=nodes[start : start + _EXPORTED], turns=turns
            ),
            TOO_LARGE,
        )
    write = transcript.path_of_turns if what == "path" else transcript.tree_of_turns
    text = await call.read(lambda _: write(list(turns.values()), kind), TOO_LARGE)
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


def checked_words(words: str) -> str:
    "The words of a search; raises RequestError if there are too many"
    n = log_search.count_words(words)
    if n > log_search.MAX_WORDS:
        raise RequestError(
            400,
            f"q: search for at most {log_search.MAX_WORDS} different words, not {n}",
            "q",
        )
    return words


def _find(root: Node, id: str) -> Node:
    return next(node for node in root.walk() if node.id == id)


def _reference(call: Call) -> str:
    "The response that the request names"
    value = call.request.args.get("id")
    if not value:
        raise RequestError(400, "id: is missing", "id")
    return str(value)


def _choice(call: Call, name: str, usual: str, choices: tuple[str, ...]) -> str:
    value = str(call.request.args.get(name) or usual)
    if value not in choices:
        raise RequestError(400, f"{name}: must be one of {', '.join(choices)}", name)
    return value
