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
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Optional, Union

import click
import llm
from pydantic import Field, field_validator

from . import catalog
from .settings import budget, data_directory

if TYPE_CHECKING:
    from .session import Generation, Session


def model_names() -> list[tuple[str, str | None]]:
    "(model id, file name or None for the default) of all models to register"
    named = [(f"{catalog.MODEL_ID}/{name}", name) for name in catalog.found_models()]
    return [(catalog.MODEL_ID, None), *named]


class KVLlamaOptions(llm.Options):
    "What llama.cpp users expect to set, by llama.cpp's names"

    temperature: Optional[float] = Field(
        default=None,
        ge=0,
        description="Randomness of the choice, 0 always takes the "
        "likeliest token (default 0.8)",
    )
    top_k: Optional[int] = Field(
        default=None,
        ge=0,
        description="Choose among the k likeliest tokens, 0 for all (default 40)",
    )
    top_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Choose among the likeliest tokens "
        "that together reach this probability (default 0.95)",
    )
    min_p: Optional[float] = Field(
        default=None,
        ge=0,
        le=1,
        description="Leave out tokens less likely than "
        "this share of the likeliest one (default 0.05)",
    )
    typical_p: Optional[float] = Field(
        default=None,
        gt=0,
        le=1,
        description="Locally typical sampling, 1 is off (default 1)",
    )
    repeat_penalty: Optional[float] = Field(
        default=None,
        gt=0,
        description="Divide the score of recent tokens by this, 1 is off (default 1)",
    )
    presence_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Lower the score of tokens that occurred recently (default 0)",
    )
    frequency_penalty: Optional[float] = Field(
        default=None,
        ge=-2,
        le=2,
        description="Lower the score of recent tokens "
        "each time they occurred (default 0)",
    )
    repeat_last_n: Optional[int] = Field(
        default=None,
        ge=-1,
        description="How many tokens count as recent, -1 for all (default 64)",
    )
    seed: Optional[int] = Field(
        default=None,
        ge=0,
        le=0xFFFFFFFE,
        description="Seed of the choice; random if not given",
    )
    max_tokens: Optional[int] = Field(
        default=None,
        ge=1,
        description="Longest answer, in tokens",
    )
    stop: Optional[Union[str, list[str]]] = Field(
        default=None,
        description="End the answer before this text; several as a JSON list",
    )
    grammar: Optional[str] = Field(
        default=None,
        description="GBNF grammar that the answer must follow",
    )
    n_ctx: Optional[int] = Field(
        default=None,
        ge=1,
        description="Most tokens that prompt and answer may have "
        "together (default: what the model was trained for). Memory is taken as "
        "needed, not for all of it",
    )
    n_gpu_layers: Optional[int] = Field(
        default=None,
        ge=-1,
        description="Layers to offload to the GPU, -1 for all (default -1)",
    )
    n_threads: Optional[int] = Field(
        default=None,
        ge=1,
        description="Threads to compute with (default: the processors available)",
    )
    n_batch: Optional[int] = Field(
        default=None,
        ge=32,
        le=8192,
        description="Tokens to prefill at a time (default 512)",
    )
    kv_type: Optional[str] = Field(
        default=None,
        description="Type of the KV cache: f16, bf16, f32, q8_0, q5_1, "
        "q5_0, q4_1, q4_0, iq4_nl; or K/V apart as in q8_0/q4_0 (default f16)",
    )
    flash_attn: Optional[bool] = Field(
        default=None,
        description="Flash attention on or off (default: llama.cpp decides)",
    )

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("["):
            try:
                parsed = json.loads(value)
            except ValueError:
                return value
            if isinstance(parsed, list) and all(isinstance(s, str) for s in parsed):
                return parsed
        return value

    @field_validator("kv_type")
    @classmethod
    def _kv_type(cls, value: str | None) -> str | None:
        from .session import KV_TYPES

        for name in (value or "f16").split("/", 1):
            if name not in KV_TYPES:
                raise ValueError(f"{name!r} is not one of {', '.join(KV_TYPES)}")
        return value


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "repeat_last_n",
    "seed",
    "grammar",
)


class _Shared:
    "What the sync and the async model have in common"

    can_stream = True
    supports_schema = True
    model_id: str
    name: str | None

    def __init__(self, model_id: str = catalog.MODEL_ID, name: str | None = None):
        self.model_id = model_id
        self.name = name

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text, whole characters only"
        vocab = _session(self.name, KVLlamaOptions()).engine.weights
        tokens = vocab.tokenize(text, special=False)[-n_tokens:]
        spelled = b"".join(map(vocab.piece, tokens)).decode("utf-8", "ignore")
        n = len(spelled)
        while n and not text.endswith(spelled[-n:]):
            n -= 1  # a tokenizer may add a space in front
        return text[len(text) - n :]

    def _generation(self, prompt: Any) -> Generation:
        from .session import Request, Sampling, json_grammar

        options = prompt.options
        chosen = {
            name: value
            for name in _SAMPLING
            if (value := getattr(options, name)) is not None
        }
        if prompt.schema:
            chosen["grammar"] = json_grammar(prompt.schema)
        stop = options.stop or ()
        request = Request(
            messages=prompt.messages,
            sampling=Sampling(**chosen),
            max_tokens=options.max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            n_ctx=options.n_ctx,
        )
        return _session(self.name, options).generate(request)

    def _finish(self, response: Any, generation: Generation) -> None:
        "Put what is known of the answer on the response, to be logged with it"
        facts = generation.facts
        response.set_usage(
            input=facts["prompt_tokens"],
            output=facts["generated_tokens"],
            details={"cached_tokens": facts["restored_tokens"]}
            if facts["restored_tokens"]
            else None,
        )
        response.set_resolved_model(generation.session.name)
        response.response_json = {"kvbranch": facts}
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
        self._finish(response, generation)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    "One thread: the tokens of several answers take turns in it"
    return ThreadPoolExecutor(1, thread_name_prefix="kvllama")


_sessions: dict[Any, Session] = {}
_opening = threading.Lock()


def _session(name: str | None, options: Any) -> Session:
    """The session for a model and settings; the last one used is kept.

    Another one takes its place, so that one model is in memory at a time;
    weights are shared when only the settings of the context differ.
    """
    from .session import Load, Settings, open_session

    given = {
        key: value
        for key in ("n_batch", "n_threads")
        if (value := getattr(options, key)) is not None
    }
    types = (options.kv_type or "f16").split("/", 1)
    flash_attn = {None: "auto", True: "on", False: "off"}[options.flash_attn]
    settings = Settings(
        type_k=types[0], type_v=types[-1], flash_attn=flash_attn, **given
    )
    layers = -1 if options.n_gpu_layers is None else options.n_gpu_layers
    load = Load(catalog.model_path(name), layers)
    root, limit = data_directory(), budget()
    with _opening:
        key = (load, settings, root, limit == 0)
        session = _sessions.get(key)
        if session is None:
            weights = next(
                (s.engine.weights for s in _sessions.values() if s.load == load), None
            )
            _sessions.clear()
            session = open_session(load, settings, root, warn, weights, limit)
            _sessions[key] = session
        elif session.store is not None:
            session.store.limit = limit
        return session


def warn(message: str) -> None:
    "Tell the user, on standard error in a command, as a warning in Python"
    if click.get_current_context(silent=True) is not None:
        click.echo(f"Warning: {message}", err=True)
    else:
        warnings.warn(message, stacklevel=2)


def _commit_when_logged(response: Any, generation: Generation) -> None:
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


def _hook_sync_copies(response: Any, generation: Generation) -> None:
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
