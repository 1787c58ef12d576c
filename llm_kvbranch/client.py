"""A running server, used by other processes instead of loading the model themselves.

The idea: ``llm kvbranch serve`` writes a private file with its address and what it
serves. Other processes that need the same model with the same settings send their
prompts there. They get the answer that a session of their own would give, without
loading anything. Logging stays with the client: the server stores the state once the
client reports that it has logged the response.

The invariant: a server is used only if it has the same model file, settings and state
directory. It locks the file while it runs, so that a program that later gets its port
or process id is never mistaken for it and sent a prompt. Servers that run at once have
a file each.

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

from .chat import Event, event_of
from .errors import ContextError, KVBranchError, OverloadedError
from .settings import budget, data_directory

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

PROTOCOL = 2
_FIRST = "server.json"  # the file of a server that was started while no other ran
RUN, COMMIT, TAIL = (f"/-/kvbranch/{name}" for name in ("run", "commit", "tail"))
_CONNECT_SECONDS = 2.0
_SILENT_SECONDS = 30.0  # a server sends a sign of life every few seconds


def announce(
    url: str, token: str, key: dict[str, Any], asked: dict[str, Any] | None = None
) -> None:
    """Announce a server that is listening; ``key`` is what it serves.

    ``asked`` is how it was started, so that the same server is not started twice.
    Raises OSError.
    """
    withdraw()
    directory = data_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in _paths():
        _remove_stale(path)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".server")
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
        os.write(descriptor, json.dumps(about).encode())  # mode 0600, by mkstemp
        path = directory / _FIRST
        try:
            os.link(temporary, path)  # fails if another server's is there
            os.unlink(temporary)
        except OSError:
            path = directory / f"server-{os.getpid()}.json"
            os.replace(temporary, path)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _announced.append((descriptor, path))


# File descriptors, kept open to hold their locks
_announced: list[tuple[int, Path]] = []


def withdraw() -> None:
    "Withdraw this process's announcement"
    while _announced:
        descriptor, path = _announced.pop()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    "Remove the announcement of a server that has ended without doing so"
    with contextlib.suppress(OSError), open(path) as file:
        # The lock is also against another process that removes it right now
        if fcntl is None or (
            _lock(file.fileno())
            and os.path.samestat(os.fstat(file.fileno()), path.stat())
        ):
            path.unlink()


def find(
    key: dict[str, Any], token: str | None = None, asked: dict[str, Any] | None = None
) -> Remote | None:
    """The running server with this key, None if there is none.

    With ``asked``, only a server that was started with the same options and token.
    """
    found = (_find_in(path, key, token, asked) for path in _paths())
    return next((remote for remote in found if remote is not None), None)


def find_any(token: str) -> Remote | None:
    "A running server with this token, whatever it serves"
    found = (_find_in(path, None, token, None) for path in _paths())
    return next((remote for remote in found if remote is not None), None)


def _find_in(
    path: Path,
    key: dict[str, Any] | None,
    token: str | None,
    asked: dict[str, Any] | None,
) -> Remote | None:
    "The server that a file announces, if it is running and has what is not None"
    try:
        with open(path) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # written by another user
                return None
            about = json.load(file)
            wanted = {"key": key and _whole(key), "asked": asked, "token": token}
            if about["protocol"] != PROTOCOL or any(
                value is not None and about[name] != value
                for name, value in wanted.items()
            ):
                return None
            if about["locked"] and _lock(file.fileno(), shared=True):
                return None
        os.kill(int(about["pid"]), 0)
        remote = Remote(str(about["url"]), str(about["token"]))
        return remote if remote.is_there() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _whole(key: dict[str, Any]) -> dict[str, Any]:
    "A key, with whether state is stored at all, as it comes back from JSON"
    whole: dict[str, Any] = json.loads(json.dumps({**key, "keeps": budget() != 0}))
    return whole


def _lock(descriptor: int, shared: bool = False) -> bool:
    "Try to lock a file; False if it is locked or the system has no locks"
    if fcntl is None:
        return False
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _paths() -> list[Path]:
    "The files of all servers, whether they still run or not"
    directory = data_directory()
    return [directory / _FIRST, *sorted(directory.glob("server-*.json"))]


class Remote:
    "A server and its token"

    def __init__(self, url: str, token: str):
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        self.port = parts.port
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._base = parts.path.rstrip("/")
        self._token = token

    def is_there(self) -> bool:
        "Whether the server accepts connections"
        import socket

        with contextlib.suppress(OSError):
            socket.create_connection(self._address, _CONNECT_SECONDS).close()
            return True
        return False

    def generate(self, asked: dict[str, Any]) -> RemoteGeneration:
        "A generation on the server, which starts when it is iterated over"
        return RemoteGeneration(self, asked)

    def tail(self, text: str, n_tokens: int) -> str:
        "The last n tokens of a text"
        return str(self.ask(TAIL, {"text": text, "n": n_tokens})["text"])

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        "The whole JSON response; raises KVBranchError"
        with self.post(path, body) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    @contextlib.contextmanager
    def post(self, path: str, body: dict[str, Any]) -> Generator[Any, None, None]:
        "The open response to a request; raises KVBranchError"
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
                f"The connection to llm kvbranch serve failed ({error}): restart "
                "it, or continue without it (--no-server or -o server false)"
            ) from None
        finally:
            connection.close()


def _error(body: Any, status: int = 400, retry_after: str | None = None) -> Exception:
    "The exception for an error that the server reports"
    about = body.get("error") if isinstance(body, dict) else None
    message = str((about or {}).get("message") or f"the server answered {status}")
    if status in (429, 503):
        return OverloadedError(message, int(retry_after or 1))
    if (about or {}).get("code") == "context_length_exceeded":
        return ContextError(message)
    return KVBranchError(message)


class RemoteGeneration:
    "An answer generated on the server: iterate over its events, then commit it"

    def __init__(self, remote: Remote, asked: dict[str, Any]):
        self.facts: dict[str, Any] = {}
        self.name = ""
        self._remote = remote
        self._asked = asked
        self._ticket: str | None = None
        self._response: Any = None
        self._cancelled = False

    def cancel(self) -> None:
        "Stop as soon as possible; the server notices that the connection is closed"
        self._cancelled = True

    def __iter__(self) -> Generator[Event, None, None]:
        with self._remote.post(RUN, self._asked) as response:
            for line in response:
                message = json.loads(line) if line.strip() else {}
                if "error" in message:
                    raise _error(message)
                if event := event_of(message):
                    yield event
                if self._cancelled:
                    return
                if "facts" in message:
                    self.facts, self.name = message["facts"], message["name"]
                    self._ticket = message["ticket"]
        if self._ticket is None:
            raise KVBranchError(
                "llm kvbranch serve was stopped before the answer was complete: "
                "restart it, or continue without it (--no-server or -o server false)"
            )

    def commit(self, response_id: str, thread_id: str | None = None) -> None:
        "Have the server store the state of a logged response; never raises"
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        body = {"ticket": ticket, "response_id": response_id, "thread_id": thread_id}
        with contextlib.suppress(KVBranchError):
            self._remote.ask(COMMIT, body)
