"""Answers, from the model to the client and into the log.

The idea: each answer is a task of its own. The client reads its events; a client that
disconnects cancels it, and the text so far is still logged.

The invariant: an answer is logged, and its state stored, before ``events`` ends.

This module does not know HTTP or the formats of requests.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import sqlite_utils

from ...chat import Call, Event
from ...errors import KVBranchError
from ...inference import HostedAnswer
from ...log import Branch, History, branching
from .served_model import Server


@dataclass
class AnswerRequest:
    """What to answer: llm messages, or a branch.

    ``options`` are kvllama's. ``client`` identifies the client, since clients take
    turns. ``nth`` counts the answers to one prompt. ``must_call`` and
    ``parallel_calls`` are as the engine's request has them.
    """

    options: dict[str, Any]
    messages: list[Any] = field(default_factory=list)
    branch: Branch | None = None
    system: str | None = None
    schema: dict[str, Any] | None = None
    client: str = ""
    name: str | None = None
    nth: int = 0
    tools: list[Any] = field(default_factory=list)
    must_call: tuple[str, ...] = ()
    parallel_calls: bool = True


class Answer:
    """One answer: ``events`` as it is generated, then ``facts`` about it.

    ``text`` and ``reasoning`` are what it said so far. ``error`` is set if it failed.
    """

    def __init__(self, server: Server, datasette: Any, request: AnswerRequest):
        self.server = server
        self.request = request
        self.error: BaseException | None = None
        self.thread_id: str | None = None
        self.text = ""
        self.reasoning = ""
        self._datasette = datasette
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self.response = self._prompt()
        self._task = asyncio.get_running_loop().create_task(self._run())
        server.keep(self._task)
        server.answers.add(self)
        self._task.add_done_callback(lambda _: server.answers.discard(self))

    def _prompt(self) -> Any:
        request, model = self.request, self.server.model
        if request.branch is not None:
            response = branching.ask(
                request.branch,
                model,
                request.system,
                True,
                request.nth,
                **request.options,
            )
        else:
            response = branching.ask_messages(
                request.messages,
                model,
                request.schema,
                request.nth,
                request.tools,
                **request.options,
            )
        response.conversation.client = request.client
        response.conversation.calling = {
            "must_call": request.must_call,
            "parallel_calls": request.parallel_calls,
        }
        return response

    @property
    def id(self) -> str:
        return str(self.response.id)

    @property
    def _hosted(self) -> HostedAnswer | None:
        "The engine's answer, once it was asked for"
        return getattr(self.response, "hosted", None)

    @property
    def facts(self) -> dict[str, Any]:
        return self._hosted.facts if self._hosted is not None else {}

    @property
    def calls(self) -> list[Call]:
        "The tool calls that the model makes"
        return self._hosted.calls if self._hosted is not None else []

    @property
    def slot_id(self) -> int | None:
        return self._hosted.slot_id if self._hosted is not None else None

    async def events(self) -> AsyncIterator[Event]:
        "What it says, as it is generated; raises the error if the answer failed"
        while (event := await self._queue.get()) is not None:
            yield event
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        "Stop generating; the text so far is logged"
        if self._hosted is not None:
            self.server.host.cancel(self._hosted)
        elif not self._task.done():
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async for event in self.response.astream_events():
                self._said(event)
            if self.server.log and (self.text or self.reasoning or self._is_whole()):
                await self._log()
            self.error = getattr(self.response, "failure", None)
        except asyncio.CancelledError:
            self.error = self.error or KVBranchError("The answer was cancelled")
            raise
        except Exception as error:
            self.error = error
        finally:
            self._queue.put_nowait(None)

    def _said(self, event: Any) -> None:
        "Pass an event of llm's on; the two of a call as one"
        if event.type == "text":
            self.text += event.chunk
        elif event.type == "reasoning":
            self.reasoning += event.chunk
        elif event.type == "tool_call_args":
            call = next(c for c in self.calls if c.id == event.tool_call_id)
            self._queue.put_nowait(Event("call", call=call))
        if event.type in ("text", "reasoning"):
            self._queue.put_nowait(Event(event.type, event.chunk))

    def _is_whole(self) -> bool:
        return self.facts.get("finish_reason") not in (None, "cancelled")

    async def _log(self) -> None:
        "Log the response and store its state; a failure here is only a warning"
        response = await _to_sync(self.response)
        database = self._datasette.get_database(self.server.database)
        try:
            self.thread_id = await database.execute_write_fn(
                lambda connection: self._log_in(connection, response)
            )
        except Exception as error:  # its text may hold a prompt
            why = error if isinstance(error, sqlite3.Error) else type(error).__name__
            self.server.warn(f"The answer could not be logged: {why}")
            return
        if self._hosted is None or self._hosted.error is not None:
            return
        try:
            await asyncio.wrap_future(
                self.server.host.commit(self._hosted, response.id, self.thread_id)
            )
        except KVBranchError as error:
            self.server.warn(
                f"{error}. The answer is logged, but its state is not stored"
            )

    def _log_in(self, connection: sqlite3.Connection, response: Any) -> str:
        history = History(sqlite_utils.Database(connection))
        if self.request.branch is not None:
            return branching.log_only(history, self.request.branch, response)
        name = " ".join((self.request.name or "").split())[:100]
        thread = {"id": response.conversation.id, "name": name}
        return history.log_by_content(response, thread)


async def _to_sync(response: Any) -> Any:
    "The synchronous response, which is what llm logs"
    if hasattr(response, "_to_sync_response"):
        return response._to_sync_response()
    return await response.to_sync_response()  # llm before 0.36
