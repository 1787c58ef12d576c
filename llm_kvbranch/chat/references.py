"""What a reference in a schema refers to.

This module does not know what is done with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from .bounds import WHOLE, SchemaError, is_text, shown


class References:
    "Finds parts of a schema by reference"

    def __init__(self, root: Any):
        self._root = root
        self._anchors: dict[str, Any] | None = None

    def target(self, reference: str) -> Any:
        "The schema that is referred to"
        missing = SchemaError(
            f"{WHOLE}: $ref {shown(reference)} refers to nothing in it"
        )
        base, _, fragment = reference.partition("#")
        own = self._root.get("$id") if isinstance(self._root, dict) else None
        if base and base != own:
            raise missing
        if fragment and not fragment.startswith("/"):
            if self._anchors is None:
                self._anchors = dict(_anchors(self._root))
            if fragment not in self._anchors:
                raise missing
            return self._anchors[fragment]
        found = self._root
        for part in fragment.split("/")[1:] if fragment.strip("/") else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise missing
        return found


def _anchors(root: Any) -> Iterable[tuple[str, Any]]:
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key in ("$anchor", "$dynamicAnchor"):
                if is_text(value.get(key)):
                    yield value[key], value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
