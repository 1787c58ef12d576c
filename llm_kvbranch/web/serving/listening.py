"""Where the server listens, and by which names it may be reached.

The idea: the usual port, or any free one if that is taken; this machine alone, unless
the user names a host for others.

This module does not know what is served.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from ...errors import SettingError
from ..door import LOOPBACK, host_names

PORT = 8177
_ANY = ("0.0.0.0", "::")


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket; raises SettingError.

    ``port`` None is the usual port, or any free one if that is taken; 0 is any.
    """
    family, _, _, _, address = _resolve(host, PORT if port is None else port)
    # asyncio disables Nagle's algorithm only on sockets whose protocol is named
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
                f"Port {port} of {host} is not available ({error.strerror}): choose "
                "another with --port, or any free one with --port 0"
            ) from None
        raise SettingError(f"Cannot listen on {host}: {error.strerror}") from None
    return listening


def usual_port() -> int:
    return PORT


def is_another_users(port: int) -> bool:
    "Whether another user's program listens on a port; False where that is unknown"
    uid = _listener(port)
    return uid is not None and uid != os.getuid()


def _listener(port: int) -> int | None:
    "The user whose program listens on a port of this machine; None if unknown"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            for row in list(map(str.split, file))[1:]:
                if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                    return int(row[7])
    return None


def _resolve(host: str, port: int) -> Any:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise SettingError(
            f"{host!r} is not an address of this machine: leave out --host to serve "
            "this machine alone"
        ) from None


def is_loopback(host: str) -> bool:
    address = str(_resolve(host, 0)[4][0]).partition("%")[0]
    return ipaddress.ip_address(address).is_loopback


def allowed_names(host: str, allow_hosts: Iterable[str] = ()) -> frozenset[str]:
    "The host names that requests may use; raises SettingError"
    names = host_names(allow_hosts)
    if not is_loopback(host) and not names:
        example = socket.gethostname() if host in _ANY else host
        raise SettingError(
            f"Other machines can reach {host}: say by which name they may, with "
            f"--allow-host NAME such as --allow-host {example}"
        )
    # No other site can serve pages from our own address, so allowing it is safe
    own = () if host in _ANY else (host,)
    return LOOPBACK | names | host_names(own)


def local_name(host: str) -> str:
    "The name in URLs that this machine uses"
    if host in _ANY:
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"[{host}]" if ":" in host else host


def public_name(host: str, allow_hosts: tuple[str, ...] = ()) -> str:
    "The name in URLs that users are shown"
    if allow_hosts and not is_loopback(host):
        return next(iter(host_names(allow_hosts[:1])))
    return local_name(host)
