"""One GGUF file in memory: its weights, its vocabulary, what it says of itself."""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelLoadError
from .lib import listen, llama, take_errors

_UNKNOWN, _CONTROL = 1 << 0, 1 << 3  # enum llama_token_attr


@dataclass(frozen=True)
class Load:
    "Where a model's weights come from and where they go"

    path: Path
    n_gpu_layers: int = -1  # negative: every layer the build can offload
    main_gpu: int = 0


class Weights:
    """A loaded model. Raises ModelLoadError when llama.cpp refuses the file."""

    def __init__(self, load: Load):
        self.load = load
        self._llama = lib = llama()
        if not load.path.is_file():
            raise ModelLoadError(f"There is no model file {load.path}")
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = load.n_gpu_layers
        parameters.main_gpu = load.main_gpu
        parameters.use_extra_bufts = not _has_amx()
        listen()
        self.model = lib.llama_model_load_from_file(os.fsencode(load.path), parameters)
        if not self.model:
            raise ModelLoadError(
                f"llama.cpp cannot load {load.path.name}: {take_errors()}"
            )
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self.model))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        self.n_swa = int(lib.llama_model_n_swa(self.model))
        self.kind = "attention"
        if lib.llama_model_is_hybrid(self.model):
            self.kind = "hybrid"
        elif lib.llama_model_is_recurrent(self.model):
            self.kind = "recurrent"
        if not lib.llama_model_has_decoder(self.model) or self.n_vocab == 0:
            raise ModelLoadError(f"{load.path.name} is not a model that writes text")
        self._pieces: dict[int, bytes] = {}

    def close(self) -> None:
        if getattr(self, "model", None):
            self._llama.llama_model_free(self.model)
            self.model = None

    __del__ = close

    def tokenize(self, text: str, special: bool, bos: bool = False) -> array[int]:
        """Token ids of a text.

        ``special``: control tokens written out in the text become those tokens;
        otherwise they are text like any other. ``bos``: begin as the vocabulary
        says a text begins.
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
        return tokens

    def piece(self, token: int) -> bytes:
        "The bytes a token stands for, none for a control token"
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._llama.llama_token_to_piece(
                self.vocab, token, buffer, size, 0, False
            )
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def is_eog(self, token: int) -> bool:
        "Whether the model ends its turn with this token"
        return bool(self._llama.llama_vocab_is_eog(self.vocab, token))

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
        "The jinja source in the file's metadata"
        template = self._llama.llama_model_chat_template(self.model, None)
        return template.decode("utf-8", "replace") if template else None

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
    """Whether this processor has Intel's matrix extension.

    llama.cpp's use of it ends the process, depending on compiler and kernel
    (ggml-org/llama.cpp pull request 26954), so it is kept from it.
    """
    try:
        return " amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
