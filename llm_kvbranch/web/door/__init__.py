"""Who may come in: the ASGI guard, the API token, sessions, permissions.

Owns what is refused before a route sees it, and who may do what behind that.
It does not know what the routes answer.
"""

from .door import (
    HOME,
    LOGIN,
    Door,
    Entrance,
    actor_of_request,
    actor_of_token,
    close_door,
    door_of,
    guarded,
    is_login_form,
    session_of,
)
from .guard import LOOPBACK, MAX_BODY, Refusal, host_names, paths_of
from .permissions import ACTIONS, API_ACTOR, GENERATE, KNOWN, READ, is_known
from .sessions import Sessions, new_session
from .token import check_token, kept_token, new_token, session_secret
from .visibility import is_trusted, may_see, may_see_query

__all__ = [
    "ACTIONS",
    "API_ACTOR",
    "GENERATE",
    "HOME",
    "KNOWN",
    "LOGIN",
    "LOOPBACK",
    "MAX_BODY",
    "READ",
    "Door",
    "Entrance",
    "Refusal",
    "Sessions",
    "actor_of_request",
    "actor_of_token",
    "check_token",
    "close_door",
    "door_of",
    "guarded",
    "host_names",
    "is_known",
    "is_login_form",
    "is_trusted",
    "kept_token",
    "may_see",
    "may_see_query",
    "new_session",
    "new_token",
    "paths_of",
    "session_of",
    "session_secret",
]
