"""The pages: what there is to read, and one tree with its conversation.

The idea: the list is whole as it comes, for browsers without scripts, too; the tree
is a shell with its settings, which the scripts fill. Both are pages of their own,
with nothing of datasette's around them.

The invariant: nothing that was typed or made by a model is markup. The templates
escape, settings are JSON that no ``</script>`` ends, and the header lets no script
run that is not a file of ours.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

from llm.logs import HASH_PREFIX

from ...errors import HistoryError
from ...log import History, resolve_message, search
from ..api.endpoint import check_method, told
from ..api.openai import RequestError
from ..door.access import GENERATE, HOME, allowed
from ..serving.log import Log, find_log, logs_of
from .list_data import describe_list
from .page_data import one_line, slots_of
from .static_files import address, modules

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
_OURS = ("tree", "path", "compare", "search")  # addresses that give JSON
_ACTS = {
    "generate": "/generate",
    "branch": "/v1/chat/branch",
    "focus": "/focus",
    "continue": "/continue",
    "retry": "/retry",
}

_LONGEST = 1000  # characters of what is searched for

Page = Callable[[Log, Any], Awaitable[Any]]


def page(function: Page) -> Any:
    "A page of ours; what goes wrong is told by one, too"

    @functools.wraps(function)
    async def handle(datasette: Any, request: Any) -> Any:
        try:
            check_method(request, "GET")
            return await function(await find_log(datasette, request), request)
        except Exception as error:
            refused = told(error)
            return await _refuse(datasette, request, refused, error)

    del handle.__wrapped__  # or datasette would ask for this function's parameters
    return handle


@page
async def browse(log: Log, request: Any) -> Any:
    "Conversations as trees, those gone on with last first"
    args = request.args
    wanted = search.Filter(
        (args.get("q") or "")[:_LONGEST],
        args.get("model") or None,
        args.get("starred") == "1",
        args.get("before") or None,
    )
    hot = slots_of(log.server)
    listing = await log.read(lambda history: describe_list(history, wanted, hot))
    config = await config_of(log, request, None)
    kept = {"db": args.get("db"), "q": wanted.words, "model": wanted.model}
    kept["starred"] = "1" if wanted.starred else None
    values = {
        **listing,
        "wanted": wanted,
        "db": args.get("db"),
        "config": config,
        "logs": await logs_of(log.datasette, request.actor),
        "older": _query({**kept, "before": listing["before"]}),
        "newest": _query(kept) if wanted.before else None,
    }
    return await _render(log.datasette, request, "browse", values)


def _query(values: dict[str, str | None]) -> str:
    return "?" + urlencode({name: value for name, value in values.items() if value})


@page
async def tree_page(log: Log, request: Any) -> Any:
    "The tree that a response is in"
    from datasette.utils.asgi import Response

    wanted = request.url_vars["id"]
    id, title = await log.read(lambda history: _resolve(history, wanted))
    if id != wanted:
        query = f"?{request.query_string}" if request.query_string else ""
        path = log.datasette.urls.path(f"{HOME}/{quote(id)}")
        return Response.redirect(path + query)
    config = await config_of(log, request, id)
    query = urlencode({"db": log.name, "id": id})
    values = {
        "config": config,
        "title": title,
        "modules": modules(),
        "data": [f"{config['urls'][name]}?{query}" for name in ("tree", "path")],
    }
    return await _render(log.datasette, request, "tree", values)


def _resolve(history: History, wanted: str) -> tuple[str, str]:
    """A response by what people and datasette's tables call it, be that a message.

    And what its thread is called.
    """
    if wanted.startswith(HASH_PREFIX):
        id = resolve_message(history, wanted)
    else:
        id = history.resolve(wanted, threads=True)
    name = history.thread_name(history.turn(id)["thread_id"])
    return id, one_line(name, 80) or "A conversation"


async def config_of(log: Log, request: Any, id: str | None) -> dict[str, Any]:
    "What the scripts have to know"
    datasette, server = log.datasette, log.server
    may_act = await allowed(datasette, request.actor, GENERATE)
    live = server is not None and may_act
    token = request.scope.get("csrftoken")
    path = datasette.urls.path
    own = {name: path(f"{HOME}/{name}.json") for name in _OURS}
    own |= {n: path(f"{HOME}/{n}") for n in ("export", "mark", "prune", "slots")}
    return {
        "id": id,
        "db": log.name,
        "live": live,
        "may_write": live and log.database.is_mutable,
        "model": server.session.name if live and server else None,
        "model_id": server.model.model_id if live and server else None,
        "csrf": token() if live and token else None,
        "database_url": datasette.urls.database(log.name),
        "urls": {"home": path(HOME), **own, **{k: path(v) for k, v in _ACTS.items()}},
    }


async def _render(
    datasette: Any, request: Any, name: str, values: dict[str, Any], status: int = 200
) -> Any:
    from datasette.utils.asgi import Response

    context = {"static": address(datasette), "home": datasette.urls.path(HOME)}
    text = await datasette.render_template(
        f"kvbranch_{name}.html", {**context, **values}, request=request
    )
    body = text.encode("utf-8", "replace")  # half a character can come from JSON
    return Response(
        body, status=status, headers=_HEADERS, content_type="text/html; charset=utf-8"
    )


async def _refuse(
    datasette: Any, request: Any, refused: RequestError, error: Exception
) -> Any:
    "A page with one clear sentence"
    status = 404 if isinstance(error, HistoryError) else refused.status
    values = {"status": status, "message": refused.body["error"]["message"]}
    return await _render(datasette, request, "missing", values, status)
