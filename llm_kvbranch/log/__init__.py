"""llm's log as a tree of responses: read, searched, branched, marked and edited.

Owns every query and every change that this project makes in llm's database: `History`
finds, reads and logs responses, `Ancestry` walks from response to response, `Forest`
builds trees. It does not know KV state, llama.cpp or who is asking.
"""

from . import branching, deadline, diff, edits, marks, search, tables, transcript
from .ancestry import Ancestry, resolve_message
from .branching import Branch, Place
from .history import History, open_log
from .path import Turn, read_more_turns, read_path, read_turns
from .text import as_text, message_text, one_line, printable
from .tree import Forest, Node

__all__ = [
    "Ancestry",
    "Branch",
    "Forest",
    "History",
    "Node",
    "Place",
    "Turn",
    "as_text",
    "branching",
    "deadline",
    "diff",
    "edits",
    "marks",
    "message_text",
    "one_line",
    "open_log",
    "printable",
    "read_more_turns",
    "read_path",
    "read_turns",
    "resolve_message",
    "search",
    "tables",
    "transcript",
]
