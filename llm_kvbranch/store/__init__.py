"""State files: written, found by content, kept within a budget, checked, given away.

Owns the directory of state files and its index: the file format, how files are changed
so that a crash loses nothing, which of them hold a prompt's beginning, which are
evicted, and bundles for export and import. Rows are bytes to it: it does not know
llama.cpp, models or chat templates, and never touches llm's log but for a bundle's
turns.
"""

from .chain import Chain, Entry, Segment
from .database import is_damage
from .digests import Check
from .header import State, fingerprint_of
from .locks import Hold
from .lookup import (
    Known,
    is_evicted,
    known_states,
)
from .maintenance import (
    Removal,
    collect,
    pin,
    prune,
)
from .status import describe_store, existing_store, open_store
from .store import Store
from .tokens import common_prefix, prefix_digest, tokens_of

__all__ = [
    "Chain",
    "Check",
    "Entry",
    "Hold",
    "Known",
    "Removal",
    "Segment",
    "State",
    "Store",
    "bundle",
    "collect",
    "common_prefix",
    "describe_store",
    "existing_store",
    "fingerprint_of",
    "is_damage",
    "is_evicted",
    "known_states",
    "maintenance",
    "open_store",
    "pin",
    "prefix_digest",
    "prune",
    "tokens_of",
]
