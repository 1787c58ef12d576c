"""Links from datasette's own pages to ours: menus, cells, facets and queries.

The idea: every row of the log is one click away from its tree. Facets, sort orders
and queries are suggestions: the user's own settings take precedence.

The invariant: nothing changes for a database that is not a log, or for an actor who
may not see it.

This module does not know what our pages show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ..log import tables as log_tables
from . import compat
from .door import HOME, is_trusted, may_see_query
from .serving import is_log, known_logs, logs_of, sees_log

LABEL = "Conversation trees"
# Columns that hold the id of a response or the hash of a message, in any table
_IDS = frozenset({"response_id", "from_response", "turn_id", "state_parent"})
_HASHES = frozenset({"tip_message_hash", "message_hash"})
# Cells that link the response in their row's key, and the table that they refer to
_BESIDE: dict[tuple[str | None, str], str] = {
    ("kvbranch_branches", "thread_id"): "threads",
    ("kvbranch_marks", "starred"): "",
}
_ID = re.compile(r"[0-9a-z]{26}")
_HASH = re.compile(r"b2:[0-9a-f]{32}")
_TABLES = (
    *log_tables.LLM_TABLES,
    "kvbranch_branches",
    "kvbranch_marks",
    *log_tables.VIEWS,
)

_ORDERS = {"sort", "sort_desc"}
SETTINGS: dict[str, dict[str, Any]] = {
    "threads": {"label_column": "name", "sort_desc": "id"},
    "turns": {"sort_desc": "id", "facets": ["model"]},
    "messages": {"facets": ["role"]},
    "message_tree": {"sort": "path"},
    "kvbranch_branches": {"sort_desc": "response_id", "facets": ["verb", "mode"]},
    "kvbranch_marks": {"sort_desc": "updated", "facets": ["starred"]},
    "kvbranch_responses": {
        "sort_desc": "response_id",
        "facets": ["model", "verb"],
        "description": "Responses with their prompts, costs and marks",
    },
    "kvbranch_branch_points": {
        "sort_desc": "response_id",
        "facets": ["verb"],
        "description": "Branches and the answers that they start from",
    },
}
QUERIES: dict[str, dict[str, str]] = {
    "kvbranch_starred": {
        "title": "Starred responses and notes",
        "sql": "select response_id, prompt, note, model, datetime_utc"
        " from kvbranch_responses where starred or note is not null"
        " order by response_id desc",
    },
    "kvbranch_most_branched": {
        "title": "Responses with the most branches",
        "sql": "select from_response, from_prompt, count(*) as branches,"
        " group_concat(distinct verb) as verbs from kvbranch_branch_points"
        " group by from_response order by branches desc, from_response desc",
    },
    "kvbranch_reuse": {
        "title": "Restored and prefilled tokens by model and day",
        "sql": "select model, substr(datetime_utc, 1, 10) as day,"
        " count(*) as responses, sum(restored_tokens) as restored_tokens,"
        " sum(prefilled_tokens) as prefilled_tokens,"
        " round(100.0 * sum(restored_tokens)"
        " / nullif(sum(restored_tokens + prefilled_tokens), 0), 1)"
        " as percent_restored, round(avg(ttft_ms)) as average_ttft_ms"
        " from kvbranch_responses where restored_tokens is not null"
        " group by model, day order by day desc, model",
    },
    "kvbranch_misses": {
        "title": "Why state was not restored",
        "sql": "select miss_reason, count(*) as responses,"
        " sum(prefilled_tokens) as prefilled_tokens, max(response_id) as response_id"
        " from kvbranch_responses where miss_reason is not null"
        " group by miss_reason order by responses desc",
    },
}


async def menu(datasette: Any, actor: Any) -> list[dict[str, str]]:
    "For the main menu of an actor who may see a log"
    if not await logs_of(datasette, actor):
        return []
    return [{"href": datasette.urls.path(HOME), "label": LABEL}]


async def actions(
    datasette: Any, actor: Any, database: str, table: str | None = None
) -> list[dict[str, str]]:
    "For the menu of a database, or of one of its tables"
    if table is not None and table not in _TABLES:
        return []
    if not await sees_log(datasette, actor, database):
        return []
    href = address(datasette, database)
    about = "Read and search this log as trees of responses"
    return [{"href": href, "label": LABEL, "description": about}]


async def row_actions(
    datasette: Any, actor: Any, database: str, table: str, row: Any
) -> list[dict[str, str]]:
    "For the menu of a row: its tree"
    columns = {"turns": "id", "threads": "id", "messages": "hash"}
    column = columns.get(table, "response_id" if table in _TABLES else None)
    if column is None or column not in row.keys():  # noqa: SIM118  (a sqlite3.Row)
        return []
    if not await actions(datasette, actor, database):
        return []
    href = address(datasette, database, str(row[column]))
    return [{"href": href, "label": "Show in its tree"}]


async def cell(
    datasette: Any, database: str, table: str | None, column: str, value: Any, row: Any
) -> Any:
    "An id or a hash with a link to its tree; None for other values"
    if isinstance(value, dict):  # datasette has looked up its label
        value = value.get("value")
    linked, meant = _meaning(table, column, value, row)
    if meant is None or not await is_log(datasette, database):
        return None
    from markupsafe import Markup, escape

    shown = escape(value)
    if linked:
        href = datasette.urls.row(database, linked, _dashed(value))
        shown = Markup('<a href="{}">{}</a>').format(href, value)
    return Markup('{} <a href="{}" title="Show in its tree">tree</a>').format(
        shown, address(datasette, database, meant)
    )


def _meaning(
    table: str | None, column: str, value: Any, row: Any
) -> tuple[str, str | None]:
    "The table that a cell refers to, and what to show in the tree"
    beside = _BESIDE.get((table, column))
    if beside is not None:  # datasette itself links the key
        id = str(row["response_id"])
        return beside, id if _ID.fullmatch(id) else None
    if not isinstance(value, str):
        return "", None
    if column in _IDS and _ID.fullmatch(value):
        return "turns", value
    if column in _HASHES and _HASH.fullmatch(value):
        # Several responses may share a hash; this row knows which one it means
        return "messages", row["id"] if table in ("turns", "threads") else value
    return "", None


def _dashed(value: Any) -> str:
    "A primary key as datasette writes it in addresses"
    from datasette.utils import tilde_encode

    return str(tilde_encode(str(value)))


def address(datasette: Any, database: str, id: str | None = None) -> str:
    "The address of our page on a log, or on a response or message in it"
    from urllib.parse import quote, urlencode

    page = f"{HOME}/{quote(id, safe=':')}" if id else HOME
    others = {name for name in datasette.databases if not compat.is_internal(name)}
    query = {"db": database} if others - {database} else {}
    return str(datasette.urls.path(page)) + (f"?{urlencode(query)}" if query else "")


async def find_logs(datasette: Any) -> None:
    "Find the logs when datasette starts, and add our suggestions for each"
    for name in datasette.databases:
        if await is_log(datasette, name) and compat.takes_suggestions(datasette):
            found = await queries(datasette, name)
            await compat.suggest(datasette, name, suggested, found)


def suggested(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    "Our settings for tables, but for a sort order where the user set one"
    return {
        table: {
            key: value
            for key, value in deepcopy(settings).items()
            if not (key in _ORDERS and _ORDERS & set(tables.get(table, {})))
        }
        for table, settings in SETTINGS.items()
    }


def metadata(datasette: Any) -> dict[str, Any]:
    "Our settings for the tables of each log, for datasette 0.65"
    return {
        "databases": {
            name: {"tables": suggested(compat.table_settings(datasette, name))}
            for name in known_logs(datasette)
        }
    }


@compat.unless_interrupted({})
async def queries(datasette: Any, database: str) -> dict[str, dict[str, str]]:
    "Our queries, for a log that has our views"
    if not await is_log(datasette, database):
        return {}
    views = await datasette.get_database(database).view_names()
    return QUERIES if set(log_tables.VIEWS) <= set(views) else {}


@compat.unless_interrupted(False)
async def view_or_query_allowed(
    datasette: Any, actor: Any, action: str, database: str, name: str
) -> bool | None:
    """False for what is ours and reads a table that the actor may not see.

    For datasette 0.65, which fails on a query that is listed for one actor and
    missing for another, so all are listed and each is allowed or denied here.
    """
    sql = _sql_of(action).get(name.lower())
    if sql is None or await may_see_query(datasette, actor, database, sql):
        return None
    return False


def _sql_of(action: str) -> Mapping[str, str]:
    "The SQL of our views or queries, by name, for the action that shows them"
    if action == "view-table":
        return log_tables.VIEWS
    if action == "view-query":
        return {name: query["sql"] for name, query in QUERIES.items()}
    return {}


async def denials(datasette: Any, actor: Any, action: str) -> Any:
    "Our views and queries on tables that the actor may not see, for datasette 1.0"
    if is_trusted(datasette, actor) or compat.is_asking():
        return None
    wanted = _sql_of(action)
    if not wanted:
        return None
    reason = "reads tables that are not visible"
    try:
        denied = [
            (database, name)
            for database, name in await compat.named(datasette, action, wanted)
            if not await may_see_query(datasette, actor, database, wanted[name.lower()])
        ]
    except Exception as error:
        if compat.is_interrupted(error):  # not known, so deny them all
            return compat.deny_named(action, wanted, reason)
        raise
    return compat.deny(denied, reason) if denied else None
