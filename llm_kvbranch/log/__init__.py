"""llm's log as a tree of responses: read, searched, branched, marked, edited.

Owns every query and every change that this project makes in llm's database, and the
words for them: ancestry, branches, excerpts, paths, outlines, transcripts. It does not
know KV state, llama.cpp or who asks.
"""

from .ancestry import (
    Ancestry,
)
from .branching import (
    Branch,
    Place,
)
from .diff import (
    changes,
    columns,
    one_line,
)
from .edits import (
    Imported,
    adopt,
    forget,
    unknown,
)
from .history import (
    HASH_PREFIX,
    History,
    message_text,
    open_log,
)
from .listing import (
    Listed,
    Wanted,
    list_trees,
    models_of,
    n_older,
)
from .marks import (
    LONGEST,
    mark,
    read_mark,
)
from .path import (
    Turn,
    path,
    turns_of,
)
from .search import (
    Found,
    search,
)
from .tables import (
    READ,
    VIEWS,
    migrations,
)
from .transcript import (
    KINDS,
    file_name,
    path_text,
    tree_text,
)
from .tree import (
    Forest,
    Node,
    at_message,
    outline,
)

__all__ = [
    "HASH_PREFIX",
    "KINDS",
    "LONGEST",
    "READ",
    "VIEWS",
    "Ancestry",
    "Branch",
    "Forest",
    "Found",
    "History",
    "Imported",
    "Listed",
    "Node",
    "Place",
    "Turn",
    "Wanted",
    "adopt",
    "at_message",
    "branching",
    "changes",
    "columns",
    "file_name",
    "forget",
    "list_trees",
    "mark",
    "marks",
    "message_text",
    "migrations",
    "models_of",
    "n_older",
    "one_line",
    "open_log",
    "outline",
    "path",
    "path_text",
    "read_mark",
    "search",
    "tree_text",
    "turns_of",
    "unknown",
]
