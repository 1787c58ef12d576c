"""``llm kvbranch serve``: datasette on the log, with one model in memory.

The idea: set up what is served, then run it until a signal. The port is bound before
the model is loaded, so a port that is taken costs no time; clients that connect
meanwhile wait.

The invariant: however the process ends, running answers end first, and the file that
announces this server to other processes is removed.

This module does not know which address serves what, and prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import llm
import uvicorn

from ...client import announce, find, find_any, withdraw
from ...errors import KVBranchError, SettingError
from ...log import History, open_log
from ...settings import data_directory
from ..compat import new_datasette
from ..door import (
    KNOWN,
    LOGIN,
    MAX_BODY,
    Door,
    Sessions,
    check_token,
    close_door,
    kept_token,
    new_token,
    session_secret,
)
from .connections import AT_ONCE, QUEUE, keep_quiet, protocol, raise_limit
from .listening import (
    allowed_names,
    is_another_users,
    is_loopback,
    listen,
    local_name,
    public_name,
    usual_port,
)
from .served_model import Server, attach, chosen_model, open_server

_GRACE = 2  # seconds that connections have to end
_PATIENCE = 10.0  # and answers, to be logged
_ENGINE_PATIENCE = 2.0  # and the engine, to be done with its step
_TIME_LIMIT = 10_000  # milliseconds of one read of the log, by its owner alone
_SHORTEST = 16  # characters of a token that other machines could guess


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and to whom.

    ``port`` None is the usual port, or any free one if that is taken; 0 is any.
    ``token`` None is the one kept for this user, which ``new_token`` replaces.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allow_hosts: tuple[str, ...] = ()
    token: str | None = None
    new_token: bool = False
    database: str | None = None
    model: str | None = None
    slots: int = 8
    n_ctx: int | None = None
    queue: int = 64
    max_pause: float | None = None
    log: bool = True


@dataclass(frozen=True)
class ServerInfo:
    """How to reach a server; the link ``login`` works once.

    ``is_new`` is False if it was already running. ``warning`` may be empty.
    """

    url: str
    login: str
    token: str
    model: str
    is_new: bool = True
    warning: str = ""


def serve(options: ServeOptions, ready: Callable[[ServerInfo], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; calls ``ready`` once the server is up.

    If a server with the same options is running, it only calls ``ready`` with that
    one. Raises KVBranchError.
    """
    hosts = allowed_names(options.host, options.allow_hosts)
    token = _token(options)
    if running := already_there(options, token):
        return ready(running)
    with listen(options.host, options.port) as listening, _signals(_interrupt):
        port = listening.getsockname()[1]
        token, warning = _elsewhere(options, port, token)
        datasette, database = build(_log_path(options.database))
        door = Door(token, hosts, Sessions(session_secret(), token, port))
        close_door(datasette, door)
        server = _opened(options, database, token)
        attach(datasette, server)
        local = f"http://{local_name(options.host)}:{port}"
        public = f"http://{public_name(options.host, options.allow_hosts)}:{port}"

        def started() -> None:
            try:
                announce(local, token, server.key, _comparable(options))
            except OSError as error:
                raise SettingError(
                    f"Cannot write {data_directory()}: {error.strerror}"
                ) from None
            name = server.host.name
            link = public + door.new_link()
            ready(ServerInfo(public, link, token, name, warning=warning))

        async def stopping() -> None:
            withdraw()
            door.closing.set()
            # An engine that does nothing else will not end its answers either
            alive = asyncio.wrap_future(server.host.alive())
            # It fails with an engine that is ended, which asyncio would print
            alive.add_done_callback(lambda done: done.cancelled() or done.exception())
            server.begin_shutdown()
            await _logged(server.tasks, alive)
            patience = _PATIENCE / 2 if alive.done() else 0
            loop = asyncio.get_running_loop()
            if not await loop.run_in_executor(None, server.close, patience):
                _warn("The engine did not stop, so its process was ended")
            if server.tasks:  # which log what was sent
                await asyncio.wait(set(server.tasks), timeout=_ENGINE_PATIENCE)

        try:
            _run(datasette.app(), listening, started, stopping)
        finally:
            withdraw()
            server.close(0)


def _opened(options: ServeOptions, database: str, token: str) -> Server:
    return open_server(
        options.model,
        options.slots,
        options.n_ctx,
        options.queue,
        options.max_pause,
        options.log,
        database,
        token,
        _warn,
    )


