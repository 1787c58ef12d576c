"""The page's scripts and styles, at an address that changes when they do.

The idea: the address contains a digest of all files. Browsers may cache them for ever
and never mix scripts of two versions, because scripts import each other by relative
addresses, which keep the digest.

The invariant: only files below ``static/`` are served, whatever a path says.

This module does not know what the files do.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from ..compat import cacheable
from ..door import HOME

STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Not preloaded for the tree: not needed there, or loaded by the page itself
_APART = {"early.js", "browse.js", "tree.js"}


def files() -> dict[str, Path]:
    "All files, by their path below the address"
    return {
        path.relative_to(STATIC).as_posix(): path
        for path in sorted(STATIC.rglob("*"))
        if path.suffix in _KINDS
    }


def address(datasette: Any) -> str:
    "The address of the files"
    return str(datasette.urls.path(f"{HOME}/static/{digest()}"))


def modules() -> list[str]:
    "Scripts that the tree needs, to preload them in parallel"
    return [name for name in files() if name.endswith(".js") and name not in _APART]


def digest() -> str:
    "A digest of all files"
    stats = ((name, path.stat()) for name, path in files().items())
    return _digest(tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats))


@functools.lru_cache(maxsize=1)
def _digest(seen: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, path in files().items():
        data = path.read_bytes()
        whole.update(f"{name}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()[:16]


@cacheable
async def static(datasette: Any, request: Any) -> Any:
    "One of the files; to be cached for ever if the digest in its address is current"
    from datasette.utils.asgi import Response

    path = files().get(request.url_vars["path"])
    if path is None or request.method not in ("GET", "HEAD"):
        return Response("No such file", status=404)
    is_current = request.url_vars["digest"] == digest()
    return Response(
        path.read_bytes(),
        headers={
            "cache-control": "public, max-age=31536000, immutable"
            if is_current
            else "no-cache",
            "x-content-type-options": "nosniff",
        },
        content_type=_KINDS[path.suffix],
    )
