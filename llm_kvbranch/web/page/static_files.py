"""The page's own files, under an address that changes when they do.

The idea: the address holds a digest of all of them. So browsers may keep what they
have for good, and after an upgrade never mix old scripts with new ones: scripts name
each other by relative addresses, which keep the digest.

The invariant: only files that are here are given, whatever a path says.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from ..door.access import HOME

STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Not needed for the tree, or asked for before all others
_APART = {"early.js", "browse.js", "tree.js"}


def files() -> dict[str, Path]:
    "What there is, by its place below the address"
    return {
        path.relative_to(STATIC).as_posix(): path
        for path in sorted(STATIC.rglob("*"))
        if path.suffix in _KINDS
    }


def address(datasette: Any) -> str:
    "Where the files are to be had"
    return str(datasette.urls.path(f"{HOME}/static/{digest()}"))


def modules() -> list[str]:
    "Scripts that the tree needs, to be fetched before one asks for the other"
    return [name for name in files() if name.endswith(".js") and name not in _APART]


def digest() -> str:
    "Of all files as they are now"
    stats = ((name, path.stat()) for name, path in files().items())
    return _digest(tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats))


@functools.lru_cache(maxsize=1)
def _digest(seen: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, path in files().items():
        data = path.read_bytes()
        whole.update(f"{name}\0{len(data)}\0".encode() + data)
    return whole.hexdigest()[:16]


async def static(datasette: Any, request: Any) -> Any:
    "One of the files; for good, if it is asked for by today's digest"
    from datasette.utils.asgi import Response

    path = files().get(request.url_vars["path"])
    if path is None or request.method not in ("GET", "HEAD"):
        return Response("There is no such file", status=404)
    is_this = request.url_vars["digest"] == digest()
    return Response(
        path.read_bytes(),
        headers={
            "cache-control": "public, max-age=31536000, immutable"
            if is_this
            else "no-cache",
            "x-content-type-options": "nosniff",
        },
        content_type=_KINDS[path.suffix],
    )


# What datasette calls its own static files by, which are nobody's secret: else it
# would forbid to keep what was sent to who has logged in
static._datasette_static = True  # type: ignore[attr-defined]
