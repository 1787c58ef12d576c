"""datasette's hooks: the server, its API, and pages on any datasette with a log.

Owns the plugin: this module holds its hooks and nothing else, and the rooms below it
are ``errors``, ``compat``, ``door``, ``serving``, ``api``, ``page``, ``datasette_ui``
and ``routes``, in this order. It does not know what a hook's answer means.

Every ``datasette`` command loads this module, so hooks import what they need when
they are called: not llm, not llama.cpp, not even datasette. datasette ignores hooks
that it does not know: only 0.65 calls ``skip_csrf``, ``permission_allowed``,
``get_metadata`` and ``canned_queries``, only 1.0 ``register_actions``,
``permission_resources_sql``, ``row_actions`` and ``view_actions``.
"""

from __future__ import annotations

from typing import Any

from pluggy import HookimplMarker

hookimpl = HookimplMarker("datasette")


@hookimpl
def register_routes(datasette: Any) -> list[tuple[str, Any]]:
    from .routes import routes_of

    return routes_of(datasette)


@hookimpl(trylast=True)
def asgi_wrapper(datasette: Any) -> Any:
    "Called last, so that the guard is around the wrappers of other plugins"
    from .door import guarded
    from .page import ENTRANCE
    from .routes import form_of, is_ours

    return lambda app: guarded(app, datasette, is_ours, ENTRANCE, form_of)


@hookimpl(tryfirst=True)
def actor_from_request(datasette: Any, request: Any) -> dict[str, Any] | None:
    "Called first: another datasette's login must not hide ours"
    from .door import actor_of_request

    return actor_of_request(datasette, request)


@hookimpl
def skip_csrf(datasette: Any, scope: dict[str, Any]) -> bool:
    "The guard has checked the login page's form, which has no token of datasette's"
    from .door import door_of, is_login_form

    return door_of(datasette) is not None and is_login_form(scope)


@hookimpl
def extra_template_vars(datasette: Any, request: Any) -> dict[str, Any]:
    "datasette offers to log out only if its own cookie is there"
    from .door import session_of

    is_ours = request is not None and session_of(datasette, request) is not None
    return {"show_logout": True} if is_ours else {}


@hookimpl(trylast=True)
def permission_allowed(
    datasette: Any, actor: dict[str, Any] | None, action: str, resource: Any
) -> Any:
    "Called last, because the last opinion counts"
    from .datasette_ui import view_or_query_allowed
    from .door import ACTIONS, is_trusted

    if action in ACTIONS:
        return is_trusted(datasette, actor) or None
    if action in ("view-table", "view-query") and resource is not None:
        return view_or_query_allowed(datasette, actor, action, *resource)
    return None


@hookimpl
def register_actions() -> list[Any]:
    from .compat import actions
    from .door import ACTIONS

    return actions(ACTIONS)


@hookimpl
def permission_resources_sql(
    datasette: Any, actor: dict[str, Any] | None, action: str
) -> Any:
    from .compat import grant
    from .datasette_ui import denials
    from .door import ACTIONS, is_trusted

    if action not in ACTIONS:
        return denials(datasette, actor, action)
    if not is_trusted(datasette, actor):
        return None
    return grant("root or the API token of llm kvbranch serve")


@hookimpl
def handle_exception(datasette: Any, request: Any, exception: Exception) -> Any:
    "For our own paths; None leaves it to datasette"
    from .api import failure_response
    from .routes import form_of, is_ours

    if not is_ours(datasette, request.scope):
        return None
    return failure_response(datasette, exception, form_of(request.scope))


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
