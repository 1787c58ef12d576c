"""What there is to run models with, whether the model fits, and what is wrong.

The idea: everything is looked at without loading a model, each thing by itself, so
that one that is broken hides none of the others. Sizes are bytes; what fits is
reckoned from the file's header.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llm

from ..engine import (
    KV_TYPES,
    MARGIN,
    check_known,
    devices,
    gguf,
    layers_that_fit,
    lib,
    tokens_that_fit,
)
from ..errors import KVBranchError, ModelLoadError, SettingError
from ..settings import budget, data_directory, format_size
from ..store import describe_store
from . import catalog
from .effective import choose
from .options import KVLlamaOptions

_INSTALL = "llm install --force-reinstall --no-cache-dir llama-cpp-python"
INSTALL = {
    "CUDA": f"CMAKE_ARGS=-DGGML_CUDA=on {_INSTALL}",
    "Metal": f"CMAKE_ARGS=-DGGML_METAL=on {_INSTALL}",
    "Vulkan": f"CMAKE_ARGS=-DGGML_VULKAN=on {_INSTALL}",
    "ROCm": f"CMAKE_ARGS=-DGGML_HIP=on {_INSTALL}",
}
_NEEDS = {  # what a build is for, what it takes, and the program that shows it
    "CUDA": ("NVIDIA", "the CUDA toolkit", "nvcc"),
    "Metal": ("Apple; on by default there", "Xcode's command line tools", "xcrun"),
    "Vulkan": ("any other GPU", "the Vulkan SDK", "glslc"),
    "ROCm": ("AMD", "ROCm", "hipcc"),
}


def examine() -> dict[str, Any]:
    """All findings as plain values.

    ``problems`` are (level, text) with the levels "error" (nothing can be
    answered), "warning" and "note"; the other keys are None where they could not
    be found out.
    """
    problems: list[tuple[str, str]] = []
    found: dict[str, Any] = {"versions": _versions(), "install": INSTALL}
    for name, look in (
        ("compute", _compute),
        ("model", _model),
        ("store", _store),
        ("log", _log),
    ):
        found[name] = None
        try:
            found[name] = look(found, problems)
        except (KVBranchError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError):
                text = (
                    f"Cannot use {error.filename}: {error.strerror}. "
                    "Check its permissions"
                )
            mild = name == "store" and not isinstance(error, SettingError)
            problems.append(("warning" if mild else "error", text))
    found["problems"] = list(dict.fromkeys(problems))
    return found


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in ("llm-kvbranch", "llm", "llama-cpp-python", "datasette"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _compute(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "Devices, and the GPU that this build could use but does not"
    found["versions"]["llama.cpp"] = lib.build().split("/")[1]
    listed = [
        {
            "name": device.name,
            "description": device.description,
            "kind": device.kind,
            "free": _free_memory(device.free) if device.kind == "CPU" else device.free,
            "total": device.total,
        }
        for device in devices.devices()
    ]
    unused = None
    if not devices.can_offload():
        unused = _gpu_seen()
        if unused:
            problems.append(
                (
                    "warning",
                    f"There is a GPU for {unused}, but this build of llama-cpp-python "
                    "computes on the CPU only: install one that uses it",
                )
            )
    return {
        "can_offload": devices.can_offload(),
        "threads": _threads(),
        "devices": listed,
        "gpu_build_wanted": unused,
    }


def _gpu_seen() -> str | None:
    "The kind of build for a GPU that this machine seems to have"
    if sys.platform == "darwin":
        return "Metal" if platform.machine() == "arm64" else None
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        return "CUDA"
    if Path("/dev/kfd").exists():
        return "ROCm"
    return "Vulkan" if any(Path("/dev/dri").glob("renderD*")) else None


def gpu_builds(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The builds for a GPU to offer, as (kind, what it takes); INSTALL has the lines.

    None where this build uses a GPU; the one that fits where a GPU was seen.
    """
    compute = found["compute"]
    if compute is None or compute["can_offload"]:
        return []
    here = ["Metal"] if sys.platform == "darwin" else ["CUDA", "ROCm", "Vulkan"]
    wanted = compute["gpu_build_wanted"]
    return [(kind, _needs(kind)) for kind in ([wanted] if wanted else here)]


def _needs(kind: str) -> str:
    whose, what, program = _NEEDS[kind]
    missing = "" if shutil.which(program) else ", not found here"
    return f"{whose}; needs {what} ({program}{missing})"


def _threads() -> int:
    from ..engine import default_threads

    return default_threads()


def _free_memory(otherwise: int) -> int:
    "Bytes of main memory that can be had, where Linux tells"
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return otherwise


