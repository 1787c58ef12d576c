"""The JSON that the page is made of: trees, conversations, what was found in them.

This module holds what each address gives; how a log is read is in log.
"""

from __future__ import annotations

from typing import Any

from .describe import describe_path, describe_tree, slots_of
from .log import Log, reading
from .openai import RequestError
from .views import json_response


@reading
async def tree(log: Log, request: Any) -> Any:
    "The whole tree that a response is in"
    hot = slots_of(log.server)
    wanted = _wanted(request)
    return json_response(await log.read(lambda h: describe_tree(h, wanted, hot)))


@reading
async def path(log: Log, request: Any) -> Any:
    "Everything that was said from the first response of a tree to one of them"
    hot = slots_of(log.server)
    wanted = _wanted(request)
    return json_response(await log.read(lambda h: describe_path(h, wanted, hot)))


def _wanted(request: Any) -> str:
    wanted = request.args.get("id")
    if not wanted:
        raise RequestError(400, "id: is missing", "id")
    return str(wanted)
