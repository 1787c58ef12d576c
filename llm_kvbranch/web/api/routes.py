"""The routes: the OpenAI chat API, branching beside it, and what is going on.

This module holds addresses and what each asks for; how it is answered is in views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlite_utils

from ...errors import HistoryError
from ...log import Branch, History, Place, branching
from ..page import page_api, page_changes, pages, static_files
from ..serving.answers import Asked
from ..serving.log import Log, reading
from . import internal, schemas
from .endpoint import Call, json_response, view
from .openai import RequestError, json_schema_of, messages_of, tools_of

READ, GENERATE = "kvbranch-read", "kvbranch-generate"


@view("POST", GENERATE, schemas.ChatRequest)
async def chat_completions(call: Call) -> Any:
    "Answer messages: the OpenAI chat API"
    body = call.body
    messages = messages_of(body)
    if messages[-1].role == "assistant":
        raise RequestError(
            400, "The last message is the assistant's: there is nothing to answer"
        )
    last = next((m for m in reversed(body.messages) if m.role == "user"), None)
    return await call.answer(
        _several(
            call,
            messages=messages,
            name=last.text() if last else None,
            tools=tools_of(body),
        )
    )


@view("POST", GENERATE, schemas.GenerateRequest)
async def generate(call: Call) -> Any:
    "Begin a conversation"
    import llm

    body = call.body
    messages = [llm.system(body.system)] if body.system else []
    messages.append(llm.user(body.prompt))
    return await call.answer(_several(call, messages=messages, name=body.prompt))


@view("POST", GENERATE, schemas.BranchRequest)
async def branch(call: Call) -> Any:
    "Go on from a response in a new thread, cut behind an excerpt if one is given"
    body = call.body
    named = _parent(call)
    scheduler, session = call.server.scheduler, call.server.session

    def plan(history: History) -> Branch:
        parent_id = history.resolve(named)
        characters = _characters(call, history, parent_id)
        place = Place(body.text_excerpt, body.occurrence, characters)
        if body.branch_mode == "fresh":
            return branching.fresh(
                history,
                parent_id,
                body.prompt,
                place,
                body.context_window,
                lambda _, text, n: scheduler.call(session.tail, text, n).result(),
            )
        return branching.branch(history, parent_id, body.prompt, place)

    return await call.answer(await _branches(call, plan))


@view("POST", GENERATE, schemas.FocusRequest)
async def focus(call: Call) -> Any:
    "Ask about a part of an answer, in a new thread that keeps all of it"
    body = call.body
    place = Place(range=(body.char_start, body.char_end))
    return await call.answer(
        await _branches(
            call,
            lambda h: branching.focus(h, body.message_id, body.followup, place),
        )
    )


@view("POST", GENERATE, schemas.ContinueRequest)
async def continue_(call: Call) -> Any:
    "A new turn after a response"
    body = call.body
    return await call.answer(
        await _branches(
            call, lambda h: branching.continue_(h, body.message_id, body.prompt)
        )
    )


@view("POST", GENERATE, schemas.RetryRequest)
async def retry(call: Call) -> Any:
    "The same prompt again"
    return await call.answer(
        await _branches(call, lambda h: branching.retry(h, call.body.message_id))
    )


@view("GET", READ)
async def models(call: Call) -> Any:
    "The model that is served"
    server = call.server
    model = {
        "id": server.model.model_id,
        "object": "model",
        "created": int(server.started),
        "owned_by": "llm-kvbranch",
        "name": server.session.name,
        "context_length": server.session.engine.n_ctx_train or None,
    }
    return json_response({"object": "list", "data": [model]})


@view("GET", READ)
async def slots(call: Call) -> Any:
    "What each slot holds"
    from .status import describe_slots

    return json_response(describe_slots(call.server))


@view("GET", READ)
async def metrics(call: Call) -> Any:
    "Counters and gauges, as Prometheus reads them"
    from datasette import Response

    from .status import metrics_text

    return Response(
        metrics_text(call.server),
        content_type="text/plain; version=0.0.4; charset=utf-8",
    )


@reading
async def tree(log: Log, request: Any) -> Any:
    "The tree that a response is in, or the newest trees"
    from ...log import Forest
    from .status import describe_node

    wanted = request.args.get("id")
    n = request.args.get("n") or "10"
    if not (n.isdecimal() and 1 <= int(n) <= 100):
        raise RequestError(400, "n: is a number from 1 to 100", "n")

    def read(history: History) -> Any:
        forest = Forest(history)
        if wanted:
            roots = [forest.tree(history.resolve(wanted, threads=True))]
        else:
            roots = forest.recent(int(n))
        return {"trees": [describe_node(root) for root in roots]}

    return json_response(await log.read(read))


@reading
async def openapi(log: Log, request: Any) -> Any:
    "This API as an OpenAPI document"
    from .openapi import document

    return json_response(document())


def _several(call: Call, **asked: Any) -> list[Asked]:
    "As many answers as are wanted, each with a seed of its own"
    options, body = call.body.options(), call.body
    wanted = []
    for nth in range(body.n or 1):
        chosen = dict(options)
        if "seed" in chosen:
            chosen["seed"] = (chosen["seed"] + nth) % 0xFFFFFFFF
        wanted.append(
            Asked(
                messages=asked.get("messages") or [],
                options=chosen,
                branch=asked.get("branch"),
                system=getattr(body, "system", None) if "branch" in asked else None,
                schema=json_schema_of(body.response_format),
                client=call.client,
                name=asked.get("name"),
                tools=asked.get("tools") or [],
                nth=nth,
            )
        )
    return wanted


async def _branches(call: Call, plan: Callable[[History], Branch]) -> list[Asked]:
    return _several(call, branch=await _history(call, plan))


async def _history(call: Call, read: Callable[[History], Any]) -> Any:
    "Read the log, in a thread of datasette's"
    database = call.datasette.get_database(call.server.database)

    def work(connection: Any) -> Any:
        return read(History(sqlite_utils.Database(connection)))

    return await database.execute_fn(work)


def _parent(call: Call) -> str:
    "The response to branch from: by its id, or by the slot that holds it"
    body = call.body
    if (body.parent_id is None) == (body.parent_slot_id is None):
        raise RequestError(400, "Give parent_id or parent_slot_id", "parent_id")
    if body.parent_id is not None:
        return str(body.parent_id)
    from .status import response_in_slot

    found = response_in_slot(call.server, body.parent_slot_id)
    if found is None:
        raise RequestError(
            404,
            f"Slot {body.parent_slot_id} holds no logged response",
            "parent_slot_id",
        )
    return found


def _characters(call: Call, history: History, parent_id: str) -> tuple[int, int] | None:
    "The range of characters that is meant, by characters or by tokens"
    body = call.body
    given = [body.text_excerpt, body.char_range, body.token_range]
    if sum(each is not None for each in given) > 1:
        raise HistoryError("Give one of text_excerpt, char_range and token_range")
    if body.char_range is not None:
        start, end = body.char_range
        return start, end
    if body.token_range is None:
        return None
    text = history.response(parent_id).text
    place = call.server.session.place
    start, end = call.server.scheduler.call(place, text, *body.token_range).result()
    if start >= end:
        raise HistoryError("token_range: the answer has no such tokens")
    return start, end


ROUTES: list[tuple[str, Any]] = [
    (r"^/-/kvbranch/run$", internal.run),
    (r"^/-/kvbranch/commit$", internal.commit),
    (r"^/-/kvbranch/tail$", internal.tail),
    (r"^/v1/chat/completions$", chat_completions),
    (r"^/v1/chat/branch$", branch),
    (r"^/v1/models$", models),
    (r"^/generate$", generate),
    (r"^/focus$", focus),
    (r"^/continue$", continue_),
    (r"^/retry$", retry),
    (r"^/branch/tree$", tree),
    (r"^/-/kvbranch/slots$", slots),
    (r"^/-/kvbranch/tree\.json$", page_api.tree),
    (r"^/-/kvbranch/path\.json$", page_api.path),
    (r"^/-/kvbranch/search\.json$", page_api.search),
    (r"^/-/kvbranch/compare\.json$", page_api.compare),
    (r"^/-/kvbranch/export$", page_api.export),
    (r"^/-/kvbranch/mark$", page_changes.mark),
    (r"^/-/kvbranch/prune$", page_changes.prune),
    (r"^/-/kvbranch$", pages.browse),
    (r"^/-/kvbranch/$", pages.browse),
    (r"^/metrics$", metrics),
    (r"^/openapi\.json$", openapi),
    (r"^/-/kvbranch/static/(?P<digest>[0-9a-f]+)/(?P<path>.+)$", static_files.static),
    (r"^/-/kvbranch/(?P<id>[^/]+)$", pages.tree_page),  # last: it fits all of ours
]
