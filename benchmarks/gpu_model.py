"""A model of a real one's shape with random weights, and what is timed with it.

The idea: how long prefilling and restoring take depends on a model's shape and
not on what it knows. One random matrix is made for each shape of matrix; every
layer has that one with its rows in another order, which takes seconds instead
of the minutes that three billion random numbers would.

The invariants: the same shape and type give the same file, byte for byte. What
such a model writes depends on every token that it read: attention looks at few
tokens (``SHARP``), so each of them matters, and embeddings are small next to
what the layers add, so the last token does not drown the others although the
same matrix makes the logits.

Run as a program, it does one ``Task`` (JSON on standard input) and prints what
it found, so that ``gpu.py`` can have everything timed in a process that has done
nothing else, and outlive those that run out of memory.
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

import gguf
import numpy as np
import xxhash

from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings, Weights
from llm_kvbranch.engine.devices import devices
from llm_kvbranch.engine.lib import build
from llm_kvbranch.errors import KVBranchError, StateError
from llm_kvbranch.slots import Slots, alone
from llm_kvbranch.state import State, fingerprint_of, prefix_digest, tokens_of
from llm_kvbranch.store import Store

BATCHES = (2048, Settings().n_batch)  # the engine's own last: it goes on with that
N_MORE = 32  # tokens that are generated to see what follows
STEPS = ("verify", "set", "decode")  # of restoring
GREEDY = Sampling(temperature=0)
PLENTY = 1 << 50  # a budget under which nothing is evicted

N_SPECIAL = 256  # control tokens at the end of the vocabulary, as Llama 3 has
SHARP = 5.0  # standard deviation of attention scores; 1 would look everywhere
SMALL = 0.02  # standard deviation of embeddings; a layer's output has about 1
BLOCK = 32  # weights that share a scale in Q8_0
UNIFORM = 73.6  # standard deviation of whole numbers from -127 to 127


@dataclass(frozen=True)
class Shape:
    "The sizes of a Llama"

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head: int  # numbers in a head
    n_vocab: int
    n_ctx: int = 131072
    rope_base: float = 500_000.0

    def state_bytes(self, bytes_per_number: float) -> float:
        "Of keys and values, for each token"
        return 2 * self.n_layer * self.n_head_kv * self.head * bytes_per_number


SHAPES = {
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256),
    "tiny": Shape(4, 256, 512, 4, 2, 64, 1024),
}
TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}


@dataclass(frozen=True)
class Tensor:
    "One to write; ``spread`` is its standard deviation, None for ones throughout"

    name: str
    shape: tuple[int, ...]
    spread: float | None = None


def write_model(
    path: Path, shape: Shape, kind: str, say: Callable[[str], Any] = lambda _: None
) -> None:
    "Write the model; ``kind`` is of ``TYPES``, ``say`` is told how far it is"
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_sizes(writer, shape, kind)
    _add_vocabulary(writer, shape.n_vocab)
    tensors = list(_tensors(shape))
    for tensor in tensors:
        _announce(writer, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    noise = _Noise(kind)
    for i, tensor in enumerate(tensors, 1):
        writer.write_tensor_data(noise.of(tensor))
        if i == len(tensors) or i % (len(tensors) // 4) == 0:
            say(f"{i} of {len(tensors)} tensors")
    writer.close()
    os.replace(unfinished, path)


def _tensors(shape: Shape) -> Iterator[Tensor]:
    "All of them; llama.cpp takes the embeddings for the logits, too"
    embd, heads, heads_kv = shape.n_embd, shape.n_head, shape.n_head_kv
    inward = embd**-0.5  # keeps the size of what is multiplied
    yield Tensor("token_embd.weight", (shape.n_vocab, embd), SMALL)
    yield Tensor("output_norm.weight", (embd,))
    yield Tensor("rope_freqs.weight", (shape.head // 2,))
    for i in range(shape.n_layer):
        layer = f"blk.{i}."
        yield Tensor(f"{layer}attn_norm.weight", (embd,))
        yield Tensor(f"{layer}ffn_norm.weight", (embd,))
        for name, rows, columns, spread in (
            ("attn_q", heads * shape.head, embd, SHARP**0.5 * inward),
            ("attn_k", heads_kv * shape.head, embd, SHARP**0.5 * inward),
            ("attn_v", heads_kv * shape.head, embd, inward),
            ("attn_output", embd, heads * shape.head, (heads * shape.head) ** -0.5),
            ("ffn_gate", shape.n_ff, embd, inward),
            ("ffn_up", shape.n_ff, embd, inward),
            ("ffn_down", embd, shape.n_ff, shape.n_ff**-0.5),
        ):
            yield Tensor(f"{layer}{name}.weight", (rows, columns), spread)


def _announce(writer: gguf.GGUFWriter, tensor: Tensor, kind: str) -> None:
    "What the file says of a tensor before any of them"
    n, shape = int(np.prod(tensor.shape)), tensor.shape
    if tensor.spread is None:
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * n)
    elif kind == "f16":
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float16), 2 * n)
    else:
        nbytes, (rows, columns) = n // BLOCK * (BLOCK + 2), shape
        in_bytes = (rows, columns // BLOCK * (BLOCK + 2))
        writer.add_tensor_info(
            tensor.name, in_bytes, np.dtype(np.uint8), nbytes, TYPES[kind][0]
        )


class _Noise:
    "Random matrices, as the file holds them"

    def __init__(self, kind: str):
        self._kind = kind
        self._random = np.random.default_rng(7)
        self._made: dict[Any, Any] = {}

    def of(self, tensor: Tensor) -> Any:
        if tensor.spread is None:
            return np.ones(tensor.shape, np.float32)
        if not tensor.name.startswith("blk."):  # large, and one of its kind
            return self._make(*tensor.shape, tensor.spread)
        key = tensor.shape, tensor.spread
        if key not in self._made:
            self._made[key] = self._make(*tensor.shape, tensor.spread)
        return self._made[key][self._random.permutation(tensor.shape[0])]

    def _make(self, rows: int, columns: int, spread: float) -> Any:
        numbers = self._random.integers(-127, 128, (rows, columns), np.int8)
        scale = np.float16(spread / UNIFORM)
        if self._kind == "f16":
            return numbers.astype(np.float16) * scale
        blocks = np.empty((rows, columns // BLOCK, BLOCK + 2), np.uint8)
        blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
        blocks[..., 2:] = numbers.view(np.uint8).reshape(rows, -1, BLOCK)
        return blocks.reshape(rows, -1)


def _add_sizes(writer: gguf.GGUFWriter, shape: Shape, kind: str) -> None:
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)


def _add_vocabulary(writer: gguf.GGUFWriter, n: int) -> None:
    "Every byte a token, then words that no text has, then control tokens"
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}  # as GPT-2 spells bytes
    letters |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    tokens = [letters[byte] for byte in range(256)]
    tokens += [f"<word {i}>" for i in range(len(tokens), n - N_SPECIAL)]
    tokens += [f"<|special_{i}|>" for i in range(N_SPECIAL)]
    kinds = [gguf.TokenType.NORMAL] * (n - N_SPECIAL)
    kinds += [gguf.TokenType.CONTROL] * N_SPECIAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])  # llama.cpp wants a list that is not empty
    writer.add_bos_token_id(n - N_SPECIAL)
    writer.add_eos_token_id(n - N_SPECIAL + 1)


# -- what is timed ----------------------------------------------------


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


def restore(
    task: Task, store: Store, engine: Engine, tokens: array[int]
) -> dict[str, Any]:
    "From a store to the next token: seconds of each step, and what follows"
    verified = 0.0

    @contextlib.contextmanager
    def open_state(*arguments: Any) -> Iterator[Any]:
        nonlocal verified
        with contextlib.ExitStack() as stack:
            took, opened = timed(
                lambda: stack.enter_context(store.open_parts(*arguments))
            )
            verified += took
            yield opened

    slots = Slots(engine, open_state, lambda *_: None)
    slot = slots.acquire(tokens)
    started = time.perf_counter()
    chain = store.longest_prefix(fingerprint(task), tokens).cut(task.n - 1)
    found = time.perf_counter()
    filling = alone(slots.fill(slot, tokens, chain), engine)
    token = draw(engine, tokens, filling.index)
    ended = time.perf_counter()
    if slot.seq or filling.restored != task.n - 1:
        reasons = [reason for _, reason in filling.misses]
        raise StateError(f"{filling.restored} tokens restored: {reasons}")
    restored = filling.restore_ms / 1000
    return {
        "verify": found - started + verified,
        "set": restored - verified,
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
