"""The served model, which all routes share: a hosted engine behind an llm model.

The idea: an answer of the server is an llm response like any other. Its model is
kvllama, answering through the host of the engine's process.

This module does not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import KVBranchError
from ...inference import Host, HostedAnswer, Opening
from ...model import AsyncKVLlama, Said, describe, request_of, tools_of
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
from ...settings import max_pause as max_pause_setting


class ServedModel(AsyncKVLlama):
    "kvllama, answering through a host"

    def __init__(self, model: catalog.Model, model_id: str, host: Host):
        super().__init__(model_id, model.name)
        self.settings = model.settings
        self.host = host

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[Any, None]:
        chosen = choose(prompt.options, self.settings)
        request = request_of(prompt, chosen, self.host.sampling, tools_of(prompt))
        request = replace(request, **getattr(conversation, "calling", {}))
        client = getattr(conversation, "client", "")
        answering, said = self.host.stream(request, client), Said(response)
        has_begun = False
        async with contextlib.aclosing(answering) as events:
            try:
                async for answer, event in events:
                    response.hosted = answer
                    if event is not None:
                        has_begun = True
                        for each in said.events(event):
                            yield each
            except KVBranchError as error:
                if not has_begun:
                    raise
                response.failure = error  # when what was sent is logged
                self._describe_failed(response)
                return
        if not response.hosted.facts:
            raise KVBranchError("The answer was cancelled before it began")
        said.end(response.hosted.facts)
        describe(response, response.hosted.facts, self.host.name)

    def _describe_failed(self, response: Any) -> None:
        n = len(response.hosted.tokens)
        response.set_usage(output=n)
        response.set_resolved_model(self.host.name)
        facts = {"generated_tokens": n, "finish_reason": "failed", "served": True}
        response.response_json = {"kvbranch": facts}


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
        warn: Callable[[str], None],
    ):
        self.warn = warn
        self.model = model
        self.host = model.host
        self.key = key
        self.database = database
        self.token = token
        self.log = log
        self.started = time.time()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.answers: set[Any] = set()  # running, or not logged yet
        # For other processes, until they have logged them
        self.uncommitted: dict[str, HostedAnswer] = {}
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
        "Stop all answers and the engine; False if its process had to be killed"
        return self.host.stop(seconds)

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
    max_pause: float | None,
    log: bool,
    database_name: str,
    token: str,
    warn: Callable[[str], None],
) -> Server:
    """Load a model and serve it.

    ``n_ctx`` is how many tokens all slots may hold together, by default what memory
    allows. ``max_pause`` is for how many seconds answers may stand still while prompts
    are read, by default what the user has set. ``warn`` is given one line about
    anything that went wrong on the way. Raises KVBranchError.
    """
    found, chosen, key = chosen_model(model)
    opening = Opening(
        load=load_of(found.path, chosen),
        settings=replace(context_of(chosen), n_seq=slots),
        root=data_directory().absolute(),
        budget=budget(),
        name=found.name,
        template=template_of(chosen),
        max_cells=n_ctx,
        n_waiting=queue,
        max_pause=max_pause or max_pause_setting(),
    )
    model_id = f"{catalog.MODEL_ID}/{model}" if model else catalog.MODEL_ID
    served = ServedModel(found, model_id, Host(opening, warn))
    return Server(served, key, database_name, token, log, warn)


_servers: WeakKeyDictionary[Any, Server] = WeakKeyDictionary()


def attach(datasette: Any, server: Server) -> None:
    "Serve a model through a datasette"
    _servers[datasette] = server


def server_of(datasette: Any) -> Server | None:
    "The served model of a datasette; None if it serves none"
    return _servers.get(datasette)
