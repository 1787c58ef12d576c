"""Branching: new answers after, inside of or instead of a logged one.

The idea: an endpoint says where to branch, by response, excerpt, characters, tokens
or slot; a branch is planned by reading the log, and answered like any other prompt.

This module does not know how a branch is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import HistoryError
from ...log import Branch, Forest, History, Node, Place, branching
from ..door import GENERATE
from ..errors import RequestError
from . import schemas
from .chat import answer
from .endpoint import Call, view
from .status import response_in_slot

Result = TypeVar("Result")


@view("POST", GENERATE, schemas.BranchRequest)
async def branch(call: Call) -> Any:
    "Continue a response in a new thread, cut after an excerpt if one is given"
    body, named = call.body, await _parent(call)
    parent_id = await call.read(lambda h: h.resolve(named))
    place = Place(
        body.text_excerpt, body.occurrence, await _characters(call, parent_id)
    )
    if body.branch_mode != "fresh":
        return await _respond(
            call, lambda h: branching.branch(h, parent_id, body.prompt, place)
        )
    n = body.context_window
    tail = await _tail(call, parent_id, place, n) if n else ""
    return await _respond(
        call,
        lambda h: branching.fresh(h, parent_id, body.prompt, place, n, lambda *_: tail),
    )


@view("POST", GENERATE, schemas.FocusRequest)
async def focus(call: Call) -> Any:
    "Ask about a part of an answer, in a new thread that keeps the whole answer"
    body = call.body
    place = Place(range=(body.char_start, body.char_end))
    return await _respond(
        call, lambda h: branching.focus(h, body.message_id, body.followup, place)
    )


@view("POST", GENERATE, schemas.ContinueRequest)
async def continue_(call: Call) -> Any:
    "A new turn after a response"
    body = call.body
    return await _respond(
        call, lambda h: branching.continue_(h, body.message_id, body.prompt)
    )


@view("POST", GENERATE, schemas.RetryRequest)
async def retry(call: Call) -> Any:
    "Answer the same prompt again"
    return await _respond(call, lambda h: branching.retry(h, call.body.message_id))


@view("GET")
async def tree(call: Call) -> Any:
    "The tree that a response is in, or the newest trees"
    args = call.request.args
    reference = args.get("id")
    n = args.get("n") or "10"
    if not (n.isdecimal() and 1 <= int(n) <= 100):
        raise RequestError(400, "n: must be a number from 1 to 100", "n")

    def read(history: History) -> Any:
        forest = Forest(history)
        if reference:
            roots = [forest.tree(history.resolve(reference, threads=True))]
        else:
            roots = forest.recent(int(n))
        return {"trees": [_describe(root) for root in roots]}

    return await call.read_json(read, "ask for fewer trees")


def _describe(root: Node) -> dict[str, Any]:
    "A tree as a flat list of nodes, so that a deep one needs no deep recursion"
    nodes = [
        {
            "id": node.id,
            "thread_id": node.thread_id,
            "model": node.model,
            "prompt": node.prompt,
            "input_tokens": node.input_tokens,
            "output_tokens": node.output_tokens,
            "verb": node.verb,
            "mode": node.mode,
            "excerpt": node.excerpt,
            "parent_id": node.parent.id if node.parent else None,
        }
        for node in root.walk()
    ]
    return {"root": root.id, "nodes": nodes}


async def _respond(call: Call, plan: Callable[[History], Branch]) -> Any:
    "Answer a branch, which ``plan`` makes from the log"
    branch = await call.read(plan)
    system = getattr(call.body, "system", None)
    return await answer(call, branch=branch, system=system)


async def _parent(call: Call) -> str:
    "The response to branch from, by its id or by the slot that holds it"
    body = call.body
    if (body.parent_id is None) == (body.parent_slot_id is None):
        raise RequestError(400, "Give parent_id or parent_slot_id", "parent_id")
    if body.parent_id is not None:
        return str(body.parent_id)
    found = await response_in_slot(call.server, body.parent_slot_id)
    if found is None:
        raise RequestError(
            404,
            f"Slot {body.parent_slot_id} holds no logged response",
            "parent_slot_id",
        )
    return found


async def _characters(call: Call, parent_id: str) -> tuple[int, int] | None:
    "The character range that was given, as characters or as tokens"
    body = call.body
    given = [body.text_excerpt, body.char_range, body.token_range]
    if sum(each is not None for each in given) > 1:
        raise HistoryError("Give one of text_excerpt, char_range and token_range")
    if body.char_range is not None:
        start, end = body.char_range
        return start, end
    if body.token_range is None:
        return None
    text = await call.read(lambda h: h.response(parent_id).text)
    found = call.server.host.place(text, *body.token_range)
    start, end = await asyncio.wrap_future(found)
    if start >= end:
        raise HistoryError("token_range: the answer has no such tokens")
    return start, end


async def _tail(call: Call, parent_id: str, place: Place, n: int) -> str:
    "The last n tokens before the end of a place in an answer"

    def before(history: History) -> str:
        parent = history.response(parent_id)
        spot = place.find(parent)
        return spot.text[: spot.end] if spot else parent.text

    text = await call.read(before)
    return await asyncio.wrap_future(call.server.host.tail(text, n))
