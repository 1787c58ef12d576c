"""Which logs an actor sees, and which views and queries of them.

The idea: datasette decides. A log is shown to actors who may see every table that is
read for it, since its pages show what all of these hold. A view or a query shows what
its tables hold, so it takes the same.

The invariant: an id alone proves nothing. Another plugin, or the owner of a plain
datasette, may have any actor called ``root``; only our door knows who that is.

This module does not know what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...log import tables
from .. import compat
from .door import door_of
from .permissions import is_known


def is_trusted(datasette: Any, actor: dict[str, Any] | None) -> bool:
    "Whether our door let in an actor who may do everything"
    return door_of(datasette) is not None and is_known(actor)


async def may_see(datasette: Any, actor: Any, database: str) -> bool:
    "Whether an actor may see all conversations in a log"
    if is_trusted(datasette, actor):
        return True
    present = set(await datasette.get_database(database).table_names())
    read = [each for each in tables.READ_TABLES if each in present]
    return await _may_see_tables(datasette, actor, database, read)


async def may_see_query(datasette: Any, actor: Any, database: str, sql: str) -> bool:
    "Whether an actor may see all tables and views that a query of ours reads"
    # Views last: asked after all their tables, the answer does not depend on denials()
    read = sorted(tables.tables_of(sql), key=lambda name: name in tables.VIEWS)
    return is_trusted(datasette, actor) or await _may_see_tables(
        datasette, actor, database, read
    )


async def _may_see_tables(
    datasette: Any, actor: Any, database: str, names: Iterable[str]
) -> bool:
    for name in names:
        if not await compat.may_see_table(datasette, actor, database, name):
            return False
    return True
