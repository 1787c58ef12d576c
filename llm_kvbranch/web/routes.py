"""The table of routes: every address of this plugin, and the view behind it.

The idea: this is the only place that knows both the API and the pages. datasette
takes the first pattern that matches.

The invariant: outside of ``/-/kvbranch``, nothing is ours unless a model is served.

This module does not know what a view does.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from .api import branches, chat, form_of_view, internal, openapi, status
from .door import HOME, LOGIN, door_of, paths_of
from .page import login, page_api, page_changes, pages, static_files
from .serving import server_of

LOGIN_ROUTE = (re.escape(LOGIN) + "$", login.log_in)
ROUTES: list[tuple[str, Any]] = [
    (r"^/-/kvbranch/run$", internal.run),
    (r"^/-/kvbranch/commit$", internal.commit),
    (r"^/-/kvbranch/tail$", internal.tail),
    (r"^/v1/chat/completions$", chat.chat_completions),
    (r"^/v1/chat/branch$", branches.branch),
    (r"^/v1/models$", status.models),
    (r"^/generate$", chat.generate),
    (r"^/focus$", branches.focus),
    (r"^/continue$", branches.continue_),
    (r"^/retry$", branches.retry),
    (r"^/branch/tree$", branches.tree),
    (r"^/-/kvbranch/slots$", status.slots),
    (r"^/-/kvbranch/tree\.json$", page_api.tree),
    (r"^/-/kvbranch/path\.json$", page_api.path),
    (r"^/-/kvbranch/search\.json$", page_api.search),
    (r"^/-/kvbranch/compare\.json$", page_api.compare),
    (r"^/-/kvbranch/export$", page_api.export),
    (r"^/-/kvbranch/mark$", page_changes.mark),
    (r"^/-/kvbranch/prune$", page_changes.prune),
    (r"^/-/kvbranch$", pages.browse),
    (r"^/-/kvbranch/$", pages.browse),
    (r"^/metrics$", status.metrics),
    (r"^/openapi\.json$", openapi.openapi_json),
    (r"^/-/kvbranch/static/(?P<digest>[0-9a-f]+)/(?P<path>.+)$", static_files.static),
    (r"^/-/kvbranch/(?P<id>[^/]+)$", pages.tree_page),  # last: it matches all others
]

# All paths that may ever be ours, whether or not there is a route
_OURS = ("/v1(/|$)", HOME)


def routes_of(datasette: Any) -> list[tuple[str, Any]]:
    "The routes of a datasette"
    is_served = _is_served(datasette)
    return [
        LOGIN_ROUTE,
        *(each for each in ROUTES if is_served or _is_at_home(each[0])),
    ]


def is_ours(datasette: Any, scope: dict[str, Any]) -> bool:
    "Whether a path is this plugin's, in any way that datasette may match it"
    return any(
        pattern.match(path)
        for path in paths_of(scope, datasette.setting("base_url"))
        for pattern in _patterns(_is_served(datasette))
    )


def form_of(scope: dict[str, Any]) -> Any:
    "The form of the errors at a path: that of the view that is there"
    for (_, view), pattern in zip(ROUTES, _patterns(True)[len(_OURS) :], strict=True):
        if pattern.match(scope["path"]):
            return form_of_view(view)
    return form_of_view(None)


def _is_served(datasette: Any) -> bool:
    """Whether a model is served, so that the addresses at the root are ours.

    In any other datasette they may be databases, and are left to them.
    """
    return door_of(datasette) is not None or server_of(datasette) is not None


def _is_at_home(pattern: str) -> bool:
    return pattern.removeprefix("^").startswith(HOME)


@functools.cache
def _patterns(is_served: bool) -> list[re.Pattern[str]]:
    found = [*_OURS, *(route for route, _ in ROUTES)]
    return [re.compile(each) for each in found if is_served or _is_at_home(each)]
