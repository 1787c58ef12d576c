"""Messages to tokens and back, by the model's own chat template.

Owns rendering, splicing known tokens into a rendered prompt, and reading what a model
says: thinking, text and tool calls. It does not know where tokens are stored or who
computes them.
"""

from .dialect import Dialect
from .events import event_of, event_to_json
from .history import message_text
from .parts import Call, Event, Part
from .reader import Reader
from .rendering import Rendering
from .splice import Own
from .template import Chat, Known

__all__ = [
    "Call",
    "Chat",
    "Dialect",
    "Event",
    "Known",
    "Own",
    "Part",
    "Reader",
    "Rendering",
    "event_of",
    "event_to_json",
    "message_text",
]
