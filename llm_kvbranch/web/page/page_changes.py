"""Changes made on the page: stars, notes and pruning.

The idea: the same code as the commands'. State is deleted by the thread that owns the
store, between two batches; the log is changed in datasette's write thread.

The invariant: nothing is deleted that a running answer continues from.

This module does not know how the page looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sqlite_utils
from llm.logs import message_hash

from ...errors import KVBranchError
from ...log import Ancestry, History, edits, marks
from ...settings import format_size
from ..api import Call, json_response, schemas, view
from ..door import GENERATE
from ..errors import RequestError
from ..serving import Server


@view("POST", GENERATE, schemas.MarkRequest)
async def mark(call: Call) -> Any:
    "Star a response or write a note on it"
    body = call.body
    note = body.note
    if "note" in body.model_fields_set and note is None:
        note = ""

    def change(history: History) -> marks.Mark:
        return marks.mark(history, history.resolve(body.id), body.starred, note)

    now = await _write(call, change)
    return json_response(
        {"id": now.response_id, "starred": now.starred, "note": now.note}
    )


@view("POST", GENERATE, schemas.PruneRequest)
async def prune(call: Call) -> Any:
    "Delete a response and everything after it, or say what that would delete"
    body, server = call.body, call.server

    def find(history: History) -> list[str]:
        ids = Ancestry(history.db).continuations(history.resolve(body.id))
        _refuse_if_in_use(history, server, ids)
        return ids

    ids = await call.read(find)
    removal = await asyncio.wrap_future(server.host.prune(ids, body.dry_run))
    if body.what == "log" and not body.dry_run:
        await _write(call, lambda history: _forget(history, server, ids))
    return json_response(
        {
            "responses": len(ids),
            **removal,
            "nbytes_text": format_size(removal["nbytes"]),
        }
    )


def _forget(history: History, server: Server, ids: list[str]) -> None:
    "Delete responses from the log, unless it changed since they were found"
    if set(Ancestry(history.db).continuations(ids[0])) != set(ids):
        raise RequestError(409, "A response was added there since: reload the page")
    _refuse_if_in_use(history, server, ids)
    edits.prune(history, ids[0], ids)


def _refuse_if_in_use(history: History, server: Server, ids: Iterable[str]) -> None:
    "Raises RequestError if a running answer continues from one of some responses"
    chosen = set(ids)
    tips = {history.turn(each)["tip_message_hash"] for each in chosen}
    answers = list(server.answers)
    branches = [answer.request.branch for answer in answers]
    asked = [
        *(answer.response.prompt.messages for answer in answers),
        *(each.messages for each in server.host.requests()),  # of client.py
    ]
    if any(branch and branch.parent.id in chosen for branch in branches) or any(
        not tips.isdisjoint(_hashes(messages)) for messages in asked
    ):
        raise RequestError(
            409, "A running answer continues from there: wait for it, or stop it"
        )


def _hashes(messages: Iterable[Any]) -> Iterator[str]:
    "llm's hashes of consecutive messages"
    above = None
    for message in messages:
        above = message_hash(message, above)
        yield above


async def _write(call: Call, change: Callable[[History], Any]) -> Any:
    "The result of changing the log; raises RequestError if it is read-only"
    database = call.log.database
    if not database.is_mutable:
        raise RequestError(403, "This log is read-only")

    def work(connection: Any) -> Any:
        try:
            return change(History(sqlite_utils.Database(connection)))
        except (KVBranchError, RequestError) as error:
            return error  # datasette would print an exception

    result = await database.execute_write_fn(work)
    if isinstance(result, Exception):
        raise result
    return result
