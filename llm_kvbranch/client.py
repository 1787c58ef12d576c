"""A server that runs here, used by other processes in place of a model of their own.

The idea: ``llm kvbranch serve`` leaves a private file that says where it is and what
it serves. Who wants an answer of just that model, with just those settings, asks it
there and gets what a session of its own would have given, without loading anything.
The log stays the asker's business: the state is stored when it says that it logged.

The invariant: a server is used only if it serves the same model file with the same
settings and keeps state in the same place. One that cannot be reached is not there:
it holds a lock on the file while it lives, so that what took over its port or its
process id later is not taken for it, and told a prompt.

This module does not know llama.cpp, sessions or llm's models.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from .chat import Call
from .errors import ContextError, KVBranchError, OverloadedError
from .settings import budget, data_directory

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

PROTOCOL = 1
RUN, COMMIT, TAIL = (f"/-/kvbranch/{name}" for name in ("run", "commit", "tail"))
_CONNECT_SECONDS = 2.0
_SILENT_SECONDS = 30.0  # a server says every few seconds that it is still there


def announce(
    url: str, token: str, key: dict[str, Any], asked: dict[str, Any] | None = None
) -> None:
    """Leave word of a server that listens; ``key`` is what it serves.

    ``asked`` is how it was started, for who would start the same again. Raises OSError.
    """
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".server")
    try:
        about = {
            "protocol": PROTOCOL,
            "url": url,
            "token": token,
            "pid": os.getpid(),
            "locked": _lock(descriptor),
            "key": _whole(key),
            "asked": asked,
        }
        os.write(descriptor, json.dumps(about).encode())  # mkstemp made it 0600
        os.replace(temporary, path)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    withdraw()
    _announced.append(descriptor)


_announced: list[int] = []  # file descriptors, open for as long as they are locked


def withdraw() -> None:
    "Take that back, unless another server has left word since"
    while _announced:
        descriptor = _announced.pop()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), _path().stat()):
                _path().unlink()
        os.close(descriptor)


def find(
    key: dict[str, Any], token: str | None = None, asked: dict[str, Any] | None = None
) -> Remote | None:
    """The server that serves just this, None if none does.

    With ``asked``, only one that was started in the same way, with the same token.
    """
    try:
        with open(_path()) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # somebody else's word
                return None
            about = json.load(file)
            if about["protocol"] != PROTOCOL or about["key"] != _whole(key):
                return None
            if asked is not None and (about["asked"], about["token"]) != (asked, token):
                return None
            if about["locked"] and _lock(file.fileno(), shared=True):
                return None
        os.kill(int(about["pid"]), 0)
        remote = Remote(str(about["url"]), str(about["token"]))
        return remote if remote.is_there() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _whole(key: dict[str, Any]) -> dict[str, Any]:
    "A key together with whether state is kept at all, as JSON has it"
    whole: dict[str, Any] = json.loads(json.dumps({**key, "keeps": budget() != 0}))
    return whole


def _lock(descriptor: int, shared: bool = False) -> bool:
    "Lock a file that nobody else has locked; False where there is no such thing"
    if fcntl is None:
        return False
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _path() -> Path:
    return data_directory() / "server.json"


class Remote:
    "A server, and the token that opens it"

    def __init__(self, url: str, token: str):
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        self.port = parts.port
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._base = parts.path.rstrip("/")
        self._token = token

    def is_there(self) -> bool:
        "Whether anybody listens"
        import socket

        with contextlib.suppress(OSError):
            socket.create_connection(self._address, _CONNECT_SECONDS).close()
            return True
        return False

    def generate(self, asked: dict[str, Any]) -> RemoteGeneration:
        "A generation there, which does nothing until it is iterated over"
        return RemoteGeneration(self, asked)

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text"
        return str(self.ask(TAIL, {"text": text, "n": n_tokens})["text"])

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        "A whole answer; raises KVBranchError"
        with self.post(path, body) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    @contextlib.contextmanager
    def post(self, path: str, body: dict[str, Any]) -> Generator[Any, None, None]:
        "The response to a request, to be read; raises KVBranchError"
        import http.client

        connection = http.client.HTTPConnection(*self._address, _SILENT_SECONDS)
        headers = {
            "authorization": f"Bearer {self._token}",
            "content-type": "application/json",
        }
        try:
            connection.request("POST", self._base + path, json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                retry_after = response.getheader("retry-after")
                raise _error(json.load(response), response.status, retry_after)
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise KVBranchError(
                f"llm kvbranch serve broke off ({error}): start it again, or go on "
                "without it (--no-server, or -o server false)"
            ) from None
        finally:
            connection.close()


def _error(body: Any, status: int = 400, retry_after: str | None = None) -> Exception:
    "What the server says went wrong, as it would have been raised here"
    about = body.get("error") if isinstance(body, dict) else None
    message = str((about or {}).get("message") or f"the server answers {status}")
    if status in (429, 503):
        return OverloadedError(message, int(retry_after or 1))
    if (about or {}).get("code") == "context_length_exceeded":
        return ContextError(message)
    return KVBranchError(message)


class RemoteGeneration:
    "An answer that is made elsewhere: iterate over it for its text, then commit it"

    def __init__(self, remote: Remote, asked: dict[str, Any]):
        self.facts: dict[str, Any] = {}
        self.name = ""
        self.calls: list[Call] = []
        self._remote = remote
        self._asked = asked
        self._ticket: str | None = None
        self._response: Any = None
        self._cancelled = False

    def cancel(self) -> None:
        "Stop as soon as possible; the server sees that nobody reads any more"
        self._cancelled = True

    def __iter__(self) -> Generator[str, None, None]:
        with self._remote.post(RUN, self._asked) as response:
            for line in response:
                event = json.loads(line) if line.strip() else {}
                if "error" in event:
                    raise _error(event)
                if "piece" in event:
                    yield event["piece"]
                if self._cancelled:
                    return
                if "facts" in event:
                    self.facts, self.name = event["facts"], event["name"]
                    self._ticket = event["ticket"]
                    self.calls = [Call(**call) for call in event["calls"]]
        if self._ticket is None:
            raise KVBranchError(
                "llm kvbranch serve was stopped before the answer was complete: "
                "start it again, or go on without it"
            )

    def commit(self, response_id: str, thread_id: str | None = None) -> None:
        "Have the state stored under a logged response's id; never raises for that"
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        body = {"ticket": ticket, "response_id": response_id, "thread_id": thread_id}
        with contextlib.suppress(KVBranchError):
            self._remote.ask(COMMIT, body)
