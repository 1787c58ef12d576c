"""The page's JSON, as the OpenAPI document describes it.

This module does not know how any of it is found.
"""

from __future__ import annotations

from typing import Any

from .parts import BOOLEAN, NUMBER, TEXT, array_of, get, maybe, object_of, query

_LOG = query("db", "The database with the log, if there are several", TEXT)
_ID = query("id", "A response or thread id, a prefix of one, or last", TEXT, True)


def page_paths() -> dict[str, Any]:
    "Read-only addresses, for whoever may see the log"
    words = query(
        "q", "Words; the last one may be a prefix, quotes match a phrase", TEXT
    )
    root = query("root", "Search only this response's tree", TEXT)
    several = query(
        "id", "Responses", {**array_of(TEXT), "minItems": 2, "maxItems": 4}, True
    )
    what = query("what", "A conversation or a whole tree", {"enum": ["path", "tree"]})
    kind = query("as", "Format", {"enum": ["markdown", "json"]})
    export = get("A conversation or a tree as a file", TEXT, [_ID, what, kind, _LOG])
    export["responses"]["200"]["content"] = {
        "text/markdown": {"schema": TEXT},
        "application/json": {"schema": {"type": "object"}},
    }
    return {
        "/-/kvbranch/tree.json": get("A whole tree", _tree(), [_ID, _LOG]),
        "/-/kvbranch/path.json": get("A conversation", _path(), [_ID, _LOG]),
        "/-/kvbranch/search.json": get("Search", _found(), [words, root, _LOG]),
        "/-/kvbranch/compare.json": get(
            "Answers compared", _columns(), [several, _LOG]
        ),
        "/-/kvbranch/export": export,
    }


def _state() -> dict[str, Any]:
    return {
        "state": {"enum": ["hot", "disk", "evicted", "none"]},
        "why": maybe(TEXT),
        "nbytes": maybe(NUMBER),
        "slot": maybe(NUMBER),
        "starred": BOOLEAN,
        "note": maybe(TEXT),
    }


def _tree() -> dict[str, Any]:
    node = object_of(
        id=TEXT,
        parent=maybe(TEXT),
        thread=TEXT,
        model=TEXT,
        prompt=TEXT,
        start=TEXT,
        tokens=object_of(input=maybe(NUMBER), output=maybe(NUMBER)),
        verb=maybe(TEXT),
        mode=maybe(TEXT),
        excerpt=maybe(TEXT),
        created=maybe(TEXT),
        ms=maybe(NUMBER),
        **_state(),
    )
    return object_of(root=TEXT, current=maybe(TEXT), nodes=array_of(node))


def _path() -> dict[str, Any]:
    child = object_of(
        id=TEXT,
        verb=maybe(TEXT),
        mode=maybe(TEXT),
        start=maybe(NUMBER),
        end=maybe(NUMBER),
        question=TEXT,
        starred=BOOLEAN,
    )
    turn = object_of(
        id=TEXT,
        model=TEXT,
        created=maybe(TEXT),
        system=maybe(TEXT),
        prompt=TEXT,
        question=TEXT,
        quoted=maybe(TEXT),
        text=TEXT,
        cut=maybe(NUMBER),
        apart=BOOLEAN,
        facts={"type": "object"},
        calls=array_of({"type": "object"}),
        children=array_of(child),
        **_state(),
    )
    return object_of(id=TEXT, turns=array_of(turn))


def _found() -> dict[str, Any]:
    hit = {**array_of(NUMBER), "minItems": 2, "maxItems": 2}
    result = object_of(
        id=TEXT,
        root=TEXT,
        prompt=TEXT,
        snippet=TEXT,
        hits=array_of(hit),
        created=maybe(TEXT),
        model=TEXT,
    )
    return object_of(results=array_of(result))


def _columns() -> dict[str, Any]:
    piece = object_of(sign={"enum": [" ", "+"]}, text=TEXT)
    column = object_of(id=TEXT, question=TEXT, model=TEXT, pieces=array_of(piece))
    return object_of(shared=NUMBER, last_shared=maybe(TEXT), columns=array_of(column))
