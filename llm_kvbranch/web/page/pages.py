"""The HTML pages: the list of conversations, and one tree with its conversation.

The idea: the list is complete HTML and works without scripts; the tree is a shell with
its settings, which the scripts fill. Neither extends datasette's base template.

The invariant: text of a user or a model is never markup. The templates escape it,
settings are JSON in which no ``</script>`` can occur, and the Content-Security-Policy
allows only our own script files.

This module does not know what the scripts do.
"""

from __future__ import annotations

import functools
from typing import Any
from urllib.parse import quote, urlencode

from llm.logs import HASH_PREFIX

from ...errors import HistoryError
from ...log import History, resolve_message, search
from ..api import LESS, Call, view
from ..compat import allowed, csrf_token
from ..door import GENERATE, HOME, session_of
from ..errors import to_request_error
from ..serving import logs_of
from .list_data import describe_list
from .page_api import FEWER_WORDS, checked_words
from .page_data import one_line, slots_of
from .static_files import address, modules

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
_DATA = ("tree", "path", "compare", "search")  # addresses of JSON
_ACTS = {
    "generate": "/generate",
    "branch": "/v1/chat/branch",
    "focus": "/focus",
    "continue": "/continue",
    "retry": "/retry",
}

_LONGEST = 1000  # characters of a search


async def _refuse(datasette: Any, request: Any, error: Exception) -> Any:
    "A page with one sentence about the error"
    refused = to_request_error(error)
    status = 404 if isinstance(error, HistoryError) else refused.status
    values = {"status": status, "message": str(refused)}
    return await _render(datasette, request, "missing", values, status)


page = functools.partial(view, "GET", refuse=_refuse)


@page()
async def browse(call: Call) -> Any:
    "The list of conversations, most recently continued first"
    log, args = call.log, call.request.args
    wanted = search.Filter(
        checked_words((args.get("q") or "")[:_LONGEST]),
        args.get("model") or None,
        args.get("starred") == "1",
        args.get("before") or None,
    )
    slots = await slots_of(log.server)
    listing = await call.read(
        lambda history: describe_list(history, wanted, slots),
        FEWER_WORDS if wanted.words else LESS,
    )
    config = await config_of(call, None)
    query = {"db": args.get("db"), "q": wanted.words, "model": wanted.model}
    query["starred"] = "1" if wanted.starred else None
    values = {
        **listing,
        "wanted": wanted,
        "db": args.get("db"),
        "config": config,
        "logs": await logs_of(call.datasette, call.request.actor),
        "older": _query({**query, "before": listing["before"]}),
        "newest": _query(query) if wanted.before else None,
        "logout": None,
    }
    if session_of(call.datasette, call.request) is not None:
        values["logout"] = call.datasette.urls.logout()
        values["csrf"] = csrf_token(call.request)
    return await _render(call.datasette, call.request, "browse", values)


def _query(values: dict[str, str | None]) -> str:
    return "?" + urlencode({name: value for name, value in values.items() if value})


@page()
async def tree_page(call: Call) -> Any:
    "The tree that a response is in"
    from datasette.utils.asgi import Response

    log, request = call.log, call.request
    reference = request.url_vars["id"]
    id, title = await call.read(lambda history: _resolve(history, reference))
    if id != reference:
        query = f"?{request.query_string}" if request.query_string else ""
        path = call.datasette.urls.path(f"{HOME}/{quote(id)}")
        return Response.redirect(path + query)
    config = await config_of(call, id)
    query = urlencode({"db": log.name, "id": id})
    values = {
        "config": config,
        "title": title,
        "modules": modules(),
        "data": [f"{config['urls'][name]}?{query}" for name in ("tree", "path")],
    }
    return await _render(call.datasette, call.request, "tree", values)


def _resolve(history: History, reference: str) -> tuple[str, str]:
    """The id of a response and the name of its thread.

    ``reference`` may also be a message's hash, since datasette's tables link to those.
    """
    if reference.startswith(HASH_PREFIX):
        id = resolve_message(history.db, reference)
    else:
        id = history.resolve(reference, threads=True)
    name = history.thread_name(history.turn(id)["thread_id"])
    return id, one_line(name, 80) or "A conversation"


async def config_of(call: Call, id: str | None) -> dict[str, Any]:
    "The settings for the scripts"
    datasette, log, server = call.datasette, call.log, call.log.server
    may_act = await allowed(datasette, call.request.actor, GENERATE)
    live = server is not None and may_act
    path = datasette.urls.path
    own = {name: path(f"{HOME}/{name}.json") for name in _DATA}
    own |= {n: path(f"{HOME}/{n}") for n in ("export", "mark", "prune", "slots")}
    return {
        "id": id,
        "db": log.name,
        "live": live,
        "may_write": live and log.database.is_mutable,
        "model": server.host.name if live and server else None,
        "model_id": server.model.model_id if live and server else None,
        "csrf": csrf_token(call.request) if live else None,
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
    body = text.encode("utf-8", "replace")  # JSON may hold lone surrogates
    return Response(
        body, status=status, headers=HEADERS, content_type="text/html; charset=utf-8"
    )
