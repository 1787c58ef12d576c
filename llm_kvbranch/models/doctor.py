"""Diagnostics: devices, memory, whether the model fits, store and log.

The idea: no model is loaded, and each check runs by itself, so that a broken one does
not hide the others. Sizes are in bytes; what fits is computed from the header of the
model file.

This module does not know how findings are printed.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llm

from ..engine import (
    KV_TYPES,
    MARGIN,
    default_threads,
    devices,
    gguf,
    layers_that_fit,
    lib,
    tokens_that_fit,
)
from ..errors import KVBranchError, SettingError
from ..settings import budget, data_directory, format_size
from ..store import describe_store
from . import catalog, gpu
from .describe import unusable
from .effective import choose
from .options import KVLlamaOptions


def examine() -> dict[str, Any]:
    """All findings as plain values.

    ``problems`` are (level, text); the levels are "error" (no model can answer),
    "warning" and "note". Other keys are None if their check failed.
    """
    problems: list[tuple[str, str]] = []
    found: dict[str, Any] = {"versions": _versions(), "install": gpu.INSTALL}
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
            # Without the store models still answer
            minor = name == "store" and not isinstance(error, SettingError)
            problems.append(("warning" if minor else "error", text))
    found["problems"] = list(dict.fromkeys(problems))
    return found


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in ("llm-kvbranch", "llm", "llama-cpp-python", "datasette"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _compute(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "The devices, and whether another build could use a GPU"
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
        unused = gpu.gpu_seen()
        if unused:
            problems.append(
                (
                    "warning",
                    f"There is a GPU for {unused}, but this build of llama-cpp-python "
                    "only uses the CPU: install a build for the GPU",
                )
            )
    return {
        "can_offload": devices.can_offload(),
        "threads": default_threads(),
        "devices": listed,
        "gpu_build_wanted": unused,
    }


def _free_memory(otherwise: int) -> int:
    "Available main memory in bytes, where Linux reports it"
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return otherwise


def _model(found: dict[str, Any], problems: list[tuple[str, str]]) -> dict[str, Any]:
    "The default model, and how much of it fits"
    model = catalog.model()
    chosen = choose(KVLlamaOptions(), model.settings)
    about = gguf.read_header(model.path)
    if problem := unusable(model, about, tokenizer=False):
        problems.append(("error", problem))
    kinds = (chosen.kv_type or "f16").split("/", 1)
    types = KV_TYPES[kinds[0]], KV_TYPES[kinds[-1]]
    compute = found["compute"] or {"devices": []}
    alone = chosen.main_gpu or 0 if chosen.split_mode == "none" else None
    gpus = devices.used_for_layers(devices.devices(), alone)
    memory = next((d["free"] for d in compute["devices"] if d["kind"] == "CPU"), 0)
    wanted = -1 if chosen.n_gpu_layers is None else chosen.n_gpu_layers
    layers = min(about.n_layer + 1, wanted) if wanted >= 0 else about.n_layer + 1
    kept_there = chosen.offload_kqv is not False
    most = layers_that_fit(about, gpus, types, *(() if kept_there else (0,)))
    fitting = min(layers, most) if gpus else 0
    whole = gpus and fitting > about.n_layer and kept_there
    room = sum(one.free for one in gpus) if whole else memory
    tokens = tokens_that_fit(about, room, types)
    if room and not tokens and not about.unfit:
        problems.append(
            (
                "error",
                f"{model.name} needs {format_size(about.nbytes + MARGIN)} of memory to "
                f"run, and {format_size(room)} are free: use a smaller model or "
                "quantisation",
            )
        )
    if about.n_ctx_train and 0 < tokens < min(about.n_ctx_train, 2048):
        problems.append(("warning", f"There is only room for {tokens:,} tokens"))
    if not about.has_template and not chosen.chat_template:
        problems.append(
            (
                "note",
                f"{model.name} has no chat template, so ChatML is used. If its answers "
                "look wrong, set a template: llm kvbranch models settings "
                f"{model.name} chat_template FILE",
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
    "The store, its budget and the disk"
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
                f"{there} is not writable ({error.strerror}), so nothing is stored: "
                "make it writable, or set LLM_KVBRANCH_DIR to another directory",
            )
        )
    most = facts["budget"]
    if most == 0:
        problems.append(
            (
                "note",
                "The store's budget is 0, so nothing is stored. To change it: "
                "llm kvbranch store budget --default",
            )
        )
    elif most and facts.get("bytes", 0) > most:
        problems.append(
            (
                "note",
                "The store is over its budget. Make room: llm kvbranch store gc",
            )
        )
    bad = [
        miss
        for miss in facts.get("misses", ())
        if any(word in miss["reason"] for word in ("damaged", "truncated", "missing"))
    ]
    if n := sum(miss["count"] for miss in bad):
        problems.append(
            (
                "warning",
                f"{n} bad state file{'' if n == 1 else 's'} found. To repair: "
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
            (
                "warning",
                "Logging is off, so answers leave no state. Turn it on: llm logs on",
            )
        )
    return {"path": str(folder / "logs.db"), "on": on}
