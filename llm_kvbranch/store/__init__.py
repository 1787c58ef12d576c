"""State files: stored, found by content, kept within a budget, checked and shared.

Owns the directory of state files and its index: the file format, how files are changed
so that a crash loses nothing, which of them hold the beginning of a prompt, which are
evicted, and bundles for export and import. KV rows are bytes to it: it does not know
llama.cpp, models or chat templates, and it uses llm's log only for the turns in a
bundle.
"""

from .chain import Chain, Entry, Segment
from .database import STORE_ERRORS, is_damage
from .digests import Check
from .header import State, fingerprint_of
from .locks import Hold
from .lookup import StateInfo, is_evicted, look_up
from .maintenance import Removal, collect, evict, pin, prune, repair, verify
from .status import (
    describe_store,
    existing_store,
    open_store,
    rebuild_if_damaged,
    resolve_stored,
)
from .store import Store
from .tokens import common_prefix, prefix_digest, tokens_of

__all__ = [
    "STORE_ERRORS",
    "Chain",
    "Check",
    "Entry",
    "Hold",
    "Removal",
    "Segment",
    "State",
    "StateInfo",
    "Store",
    "bundle",
    "collect",
    "common_prefix",
    "describe_store",
    "evict",
    "existing_store",
    "fingerprint_of",
    "is_damage",
    "is_evicted",
    "look_up",
    "open_store",
    "pin",
    "prefix_digest",
    "prune",
    "rebuild_if_damaged",
    "repair",
    "resolve_stored",
    "tokens_of",
    "verify",
]
