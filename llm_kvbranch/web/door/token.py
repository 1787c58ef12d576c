"""Secrets of a user: the API token, and the one that sessions are signed with.

The idea: each is created once and kept in a private file, so that clients keep working
and browsers stay logged in after a restart.

The invariant: a secret that another user could have read or written is not used.

This module does not know what the secrets open.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from ...errors import SettingError
from ...settings import data_directory, write_private

_TOKEN = re.compile(r"[!-~]+")


def check_token(token: str) -> str:
    "A token as it can be sent in a header; raises SettingError"
    if not _TOKEN.fullmatch(token):
        raise SettingError(
            "The token must be printable ASCII without spaces, such as "
            + secrets.token_urlsafe(24)
        )
    return token


def kept_token() -> str:
    """This user's token, created if there is none.

    One that another user could have read is replaced. Raises SettingError.
    """
    return _kept("token", "the API token", "kv-")


def new_token() -> str:
    "A new token, kept in place of the one before; raises SettingError"
    return _kept("token", "the API token", "kv-", anew=True)


def session_secret() -> str:
    "The secret that this user's sessions are signed with, kept as the token is"
    return _kept("session-secret", "the secret of sessions")


def _kept(name: str, about: str, prefix: str = "", anew: bool = False) -> str:
    path = data_directory() / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not anew and (secret := _read_private(path)):
            return secret
        secret = prefix + secrets.token_urlsafe(32)
        write_private(path, secret + "\n")
        return _read_private(path) or secret  # another process's, if it wrote one last
    except OSError as error:
        raise SettingError(f"Cannot keep {about} in {path}: {error.strerror}") from None


def _read_private(path: Path) -> str | None:
    "The secret in a file, if only this user could have read and written it"
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        secret = file.read(1000).decode("latin-1").strip()
        if (
            mine
            and not stat.S_IMODE(status.st_mode) & 0o077
            and _TOKEN.fullmatch(secret)
        ):
            return secret
    return None
