"""The header of a GGUF file, read by ggml without loading the model.

The idea: the header has every key, and every tensor with its size. That is enough to
say whether the file is complete, what it is for, and how much memory it needs, within
milliseconds, however large the file.

All memory figures are estimates: llama.cpp has the last word.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from .lib import listen, llama, take_errors

_STRING, _ARRAY = 8, 9  # enum gguf_type
_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
_MAX_ARRAY = 4096  # longer arrays belong to the vocabulary
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_F32 = 4  # bytes per value of a recurrent state
_OTHER_KINDS = {  # by architecture: models that llama.cpp loads, but that do not chat
    "t5": "an encoder-decoder model",
    "t5encoder": "an encoder",
    "wavtokenizer-dec": "an audio decoder",
    **dict.fromkeys(("dream", "llada", "llada-moe"), "a diffusion model"),
}
_ADVICE = {  # what to do about a file of another format, by ggml's error message
    "only supports up to version": "llm install --upgrade llama-cpp-python",
    "no longer supported": "Look for a newer file of the model",
    "endianness": "Look for a file of the model for this kind of computer",
}

# enum llama_ftype, as people write it
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
}


class _Parameters(ctypes.Structure):
    "struct gguf_init_params"

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


@dataclass(frozen=True)
class Header:
    """The keys and tensors of one model, with all parts of a split model together.

    ``values`` has single values and short arrays of numbers by key, ``tensors`` the
    bytes of each tensor by name.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, int]
    n_params: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def nbytes(self) -> int:
        return sum(self.tensors.values())

    @property
    def file_type(self) -> str:
        number = self.values.get("general.file_type")
        return _FILE_TYPES.get(number, "") if isinstance(number, int) else ""

    @property
    def n_layer(self) -> int:
        return int(self.get("block_count") or 0)

    @property
    def n_ctx_train(self) -> int:
        return int(self.get("context_length") or 0)

    @property
    def has_template(self) -> bool:
        return "tokenizer.chat_template" in self.values

    def get(self, key: str) -> Any:
        "The value of a key that begins with the architecture's name"
        return self.values.get(f"{self.architecture}.{key}")

    @property
    def unfit(self) -> str | None:
        "Why this is not a chat model; None if it may be one"
        return unfit(self.values.get)

    def layer_bytes(self) -> list[int]:
        "Bytes of each layer's weights, the output layer last"
        sizes = [0] * (self.n_layer + 1)
        for name, nbytes in self.tensors.items():
            found = re.match(r"blk\.(\d+)\.", name)
            if found is None:
                # llama.cpp keeps the input embeddings in main memory
                at = None if name.startswith("token_embd") else self.n_layer
            else:
                at = int(found[1])
            if at is not None and at <= self.n_layer:
                sizes[at] += nbytes
        if "output.weight" not in self.tensors:  # the embeddings are used for both
            sizes[-1] += self.tensors.get("token_embd.weight", 0)
        return sizes

    def kv_bytes(self, type_k: int, type_v: int) -> list[int]:
        "Bytes of one token's keys and values in each layer; the types are ggml's"
        n_head = self._per_layer("attention.head_count")
        n_head_kv = self._per_layer("attention.head_count_kv", n_head)
        width = int(self.get("embedding_length") or 0)
        head = width // max(1, max(n_head, default=1))
        key = int(self.get("attention.key_length") or head)
        value = int(self.get("attention.value_length") or head)
        if self.get("attention.key_length_mla"):
            value = 0  # multi-head latent attention caches keys only
        own = self.n_layer - int(self.get("attention.shared_kv_layers") or 0)
        return [
            _row_size(type_k, key * n) + _row_size(type_v, value * n)
            if i < own and not self._is_recurrent(i)
            else 0
            for i, n in enumerate(n_head_kv)
        ]

    def recurrent_bytes(self) -> int:
        "Bytes of one sequence's recurrent state, in all layers together"
        conv, inner, state = (
            int(self.get(f"ssm.{name}") or 0)
            for name in ("conv_kernel", "inner_size", "state_size")
        )
        groups = int(self.get("ssm.group_count") or 0)
        numbers = max(0, conv - 1) * (inner + 2 * groups * state) + inner * state
        if cache := int(self.get("shortconv.l_cache") or 0):
            numbers += (cache - 1) * int(self.get("embedding_length") or 0)
        return sum(_F32 * numbers for i in range(self.n_layer) if self._is_recurrent(i))

    def _is_recurrent(self, layer: int) -> bool:
        "Whether a layer has a state instead of keys and values"
        if interval := self.get("full_attention_interval"):
            return bool((layer + 1) % int(interval))
        heads = self._per_layer("attention.head_count_kv", [1] * self.n_layer)
        if not (self.get("ssm.state_size") or self.get("shortconv.l_cache")):
            return False
        return heads[layer] == 0 or not max(self._per_layer("attention.head_count"))

    def _per_layer(self, key: str, default: list[int] | None = None) -> list[int]:
        "A count for every layer, from a single value or a list"
        value = self.get(key)
        if value is None:
            return default if default is not None else [0] * self.n_layer
        counts = value if isinstance(value, list) else [value] * self.n_layer
        return [int(n) for n in counts][: self.n_layer]


