"""Messages to tokens and back, by the model's own chat template.

Owns rendering, splicing known tokens into a rendered prompt, reading what a model says
(thinking, text and tool calls), and the grammar of an answer that must match a schema.
It does not know where tokens are stored or who computes them.
"""

from .bounds import SchemaError
from .calling import call_grammar
from .dialect import Dialect
from .history import message_text
from .parts import Call, Event, Part, event_of, event_to_json
from .reader import Reader
from .schema import json_grammar, regex_grammar
from .splice import Own
from .template import Chat, Known
from .variables import Rendering

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
    "SchemaError",
    "call_grammar",
    "event_of",
    "event_to_json",
    "json_grammar",
    "message_text",
    "regex_grammar",
]
