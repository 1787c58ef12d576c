"""The served model, which all routes share: a scheduler behind an llm model.

The idea: an answer of the server is an llm response like any other. Its model is
kvllama, with the shared scheduler instead of a session of its own.

This module does not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import KVBranchError
from ...inference import Scheduler, Ticket, open_session
from ...model import AsyncKVLlama, called, describe, request_of, tools_of
from ...models import (
    KVLlamaOptions,
    catalog,
    choose,
    context_of,
    load_of,
    session_key,
    template_of,
)
from ...settings import budget, data_directory


class ServedModel(AsyncKVLlama):
    "kvllama, answering through a scheduler"

    def __init__(self, model: catalog.Model, model_id: str, scheduler: Scheduler):
        super().__init__(model_id, model.name)
        self.settings = model.settings
        self.scheduler = scheduler

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[Any, None]:
        session = self.scheduler.session
        chosen = choose(prompt.options, self.settings)
        recommended = session.engine.weights.sampling
        request = request_of(prompt, chosen, recommended, tools_of(prompt))
        client = getattr(conversation, "client", "")
        answer = self.scheduler.stream(request, client)
        async with contextlib.aclosing(answer) as pieces:
            async for ticket, piece in pieces:
                response.ticket = ticket
                if piece:
                    yield piece
        if not response.ticket.generation.facts:
            raise KVBranchError("The answer was cancelled before it began")
        for event in called(response, response.ticket.generation.calls):
            yield event
        describe(response, response.ticket.generation.facts, session.name)


class Server:
    """A served model.

    ``database`` is datasette's name of the log; ``log`` says whether answers are
    logged.
    """

    def __init__(
        self,
        model: ServedModel,
        key: dict[str, Any],
        database: str,
        token: str,
        log: bool,
    ):
        self.model = model
        self.scheduler = model.scheduler
        self.session = model.scheduler.session
        self.key = key
        self.database = database
        self.token = token
        self.log = log
        self.started = time.time()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.answers: set[Any] = set()  # running, or not logged yet
        self.uncommitted: dict[str, Ticket] = {}  # for other processes, until they log
        self._stopping: asyncio.Event | None = None

    @property
    def stopping(self) -> asyncio.Event:
        "Set when the server shuts down and all streams must end"
        if self._stopping is None:
            self._stopping = asyncio.Event()
        return self._stopping

    def begin_shutdown(self) -> None:
        "End all streams; call this in the event loop"
        self.stopping.set()

    def close(self, seconds: float | None = None) -> bool:
        "Stop all generations and the engine's thread; False if it does not stop"
        return self.scheduler.stop(seconds)

    def keep(self, task: asyncio.Task[Any]) -> None:
        "Keep a task that outlives its request"
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def chosen_model(model: str | None) -> tuple[catalog.Model, Any, dict[str, Any]]:
    "A model, its settings, and the key of its session; raises KVBranchError"
    found = catalog.model(model)
    chosen = choose(KVLlamaOptions(), found.settings)
    return found, chosen, session_key(found.path, chosen)


def open_server(
    model: str | None,
    slots: int,
    n_ctx: int | None,
    queue: int,
    log: bool,
    database_name: str,
    token: str,
) -> Server:
    """Load a model and serve it.

    ``n_ctx`` is how many tokens all slots may hold together, by default what memory
    allows. Raises KVBranchError.
    """
    from ...model import warn

    found, chosen, key = chosen_model(model)
    load = load_of(found.path, chosen)
    settings = replace(context_of(chosen), n_seq=slots)
    session = open_session(
        load,
        settings,
        data_directory(),
        warn,
        budget=budget(),
        name=found.name,
        template=template_of(chosen),
    )
    session.slots.max_cells = n_ctx
    session.engine.reserve(min(n_ctx or 4096, 4096))
    model_id = f"{catalog.MODEL_ID}/{model}" if model else catalog.MODEL_ID
    served = ServedModel(found, model_id, Scheduler(session, queue))
    served.scheduler.call(session.warm_up)
    return Server(served, key, database_name, token, log)


_servers: WeakKeyDictionary[Any, Server] = WeakKeyDictionary()


def attach(datasette: Any, server: Server) -> None:
    "Serve a model through a datasette"
    _servers[datasette] = server


def server_of(datasette: Any) -> Server | None:
    "The served model of a datasette; None if it serves none"
    return _servers.get(datasette)
