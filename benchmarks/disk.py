"""What state takes on disk, and how fast it is written and read.

    python -m benchmarks --only disk

- *tree*: fifty responses of one conversation that branches everywhere; the bytes that
  each contender keeps so that every response can be gone on from. The least that this
  can take is the KV rows of every token once. Who keeps whole states is judged by two
  of its files where making all of them would take long.
- *rates*: rows of some 2,000 tokens. Writing is capturing them, hashing, a new file,
  flushed; it is held against writing as many bytes and flushing them. Reading is
  reading the file, hashing it and handing the rows to llama.cpp; it is held against
  copying as many bytes in memory, and for files that are not in the page cache against
  reading the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_kvbranch.engine import Engine, Feed, Load, Settings, Weights
from llm_kvbranch.store.digests import Check
from llm_kvbranch.store.header import State, fingerprint_of
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest

from .conversations import Contender, Conversation, contenders
from .decode import len_of
from .disk_report import CACHE, DOES, bars, plot, table
from .documents import SYSTEM, document, question
from .harness.measurement import Measurement, Run
from .peers.client import system, user
from .peers.commands import answer
from .peers.servers import OURS, PYTHON, SLOTS, Size, environment, forget_pages

N_RESPONSES = 50
N_DOCUMENT = 1200
N_ANSWER = 24
N_ROWS = 2000
SIZE = Size(n_ctx=8192, slots=4)
PLENTY = 1 << 50
# Tokens of the documents by whose files some are judged: about as long as the tree's
# contexts, since LlamaDiskCache keeps the logits of up to 512 tokens, too
TWO, TWO_QUICK = (700, 1300), (200, 400)


def measure(run: Run) -> None:
    repeat = run.choose(15, 5)
    some = contenders(run, SIZE, [OURS, SLOTS])
    n_responses = run.choose(N_RESPONSES, 8)
    run.result.settings |= {"n_responses": n_responses, "repeat": repeat}
    sized = {PYTHON: server_py_file, CACHE: cache_file}
    if run.tools.peers is None:
        run.result.dashes |= dict.fromkeys(sized, run.tools.missing["peers"])
        sized = {}
    for name, does in DOES.items():
        if name in run.result.contenders or name in sized:
            run.result.contenders[name] = does
    run.begin(n_responses * len(some) + repeat + 2 * len(sized))
    asyncio.run(trees(run, some, n_responses))
    for name, file_of in sized.items():
        for n in run.choose(TWO, TWO_QUICK):
            run.result.facts.setdefault(f"files/{name}", []).append(file_of(run, n))
            run.progress.step(name)
    rates(run, repeat)


# -- a tree of fifty -----------------------------------------------------


async def trees(run: Run, some: Sequence[Contender], n: int) -> None:
    text = document(run.choose(N_DOCUMENT, 100), 5)
    for who in some:
        try:
            who.start()
            await grow(run, who, text, n)
        finally:
            who.stop()
        count(run, who)


async def grow(run: Run, who: Contender, text: str, n: int) -> None:
    "A tree of n responses: the same shape with every contender"
    rng = random.Random(3)
    nodes: list[Conversation] = []
    for i in range(n):
        above, cut = Conversation(), None
        asked = f"{text}\n\nSum it up."
        if nodes:
            above, asked = rng.choice(nodes), question(i)
            share = rng.random()  # half of them cut an answer
            cut = max(1, int(share * len(above.answer))) if share < 0.5 else None
        node, _ = await who.ask(above, asked, cut, N_ANSWER)
        if who.name == SLOTS:
            await who.save(node, f"slot-{i}")
        nodes.append(node)
        run.progress.step(f"a tree of {n}, {who}")


def count(run: Run, who: Contender) -> None:
    "Bytes that it left, and what they are of"
    place = {OURS: "kvbranch/states"}.get(who.name, ".")
    files = [p for p in (who.home / place).rglob("*") if is_state(p)]
    result = run.result
    result.add(sum(path.stat().st_size for path in files), "bytes", who.name)
    result.add(len(files), "files", who.name)
    if who.name == OURS:
        result.facts |= tokens_of_tree(who.home / "kvbranch")


def is_state(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.startswith("slot-")


def tokens_of_tree(root: Path) -> dict[str, int]:
    """Tokens of all contexts, of all prompts, unique ones, and those that were stored.

    A token is another one if what comes before it is.
    """
    with contextlib.closing(Store(root, PLENTY)) as store:
        entries = list(store.entries())
        contexts = sorted(list(store.chain(entry).tokens) for entry in entries)
    unique, before = 0, contexts[0][:0]
    for context in contexts:  # sorted: the one before shares the most
        unique += len(context) - shared(before, context)
        before = context
    return {
        "tokens": sum(map(len, contexts)),
        "prompts": sum(entry.state.answer for entry in entries),
        "unique": unique,
        "stored": sum(len(entry.state.tokens) for entry in entries),
    }


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    "How many tokens two contexts begin with alike"
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n


def cache_file(run: Run, n: int) -> tuple[int, int]:
    "Tokens and bytes of what LlamaDiskCache writes for a conversation"
    tools, messages = run.tools, [system(SYSTEM), user(document(n, 6))]
    program = Path(__file__).parent / "peers" / "disk_cache.py"
    folder = run.work / f"cache-{n}"
    command = [str(tools.peers), str(program), str(folder), str(tools.model)]
    command += [str(tools.n_threads), str(SIZE.n_ctx), "4"]
    settings = environment(run.work)
    answer(command, json.dumps(messages), settings, run.work)
    nbytes = sum(p.stat().st_size for p in folder.rglob("*.val"))
    return len_of(tools.model, messages) + 4, nbytes


def server_py_file(run: Run, n: int) -> tuple[int, int]:
    "Tokens and bytes of what server.py's disk cache writes for a prompt"
    who = Contender(PYTHON, run.tools, run.work / f"server-{n}", SIZE)
    try:
        who.start()
        node, _ = asyncio.run(who.ask(Conversation(), document(n, 6), None, 4))
    finally:
        who.stop()
    (path,) = (who.home / "cache").glob("*.safetensors")
    return len_of(run.tools.model, node.asked), path.stat().st_size


# -- rates ---------------------------------------------------------------


@dataclass
class Rows:
    "A context with rows in it, and a store to put them into"

    engine: Engine
    store: Store
    tokens: Any
    n_put: int = 0
    nbytes: int = 0
    entry: Any = None
    buffers: list[Any] = field(default_factory=list)

    def write(self) -> None:
        "Capture all rows and put them into the store"
        self.n_put += 1
        state = State(
            response_id=f"r{self.n_put}",
            fingerprint=fingerprint_of({"benchmark": "disk"}),
            start=0,
            end=len(self.tokens),
            answer=len(self.tokens),
            tokens=self.tokens,
            prefix=prefix_digest(self.tokens, 0),
        )
        rows = self.engine.capture(0, 0, len(self.tokens))
        self.entry = self.store.put(state, rows)
        self.nbytes = self.entry.nbytes

    def read(self) -> None:
        "Read the file, verify it, and restore the rows"
        n = len(self.tokens)
        check = Check()
        with self.store.open(self.entry, (), check) as (payload, _):
            self.engine.restore(1, payload, 0, n, n, check=check.settle)

    def clear(self) -> None:
        "Make room for what is read, and have it in the page cache"
        self.engine.cut(1, 0)
        self.read()
        self.engine.cut(1, 0)

    def path(self) -> Path:
        return self.store.path(self.entry.state)

    def forget(self) -> None:
        self.engine.cut(1, 0)
        forget_pages(self.path().parent)

    def read_file(self) -> None:
        "The file as it is, into memory that is there already"
        with open(self.path(), "rb", buffering=0) as file:
            file.readinto(self.buffers[0])

    def write_file(self) -> None:
        "As many bytes to a new file, flushed"
        path = self.store.root / "plain"
        path.unlink(missing_ok=True)
        with open(path, "wb", buffering=0) as file:
            file.write(self.buffers[0])
            os.fsync(file.fileno())

    def copy(self) -> None:
        "As many bytes from memory to memory, by the C library"
        to, source = self.buffers
        size = len(to)
        ctypes.memmove(
            (ctypes.c_char * size).from_buffer(to),
            (ctypes.c_char * size).from_buffer(source),
            size,
        )


def rates(run: Run, repeat: int) -> None:
    weights = Weights(Load(run.tools.model))
    with contextlib.ExitStack() as stack:
        engine = Engine(weights, Settings(n_seq=2))
        stack.callback(engine.close)
        store = stack.enter_context(
            contextlib.closing(Store(run.work / "rates", PLENTY))
        )
        text = document(run.choose(N_ROWS, 500), 9)
        rows = Rows(engine, store, weights.tokenize(text, special=False))
        n = len(rows.tokens)
        engine.reserve(2 * n + 256)
        step = engine.settings.n_batch
        for at in range(0, n, step):
            engine.decode([Feed(0, at, rows.tokens[at : at + step])])
        rows.write()
        rows.buffers = [bytearray(rows.nbytes), bytearray(rows.nbytes)]
        rows.copy()
        run.result.facts |= {"rows": n, "rows_bytes": rows.nbytes}
        run.result.facts["row"] = row_bytes(weights)
        for _ in range(repeat):
            for name, before, do in timed(rows):
                before()
                began = time.perf_counter()
                do()
                seconds = time.perf_counter() - began
                run.result.add(rows.nbytes / seconds, "rate", name)
            run.progress.step("rates")


def timed(rows: Rows) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    "What is timed, and what is done before"

    def nothing() -> None:
        pass

    return [
        ("write", nothing, rows.write),
        ("disk write", nothing, rows.write_file),
        ("read", rows.clear, rows.read),
        ("copy", nothing, rows.copy),
        ("read cold", rows.forget, rows.read),
        ("disk read", rows.forget, rows.read_file),
    ]


def row_bytes(weights: Weights) -> int:
    "Keys and values of a token in f16, over all layers"
    arch = weights.value("general.architecture")

    def number(name: str) -> int:
        return int(weights.value(f"{arch}.{name}") or 0)

    size = number("embedding_length") // number("attention.head_count")
    return 2 * 2 * number("block_count") * number("attention.head_count_kv") * size


MEASUREMENT = Measurement(
    "disk",
    "Bytes on disk, and how fast they are written and read",
    minutes=2,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
