"""``kvllama`` as llm sees it: a model, its options, its usage.

The idea: one session (one loaded model, one context) is shared by all responses in the
process that use the same file and settings. The state of a response is stored if and
only if the response is logged: llm and its plugins log by calling ``log_to_db`` of the
response, which is wrapped here.

llm imports this module for every command that names a model, whichever it is: what
takes time is imported when kvllama itself is used.

This module does not know how state is found or stored.
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import llm

from .errors import ChatError, SettingError
from .models import catalog
from .settings import budget, data_directory

if TYPE_CHECKING:
    from .chat import Call, Event
    from .client import Remote, RemoteGeneration
    from .inference import Generation, Request, Session
    from .models import KVLlamaOptions, ModelSettings


def model_names() -> list[tuple[str, str | None]]:
    "(model id, name or None for the default) of all models to register"
    try:
        names = list(catalog.found_models())
    except SettingError:  # raised again when kvllama is used; llm has other models
        names = []
    return [(catalog.MODEL_ID, None), *((f"kvllama/{name}", name) for name in names)]


def request_of(
    prompt: Any,
    chosen: KVLlamaOptions,
    recommended: dict[str, float],
    tools: Sequence[dict[str, Any]] = (),
) -> Request:
    """The request for a prompt of llm.

    ``recommended`` is the sampling that the model file recommends, ``tools`` is the
    result of tools_of. Raises SchemaError for a schema that cannot be enforced.
    """
    from .chat import json_grammar, regex_grammar
    from .inference import Request
    from .models import sampling_of

    more = {}
    if prompt.schema is not None:
        if chosen.regex is not None:
            raise SettingError("schema and regex exclude each other: leave one out")
        more["constraint"] = json_grammar(prompt.schema)
    elif chosen.regex is not None:
        more["constraint"] = regex_grammar(chosen.regex)
    stop = chosen.stop or ()
    return Request(
        messages=prompt.messages,
        sampling=sampling_of(chosen, recommended, **more),
        max_tokens=chosen.max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        n_ctx=chosen.n_ctx,
        tools=tuple(tools),
        values=chosen.chat_template_kwargs or {},
        date=None if chosen.date == "today" else chosen.date,
        think=chosen.think,
        effort=chosen.reasoning_effort,
        keep_thinking=bool(chosen.keep_thinking),
        thinking_budget=chosen.thinking_budget,
    )


def tools_of(prompt: Any) -> tuple[dict[str, Any], ...]:
    "The tools of a prompt, in the form that chat templates take"
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


class Said:
    """What a response says: llm's events for ours, and the calls that llm is to run.

    llm runs the calls only of an answer that ended by itself.
    """

    def __init__(self, response: Any):
        self._response = response
        self._calls: list[Call] = []

    def events(self, event: Event) -> Iterator[Any]:
        from llm.parts import StreamEvent

        if event.call is None:
            yield StreamEvent(event.kind, event.text)
            return
        call = event.call
        self._calls.append(call)
        arguments = json.dumps(call.arguments)
        yield StreamEvent("tool_call_name", call.name, tool_call_id=call.id)
        yield StreamEvent("tool_call_args", arguments, tool_call_id=call.id)

    def end(self, facts: dict[str, Any]) -> None:
        if facts["finish_reason"] == "tool_calls":
            for call in self._calls:
                tool_call = llm.ToolCall(call.name, call.arguments, call.id)
                self._response.add_tool_call(tool_call)


def describe(response: Any, facts: dict[str, Any], name: str) -> None:
    "Record usage, model and KV facts on a response, to be logged with it"
    details = {
        "cached_tokens": facts["restored_tokens"],
        "reasoning_tokens": facts.get("thinking_tokens"),
    }
    response.set_usage(
        input=facts["prompt_tokens"],
        output=facts["generated_tokens"],
        details={name: n for name, n in details.items() if n} or None,
    )
    response.set_resolved_model(name)
    response.response_json = {"kvbranch": facts}


class _LazyOptions:
    "KVLlamaOptions as a class attribute, imported on first use"

    def __get__(self, instance: Any, owner: Any = None) -> type[KVLlamaOptions]:
        from .models import KVLlamaOptions

        return KVLlamaOptions


class _Shared:
    "What the sync and the async model have in common"

    Options: Any = _LazyOptions()
    can_stream = True
    supports_schema = True
    supports_tools = True
    model_id: str
    name: str | None

    def __init__(self, model_id: str = catalog.MODEL_ID, name: str | None = None):
        self.model_id = model_id
        self.name = name

    def _validate_attachments(self, attachments: Any = None) -> None:
        "llm's check; its exception would end llm chat, that of execute does not"
        from . import console

        if not console.is_chat():
            super()._validate_attachments(attachments)  # type: ignore[misc]

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text, whole characters only"
        if remote := self._remote(self.Options())[0]:
            return remote.tail(text, n_tokens)
        session, _ = _session(self.name, self.Options())
        return session.tail(text, n_tokens)

    def _remote(self, options: Any) -> tuple[Remote | None, ModelSettings]:
        "A running server to use instead of our own session, and the settings"
        from . import client
        from .models import choose, session_key

        model = catalog.model(self.name)
        chosen = choose(options, model.settings)
        if chosen.server is False:
            return None, chosen
        return client.find(session_key(model.path, chosen)), chosen

    def _generation(self, prompt: Any) -> Generation | RemoteGeneration:
        from .models import answer_options

        _check_text(prompt.messages)
        remote, chosen = self._remote(prompt.options)
        if remote is not None and not _has_attachments(prompt.messages):
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
    "A GGUF model run by llama.cpp; each logged answer leaves its KV state"

    def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> Iterator[Any]:
        from . import console

        console.discard_unread()
        yield from console.chatting(self._events(prompt, response), response)

    def _events(self, prompt: Any, response: Any) -> Iterator[Any]:
        generation, said = self._generation(prompt), Said(response)
        for event in generation:
            yield from said.events(event)
        said.end(generation.facts)
        self._finish(response, generation)


class AsyncKVLlama(_Shared, llm.AsyncModel):
    "The same model for asyncio; each answer is read in a thread of its own"

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[Any, None]:
        from concurrent.futures import ThreadPoolExecutor

        from . import console

        console.discard_unread()
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, thread_name_prefix="kvllama")
        try:
            generation = await loop.run_in_executor(thread, self._generation, prompt)
            ours, said = iter(generation), Said(response)
            try:
                while event := await loop.run_in_executor(thread, next, ours, None):
                    for each in said.events(event):
                        yield each
            finally:
                generation.cancel()  # no effect once it has ended
                await asyncio.shield(loop.run_in_executor(thread, ours.close))
        finally:
            thread.shutdown(wait=False)
        said.end(generation.facts)
        self._finish(response, generation)


def _check_text(messages: Sequence[Any]) -> None:
    "Raise ChatError for bytes that were not UTF-8, which no log can hold"
    try:
        for message in messages:
            for part in message.parts:
                getattr(part, "text", "").encode()
    except UnicodeEncodeError:
        raise ChatError(
            "The prompt contains bytes that are not valid UTF-8. Convert it, for "
            "example with: iconv -f latin1 -t utf-8"
        ) from None


def _has_attachments(messages: Sequence[Any]) -> bool:
    "Whether a message names files, which a server does not read"
    return any(
        getattr(part, "attachment", None) or getattr(part, "attachments", None)
        for message in messages
        for part in message.parts
    )


_sessions: dict[Any, Session] = {}
_opening = threading.Lock()


def _session(name: str | None, options: Any) -> tuple[Session, ModelSettings]:
    """The session for a model and options, and the settings of the answer.

    The last session is kept until another is needed, so that one model is in memory
    at a time. Weights are shared if only settings of the context differ.
    """
    from .inference import open_session
    from .models import choose, context_of, load_of, template_of

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
    "Warn the user: on standard error in a command, as a warning in Python"
    from . import console

    if click.get_current_context(silent=True) is not None:
        console.end_line()
        click.echo(f"Warning: {message}", err=True)
    else:
        warnings.warn(message, stacklevel=2)


def _commit_when_logged(
    response: Any, generation: Generation | RemoteGeneration
) -> None:
    """Store the state right after llm has logged the response.

    Callers that log in another way call ``response.commit_state()``.
    """
    _hook(response, [generation])


def _hook(response: Any, held: list[Any]) -> None:
    "Hook a response or its copy; ``held`` is the generation, dropped once committed"
    log_to_db = response.log_to_db

    def commit_state(thread_id: str | None = None) -> Any:
        if not held:
            return None
        # It holds the model and its context, which others may need the memory of
        return held.pop().commit(response.id, thread_id)

    def log_and_commit(db: Any) -> None:
        from . import console

        with console.logging():
            log_to_db(db)
            if _is_persistent(db):
                sql = "select thread_id from turns where id = ?"
                rows = db.query(sql, [response.id])
                commit_state(next((r["thread_id"] for r in rows), None))

    response.log_to_db = log_and_commit
    response.commit_state = commit_state
    if isinstance(response, llm.AsyncResponse):
        _hook_sync_copies(response, held)


def _hook_sync_copies(response: Any, held: list[Any]) -> None:
    "Hook the sync copy of an async response, which is what llm logs"
    if hasattr(response, "_to_sync_response"):
        to_sync = response._to_sync_response

        def to_sync_and_hook() -> Any:
            sync = to_sync()
            _hook(sync, held)
            return sync

        response._to_sync_response = to_sync_and_hook
    else:  # llm before 0.36
        to_sync_async = response.to_sync_response

        async def to_sync_and_hook_async() -> Any:
            sync = await to_sync_async()
            _hook(sync, held)
            return sync

        response.to_sync_response = to_sync_and_hook_async


def _is_persistent(db: Any) -> bool:
    "False for the in-memory log that llm makes for --no-log --json"
    return any(row[2] for row in db.execute("pragma database_list").fetchall())
