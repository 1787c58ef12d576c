"""The user's settings, and the data directory.

The idea: settings are a JSON file in the data directory, which people can read and
edit. An environment variable of the same name overrides a setting.

The invariant: a data directory that other users could have put files into is not used,
neither to read nor to write.

This module does not know what the settings do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

import llm

from .errors import SettingError

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 60.0  # seconds, of the setting max_pause
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def data_directory() -> Path:
    """Where state and models are kept: LLM_KVBRANCH_DIR, or a directory in llm's own.

    It may not exist yet. Raises SettingError if other users control what is in it.
    """
    if chosen := os.environ.get("LLM_KVBRANCH_DIR"):
        path = Path(chosen).expanduser()
    else:
        path = Path(llm.user_dir()) / "kvbranch"
    with contextlib.suppress(OSError):  # whoever uses it reports these
        _check_owner(path, path.stat())
    return path


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raises SettingError if other users can change what is in a directory.

    The sticky bit does not help: others could add files that are not there yet. Root
    may own it, and may use a directory of any user: that is what containers do.
    """
    if not hasattr(os, "getuid"):  # Windows
        return
    own = "set LLM_KVBRANCH_DIR to a directory of your own"
    if os.getuid() != 0 and status.st_uid not in (os.getuid(), 0):
        raise SettingError(
            f"{path} belongs to another user, who could read and change what is kept "
            f"there: {own}"
        )
    is_shared = status.st_mode & stat.S_IWGRP and _has_others(status.st_gid)
    if status.st_mode & stat.S_IWOTH or is_shared:
        from shlex import quote  # llm should not pay for it whenever it starts

        raise SettingError(
            f"Other users can change what is in {path}: make it private with chmod "
            f"go-w {quote(str(path))}, or {own}"
        )


@functools.cache
def _has_others(gid: int) -> bool:
    "Whether a group has members besides this user and root"
    import grp
    import pwd

    if gid == 0:
        return False
    users = pwd.getpwall()
    members = {user.pw_name for user in users if user.pw_gid == gid}
    with contextlib.suppress(KeyError):
        members.update(grp.getgrgid(gid).gr_mem)
    trusted = {user.pw_name for user in users if user.pw_uid in (0, os.getuid())}
    return bool(members - trusted)


def get(name: str) -> Any:
    """The value of a setting: LLM_KVBRANCH_<NAME>, the settings file, or None.

    Raises SettingError when the file cannot be read.
    """
    if value := os.environ.get(f"LLM_KVBRANCH_{name.upper()}"):
        return value
    return _load().get(name)


def put(name: str, value: Any) -> None:
    "Write a setting to the file; None removes it. Raises SettingError"
    settings = {**_load(), name: value}
    text = json.dumps({k: v for k, v in settings.items() if v is not None}, indent=2)
    path = _path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, text + "\n")
    except OSError as error:
        raise SettingError(
            f"Cannot write {path}: {error.strerror}. Make it writable, or set "
            "LLM_KVBRANCH_DIR to another directory"
        ) from None


def write_private(path: Path, text: str) -> None:
    "Write a file of mode 0600 as a whole or not at all. Raises OSError"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}")
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def budget() -> int | None:
    "How many bytes state files may take; None if not set"
    value = get("budget")
    return None if value is None else parse_size(str(value))


def max_pause() -> float | None:
    "For how many seconds a server's answers may pause; None if not set"
    value = get("max_pause")
    try:
        seconds = None if value is None else float(value)
        if isinstance(value, bool):
            raise TypeError
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds is not None and not SHORTEST_PAUSE <= seconds <= LONGEST_PAUSE:
        raise SettingError(
            f"The setting max_pause is {value!r}: it must be a number of seconds, from "
            f"{SHORTEST_PAUSE} to {LONGEST_PAUSE}"
        )
    return seconds


def parse_size(text: str) -> int:
    "Bytes from 500MB, 1.5 GB or a plain number; raises SettingError"
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not found:
        raise SettingError(f"{text!r} is not a size: write it like 500MB or 20GB")
    number, unit, binary = found.groups()
    scale = 1024 ** list(_UNITS).index(unit) if binary else _UNITS[unit]
    return int(float(number) * scale)


def format_size(nbytes: float) -> str:
    "Bytes for people to read"
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if nbytes < 1000:
            break
        nbytes, unit = nbytes / 1000, larger
    return f"{nbytes:,.0f} {unit}" if unit == "bytes" else f"{nbytes:,.1f} {unit}"


def _path() -> Path:
    return data_directory() / "settings.json"


def _load() -> dict[str, Any]:
    path = _path()
    try:
        settings = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingError(
            f"Cannot read {path}: {error.strerror}. Make it readable, or set "
            "LLM_KVBRANCH_DIR to another directory"
        ) from None
    except ValueError as error:
        raise SettingError(f"Cannot read {path}: {error}. Fix or delete it") from None
    if not isinstance(settings, dict):
        raise SettingError(f"{path} is not a JSON object. Fix or delete it")
    return settings
