"""``llm kvbranch serve``: datasette on the log, with one model in memory.

The idea: this builds what is served and runs it until somebody stops it. The port is
taken before the model is loaded, so that a port in use costs no time; who connects
meanwhile waits.

The invariant: whatever ends the process, by a signal or a failure, running answers
end first, and what told other processes of this server is gone.

This module does not know what is served at which path, and prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import json
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import llm
import uvicorn

from ...errors import KVBranchError, SettingError
from ...log import open_log, tables
from ...settings import data_directory
from ..door.access import (
    API_ACTOR,
    LOGIN,
    Door,
    check_token,
    close_door,
    host_names,
    kept_token,
)
from ..door.guard import LOOPBACK, MAX_BODY

PORT = 8177
_ANY = ("0.0.0.0", "::")
_GRACE = 2  # seconds that connections have to end in
_PATIENCE = 10.0  # and answers, to be logged
_SHORTEST = 16  # a token that others in the network may guess at


@dataclass(frozen=True)
class Wanted:
    """What is to be served, and to whom.

    ``port`` None is the usual one, or any that is free; 0 is any. ``token`` None is
    the one that is kept for this user.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allow_hosts: tuple[str, ...] = ()
    token: str | None = None
    database: str | None = None
    model: str | None = None
    slots: int = 8
    n_ctx: int | None = None
    queue: int = 64
    log: bool = True


@dataclass(frozen=True)
class Ready:
    "Where the server is to be had; ``login`` works once. It may have run before"

    url: str
    login: str
    token: str
    model: str
    is_new: bool = True


