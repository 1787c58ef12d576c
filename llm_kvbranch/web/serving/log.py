"""Which database is the log, who may see it, and how it is read.

The idea: whoever may see llm's tables in datasette may see the conversations that
they hold, in a plain ``datasette logs.db`` too: a log is all that it takes.

The invariant: nothing is read of a log before it was asked who may see it, and
reading changes nothing, be the log an older one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlite_utils

from ...log import tables as log_tables
from ..api.endpoint import check_method, error_response, told
from ..api.openai import RequestError
from ..door.access import READ, allowed
from .served_model import Server, server_of

Result = TypeVar("Result")
_ATTRIBUTE = "_llm_kvbranch_logs"
NO_LOG = (
    "There is no log of llm's here: llm logs path says where yours is. One that llm "
    "before 0.32 wrote has no trees yet: ask something once with this llm"
)
TOO_OLD = "This log cannot be read as it is: run llm logs once to bring it up to date"


@dataclass(frozen=True)
class Log:
    "A log that somebody may see"

    datasette: Any
    name: str

    @property
    def database(self) -> Any:
        return self.datasette.get_database(self.name)

    @property
    def server(self) -> Server | None:
        "What is served on this log, None where it can only be read"
        server = server_of(self.datasette)
        return server if server is not None and server.database == self.name else None

    async def read(self, function: Callable[[Any], Result]) -> Result:
        "What a function of a History gives, in a thread of datasette's"
        from ...log import History

        def work(connection: Any) -> Result:
            database = sqlite_utils.Database(connection)
            return function(History(database, readable=True))

        try:
            found: Result = await self.database.execute_fn(work)
        except (sqlite3.OperationalError, KeyError) as error:
            raise RequestError(503, f"{TOO_OLD} ({error})") from error
        return found


async def find_log(datasette: Any, request: Any) -> Log:
    """The log that a request is about: ``db``, what is served, or the first there is.

    Raises RequestError where there is none that this actor may see.
    """
    wanted = request.args.get("db")
    server = server_of(datasette)
    names = list(datasette.databases)
    if wanted is not None:
        names = [name for name in names if name == wanted]
    elif server is not None:
        names = [server.database]
    logs = [name for name in names if await is_log(datasette, name)]
    for name in logs:
        if await may_see(datasette, request.actor, name):
            return Log(datasette, name)
    if logs or not names:
        raise RequestError(403 if logs else 404, _refusal(logs))
    raise RequestError(404, NO_LOG)


async def logs_of(datasette: Any, actor: Any) -> list[str]:
    "The names of all logs that somebody may see"
    return [
        name
        for name in datasette.databases
        if await is_log(datasette, name) and await may_see(datasette, actor, name)
    ]


def _refusal(logs: list[str]) -> str:
    return "You may not see this log" if logs else "There is no such database"


def known_logs(datasette: Any) -> set[str]:
    "The databases of which is_log has found that they are logs"
    if not hasattr(datasette, _ATTRIBUTE):
        setattr(datasette, _ATTRIBUTE, set())
    known: set[str] = getattr(datasette, _ATTRIBUTE)
    return known


async def is_log(datasette: Any, name: str) -> bool:
    "Whether a database holds conversations as llm logs them"
    if name not in datasette.databases or name in known_logs(datasette):
        return name in datasette.databases
    try:
        tables = set(await datasette.get_database(name).table_names())
    except sqlite3.Error:  # what it has is no business of ours
        return False
    if set(log_tables.LLM_TABLES) <= tables:
        known_logs(datasette).add(name)
        return True
    return False


async def may_see(datasette: Any, actor: Any, name: str) -> bool:
    "Whether somebody may see all of a log's conversations"
    if await allowed(datasette, actor, READ):
        return True
    for table in log_tables.LLM_TABLES:
        if not await _may_see_table(datasette, actor, name, table):
            return False
    return True


async def _may_see_table(datasette: Any, actor: Any, name: str, table: str) -> bool:
    if hasattr(datasette, "allowed"):  # datasette 1.0
        from datasette.resources import TableResource

        resource = TableResource(database=name, table=table)
        return bool(
            await datasette.allowed(action="view-table", resource=resource, actor=actor)
        )
    from datasette.utils.asgi import Forbidden

    wanted = [("view-table", (name, table)), ("view-database", name), "view-instance"]
    try:
        await datasette.ensure_permissions(actor, wanted)
    except Forbidden:
        return False
    return True


Reader = Callable[[Log, Any], Awaitable[Any]]


def reading(function: Reader) -> Any:
    "A view for datasette of a log that the actor may see; it only reads"

    async def handle(datasette: Any, request: Any) -> Any:
        try:
            check_method(request, "GET")
            return await function(await find_log(datasette, request), request)
        except Exception as error:
            return error_response(told(error), "GET")

    handle.__name__, handle.__doc__ = function.__name__, function.__doc__
    handle.method = "GET"  # type: ignore[attr-defined]
    return handle
