"""Who may come in: the ASGI guard, the API token, the login link, permissions.

Owns what is refused before a route sees it, and who may do what behind that.
It does not know what the routes answer.
"""

from .door import (
    HOME,
    LOGIN,
    Door,
    actor_of_token,
    close_door,
    door_of,
    guarded,
)
from .guard import LOOPBACK, MAX_BODY, host_names, paths_of
from .login import log_in
from .permissions import ACTIONS, GENERATE, KNOWN, READ, is_known
from .token import check_token, kept_token, new_token
from .visibility import is_trusted, may_see, may_see_query

__all__ = [
    "ACTIONS",
    "GENERATE",
    "HOME",
    "KNOWN",
    "LOGIN",
    "LOOPBACK",
    "MAX_BODY",
    "READ",
    "Door",
    "actor_of_token",
    "check_token",
    "close_door",
    "door_of",
    "guarded",
    "host_names",
    "is_known",
    "is_trusted",
    "kept_token",
    "log_in",
    "may_see",
    "may_see_query",
    "new_token",
    "paths_of",
]
