"""States, and helpers to fill and inspect a store, for the tests of the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import llm_kvbranch
from llm_kvbranch.store.chain import Chain, Entry
from llm_kvbranch.store.header import State
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest, tokens_of

MODEL = "some-model"
DOCUMENT = list(range(1000, 1100))  # 100 tokens: three blocks and a bit


def a_state(
    name: str, tokens: Any, start: int = 0, parent: str | None = None, **facts: Any
) -> State:
    "The state of a response with context ``tokens``, stored from ``start`` on"
    whole = tokens_of(tokens)
    fields: dict[str, Any] = {
        "response_id": name,
        "fingerprint": MODEL,
        "start": start,
        "end": len(whole),
        "answer": start,
        "tokens": whole[start:],
        "prefix": prefix_digest(whole, start),
        "parent_id": parent,
    }
    return State(**{**fields, **facts})


def rows_of(name: str) -> bytes:
    "A payload, different for every response"
    return f"rows of {name}".encode()


def put(store: Store, name: str, tokens: Any, *args: Any, **facts: Any) -> Entry:
    return store.put(a_state(name, tokens, *args, **facts), rows_of(name))


def put_after(store: Store, name: str, parent: Entry, more: Any) -> Entry:
    "Put a state that continues another, as the next answer's does"
    chain = store.chain(parent)
    whole = [*chain.tokens, *more]
    above = parent.state.response_id
    facts = {"fingerprint": parent.state.fingerprint}
    state = a_state(name, whole, parent.state.end, above, **facts)
    return store.put(state, rows_of(name), chain)


def find(store: Store, tokens: Any, *args: Any, fingerprint: str = MODEL) -> Chain:
    "The longest stored prefix, checked"
    chain = store.longest_prefix(fingerprint, tokens_of(tokens), *args)
    check(chain, fingerprint)
    assert list(chain.tokens) == list(tokens)[: len(chain.tokens)]
    return chain


def check(chain: Chain, fingerprint: str = MODEL) -> None:
    "Check what every chain guarantees"
    at = 0
    for segment in chain.segments:
        state = segment.entry.state
        assert state.fingerprint == fingerprint
        assert segment.start == at
        assert state.start <= segment.start < segment.end <= state.end
        assert (
            chain.tokens[at : segment.end]
            == (state.tokens[at - state.start : segment.end - state.start])
        )
        at = segment.end
    assert at == len(chain.tokens)


def suppliers(chain: Chain) -> list[tuple[str, int, int]]:
    return [(s.entry.state.response_id, s.start, s.end) for s in chain.segments]


def names(entries: list[Entry]) -> list[str]:
    return [entry.state.response_id for entry in entries]


def files(root: Path) -> set[str]:
    "All files below states/"
    return {
        str(path.relative_to(root / "states"))
        for path in (root / "states").rglob("*")
        if not path.is_dir()
    }


def blocks(store: Store) -> int:
    "The number of index rows that find states by their tokens"
    return int(store.db.execute("select count(*) from blocks").fetchone()[0])


def total(root: Path) -> int:
    "Total size of all state files on disk"
    return sum(p.stat().st_size for p in (root / "states").glob("*/*.safetensors"))


ROWS = 100_000  # bytes of a state's rows
SIZE = ROWS + 2000  # a bit more than a whole state file


def fill(
    store: Store, name: str, parent: Entry | None = None, nbytes: int = ROWS
) -> Entry:
    "Put a state with its own tokens, or one that continues another"
    chain = store.chain(parent) if parent else None
    before = list(chain.tokens) if chain else []
    above = parent.state.response_id if parent else None
    state = a_state(name, [*before, *map(ord, name)], len(before), above)
    return store.put(state, bytes(nbytes), chain)


def conversation(store: Store, *turns: str) -> list[Entry]:
    entries: list[Entry] = []
    for turn in turns:
        entries.append(fill(store, turn, entries[-1] if entries else None))
    return entries


def present(store: Store) -> str:
    "Names of the states with files, checked to agree in index and directory"
    found = names([entry for entry in store.entries() if entry.present])
    there = {name for name in files(store.root) if not name.endswith(".pin")}
    assert there == {f"{MODEL}/{name}.safetensors" for name in found}
    assert store.nbytes() == total(store.root)
    return " ".join(sorted(found))


def contents(root: Path) -> dict[str, bytes]:
    "Contents of all files except the index"
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("index.db")
    }


def conversation_after(store: Store, entry: Entry, *turns: str) -> list[Entry]:
    entries = [entry]
    for turn in turns:
        entries.append(fill(store, turn, entries[-1]))
    return entries[1:]


def flip(path: Path, at: int = -1) -> None:
    "Change one byte of a file"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)


def remove_index(root: Path) -> None:
    for path in root.glob("index.db*"):
        path.unlink()


def run(script: str, *args: str) -> subprocess.Popen[str]:
    "Start a Python process that can import the package under test"
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        cwd=Path(llm_kvbranch.__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )


def pinned(store: Store) -> list[str]:
    return [e.state.response_id for e in store.entries() if e.pinned]


def die_while_writing(store: Store) -> None:
    "Kill a writer before it renames its file"
    script = (
        "import os, sys\n"
        "from llm_kvbranch.store import Store\n"
        "from tests.support.stores import a_state\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "Store(sys.argv[1]).put(a_state('x', [1]), b'rows')\n"
    )
    assert run(script, str(store.root)).wait() == 9
