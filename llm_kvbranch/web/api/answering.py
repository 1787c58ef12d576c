"""Answers to a request of any dialect, as a whole or as a stream.

The idea: a dialect turns its request into AnswerRequests, one per answer, and gives a
Writer, which turns what the answers say into its own JSON. Generating, merging,
streaming and stopping are the same for all of them, and are here.

This module does not know any dialect.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

from ...chat import Event
from ..errors import RequestError, to_request_error
from ..serving import Answer, AnswerRequest
from .endpoint import Call, json_response
from .streams import EventStream, Sent, merged


class Writer:
    """How a dialect writes some answers to one request.

    What a method returns is sent as the next events of a stream. Only ``whole`` is
    asked for where there is none.
    """

    def __init__(self, call: Call, answers: Sequence[Answer]):
        self.call = call
        self.answers = answers
        self.model = call.server.model.model_id
        self.created = int(time.time())

    def whole(self) -> Any:
        "All answers, which have ended, as one JSON value"
        raise NotImplementedError

    def said(self, index: int, event: Event) -> Iterable[Sent]:
        "An answer says something: text, thinking or a call"
        raise NotImplementedError

    def ended(self, index: int) -> Iterable[Sent]:
        "An answer has ended; its facts are known"
        return ()

    def end(self) -> Iterable[Sent]:
        "All answers have ended"
        return ()

    def failed(self, error: RequestError) -> Iterable[Sent]:
        "An answer failed, and the stream ends with that"
        return (self.call.form(error),)


NewWriter = Callable[[Call, Sequence[Answer]], Writer]


async def respond(
    call: Call, requests: Iterable[AnswerRequest], new_writer: NewWriter, stream: bool
) -> Any:
    "The response with the answers to some requests; generation ends with it"
    answers: list[Answer] = []
    try:
        for request in requests:
            answers.append(Answer(call.server, call.datasette, request))
        writer = new_writer(call, answers)
        if stream:
            return await _stream(call, writer)
        return await _whole(call, writer)
    finally:
        for answer in answers:
            answer.cancel()


async def _whole(call: Call, writer: Writer) -> Any:
    async def work() -> None:
        async for _ in merged([answer.events() for answer in writer.answers]):
            pass

    await call.finish(work())
    return json_response(writer.whole())


async def _events(writer: Writer) -> AsyncGenerator[Sent]:
    async for i, event in merged([answer.events() for answer in writer.answers]):
        for sent in writer.ended(i) if event is None else writer.said(i, event):
            yield sent
    for sent in writer.end():
        yield sent


async def _stream(call: Call, writer: Writer) -> None:
    await stream_events(call, _events(writer), writer.failed)


async def stream_events(
    call: Call,
    events: AsyncGenerator[Sent],
    failed: Callable[[RequestError], Iterable[Sent]],
    lines: bool = False,
) -> None:
    """Send events as server-sent events, or as lines of JSON.

    An error before the first event is raised, so that the response gets its status;
    a later one is sent as ``failed`` writes it.
    """
    stream = EventStream(call.send, lines)
    try:
        async with contextlib.aclosing(events):
            await call.finish(stream.run(events))
    except Exception as error:
        if not stream.begun:
            raise
        for sent in failed(to_request_error(error)):
            await stream.put(sent)
        await stream.end()
