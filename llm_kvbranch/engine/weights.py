"""One GGUF file in memory: its weights, its vocabulary and its metadata."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KVBranchError, ModelLoadError
from .constraint import Vocabulary
from .devices import can_offload, devices, used_for_layers
from .fit import explain, layers_that_fit
from .gguf import check_parts, parts, read_header, unfit
from .lib import listen, llama, signals_held, take_errors
from .threads import is_forked, own_process

# enum llama_token_attr
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_SAMPLING_KEYS: dict[str, tuple[str, Any]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repeat_penalty": ("penalty_repeat", float),
    "repeat_last_n": ("penalty_last_n", int),
}
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}  # enum llama_split_mode


@dataclass(frozen=True)
class Load:
    """Which file the weights are loaded from, and onto which devices.

    ``lora`` has adapters and their scales. ``split_mode`` and ``tensor_split``
    (proportions) say how several GPUs share the layers.
    """

    path: Path
    n_gpu_layers: int = -1  # negative: all layers that the build can offload
    main_gpu: int = 0
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    lora: tuple[tuple[Path, float], ...] = ()

    @property
    def files(self) -> list[Path]:
        "The files of the model: more than one if it is split"
        return parts(self.path)


class Weights:
    """A loaded model. Raises ModelLoadError when it cannot be used.

    ``gpu_layers`` is how many layers are on a GPU, counting the output layer;
    ``devices`` are the names of the GPUs. ``notice`` says what was not done as asked,
    None if all was. ``n_ctx_train`` and ``n_swa`` (the sliding window) are in tokens, 0
    if there is none.
    """

    def __init__(self, load: Load):
        self.load = load
        self._llama = lib = llama()
        self._adapters: list[Any] = []
        self.model = None
        self.notice: str | None = None
        check_parts(load.path)
        self._load_model()
        self._check_use()
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self.model))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        self.n_swa = int(lib.llama_model_n_swa(self.model))
        rope = lib.llama_model_rope_type(self.model)
        self.is_2d = rope in (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE)
        self.kind = "attention"
        if lib.llama_model_is_hybrid(self.model):
            self.kind = "hybrid"
        elif lib.llama_model_is_recurrent(self.model):
            self.kind = "recurrent"
        for path, scale in load.lora:
            self._add_adapter(path, scale)
        self._pieces: dict[int, bytes] = {}

    def _load_model(self) -> None:
        "Load the weights, with fewer layers on the GPU if not all of them fit"
        alone = self.load.main_gpu if self.load.split_mode == "none" else None
        gpus = used_for_layers(devices(), alone)
        self.devices = [f"{gpu.description} ({gpu.name})" for gpu in gpus]
        wanted = self.load.n_gpu_layers
        if gpus and wanted:
            own_process()
        if self._try_load(wanted):
            self.gpu_layers = self._offloaded(wanted) if gpus else 0
            return
        reason = take_errors()
        if gpus and wanted < 0:
            fitting = layers_that_fit(read_header(self.load.path), gpus)
            for n in dict.fromkeys((fitting, fitting // 2, 0)):
                if self._try_load(n):
                    self.gpu_layers = n
                    self.notice = (
                        f"{self.load.path.name} does not fit on the GPU: "
                        f"{n} of {self._offloaded(-1)} layers are on it"
                    )
                    return
        raise ModelLoadError(explain(self.load.path, reason))

    def _try_load(self, n_gpu_layers: int) -> bool:
        lib, load = self._llama, self.load
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = n_gpu_layers
        none = (ctypes.c_void_p * 1)()
        if n_gpu_layers == 0:  # else it computes large batches on a GPU all the same
            parameters.devices = ctypes.cast(none, ctypes.c_void_p)
        parameters.main_gpu = load.main_gpu
        parameters.split_mode = SPLIT_MODES[load.split_mode]
        shares = (ctypes.c_float * lib.llama_max_devices())(
            *load.tensor_split[: lib.llama_max_devices()]
        )
        if load.tensor_split:
            parameters.tensor_split = shares
        parameters.use_extra_bufts = not _has_amx()
        listen()
        with signals_held() as interrupted:
            progress = lib.llama_progress_callback(lambda *_: not interrupted())
            parameters.progress_callback = progress
            path = os.fsencode(load.path)
            self.model = lib.llama_model_load_from_file(path, parameters)
        return bool(self.model)

    def _offloaded(self, n_gpu_layers: int) -> int:
        "How many layers llama.cpp offloads when asked for this many"
        n = int(self._llama.llama_model_n_layer(self.model)) + 1
        return n if n_gpu_layers < 0 else min(n, n_gpu_layers)

    @property
    def placement(self) -> str:
        "Where the layers are, in words"
        if self.gpu_layers:
            where = " and ".join(self.devices)
            return f"{self.gpu_layers} of {self._offloaded(-1)} layers on {where}"
        if can_offload():
            return "CPU"
        return "CPU (this build of llama-cpp-python uses no GPU)"

    def _check_use(self) -> None:
        "Raise ModelLoadError for a model that loads, but does not chat"
        lib, name = self._llama, self.load.path.name
        reason = unfit(self.value)
        if reason is None and not lib.llama_model_has_decoder(self.model):
            reason = "does not write text. Choose a chat or instruct model"
        if reason is None and lib.llama_model_is_diffusion(self.model):
            reason = "is a diffusion model, which kvllama cannot run"
        if reason is not None:
            raise ModelLoadError(f"{name} {reason}")
        vocab = lib.llama_model_get_vocab(self.model)
        if not lib.llama_vocab_n_tokens(vocab):
            raise ModelLoadError(f"{name} has no vocabulary: choose another file")

    def _add_adapter(self, path: Path, scale: float) -> None:
        lib = self._llama
        if not path.is_file():
            raise ModelLoadError(f"There is no LoRA adapter {path}")
        listen()
        with signals_held():
            adapter = lib.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise ModelLoadError(
                f"{path.name} is not a LoRA adapter for {self.load.path.name}: "
                f"{take_errors()}"
            )
        self._adapters.append((adapter, scale))  # freed with the model

    def adapt(self, context: Any) -> None:
        "Apply the adapters to a context; raises ModelLoadError"
        if not self._adapters:
            return
        n = len(self._adapters)
        adapters = (ctypes.POINTER(ctypes.c_void_p) * n)(
            *(adapter for adapter, _ in self._adapters)
        )
        scales = (ctypes.c_float * n)(*(scale for _, scale in self._adapters))
        listen()
        if self._llama.llama_set_adapters_lora(context, adapters, n, scales):
            raise ModelLoadError(f"The LoRA adapters cannot be used: {take_errors()}")

    def value(self, key: str) -> str | None:
        "A value of the file's metadata as text, None if it has no such key"
        buffer = ctypes.create_string_buffer(256)
        n = self._llama.llama_model_meta_val_str(
            self.model, key.encode(), buffer, len(buffer)
        )
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    @property
    def has_values(self) -> bool:
        "False if only keys are cached, as with multi-head latent attention (MLA)"
        architecture = self.value("general.architecture")
        return any(
            self.value(f"{architecture}.attention.{part}_length_mla") in (None, "0")
            for part in ("key", "value")
        )

    def close(self) -> None:
        if getattr(self, "model", None):
            if not (self.gpu_layers and is_forked()):
                self._llama.llama_model_free(self.model)
            self.model = None

    __del__ = close

    def tokenize(self, text: str, special: bool, bos: bool = False) -> array[int]:
        """Token ids of a text.

        With ``special``, control tokens that the text spells become those tokens;
        otherwise they are text like any other. With ``bos``, the tokens that the
        vocabulary wants at the beginning of a text are added.
        """
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 16
        buffer = (ctypes.c_int32 * room)()
        n = self._llama.llama_tokenize(
            self.vocab, data, len(data), buffer, room, bos, special
        )
        if n < 0:
            raise ModelLoadError("llama.cpp cannot tokenize this text")
        tokens: array[int] = array("i")
        tokens.frombytes(memoryview(buffer).cast("B")[: 4 * n])
        if bos and self._adds_eos and tokens[-1:] == array("i", [self._eos]):
            del tokens[-1]  # some vocabularies want it at the end of a text
        return tokens

    @functools.cached_property
    def _adds_eos(self) -> bool:
        return bool(self._llama.llama_vocab_get_add_eos(self.vocab))

    @functools.cached_property
    def _eos(self) -> int:
        return int(self._llama.llama_vocab_eos(self.vocab))

    def piece(self, token: int) -> bytes:
        "The bytes that a token spells, none for a control token"
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def control_text(self, token: int) -> str:
        "How a chat template writes a control token; empty for all other tokens"
        if self.piece(token):
            return ""
        return self.text(token)

    def text(self, token: int) -> str:
        "A token as a chat template writes it"
        return self._piece(token, special=True).decode("utf-8", "replace")

    def _piece(self, token: int, special: bool = False) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._llama.llama_token_to_piece(
                self.vocab, token, buffer, size, 0, special
            )
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    @functools.cached_property
    def longest_piece(self) -> int:
        "How many bytes the longest token spells"
        return max(len(self._piece(token)) for token in range(self.n_vocab))

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        "The tokens as constraints see them"
        tokens = range(self.n_vocab)
        ends = [token for token in tokens if self.is_eog(token)]
        if not ends:
            raise KVBranchError(
                f"{self.load.path.name} has no token that ends an answer, so an answer "
                "cannot be constrained"
            )
        return Vocabulary(
            [self._piece(token) for token in tokens],
            list(map(self._text, tokens)),
            ends,
        )

    def is_eog(self, token: int) -> bool:
        "Whether the model ends its turn with this token"
        return bool(self._llama.llama_vocab_is_eog(self.vocab, token))

    def is_user_defined(self, token: int) -> bool:
        "Whether tokenize() reads a token wherever its text stands"
        attributes = self._llama.llama_vocab_get_attr(self.vocab, token)
        return bool(attributes & _USER_DEFINED)

    @property
    def control_texts(self) -> tuple[str, ...]:
        "The texts that tokenize(special=True) reads as control tokens"
        lib, vocab = self._llama, self.vocab
        return tuple(
            lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if lib.llama_vocab_get_attr(vocab, token) & (_CONTROL | _UNKNOWN)
        )

    @property
    def chat_template(self) -> str | None:
        "The jinja source in the file's metadata, None if it has none"
        template = self._llama.llama_model_chat_template(self.model, None)
        return template.decode("utf-8", "replace") if template else None

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling settings that the model's authors recommend.

        By llama.cpp's names, from ``general.sampling.*`` of the file's metadata; most
        files have none.
        """
        found = {}
        for name, (key, kind) in _SAMPLING_KEYS.items():
            if (value := self.value(f"general.sampling.{key}")) is not None:
                with contextlib.suppress(ValueError):
                    found[name] = kind(value)
        return found

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        return str(
            self._llama.llama_vocab_get_text(self.vocab, token).decode(
                "utf-8", "replace"
            )
        )

    @property
    def bos_text(self) -> str:
        return self._text(self._llama.llama_vocab_bos(self.vocab))

    @property
    def eos_text(self) -> str:
        return self._text(self._llama.llama_vocab_eos(self.vocab))

    @property
    def description(self) -> str:
        "Architecture, size and quantisation in llama.cpp's words"
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self.model, buffer, 256)
        return buffer.value.decode("utf-8", "replace")


@functools.cache
def _has_amx() -> bool:
    """Whether this processor has Intel's matrix extension (AMX).

    Depending on compiler and kernel, llama.cpp crashes when it uses AMX
    (ggml-org/llama.cpp pull request 26954), so it is prevented from using it.
    """
    try:
        return " amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
