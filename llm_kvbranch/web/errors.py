"""What a client is told when a request fails: a status, and an error in its dialect.

The idea: whatever goes wrong becomes one RequestError, for the door, the API and the
pages. A form is how a dialect prints one.

The invariant: the text of an unforeseen exception is never shown to anyone, since
it may contain a prompt or a path.

This module does not know datasette or how a response is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import (
    BusyError,
    ContextError,
    HistoryError,
    KVBranchError,
    OverloadedError,
    UnavailableError,
    report,
)

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class RequestError(Exception):
    """A request that fails: its HTTP status and headers, and what is wrong.

    ``param`` is the parameter that is to blame, ``code`` a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        "The type that OpenAI gives an error with this status"
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        return _KINDS.get(self.status, usual)


Form = Callable[[RequestError], dict[str, Any]]


def openai_form(error: RequestError) -> dict[str, Any]:
    "The body of a failed request, as OpenAI's clients read it"
    about = {"message": error.message, "type": error.kind}
    return {"error": {**about, "param": error.param, "code": error.code}}


def llama_form(error: RequestError) -> dict[str, Any]:
    "The same, as llama-server writes it: its code is the status"
    kind = error.kind
    if error.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    about = {"code": error.status, "message": error.message, "type": kind}
    return {"error": {**about, "param": error.param}}


def to_request_error(error: Exception) -> RequestError:
    """The RequestError for any exception.

    An unforeseen one is reported on stderr as well, but without its text.
    """
    if isinstance(error, RequestError):
        return error
    text = str(error)
    if isinstance(error, OverloadedError):
        status = 503 if isinstance(error, UnavailableError) else 429
        headers = {"retry-after": str(error.retry_after)}
        return RequestError(status, text, headers=headers)
    if isinstance(error, BusyError):
        return RequestError(429, text, headers={"retry-after": "1"})
    if isinstance(error, KVBranchError):
        missing = isinstance(error, HistoryError) and text.startswith("No response")
        long = isinstance(error, ContextError)
        code = "context_length_exceeded" if long else None
        return RequestError(404 if missing else 400, text, code=code)
    report(error)
    return RequestError(500, "The server failed to answer: see its terminal")
