"""One loaded model, and everything between a prompt and its logged answer.

Owns planning (which tokens a prompt is, and which of their rows are known), the slots
of a context and how they are filled, batching, generation, the capture of what an
answer added, the scheduler that serves many clients, and the process that it runs in.
It does not know llm's models and options, HTTP, or the log.
"""

from . import trial
from .generation import Generation
from .host import Host, HostedAnswer, Opening
from .request import Request
from .scheduler import Scheduler, Ticket
from .session import Session, open_session

__all__ = [
    "Generation",
    "Host",
    "HostedAnswer",
    "Opening",
    "Request",
    "Scheduler",
    "Session",
    "Ticket",
    "open_session",
    "trial",
]
