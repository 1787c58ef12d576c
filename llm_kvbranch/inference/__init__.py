"""One loaded model, and everything between a prompt and its logged answer.

Owns planning (which tokens a prompt is and which of their rows are known), the slots
and cells of a context, batching, generation, capture of what an answer added, and the
scheduler that serves many. It does not know llm's models and options, HTTP or the log.
"""

from .scheduler import (
    Scheduler,
    Ticket,
)
from .session import (
    KV_TYPES,
    Generation,
    Load,
    Request,
    Rope,
    Sampling,
    Session,
    Settings,
    json_grammar,
    open_session,
)

__all__ = [
    "KV_TYPES",
    "Generation",
    "Load",
    "Request",
    "Rope",
    "Sampling",
    "Scheduler",
    "Session",
    "Settings",
    "Ticket",
    "json_grammar",
    "open_session",
]
