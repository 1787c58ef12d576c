"""The devices that this build of llama.cpp can use, and their free memory."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from .lib import llama

_KINDS = ("CPU", "GPU", "iGPU", "accelerator", "meta")  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    "A device as ggml lists it; memory in bytes, 0 if unknown"

    name: str
    description: str
    kind: str
    free: int
    total: int

    @property
    def takes_layers(self) -> bool:
        return self.kind in ("GPU", "iGPU")


def can_offload() -> bool:
    "Whether this build of llama.cpp can use any GPU"
    return bool(llama().llama_supports_gpu_offload())


def devices() -> list[Device]:
    "All devices of this build; none if the library does not list them (Windows)"
    try:
        lib = _library()
    except AttributeError:  # pragma: no cover
        return []
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = lib.ggml_backend_dev_type(device)
        found.append(
            Device(
                lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
                lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
                _KINDS[kind] if 0 <= kind < len(_KINDS) else "unknown",
                free.value,
                total.value,
            )
        )
    return found


def used_for_layers(found: list[Device], main: int | None = None) -> list[Device]:
    """The devices that llama.cpp puts layers on.

    Integrated GPUs only if there are no others beside remote ones (RPC); with ``main``
    that one alone.
    """
    remote = [one for one in found if one.kind == "GPU" and one.name.startswith("RPC")]
    gpus = [one for one in found if one.kind == "GPU" and one not in remote]
    used = remote + (gpus or [one for one in found if one.kind == "iGPU"])
    return used if main is None else used[main : main + 1]


@functools.cache
def _library() -> Any:
    lib = llama()._lib
    pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "ggml_backend_dev_count": (ctypes.c_size_t, []),
        "ggml_backend_dev_get": (pointer, [ctypes.c_size_t]),
        "ggml_backend_dev_name": (ctypes.c_char_p, [pointer]),
        "ggml_backend_dev_description": (ctypes.c_char_p, [pointer]),
        "ggml_backend_dev_type": (ctypes.c_int, [pointer]),
        "ggml_backend_dev_memory": (None, [pointer, size, size]),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