def _model(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "The default model, and how much of it has room"
    model = catalog.model()
    chosen = choose(KVLlamaOptions(), model.settings)
    about = gguf.read_header(model.path)
    if problem := _unusable(model, about, tokenizer=False):
        problems.append(("error", problem))
    kinds = (chosen.kv_type or "f16").split("/", 1)
    types = KV_TYPES[kinds[0]], KV_TYPES[kinds[-1]]
    compute = found["compute"] or {"devices": []}
    gpus = [d for d in devices.devices() if d.takes_layers]
    memory = next((d["free"] for d in compute["devices"] if d["kind"] == "CPU"), 0)
    wanted = -1 if chosen.n_gpu_layers is None else chosen.n_gpu_layers
    layers = min(about.n_layer + 1, wanted) if wanted >= 0 else about.n_layer + 1
    fitting = min(layers, layers_that_fit(about, gpus, types)) if gpus else 0
    whole = gpus and fitting > about.n_layer
    room = sum(gpu.free for gpu in gpus) if whole else memory
    tokens = tokens_that_fit(about, room, types)
    if room and not tokens and not about.unfit:
        problems.append(
            (
                "error",
                f"{model.name} takes {format_size(about.nbytes + MARGIN)} with what "
                f"computing needs, {format_size(room)} are free: use a smaller model "
                "or quantisation",
            )
        )
    if about.n_ctx_train and 0 < tokens < min(about.n_ctx_train, 2048):
        problems.append(("warning", f"There is room for {tokens:,} tokens only"))
    if not about.has_template and not chosen.chat_template:
        problems.append(
            (
                "note",
                f"{model.name} has no chat template: ChatML is used. If it answers "
                f"oddly: llm kvbranch models settings {model.name} chat_template FILE",
            )
        )
    return {
        "name": model.name,
        "path": str(model.path),
        "source": model.source,
        "settings": model.settings,
        "architecture": about.architecture,
        "parameters": about.n_params,
        "file_type": about.file_type,
        "bytes": about.nbytes,
        "kv_type": chosen.kv_type or "f16",
        "kv_bytes_per_token": sum(about.kv_bytes(*types)),
        "recurrent_bytes": about.recurrent_bytes(),
        "n_ctx_train": about.n_ctx_train,
        "tokens_that_fit": tokens,
        "layers": about.n_layer + 1,
        "gpu_layers": fitting,
    }


def _store(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "The store in numbers that take no time to find"
    facts = {"budget": budget(), **describe_store()}
    root = data_directory()
    there = next(path for path in (root, *root.parents) if path.exists())
    facts["free_disk"] = shutil.disk_usage(there).free
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b".")
    except OSError as error:
        problems.append(
            (
                "warning",
                f"{there} cannot be written ({error.strerror}), so nothing is stored: "
                "mend that, or set LLM_KVBRANCH_DIR to another directory",
            )
        )
    most = facts["budget"]
    if most == 0:
        problems.append(
            (
                "note",
                "The store's budget is 0, so nothing is stored: "
                "llm kvbranch store budget --default",
            )
        )
    elif most and facts.get("bytes", 0) > most:
        problems.append(("note", "The store is over its budget: llm kvbranch store gc"))
    bad = [
        miss
        for miss in facts.get("misses", ())
        if any(word in miss["reason"] for word in ("damaged", "truncated", "missing"))
    ]
    if n := sum(miss["count"] for miss in bad):
        problems.append(
            (
                "warning",
                f"{n} bad state file{'' if n == 1 else 's'} found: "
                "llm kvbranch store verify --repair",
            )
        )
    return facts


def _log(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "Whether llm logs: what is not logged leaves no state"
    folder = Path(llm.user_dir())
    on = not (folder / "logs-off").exists()
    if not on:
        problems.append(
            ("warning", "llm logs nothing, so answers leave no state: llm logs on")
        )
    return {"path": str(folder / "logs.db"), "on": on}


def check_model(model: catalog.Model) -> None:
    "Raise ModelLoadError for one that is not to be talked to with this llama.cpp"
    if problem := _unusable(model, gguf.read_header(model.path)):
        raise ModelLoadError(problem)


def _unusable(
    model: catalog.Model, about: gguf.Header, tokenizer: bool = True
) -> str | None:
    "Why a model is none to talk to"
    if about.unfit:
        # Ollama's files have no names that tell anything
        named = model.path.suffix == ".gguf"
        return f"{model.path.name if named else model.name} {about.unfit}"
    try:
        check_known(model.path, tokenizer)
    except ModelLoadError as error:
        return str(error)
    return None


def describe_models() -> list[dict[str, Any]]:
    """All models here: name, path, source, settings, about, problem.

    ``listed`` ones can be asked as kvllama/<name>, the others belong to other
    programs; ``default`` is the one that kvllama stands for, which may be neither.
    """
    default = None
    with contextlib.suppress(KVBranchError):
        default = catalog.model()
    listed_models = catalog.found_models().values()
    others = catalog.offered_models()
    if default and not any(one.path == default.path for one in listed_models):
        others = [default, *(one for one in others if one.path != default.path)]
    rows = []
    for listed, models in ((True, listed_models), (False, others)):
        for model in models:
            about, problem = "", None
            try:
                header = gguf.read_header(model.path)
                about = _about(header)
                problem = header.unfit
            except KVBranchError as error:
                problem = str(error)
            rows.append(
                {
                    "name": model.name,
                    "listed": listed,
                    "default": default is not None and model.path == default.path,
                    "path": str(model.path),
                    "source": model.source,
                    "settings": model.settings,
                    "about": about,
                    "problem": problem,
                }
            )
    return rows


def _about(header: gguf.Header) -> str:
    "A model in a few words"
    words = f"{header.architecture} {short_count(header.n_params)} {header.file_type}"
    return f"{words.rstrip()}, {format_size(header.nbytes)}"


def short_count(n: float) -> str:
    unit = ""
    for larger in ("K", "M", "B"):
        if n < 1000:
            break
        n, unit = n / 1000, larger
    return f"{n:.3g}{unit}"
