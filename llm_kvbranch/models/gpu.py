"""Builds of llama-cpp-python for GPUs: which one this machine needs, and how to get it.

This module looks for drivers and tools only. It does not load llama.cpp.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

_INSTALL = "llm install --force-reinstall --no-cache-dir llama-cpp-python"
INSTALL = {
    "CUDA": f"CMAKE_ARGS=-DGGML_CUDA=on {_INSTALL}",
    "Metal": f"CMAKE_ARGS=-DGGML_METAL=on {_INSTALL}",
    "Vulkan": f"CMAKE_ARGS=-DGGML_VULKAN=on {_INSTALL}",
    "ROCm": f"CMAKE_ARGS=-DGGML_HIP=on {_INSTALL}",
}
_NEEDS = {  # whose GPUs, what the build needs, and a program of that
    "CUDA": ("NVIDIA", "the CUDA toolkit", "nvcc"),
    "Metal": ("Apple; on by default there", "Xcode's command line tools", "xcrun"),
    "Vulkan": ("any other GPU", "the Vulkan SDK", "glslc"),
    "ROCm": ("AMD", "ROCm", "hipcc"),
}


def gpu_seen() -> str | None:
    "The kind of build for the GPU of this machine, if it seems to have one"
    if sys.platform == "darwin":
        return "Metal" if platform.machine() == "arm64" else None
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        return "CUDA"
    if Path("/dev/kfd").exists():
        return "ROCm"
    return "Vulkan" if any(Path("/dev/dri").glob("renderD*")) else None


def builds(wanted: str | None) -> list[tuple[str, str]]:
    """The builds to offer, as (kind, what it needs): the wanted one, else all.

    INSTALL has the command for each.
    """
    here = ["Metal"] if sys.platform == "darwin" else ["CUDA", "ROCm", "Vulkan"]
    return [(kind, _needs(kind)) for kind in ([wanted] if wanted else here)]


def _needs(kind: str) -> str:
    whose, what, program = _NEEDS[kind]
    missing = "" if shutil.which(program) else ", not found here"
    return f"{whose}; needs {what} ({program}{missing})"
