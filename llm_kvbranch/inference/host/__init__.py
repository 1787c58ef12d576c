"""The engine in a process of its own, for whoever serves others.

Owns the process (``worker``), the messages between it and its host (``wire``), what it
is doing at the moment (``board``), and ``Host``, which looks after it: a process that
ends or hangs is started again, and its answers continue after the tokens that were
sent. It does not know HTTP, llm's models and options, or the log.
"""

from .host import Host
from .hosted import HostedAnswer
from .wire import Opening

__all__ = ["Host", "HostedAnswer", "Opening"]