def already_there(options: ServeOptions, token: str) -> ServerInfo | None:
    "A running server with the same options, and a new login link; None if none"
    if options.port == 0:  # the user asked for another one
        return None
    found, _, key = chosen_model(options.model)
    remote = find(key, token, _comparable(options))
    if remote is None or options.port not in (None, remote.port):
        return None
    try:
        path = remote.ask(LOGIN, {})["path"]
    except KVBranchError:  # it is shutting down
        return None
    public = f"http://{public_name(options.host, options.allow_hosts)}:{remote.port}"
    return ServerInfo(public, public + path, token, found.name, is_new=False)


def _comparable(options: ServeOptions) -> dict[str, Any]:
    "The options that a running server must share, as JSON"
    compared = asdict(
        replace(options, database=str(_path_of(options.database)), token=None)
    )
    del compared["port"], compared["new_token"]
    whole: dict[str, Any] = json.loads(json.dumps(compared))
    return whole


async def _logged(tasks: set[asyncio.Task[Any]], alive: asyncio.Future[Any]) -> None:
    """Wait until answers are logged: they end at once, but the disk may be busy.

    An engine that is not ``alive`` soon is not waited for.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.wait([alive], timeout=_ENGINE_PATIENCE)
    while tasks and alive.done() and (left := began + _PATIENCE - loop.time()) > 0:
        await asyncio.wait(set(tasks), timeout=left)


def _warn(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal is closed
        sys.stderr.write(f"Warning: {message}\n")
        sys.stderr.flush()


def build(path: Path) -> tuple[Any, str]:
    "A datasette on a log, closed to strangers, and its name for the log"
    config = {"title": "llm kvbranch", "allow": {"id": list(KNOWN)}}
    secret = os.environ.get("DATASETTE_SECRET") or secrets.token_hex(32)
    datasette = new_datasette(path, config, secret, MAX_BODY, _TIME_LIMIT)
    return datasette, next(
        name for name, each in datasette.databases.items() if each.path == str(path)
    )


def _token(options: ServeOptions) -> str:
    if options.token is None:
        return _renewed() if options.new_token else kept_token()
    if options.new_token:
        raise SettingError(
            "--new-token makes a token: leave out --token and LLM_KVBRANCH_TOKEN"
        )
    token = check_token(options.token)
    if not is_loopback(options.host) and len(token) < _SHORTEST:
        raise SettingError(
            "With --host, other machines could guess the token: use at least "
            f"{_SHORTEST} characters"
        )
    return token


def _renewed() -> str:
    "A new token; raises SettingError while a server lets in clients with the old one"
    if running := find_any(kept_token()):
        raise SettingError(
            f"The server on port {running.port} uses the old token: stop it first"
        )
    return new_token()


def _elsewhere(options: ServeOptions, port: int, token: str) -> tuple[str, str]:
    """The token to use, and what to tell the user, if the usual port was taken.

    Clients that are set to the usual port send their prompts and the token to whatever
    listens there. If that is another user's program, the kept token is replaced.
    """
    usual = usual_port()
    if options.port is not None or port == usual:
        return token, ""
    if not is_another_users(usual):
        return token, f"Port {usual} is in use, so this server listens on {port}"
    said = (
        f"Port {usual} belongs to another user's program, so this server listens on "
        f"{port}: change the address in your clients, which would send your prompts "
        "to that program"
    )
    if options.token is None:
        return new_token(), f"{said}. It may have the old key, so here is a new key"
    return token, f"{said}, and your token with them: choose another one"


def _log_path(database: str | None) -> Path:
    "The log, created or migrated; raises sqlite3.Error"
    path = _path_of(database)
    db = open_log(str(path), create=True)
    try:
        History(db).prepare()
    finally:
        db.close()
    return path


def _path_of(database: str | None) -> Path:
    path = Path(database) if database else Path(llm.user_dir()) / "logs.db"
    return path.absolute()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    "Send all signals that end a process to one handler"
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {each: signal.signal(each, handler) for each in wanted}
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)


def _run(
    app: Any,
    listening: socket.socket,
    started: Callable[[], None],
    stopping: Callable[[], Awaitable[None]],
) -> None:
    "Serve until a signal, at which streams end at once"

    class Uvicorn(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            keep_quiet(asyncio.get_running_loop())
            await super().startup(sockets)
            listening.listen(QUEUE)
            started()

        async def shutdown(self, sockets: Any = None) -> None:
            await stopping()
            await super().shutdown(sockets)

        def capture_signals(self) -> Any:
            "As uvicorn's, but with SIGHUP, and without raising the signal again"
            return _signals(self.handle_exit)

    config = uvicorn.Config(
        app,
        http=protocol(most=raise_limit()),
        backlog=AT_ONCE,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,  # paths may contain words of a prompt
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    Uvicorn(config).run(sockets=[listening])
