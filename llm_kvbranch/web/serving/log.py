"""Which databases are logs, and how one is read.

The idea: whoever may see llm's tables in datasette may see the conversations in them,
in a plain ``datasette logs.db`` as well: nothing but a log is needed.

The invariant: a log is read only after the permission check, and reading never
changes it, even if it has an older schema.

This module does not know what is read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import sqlite_utils

from ...log import History, deadline
from ...log import tables as log_tables
from .. import compat
from ..door import may_see
from ..errors import RequestError
from .served_model import Server, server_of

Result = TypeVar("Result")
NO_LOG = (
    "None of these databases is a log of llm's: llm logs path prints where yours is. "
    "A log that llm before 0.32 wrote has no trees yet: run a prompt with this llm"
)
TOO_OLD = "This log has an old schema: run llm logs once to migrate it"


@dataclass(frozen=True)
class Log:
    "A log that the actor may see"

    datasette: Any
    name: str

    @property
    def database(self) -> Any:
        return self.datasette.get_database(self.name)

    @property
    def server(self) -> Server | None:
        "The served model that logs here; None if the log can only be read"
        server = server_of(self.datasette)
        return server if server is not None and server.database == self.name else None

    async def read(
        self, function: Callable[[History], Result], until: deadline.Deadline
    ) -> Result:
        """The result of a function of a History, run in one of datasette's threads.

        Raises TimeLimitError at the deadline.
        """

        def work(connection: Any) -> Result:
            with deadline.limited(until, connection):
                database = sqlite_utils.Database(connection)
                return function(History(database, readable=True))

        try:
            found: Result = await self.database.execute_fn(work)
        except (sqlite3.OperationalError, KeyError) as error:
            raise RequestError(503, f"{TOO_OLD} ({error})") from error
        return found


async def find_log(datasette: Any, request: Any) -> Log:
    """The log for a request: ``db``, else the served model's, else the first one.

    Raises RequestError if there is none that the actor may see.
    """
    wanted = request.args.get("db")
    server = server_of(datasette)
    names = list(datasette.databases)
    if wanted is not None:
        names = [name for name in names if name == wanted]
    elif server is not None:
        names = [server.database]
    logs = [name for name in names if await _is_log(datasette, name)]
    for name in logs:
        if await may_see(datasette, request.actor, name):
            return Log(datasette, name)
    if logs:
        raise RequestError(403, "You may not see this log")
    raise RequestError(404, NO_LOG if names else "There is no such database")


async def logs_of(datasette: Any, actor: Any) -> list[str]:
    "The names of all logs that an actor may see"
    return [
        name for name in datasette.databases if await sees_log(datasette, actor, name)
    ]


@compat.unless_interrupted(False)
async def sees_log(datasette: Any, actor: Any, name: str) -> bool:
    "Whether a database is a log that an actor may see"
    return await _is_log(datasette, name) and await may_see(datasette, actor, name)


_known: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def known_logs(datasette: Any) -> set[str]:
    "The databases that is_log has found to be logs"
    return _known.setdefault(datasette, set())


@compat.unless_interrupted(False)
async def is_log(datasette: Any, name: str) -> bool:
    "Whether a database is known to hold conversations as llm logs them"
    return await _is_log(datasette, name)


async def _is_log(datasette: Any, name: str) -> bool:
    if name not in datasette.databases or name in known_logs(datasette):
        return name in datasette.databases
    try:
        tables = set(await datasette.get_database(name).table_names())
    except sqlite3.Error:  # datasette itself reports a broken database
        return False
    if set(log_tables.LLM_TABLES) <= tables:
        known_logs(datasette).add(name)
        return True
    return False
