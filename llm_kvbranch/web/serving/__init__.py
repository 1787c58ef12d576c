"""The served model: started, listening, answering, logging.

Owns the process of ``llm kvbranch serve`` (``launch``, which only the command
imports), the host of the engine behind all routes, and an answer's way into the log.
It does not know the formats of requests.
"""

from .answers import Answer, AnswerRequest
from .log import Log, find_log, is_log, known_logs, logs_of, sees_log
from .served_model import Server, server_of

__all__ = [
    "Answer",
    "AnswerRequest",
    "Log",
    "Server",
    "find_log",
    "is_log",
    "known_logs",
    "logs_of",
    "sees_log",
    "server_of",
]
