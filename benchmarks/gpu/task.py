"""What is timed with a model, in a process that does nothing else.

Run as a program, it does one ``Task`` (JSON on standard input) and prints what it
found, so that everything timed is timed in a process that has done nothing else, and
the benchmark outlives those that run out of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings, Weights
from llm_kvbranch.engine.devices import devices
from llm_kvbranch.engine.lib import build
from llm_kvbranch.errors import KVBranchError, StateError
from llm_kvbranch.inference.filling import Filler
from llm_kvbranch.inference.slots import Slots
from llm_kvbranch.store.header import State, fingerprint_of
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest, tokens_of

from ..harness.decoding import alone
from .model import N_SPECIAL

BATCHES = (2048, Settings().n_batch)  # the engine's own last: it goes on with that
N_MORE = 32  # tokens that are generated to see what follows
STEPS = ("open", "set and verify", "decode")  # of restoring
GREEDY = Sampling(temperature=0)
PLENTY = 1 << 50  # a budget under which nothing is evicted


@dataclass(frozen=True)
class Task:
    "What a worker is to do: ``mode`` is check, live, prefill, warm or cold"

    mode: str
    model: str
    kv: str = "f16"
    n: int = 0  # tokens
    store: str = ""
    repeat: int = 1
    threads: int | None = None


def worker() -> int:
    task = Task(**json.load(sys.stdin))
    try:
        free = gpu_memory_free()
        started = time.perf_counter()
        weights = Weights(Load(Path(task.model)))
        load_s = time.perf_counter() - started
        offloaded = max(0, free - gpu_memory_free())
        result = {"load_s": load_s, "offloaded_bytes": offloaded}
        if task.mode == "check":
            check_logits(task, weights)
        elif task.mode == "live":
            result |= live(task, weights)
        else:
            result |= fresh(task, weights)
    except KVBranchError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


@contextlib.contextmanager
def engine_of(task: Task, weights: Weights, n_batch: int) -> Iterator[Engine]:
    "A context just large enough, as a session makes it"
    settings = Settings(task.kv, task.kv, n_batch=n_batch, n_threads=task.threads)
    with contextlib.closing(Engine(weights, settings)) as engine:
        engine.reserve(task.n + N_MORE + 1)
        yield engine


def some_tokens(weights: Weights, n: int, seed: int = 7) -> array[int]:
    return tokens_of(
        random.Random(seed).choices(range(weights.n_vocab - N_SPECIAL), k=n)
    )


def decode(engine: Engine, tokens: array[int], start: int = 0) -> int:
    "Decode the tokens from a position on; the one that greedily comes next"
    step = engine.settings.n_batch
    index = -1
    for at in range(start, len(tokens), step):
        chunk = tokens[at : at + step]
        last = at + step >= len(tokens)
        (index,) = engine.decode([Feed(0, at, chunk, logits=last)])
    return draw(engine, tokens, index)


def draw(engine: Engine, tokens: array[int], index: int) -> int:
    "The likeliest token; waits for it, as decoding on a GPU does not"
    with contextlib.closing(engine.sampler(GREEDY, tokens)) as sampler:
        return engine.sample(sampler, index)


def check_logits(task: Task, weights: Weights) -> None:
    "That they are numbers, and others for a prompt that begins otherwise"
    tokens, seen = some_tokens(weights, 64), []
    with engine_of(task, weights, BATCHES[-1]) as engine:
        engine.reserve(len(tokens))
        for first in (0, 1):
            tokens[0] = first
            engine.cut(0, 0)
            (index,) = engine.decode([Feed(0, 0, tokens)])
            logits = engine._llama.llama_get_logits_ith(engine._context, index)
            seen.append(np.ctypeslib.as_array(logits, (weights.n_vocab,)).copy())
    if not np.isfinite(seen).all():
        raise KVBranchError("its logits are not finite")
    if np.abs(seen[0] - seen[1]).max() < 0.1 * seen[0].std():
        raise KVBranchError("its logits do not depend on the prompt")


def live(task: Task, weights: Weights) -> dict[str, Any]:
    "Prefill, capture, store, restore, all in this process"
    tokens = some_tokens(weights, task.n)
    result: dict[str, Any] = {}
    for n_batch in BATCHES:
        with engine_of(task, weights, n_batch) as engine:
            decode(engine, tokens[: 2 * n_batch])  # what is made once, is made now
            times = []
            for _ in range(task.repeat):
                engine.cut(0, 0)
                times.append(timed(lambda: decode(engine, tokens))[0])
            result[f"prefill_{n_batch}_s"] = times
            if n_batch == BATCHES[-1]:
                result |= there_and_back(task, engine, tokens)
    return result


def there_and_back(task: Task, engine: Engine, tokens: array[int]) -> dict[str, Any]:
    "Rows that are in the context captured, stored, restored"
    n, captures = task.n, []
    payload = bytearray()
    for _ in range(task.repeat):
        payload.clear()  # not two at a time
        took, payload = timed(lambda: engine.capture(0, 0, n))
        captures.append(took)
    result: dict[str, Any] = {"capture_s": captures, "state_bytes": len(payload)}
    # The live context decodes the last token by itself, too: the computation is
    # the same then, down to the last bit
    engine.cut(0, n - 1)
    token = decode(engine, tokens, n - 1)
    result["live"] = goes_on(engine, tokens, token)
    result["decode_tokens_per_s"] = N_MORE / result["live"]["seconds"]
    state = State(
        response_id="measured",
        fingerprint=fingerprint(task),
        start=0,
        end=n,
        answer=n,
        tokens=tokens,
        prefix=prefix_digest(tokens, 0),
    )
    with contextlib.closing(Store(task.store, PLENTY)) as store:
        started = time.perf_counter()
        store.put(state, payload)
        result["write_s"] = time.perf_counter() - started
        payload.clear()
        result["restore"] = []
        for _ in range(task.repeat):
            engine.cut(0, 0)
            result["restore"].append(restore(task, store, engine, tokens))
    return result


class _TimedFiles:
    "A store's files; ``opening`` is how many seconds it took to open them"

    def __init__(self, store: Store):
        self.opening = 0.0
        self._store = store

    def prefetch(self, entries: Any) -> None:
        pass

    @contextlib.contextmanager
    def open(self, *arguments: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            took, opened = timed(
                lambda: stack.enter_context(self._store.open(*arguments))
            )
            self.opening += took
            yield opened


def restore(
    task: Task, store: Store, engine: Engine, tokens: array[int]
) -> dict[str, Any]:
    "From a store to the next token: seconds of each step, and what follows"
    files, slots = _TimedFiles(store), Slots(engine)
    filler = Filler(engine, slots, files, lambda *_: None)
    slot = slots.acquire(tokens)
    started = time.perf_counter()
    chain = store.longest_prefix(fingerprint(task), tokens).cut(task.n - 1)
    found = time.perf_counter()
    filling, index = alone(filler.fill(slot, tokens, chain, own=task.n - 1), engine)
    token = draw(engine, tokens, index)
    ended = time.perf_counter()
    if slot.seq or filling.restored != task.n - 1:
        reasons = [reason for _, reason in filling.misses]
        raise StateError(f"{filling.restored} tokens restored: {reasons}")
    restored = filling.restore_ms / 1000
    return {
        "open": found - started + files.opening,
        "set and verify": restored - files.opening,
        "decode": ended - found - restored,
        "all": ended - started,
        "after": goes_on(engine, tokens, token),
    }


def goes_on(engine: Engine, tokens: array[int], token: int) -> dict[str, Any]:
    "The tokens that follow, how long they took, and a digest of their rows"
    n, tokens, started = len(tokens), tokens[:], time.perf_counter()
    for _ in range(N_MORE):
        tokens.append(token)
        token = decode(engine, tokens, len(tokens) - 1)
    seconds = time.perf_counter() - started
    rows = xxhash.xxh3_128_hexdigest(engine.capture(0, n, len(tokens)))
    return {"seconds": seconds, "tokens": list(tokens[n:]), "rows": rows}


def fresh(task: Task, weights: Weights) -> dict[str, Any]:
    "The first thing that a process does with a model"
    tokens = some_tokens(weights, task.n)
    with engine_of(task, weights, BATCHES[-1]) as engine:
        if task.mode == "prefill":
            return {"all": timed(lambda: decode(engine, tokens))[0]}
        with contextlib.closing(Store(task.store, PLENTY)) as store:
            if task.mode == "cold" and not all(map(evict, store.files())):
                return {"warm": True}
            return restore(task, store, engine, tokens)


def fingerprint(task: Task) -> str:
    return fingerprint_of({"llama.cpp": build(), "kv_type": task.kv})


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def gpu_memory_free() -> int:
    return sum(device.free for device in devices() if device.takes_layers)


def evict(path: Path) -> bool:
    "Have the kernel drop a file from its page cache; whether it did"
    if not hasattr(os, "posix_fadvise"):  # macOS
        return False
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            n_pages = -(-len(mapping) // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * n_pages)()
            first = ctypes.c_char.from_buffer(mapping)
            address, size = ctypes.addressof(first), len(mapping)
            libc = ctypes.CDLL(None)
            libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags)
            del first
    # The header may be back by now
    return sum(flag & 1 for flag in bytes(flags)) <= max(1, n_pages // 100)


if __name__ == "__main__":
    sys.exit(worker())
