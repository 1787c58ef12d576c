"""``kvllama`` as llm sees it: a model, its options, its usage.

The idea: one session (one loaded model, one context) is shared by everything in
the process that asks for the same file and settings. A response's state is
stored when, and only when, the response is logged: ``log_to_db`` of the
response, which is what llm and its plugins call, is extended to do so.

This module does not know how state is found or stored.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click
import llm

from .errors import SettingError
from .models import (
    KVLlamaOptions,
    ModelSettings,
    answer_options,
    catalog,
    choose,
    context_of,
    load_of,
    sampling_of,
    session_key,
    template_of,
)
from .settings import budget, data_directory

if TYPE_CHECKING:
    from .chat import Call
    from .client import Remote, RemoteGeneration
    from .inference import Generation, Request, Session


def model_names() -> list[tuple[str, str | None]]:
    "(model id, file name or None for the default) of all models to register"
    try:
        names = list(catalog.found_models())
    except SettingError:  # said when kvllama is asked; llm has other models too
        names = []
    return [(catalog.MODEL_ID, None), *((f"kvllama/{name}", name) for name in names)]


def request_of(
    prompt: Any,
    chosen: ModelSettings,
    recommended: dict[str, float],
    tools: Sequence[dict[str, Any]] = (),
) -> Request:
    """What to generate from, for a prompt of llm's.

    ``recommended`` is the file's, ``tools`` as tools_of gives them.
    """
    from .engine import json_grammar
    from .inference import Request

    more = {"grammar": json_grammar(prompt.schema)} if prompt.schema else {}
    stop = chosen.stop or ()
    return Request(
        messages=prompt.messages,
        sampling=sampling_of(chosen, recommended, **more),
        max_tokens=chosen.max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        n_ctx=chosen.n_ctx,
        tools=tuple(tools),
    )


def tools_of(prompt: Any) -> tuple[dict[str, Any], ...]:
    "The tools that a prompt offers, as chat templates take them"
    return tuple(
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema or {"type": "object", "properties": {}},
            },
        }
        for tool in prompt.tools
    )


def called(response: Any, calls: Sequence[Call]) -> Iterator[Any]:
    "The events of a response that wants tools called; notes the calls on it"
    from llm.parts import StreamEvent

    for call in calls:
        arguments = json.dumps(call.arguments)
        yield StreamEvent("tool_call_name", call.name, tool_call_id=call.id)
        yield StreamEvent("tool_call_args", arguments, tool_call_id=call.id)
        response.add_tool_call(llm.ToolCall(call.name, call.arguments, call.id))


def describe(response: Any, facts: dict[str, Any], name: str) -> None:
    "Put what is known of an answer on its response, to be logged with it"
    restored = facts["restored_tokens"]
    response.set_usage(
        input=facts["prompt_tokens"],
        output=facts["generated_tokens"],
        details={"cached_tokens": restored} if restored else None,
    )
    response.set_resolved_model(name)
    response.response_json = {"kvbranch": facts}


class _Shared:
    "What the sync and the async model have in common"

    can_stream = True
    supports_schema = True
    supports_tools = True
    model_id: str
    name: str | None

    def __init__(self, model_id: str = catalog.MODEL_ID, name: str | None = None):
        self.model_id = model_id
        self.name = name

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text, whole characters only"
        if remote := self._remote(KVLlamaOptions())[0]:
            return remote.tail(text, n_tokens)
        session, _ = _session(self.name, KVLlamaOptions())
        return session.tail(text, n_tokens)

    def _remote(self, options: Any) -> tuple[Remote | None, ModelSettings]:
        "The server to ask in place of a session of our own, if one fits"
        from . import client

        model = catalog.model(self.name)
        chosen = choose(options, model.settings)
        if chosen.server is False:
            return None, chosen
        return client.find(session_key(model.path, chosen)), chosen

    def _generation(self, prompt: Any) -> Generation | RemoteGeneration:
        remote, chosen = self._remote(prompt.options)
        if remote is not None:
            return remote.generate(
                {
                    "messages": [message.to_dict() for message in prompt.messages],
                    "options": answer_options(chosen),
                    "schema_": prompt.schema,
                    "tools": tools_of(prompt),
                }
            )
        session, chosen = _session(self.name, prompt.options)
        recommended = session.engine.weights.sampling
        tools = tools_of(prompt)
        return session.generate(request_of(prompt, chosen, recommended, tools))

    def _finish(self, response: Any, generation: Generation | RemoteGeneration) -> None:
        describe(response, generation.facts, generation.name)
        _commit_when_logged(response, generation)


class KVLlama(_Shared, llm.Model):
    "A GGUF model run by llama.cpp, each logged answer leaving its KV state"

    class Options(KVLlamaOptions):
        pass

    def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> Iterator[str]:
        generation = self._generation(prompt)
        yield from generation
        yield from called(response, generation.calls)
        self._finish(response, generation)


class AsyncKVLlama(_Shared, llm.AsyncModel):
    "The same model for asyncio; the computation runs in a thread of its own"

    class Options(KVLlamaOptions):
        pass

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[str, None]:
        loop, pool = asyncio.get_running_loop(), _pool()
        generation = await loop.run_in_executor(pool, self._generation, prompt)
        pieces = iter(generation)
        try:
            while True:
                piece = await loop.run_in_executor(pool, next, pieces, None)
                if piece is None:
                    break
                yield piece
        finally:
            generation.cancel()  # without effect once it has ended
            await asyncio.shield(loop.run_in_executor(pool, pieces.close))
        for event in called(response, generation.calls):
            yield event
        self._finish(response, generation)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    "One thread: the tokens of several answers take turns in it"
    return ThreadPoolExecutor(1, thread_name_prefix="kvllama")


_sessions: dict[Any, Session] = {}
_opening = threading.Lock()


def _session(name: str | None, options: Any) -> tuple[Session, ModelSettings]:
    """The session for a model and options, and all that was chosen for the answer.

    The last session used is kept. Another one takes its place, so that one model
    is in memory at a time; weights are shared when only the settings of the
    context differ.
    """
    from .inference import open_session

    model = catalog.model(name)
    chosen = choose(options, model.settings)
    load, settings = load_of(model.path, chosen), context_of(chosen)
    template = template_of(chosen)
    root, limit = data_directory(), budget()
    with _opening:
        key = (load, settings, template, root, limit == 0)
        session = _sessions.get(key)
        if session is None:
            weights = next(
                (s.engine.weights for s in _sessions.values() if s.load == load), None
            )
            _sessions.clear()
            session = open_session(
                load, settings, root, warn, weights, limit, model.name, template
            )
            _sessions[key] = session
        elif session.store is not None:
            session.store.limit = limit
        return session, chosen


def warn(message: str) -> None:
    "Tell the user, on standard error in a command, as a warning in Python"
    if click.get_current_context(silent=True) is not None:
        click.echo(f"Warning: {message}", err=True)
    else:
        warnings.warn(message, stacklevel=2)


def _commit_when_logged(
    response: Any, generation: Generation | RemoteGeneration
) -> None:
    """Store the state right after llm has logged the response.

    ``response.commit_state()`` is for who logs it in another way.
    """
    log_to_db = response.log_to_db

    def log_and_commit(db: Any) -> None:
        log_to_db(db)
        if _is_persistent(db):
            rows = db.query("select thread_id from turns where id = ?", [response.id])
            generation.commit(response.id, next((r["thread_id"] for r in rows), None))

    response.log_to_db = log_and_commit
    response.commit_state = lambda thread_id=None: generation.commit(
        response.id, thread_id
    )
    if isinstance(response, llm.AsyncResponse):
        _hook_sync_copies(response, generation)


def _hook_sync_copies(response: Any, generation: Generation | RemoteGeneration) -> None:
    "llm logs an async response by way of a sync copy of it"
    if hasattr(response, "_to_sync_response"):
        to_sync = response._to_sync_response

        def to_sync_and_hook() -> Any:
            sync = to_sync()
            _commit_when_logged(sync, generation)
            return sync

        response._to_sync_response = to_sync_and_hook
    else:  # llm before 0.36
        to_sync_async = response.to_sync_response

        async def to_sync_and_hook_async() -> Any:
            sync = await to_sync_async()
            _commit_when_logged(sync, generation)
            return sync

        response.to_sync_response = to_sync_and_hook_async


def _is_persistent(db: Any) -> bool:
    "False for the in-memory log that llm makes for --no-log --json"
    return any(row[2] for row in db.execute("pragma database_list").fetchall())
