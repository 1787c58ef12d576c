"""Who may do what: the two actors that are known, and who may see a log.

The idea: whoever may see llm's tables in datasette may read the conversations in
them. ``root`` (logged in, with datasette's signed cookie) and ``kvbranch-api`` (the
API token) may do everything.

The invariant: denied unless allowed.

This module does not know how an actor was identified.
"""

from __future__ import annotations

from typing import Any

from ...log import tables
from .. import compat

READ, GENERATE = "kvbranch-read", "kvbranch-generate"
ACTIONS = {
    READ: "Read conversations and the state kept of them",
    GENERATE: "Have the model answer, and log the answer",
}
API_ACTOR = "kvbranch-api"
KNOWN = ("root", API_ACTOR)


def is_known(actor: dict[str, Any] | None) -> bool:
    """Whether an actor is one of the two.

    A token of datasette's may be restricted to less than its owner may do. It has its
    owner's id, and ``_r``.
    """
    return actor is not None and actor.get("id") in KNOWN and "_r" not in actor


async def may_see(datasette: Any, actor: Any, database: str) -> bool:
    "Whether an actor may see all conversations in a log"
    if await compat.allowed(datasette, actor, READ):
        return True
    for table in tables.LLM_TABLES:
        if not await compat.may_see_table(datasette, actor, database, table):
            return False
    return True
