"""What may be done, and the two actors that may do all of it behind the door.

The idea: ``root`` (logged in, with datasette's signed cookie) and ``kvbranch-api``
(the API token) may do everything.

The invariant: denied unless allowed.

This module does not know how an actor was identified, nor whether there is a door.
"""

from __future__ import annotations

from typing import Any

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
