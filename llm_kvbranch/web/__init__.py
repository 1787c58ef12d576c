"""datasette's hooks: who may do what, and what is reached at which path.

This module holds the hooks and nothing else. Every ``datasette`` command loads it,
so everything is imported inside them: neither llm nor llama.cpp, not even datasette.
Hooks that one version of datasette does not know are ignored by it: 0.65 asks
``permission_allowed``, ``get_metadata`` and ``canned_queries``, 1.0
``register_actions``, ``permission_resources_sql``, ``row_actions`` and
``view_actions``.
"""

from __future__ import annotations

from typing import Any

from pluggy import HookimplMarker

hookimpl = HookimplMarker("datasette")


@hookimpl
def register_routes(datasette: Any) -> list[tuple[str, Any]]:
    from .api.routes import ROUTES
    from .door.login import ROUTE

    return [ROUTE, *ROUTES]


@hookimpl(trylast=True)
def asgi_wrapper(datasette: Any) -> Any:
    "Called last, so around everything that other plugins wrap"
    from .door.access import guarded

    return lambda app: guarded(app, datasette)


@hookimpl
def actor_from_request(datasette: Any, request: Any) -> dict[str, str] | None:
    from .door.access import actor_of_token

    return actor_of_token(datasette, request.headers.get("authorization"))


@hookimpl
def permission_allowed(actor: dict[str, Any] | None, action: str) -> bool | None:
    from .door.access import ACTIONS, is_known

    return (is_known(actor) or None) if action in ACTIONS else None


@hookimpl
def register_actions() -> list[Any]:
    from datasette.permissions import Action

    from .door.access import ACTIONS

    return [Action(name=name, description=about) for name, about in ACTIONS.items()]


@hookimpl
def permission_resources_sql(actor: dict[str, Any] | None, action: str) -> Any:
    from .door.access import ACTIONS, is_known

    if action not in ACTIONS or not is_known(actor):
        return None
    from datasette.permissions import PermissionSQL

    return PermissionSQL.allow(reason="root or the API token of llm kvbranch serve")


@hookimpl
def handle_exception(datasette: Any, request: Any, exception: Exception) -> Any:
    from .api.failures import answer

    return answer(datasette, request, exception)


@hookimpl
def startup(datasette: Any) -> Any:
    from .datasette_ui import find_logs

    async def inner() -> None:
        await find_logs(datasette)

    return inner


@hookimpl
def menu_links(datasette: Any, actor: dict[str, Any] | None) -> Any:
    from .datasette_ui import menu

    return menu(datasette, actor)


@hookimpl
def database_actions(
    datasette: Any, actor: dict[str, Any] | None, database: str
) -> Any:
    from .datasette_ui import actions

    return actions(datasette, actor, database)


@hookimpl
def table_actions(
    datasette: Any, actor: dict[str, Any] | None, database: str, table: str
) -> Any:
    from .datasette_ui import actions

    return actions(datasette, actor, database, table)


@hookimpl
def view_actions(
    datasette: Any, actor: dict[str, Any] | None, database: str, view: str
) -> Any:
    from .datasette_ui import actions

    return actions(datasette, actor, database, view)


@hookimpl
def row_actions(
    datasette: Any, actor: dict[str, Any] | None, database: str, table: str, row: Any
) -> Any:
    from .datasette_ui import row_actions

    return row_actions(datasette, actor, database, table, row)


@hookimpl
def render_cell(
    datasette: Any, database: str, table: str | None, column: str, value: Any, row: Any
) -> Any:
    from .datasette_ui import cell

    return cell(datasette, database, table, column, value, row)


@hookimpl
def get_metadata(datasette: Any) -> Any:
    from .datasette_ui import metadata

    return metadata(datasette)


@hookimpl
def canned_queries(datasette: Any, database: str) -> Any:
    from .datasette_ui import queries

    return queries(datasette, database)
