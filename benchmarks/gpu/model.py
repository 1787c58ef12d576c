"""A model of a real one's shape with random weights.

The idea: how long prefilling and restoring take depends on a model's shape and
not on what it knows. One random matrix is made for each shape of matrix; every
layer has that one with its rows in another order, which takes seconds instead
of the minutes that three billion random numbers would.

The invariants: the same shape and type give the same file, byte for byte. What
such a model writes depends on every token that it read: attention looks at few
tokens (``SHARP``), so each of them matters, and embeddings are small next to
what the layers add, so the last token does not drown the others although the
same matrix makes the logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

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
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
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