def parts(path: Path) -> list[Path]:
    "The files of a model, in order: several if the model is split"
    found = _PART.search(path.stem)
    if found is None:
        return [path]
    stem, n = path.stem[: found.start()], int(found[2])
    return [
        path.with_name(f"{stem}-{i:05}-of-{n:05}{path.suffix}") for i in range(1, n + 1)
    ]


def check_parts(path: Path) -> None:
    "Raise ModelLoadError when a file is missing"
    files = parts(path)
    missing = [part.name for part in files if not os.path.exists(part)]
    if missing and len(files) == 1:
        raise ModelLoadError(f"There is no model file {path}")
    if missing:
        raise ModelLoadError(
            f"The model has {len(files)} parts, and some are missing: "
            f"{', '.join(missing)}. Put all parts into one folder"
        )


def read_header(path: Path) -> Header:
    """The header of a model file, or of all parts of a split model.

    Raises ModelLoadError when a file is missing, not a GGUF file, or cut short.
    """
    check_parts(path)
    values: dict[str, Any] = {}
    tensors: dict[str, int] = {}
    n_params = 0
    for part in parts(path):
        found, sizes, n = _read(part)
        values = {**found, **values}  # the first part describes the model
        tensors.update(sizes)
        n_params += n
    return Header(path, values, tensors, n_params)


def unfit(value: Callable[[str], Any]) -> str | None:
    "Why a file with these values (by key) is not a chat model; None if it may be one"
    architecture = value("general.architecture")
    kind = value("general.type")
    if architecture == "clip" or kind in ("mmproj", "vision", "projector"):
        return (
            "is a projector: it lets another model see or hear, but writes no text. "
            "Choose the model that it came with"
        )
    if kind == "adapter" or value("adapter.type") is not None:
        return (
            "is a LoRA adapter: choose the model it was made for, and add it there "
            "with llm kvbranch models settings NAME lora FILE"
        )
    if kind == "imatrix":
        return "is an importance matrix, which is only used to quantise models"
    if kind := _OTHER_KINDS.get(str(architecture)):
        return f"is {kind}, which kvllama cannot run. Choose a chat or instruct model"
    pooling = value(f"{architecture}.pooling_type")
    causal = value(f"{architecture}.attention.causal")
    if str(pooling or 0) != "0" or str(causal).lower() in ("false", "0"):
        return (
            "is an embedding model: it turns text into vectors, but writes no text. "
            "Choose a chat or instruct model"
        )
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int], int]:
    "Values, tensor sizes and the number of parameters of one file"
    size = _size(path)
    lib = _library()
    listen()
    gguf = lib.gguf_init_from_file(os.fsencode(path), _Parameters(True, None))
    if not gguf:
        reason = take_errors()
        advice = [text for words, text in _ADVICE.items() if words in reason]
        raise ModelLoadError(
            f"{path.name} cannot be read as a GGUF file: {reason}. "
            f"{advice[0] if advice else 'Download it again'}"
        )
    try:
        values = {}
        for i in range(lib.gguf_get_n_kv(gguf)):
            if (value := _value(lib, gguf, i)) is not None:
                values[lib.gguf_get_key(gguf, i).decode("utf-8", "replace")] = value
        tensors, end, n_params = {}, 0, 0
        for i in range(lib.gguf_get_n_tensors(gguf)):
            nbytes = lib.gguf_get_tensor_size(gguf, i)
            name = lib.gguf_get_tensor_name(gguf, i).decode("utf-8", "replace")
            tensors[name] = nbytes
            end = max(end, lib.gguf_get_tensor_offset(gguf, i) + nbytes)
            n_params += nbytes * _per_byte(lib.gguf_get_tensor_type(gguf, i))
        end += lib.gguf_get_data_offset(gguf)
    finally:
        lib.gguf_free(gguf)
    if tensors and size < end:
        raise ModelLoadError(
            f"{path.name} is cut short: {size:,} bytes of {end:,}. Download it again"
        )
    return values, tensors, round(n_params)


