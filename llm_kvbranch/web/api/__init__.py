"""The JSON that programs speak: OpenAI's chat API, branching, status, and internals.

Owns the formats of requests and responses, and the one decorator of all endpoints. It
does not know how answers are generated or what the pages look like.
"""

from . import branches, chat, internal, openapi, schemas, status
from .endpoint import (
    LESS,
    Call,
    failure_response,
    form_of_view,
    json_response,
    view,
)

__all__ = [
    "LESS",
    "Call",
    "branches",
    "chat",
    "failure_response",
    "form_of_view",
    "internal",
    "json_response",
    "openapi",
    "schemas",
    "status",
    "view",
]