def serve(wanted: Wanted, ready: Callable[[Ready], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; ``ready`` is called when it can be used.

    Where just this is served already, that is all there is to do. Raises KVBranchError.
    """
    from ...client import announce, withdraw
    from .served_model import attach, open_server

    hosts = _hosts(wanted)
    token = _token(wanted)
    if running := already_there(wanted, token):
        return ready(running)
    with listen(wanted.host, wanted.port) as listening, _signals(_interrupt):
        port = listening.getsockname()[1]
        datasette, database = build(_log_path(wanted.database))
        door = Door(token, hosts)
        close_door(datasette, door)
        server = open_server(
            wanted.model,
            wanted.slots,
            wanted.n_ctx,
            wanted.queue,
            wanted.log,
            database,
            token,
        )
        attach(datasette, server)
        local = f"http://{_local_name(wanted.host)}:{port}"
        public = f"http://{_public_name(wanted)}:{port}"

        def started() -> None:
            try:
                announce(local, token, server.key, _asked(wanted))
            except OSError as error:
                raise SettingError(
                    f"Cannot write {data_directory()}: {error.strerror}"
                ) from None
            name = server.session.name
            ready(Ready(public, public + door.new_link(), token, name))

        async def stopping() -> None:
            withdraw()
            door.closing.set()
            server.begin_shutdown()
            await _ended(server.tasks)

        try:
            _run(datasette.app(), listening, started, stopping)
        finally:
            withdraw()
            server.close()


def already_there(wanted: Wanted, token: str) -> Ready | None:
    "A server that runs and was started in the same way, with a new link to log in"
    from ...client import find
    from .served_model import chosen_model

    if wanted.port == 0:  # another one is wanted
        return None
    found, _, key = chosen_model(wanted.model)
    remote = find(key, token, _asked(wanted))
    if remote is None or wanted.port not in (None, remote.port):
        return None
    try:
        path = remote.ask(LOGIN, {})["path"]
    except KVBranchError:  # it is about to end
        return None
    public = f"http://{_public_name(wanted)}:{remote.port}"
    return Ready(public, public + path, token, found.name, is_new=False)


def _asked(wanted: Wanted) -> dict[str, Any]:
    "What is wanted, as another process can compare it"
    asked = asdict(replace(wanted, database=str(_path_of(wanted.database)), token=None))
    del asked["port"]
    whole: dict[str, Any] = json.loads(json.dumps(asked))
    return whole


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    "Wait for answers to be logged; they end at once, but the disk may be busy"
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    while tasks and (left := deadline - loop.time()) > 0:
        await asyncio.wait(set(tasks), timeout=left)


def build(path: Path) -> tuple[Any, str]:
    "datasette on a log, closed to all who are not known, and its name for the log"
    from datasette.app import Datasette
    from datasette.plugins import pm

    from llm_kvbranch import web

    # However datasette chooses its plugins: without this one there is no door
    if not any(plugin is web for plugin in pm.get_plugins()):
        pm.register(web, name="llm_kvbranch")
    # It would print prompts, among all other local variables
    pm.get_plugin("datasette.handle_exception").rich = None
    parameters = inspect.signature(Datasette.__init__).parameters
    known = ["root", API_ACTOR]
    given: dict[str, Any] = {
        "config" if "config" in parameters else "metadata": {
            "title": "llm kvbranch",
            "allow": {"id": known},
        },
        "secret": os.environ.get("DATASETTE_SECRET") or secrets.token_hex(32),
    }
    if "default_deny" in parameters:  # datasette 1.0
        given["settings"] = {"max_post_body_bytes": MAX_BODY}
    datasette = Datasette([str(path)], **given)
    if hasattr(datasette, "root_enabled"):
        datasette.root_enabled = True
    return datasette, next(
        name for name, each in datasette.databases.items() if each.path == str(path)
    )


def listen(host: str, port: int | None) -> socket.socket:
    "A socket that listens; raises SettingError in words"
    family, _, _, _, address = _resolve(host, PORT if port is None else port)
    # asyncio sends at once, without waiting for more, only where the protocol is named
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(128)
        except OSError:
            if port is not None:
                raise
            listening.bind((address[0], 0, *address[2:]))
            listening.listen(128)
    except OSError as error:
        listening.close()
        if port:
            raise SettingError(
                f"Port {port} of {host} cannot be had ({error.strerror}): choose "
                "another one with --port, or any that is free with --port 0"
            ) from None
        raise SettingError(f"Cannot listen at {host}: {error.strerror}") from None
    return listening


def _resolve(host: str, port: int) -> Any:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise SettingError(
            f"{host!r} is no address of this machine: leave out --host to be reached "
            "from here alone"
        ) from None


def _is_loopback(host: str) -> bool:
    address = str(_resolve(host, 0)[4][0]).partition("%")[0]
    return ipaddress.ip_address(address).is_loopback


def _hosts(wanted: Wanted) -> frozenset[str]:
    "The names that we may be reached by"
    names = host_names(wanted.allow_hosts)
    if not _is_loopback(wanted.host) and not names:
        example = socket.gethostname() if wanted.host in _ANY else wanted.host
        raise SettingError(
            f"Others could reach {wanted.host}: say by which name they may, with "
            f"--allow-host NAME such as --allow-host {example}"
        )
    # No page can be served under an address that is ours, so that is safe, too
    own = () if wanted.host in _ANY else (wanted.host,)
    return LOOPBACK | names | host_names(own)


def _token(wanted: Wanted) -> str:
    if wanted.token is None:
        return kept_token()
    token = check_token(wanted.token)
    if not _is_loopback(wanted.host) and len(token) < _SHORTEST:
        raise SettingError(
            f"Others could guess the token: at least {_SHORTEST} characters with --host"
        )
    return token


def _local_name(host: str) -> str:
    "What this machine reaches the server by"
    if host in _ANY:
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"[{host}]" if ":" in host else host


def _public_name(wanted: Wanted) -> str:
    if wanted.allow_hosts and not _is_loopback(wanted.host):
        return next(iter(host_names(wanted.allow_hosts[:1])))
    return _local_name(wanted.host)


def _log_path(database: str | None) -> Path:
    "The log, made or brought up to date; raises sqlite3.Error"
    path = _path_of(database)
    db = open_log(str(path), create=True)
    try:
        tables.migrations.apply(db)
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
    "All signals that people and systems end a process with, to one handler"
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
    "Serve until a signal; streams end at once then"

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: Any = None) -> None:
            await stopping()
            await super().shutdown(sockets)

        def capture_signals(self) -> Any:
            "As uvicorn's own, of one more signal, and none is raised again after it"
            return _signals(self.handle_exit)

    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,  # paths may hold words of a prompt
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    Server(config).run(sockets=[listening])