def _size(path: Path) -> int:
    "Bytes of a file; raises ModelLoadError if it does not begin like a GGUF file"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            magic = file.read(4)
    except IsADirectoryError:
        raise ModelLoadError(f"{path} is a folder: name a GGUF file in it") from None
    except OSError as error:
        raise ModelLoadError(f"Cannot read {path}: {error.strerror}") from None
    if magic != b"GGUF":
        kind = "is empty" if not size else "is not a GGUF file"
        raise ModelLoadError(
            f"{path.name} {kind}: kvllama runs models in GGUF format only"
        )
    return size


def _value(lib: Any, gguf: int, i: int) -> Any:
    "The value of a key: a number, a string or a short list of numbers, else None"
    kind = lib.gguf_get_kv_type(gguf, i)
    if kind == _STRING:
        return lib.gguf_get_val_str(gguf, i).decode("utf-8", "replace")
    if kind == _ARRAY:
        kind, n = lib.gguf_get_arr_type(gguf, i), lib.gguf_get_arr_n(gguf, i)
        if kind not in _SCALARS or not 0 < n <= _MAX_ARRAY:
            return None
        return list(
            (_SCALARS[kind][1] * n).from_address(lib.gguf_get_arr_data(gguf, i))
        )
    name = _SCALARS[kind][0]
    return getattr(lib, f"gguf_get_val_{name}")(gguf, i)


def _row_size(ggml_type: int, n: int) -> int:
    return int(_library().ggml_row_size(ggml_type, n)) if n else 0


@functools.cache
def _per_byte(ggml_type: int) -> float:
    "How many values of a ggml type one byte holds"
    lib = _library()
    return float(lib.ggml_blck_size(ggml_type) / max(1, lib.ggml_type_size(ggml_type)))


@functools.cache
def _library() -> Any:
    "ggml's functions for GGUF files, with their types"
    lib = llama()._lib
    pointer, at, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    declared: dict[str, tuple[Any, list[Any]]] = {
        "gguf_init_from_file": (pointer, [text, _Parameters]),
        "gguf_free": (None, [pointer]),
        "gguf_get_n_kv": (at, [pointer]),
        "gguf_get_key": (text, [pointer, at]),
        "gguf_get_kv_type": (ctypes.c_int, [pointer, at]),
        "gguf_get_arr_type": (ctypes.c_int, [pointer, at]),
        "gguf_get_arr_n": (ctypes.c_size_t, [pointer, at]),
        "gguf_get_arr_data": (pointer, [pointer, at]),
        "gguf_get_val_str": (text, [pointer, at]),
        "gguf_get_n_tensors": (at, [pointer]),
        "gguf_get_tensor_name": (text, [pointer, at]),
        "gguf_get_tensor_type": (ctypes.c_int, [pointer, at]),
        "gguf_get_tensor_size": (ctypes.c_size_t, [pointer, at]),
        "gguf_get_tensor_offset": (ctypes.c_size_t, [pointer, at]),
        "gguf_get_data_offset": (ctypes.c_size_t, [pointer]),
        "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, at]),
        "ggml_blck_size": (at, [ctypes.c_int]),
        "ggml_type_size": (ctypes.c_size_t, [ctypes.c_int]),
    }
    declared |= {
        f"gguf_get_val_{name}": (kind, [pointer, at])
        for name, kind in _SCALARS.values()
    }
    for name, (result, arguments) in declared.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
