"""Differences between datasette 0.65 and 1.0, and private names of datasette's.

The idea: the other modules are written as if there were one datasette. This one
detects features, not version numbers, and says why a private name is needed.

This module does not know logs, models or who may do what.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

_PLUGIN = __package__  # the module of datasette's hooks
_INTERNAL = "_internal"  # a database of datasette 0.65 that lists the others
# Set while may_see_table asks 1.0, which asks this plugin's hook in turn
_asking: ContextVar[bool] = ContextVar("asking", default=False)
Hook = TypeVar("Hook", bound=Callable[..., Awaitable[Any]])
Settings = dict[str, dict[str, Any]]


def new_datasette(
    path: Path, config: dict[str, Any], secret: str, max_body: int, time_limit_ms: int
) -> Any:
    "A Datasette on one file, with this plugin loaded and root enabled"
    from datasette.app import Datasette

    _load_plugin()
    _hide_locals()
    parameters = inspect.signature(Datasette.__init__).parameters
    more: dict[str, Any] = {"config" if "config" in parameters else "metadata": config}
    more["settings"] = {"sql_time_limit_ms": time_limit_ms}
    if "default_deny" in parameters:  # 1.0, which limits bodies; 0.65 does not
        more["settings"]["max_post_body_bytes"] = max_body
    datasette = Datasette([str(path)], secret=secret, **more)
    if hasattr(datasette, "root_enabled"):  # 1.0
        datasette.root_enabled = True
    return datasette


def _load_plugin() -> None:
    "Register this plugin, even if DATASETTE_LOAD_PLUGINS leaves it out: it is the door"
    from datasette.plugins import pm

    plugin = importlib.import_module(_PLUGIN)
    if not any(each is plugin for each in pm.get_plugins()):
        pm.register(plugin, name="llm_kvbranch")


def _hide_locals() -> None:
    """Stop datasette from printing the local variables of a failed request.

    They may hold prompts. It prints them wherever rich is installed, which no setting
    turns off.
    """
    from datasette.plugins import pm

    pm.get_plugin("datasette.handle_exception").rich = None


async def allowed(datasette: Any, actor: dict[str, Any] | None, action: str) -> bool:
    "Whether an actor may do one of our actions; denied by default"
    if hasattr(datasette, "allowed"):  # 1.0
        return bool(await datasette.allowed(action=action, actor=actor))
    return bool(await datasette.permission_allowed(actor, action, default=False))


async def may_see_table(datasette: Any, actor: Any, database: str, table: str) -> bool:
    "Whether datasette would show a table to an actor"
    if hasattr(datasette, "allowed"):  # 1.0
        from datasette.resources import TableResource

        resource = TableResource(database=database, table=table)
        token = _asking.set(True)
        try:
            found = await datasette.allowed(
                action="view-table", resource=resource, actor=actor
            )
        finally:
            _asking.reset(token)
        return bool(found)
    from datasette.utils.asgi import Forbidden

    wanted = [
        ("view-table", (database, table)),
        ("view-database", database),
        "view-instance",
    ]
    try:
        await datasette.ensure_permissions(actor, wanted)
    except Forbidden:
        return False
    return True


def is_interrupted(error: BaseException) -> bool:
    "Whether datasette's time limit ended a query of datasette's own"
    from datasette.database import QueryInterrupted

    return isinstance(error, QueryInterrupted)


def unless_interrupted(value: Any) -> Callable[[Hook], Hook]:
    "Have a hook return a value instead if datasette's time limit ends its queries"

    def wrap(hook: Hook) -> Hook:
        @functools.wraps(hook)
        async def inner(*arguments: Any) -> Any:
            try:
                return await hook(*arguments)
            except Exception as error:
                if is_interrupted(error):
                    return value
                raise

        return cast(Hook, inner)

    return wrap


def actions(about: dict[str, str]) -> list[Any]:
    "Actions with their descriptions, for 1.0's register_actions"
    from datasette.permissions import Action

    return [Action(name=name, description=text) for name, text in about.items()]


def grant(reason: str) -> Any:
    "A yes, for 1.0's permission_resources_sql"
    from datasette.permissions import PermissionSQL

    return PermissionSQL.allow(reason=reason)


def is_asking() -> bool:
    "Whether may_see_table is asking datasette 1.0 about a table"
    return _asking.get()


async def named(
    datasette: Any, action: str, names: Iterable[str]
) -> list[tuple[str, str]]:
    "The (database, name) of each view or query of 1.0 that has one of some names"
    found = await datasette.get_internal_database().execute(_named(action, names))
    return [(row["database_name"], row["name"]) for row in found.rows]


def _named(action: str, names: Iterable[str]) -> str:
    source = {
        "view-table": "select database_name, view_name as name from catalog_views",
        "view-query": "select database_name, name from queries",
    }[action]
    known = ", ".join(f"'{name}'" for name in names)
    return f"select * from ({source}) where lower(name) in ({known})"


def deny_named(action: str, names: Iterable[str], reason: str) -> Any:
    "Like deny(), for all that have one of these names, without looking them up"
    from datasette.permissions import PermissionSQL

    sql = (
        "select database_name as parent, name as child, 0 as allow,"
        f" :kvbranch_reason as reason from ({_named(action, names)})"
    )
    return PermissionSQL(sql=sql, params={"kvbranch_reason": reason})


def deny(names: list[tuple[str, str]], reason: str) -> Any:
    "A no for some views or queries, for 1.0's permission_resources_sql"
    from datasette.permissions import PermissionSQL

    rows, params = [], {"kvbranch_reason": reason}
    for i, (database, name) in enumerate(names):
        rows.append(
            f"select :kvbranch_parent_{i} as parent, :kvbranch_child_{i} as child,"
            " 0 as allow, :kvbranch_reason as reason"
        )
        params |= {f"kvbranch_parent_{i}": database, f"kvbranch_child_{i}": name}
    return PermissionSQL(sql=" union all ".join(rows), params=params)


async def actor_of(datasette: Any, request: Any) -> dict[str, Any] | None:
    """The actor of a request, before datasette itself has looked for it.

    1.0 raises TokenInvalid for a bad token of its own, a class that 0.65 lacks.
    """
    from datasette.plugins import pm
    from datasette.utils import await_me_maybe

    actor, refused = None, False
    for result in pm.hook.actor_from_request(datasette=datasette, request=request):
        try:
            found = await await_me_maybe(result)
        except Exception as error:
            if type(error).__name__ != "TokenInvalid":
                raise
            refused = True
        else:
            actor = actor or found
    return None if refused else actor or request.scope.get("actor")


async def render_plain(datasette: Any, name: str, values: dict[str, Any]) -> str:
    "A template of ours, without what plugins add for the actor of a request"
    if hasattr(datasette, "get_jinja_environment"):  # 1.0
        environment = datasette.get_jinja_environment()
    else:
        environment = datasette.jinja_env
    text: str = await environment.get_template(name).render_async(values)
    return text


def csrf_token(request: Any) -> str | None:
    "The token that 0.65 wants with each POST; 1.0 compares origins instead"
    token = request.scope.get("csrftoken")
    return token() if token else None


def is_internal(database: str) -> bool:
    return database == _INTERNAL


def cacheable(view: Any) -> Any:
    """Let a view's responses be cached although the browser sends a cookie.

    datasette marks its own static files by this private name, and sends
    ``Cache-Control: private`` with everything else.
    """
    view._datasette_static = True
    return view


def table_settings(datasette: Any, database: str) -> Settings:
    "The user's settings for tables, from 0.65's metadata, which is private"
    metadata = getattr(datasette, "_metadata_local", None) or {}
    found: Settings = ((metadata.get("databases") or {}).get(database) or {}).get(
        "tables"
    ) or {}
    return found


def takes_suggestions(datasette: Any) -> bool:
    "Whether suggest() works: 1.0 lacks the hooks get_metadata and canned_queries"
    return hasattr(datasette, "add_query")


async def suggest(
    datasette: Any,
    database: str,
    settings: Callable[[Settings], Settings],
    queries: dict[str, dict[str, str]],
) -> None:
    """Add table settings and queries to a database of 1.0.

    ``settings`` gets what the user set. ``datasette.config`` is written to because
    1.0 has no hook for it.
    """
    databases = datasette.config.setdefault("databases", {})
    tables = databases.setdefault(database, {}).setdefault("tables", {})
    for table, suggested in settings(tables).items():
        tables[table] = {**suggested, **tables.get(table, {})}
    for name, query in queries.items():
        await datasette.add_query(database, name, query["sql"], title=query["title"])
