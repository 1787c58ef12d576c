"""What there is to run models with, whether the model fits, and what is wrong.

The idea: everything is looked at without loading a model, each thing by itself, so
that one that is broken hides none of the others. Sizes are bytes; what fits is
reckoned from the file's header.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llm

from . import catalog
from .engine import KV_TYPES, devices, gguf, lib
from .engine.fit import MARGIN, layers_that_fit, tokens_that_fit
from .errors import KVBranchError, ModelLoadError
from .options import KVLlamaOptions, choose
from .report import describe_store
from .settings import data_directory, format_size

_INSTALL = "llm install --force-reinstall --no-cache-dir llama-cpp-python"
INSTALL = {
    "CUDA": f"CMAKE_ARGS=-DGGML_CUDA=on {_INSTALL}",
    "Metal": f"CMAKE_ARGS=-DGGML_METAL=on {_INSTALL}",
    "Vulkan": f"CMAKE_ARGS=-DGGML_VULKAN=on {_INSTALL}",
    "ROCm": f"CMAKE_ARGS=-DGGML_HIP=on {_INSTALL}",
}
NEEDS = {
    "CUDA": "NVIDIA, with the CUDA toolkit (nvcc)",
    "Metal": "Apple, with Xcode's command line tools; on by default there",
    "Vulkan": "any other GPU, with the Vulkan SDK (glslc)",
    "ROCm": "AMD, with ROCm (hipcc)",
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
            problems.append(("error" if name != "store" else "warning", str(error)))
    found["problems"] = problems
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


def _threads() -> int:
    from .engine.parameters import default_threads

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
    if about.unfit:
        problems.append(("error", f"{model.path.name} {about.unfit}"))
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
                f"oddly: llm kvbranch settings {model.name} chat_template FILE",
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
    facts = describe_store()
    root = data_directory()
    there = next(path for path in (root, *root.parents) if path.exists())
    facts["free_disk"] = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        problems.append(("warning", f"{there} cannot be written: nothing is stored"))
    budget = facts.get("budget")
    if budget == 0:
        problems.append(("note", "The store's budget is 0: nothing is stored"))
    elif budget and facts["bytes"] > budget:
        problems.append(("note", "The store is above its budget: llm kvbranch gc"))
    bad = [
        miss
        for miss in facts.get("misses", ())
        if any(word in miss["reason"] for word in ("damaged", "truncated", "missing"))
    ]
    if n := sum(miss["count"] for miss in bad):
        problems.append(
            ("warning", f"{n} state files were found bad: llm kvbranch verify --repair")
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


def check_model(path: Path) -> None:
    "Raise ModelLoadError for a file that is no model to talk to"
    about = gguf.read_header(path)
    if about.unfit:
        raise ModelLoadError(f"{path.name} {about.unfit}")


def describe_models() -> list[dict[str, Any]]:
    """All models here: name, path, source, settings, about, problem.

    ``listed`` ones can be asked as kvllama/<name>, the others belong to other
    programs; ``default`` is the one that kvllama stands for.
    """
    default = None
    with contextlib.suppress(KVBranchError):
        default = catalog.model().name
    rows = []
    for listed, models in (
        (True, catalog.found_models().values()),
        (False, catalog.offered_models()),
    ):
        for model in models:
            about, problem = "", None
            try:
                header = gguf.read_header(model.path)
                about = _about(header)
                if header.unfit:
                    problem = header.unfit.partition(":")[0].partition(". ")[0]
            except KVBranchError as error:
                problem = str(error)
            rows.append(
                {
                    "name": model.name,
                    "listed": listed,
                    "default": listed and model.name == default,
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
    words = f"{header.architecture} {_count(header.n_params)} {header.file_type}"
    return f"{words.rstrip()}, {format_size(header.nbytes)}"


def lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    "What a person is told, as (what it is about, text)"
    names = found["versions"]
    yield "Versions", ", ".join(f"{name} {number}" for name, number in names.items())
    if compute := found["compute"]:
        for device in compute["devices"]:
            threads = (
                f", {compute['threads']} threads" if device["kind"] == "CPU" else ""
            )
            memory = ""
            if device["total"]:
                free, total = format_size(device["free"]), format_size(device["total"])
                memory = f", {free} of {total} free"
            yield device["name"], f"{device['description']}{threads}{memory}"
        if not compute["can_offload"]:
            yield "GPU", "none: this build of llama-cpp-python uses the CPU only"
    if model := found["model"]:
        yield from _model_lines(model)
    if store := found["store"]:
        yield "Store", store["directory"]
        held = "nothing yet"
        if store["responses"]:
            held = (
                f"{store['states']:,} states, {format_size(store['bytes'])} of "
                f"{format_size(store['budget'])}"
            )
        yield "", f"{held}; {format_size(store['free_disk'])} free on the disk"
    if log := found["log"]:
        yield "Log", f"{log['path']}, {'on' if log['on'] else 'off'}"


def _model_lines(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Model", f"{model['name']} ({model['source']})"
    trained = f", trained for {model['n_ctx_train']:,} tokens"
    kind = f" {model['file_type']}" if model["file_type"] else ""
    yield (
        "",
        f"{model['architecture']}, {_count(model['parameters'])} parameters{kind}, "
        f"{format_size(model['bytes'])}{trained if model['n_ctx_train'] else ''}",
    )
    each = model["kv_bytes_per_token"]
    costs = [f"a token's KV rows take {format_size(each)} ({model['kv_type']})"]
    if not each:
        costs = []
    if model["recurrent_bytes"]:
        costs.append(f"a recurrent state {format_size(model['recurrent_bytes'])}")
    fits = model["tokens_that_fit"]
    most = "all " if fits == model["n_ctx_train"] else ""
    yield "", f"{', '.join(costs)}: room for {most}{fits:,} tokens"
    yield "", f"{model['gpu_layers']} of {model['layers']} layers on a GPU"
    for key, value in model["settings"].items():
        yield "", f"{key} is set to {value}"


def _count(n: float) -> str:
    unit = ""
    for larger in ("K", "M", "B"):
        if n < 1000:
            break
        n, unit = n / 1000, larger
    return f"{n:.3g}{unit}"
