"""Answers on their way to whoever asked, and into the log.

The idea: an answer is a task of its own. Who asked reads its events; who leaves
cancels it, and what there is by then is logged all the same.

The invariant: an answer is logged with its state before its last event is given.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import sqlite_utils

from ...chat import Call
from ...errors import KVBranchError
from ...log import Branch, History, branching
from .served_model import Server


@dataclass
class Asked:
    """What is to be answered: messages of llm's, or a branch.

    ``options`` are kvllama's. ``client`` is who asks: clients take turns.
    """

    messages: list[Any]
    options: dict[str, Any]
    branch: Branch | None = None
    system: str | None = None
    schema: dict[str, Any] | None = None
    client: str = ""
    name: str | None = None
    nth: int = 0
    tools: list[Any] = field(default_factory=list)


class Answer:
    """One answer: ``pieces`` of text, then what it cost.

    ``error`` is what it failed with, if it did.
    """

    def __init__(self, server: Server, datasette: Any, asked: Asked):
        self.server = server
        self.asked = asked
        self.error: BaseException | None = None
        self.thread_id: str | None = None
        self.text = ""
        self._datasette = datasette
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.response = self._prompt()
        self._task = asyncio.get_running_loop().create_task(self._run())
        server.keep(self._task)
        server.answers.add(self)
        self._task.add_done_callback(lambda _: server.answers.discard(self))

    def _prompt(self) -> Any:
        asked, model = self.asked, self.server.model
        if asked.branch is not None:
            response = branching.ask(
                asked.branch, model, asked.system, True, asked.nth, **asked.options
            )
        else:
            response = branching.ask_messages(
                asked.messages,
                model,
                asked.schema,
                asked.nth,
                asked.tools,
                **asked.options,
            )
        response.conversation.client = asked.client
        return response

    @property
    def id(self) -> str:
        return str(self.response.id)

    @property
    def facts(self) -> dict[str, Any]:
        ticket = getattr(self.response, "ticket", None)
        return ticket.generation.facts if ticket is not None else {}

    @property
    def calls(self) -> list[Call]:
        "Tools that the model wants called"
        ticket = getattr(self.response, "ticket", None)
        return ticket.generation.calls if ticket is not None else []

    @property
    def slot_id(self) -> int | None:
        ticket = getattr(self.response, "ticket", None)
        slot = ticket and ticket.generation.slot
        return slot.seq if slot is not None else None

    async def pieces(self) -> AsyncIterator[str]:
        "Text as it comes; raises what the answer failed with"
        while (piece := await self._queue.get()) is not None:
            yield piece
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        "Stop it; what there is of it is logged"
        ticket = getattr(self.response, "ticket", None)
        if ticket is not None:
            self.server.scheduler.cancel(ticket)
        elif not self._task.done():
            self._task.cancel()

    async def ended(self) -> None:
        "Wait until it is logged, or has failed"
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            async for piece in self.response:
                self.text += piece
                self._queue.put_nowait(piece)
            if self.server.log and (self.text or self._is_whole()):
                await self._log()
        except asyncio.CancelledError:
            self.error = self.error or KVBranchError("The answer was cancelled")
            raise
        except Exception as error:
            self.error = error
        finally:
            self._queue.put_nowait(None)

    def _is_whole(self) -> bool:
        return self.facts.get("finish_reason") not in (None, "cancelled")

    async def _log(self) -> None:
        "Log the response and store its state; an answer that came is no failure"
        response = await _to_sync(self.response)
        database = self._datasette.get_database(self.server.database)
        try:
            self.thread_id = await database.execute_write_fn(
                lambda connection: self._log_in(connection, response)
            )
        except Exception as error:  # its text may be what somebody asked
            why = error if isinstance(error, sqlite3.Error) else type(error).__name__
            self.server.session.warn(f"The answer could not be logged: {why}")
            return
        ticket = self.response.ticket
        await asyncio.wrap_future(
            self.server.scheduler.call(
                ticket.generation.commit, response.id, self.thread_id
            )
        )

    def _log_in(self, connection: sqlite3.Connection, response: Any) -> str:
        history = History(sqlite_utils.Database(connection))
        if self.asked.branch is not None:
            return branching.log_only(history, self.asked.branch, response)
        name = " ".join((self.asked.name or "").split())[:100]
        thread = {"id": response.conversation.id, "name": name}
        return history.log_by_content(response, thread)


async def _to_sync(response: Any) -> Any:
    "A response as it is logged"
    if hasattr(response, "_to_sync_response"):
        return response._to_sync_response()
    return await response.to_sync_response()  # llm before 0.36
