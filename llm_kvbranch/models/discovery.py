"""The models of other programs on this machine; they are never copied or changed.

The idea: most users have models already. The folder of each program is read as that
program writes it: by file names, and for Ollama by manifests. A folder that is missing
or unreadable counts as empty.

This module opens no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm

_OLLAMA_MODEL = "application/vnd.ollama.image.model"
# Not compiled here, which would be done whenever llm starts
_LATER_PART = r"-(?!00001)\d{5}-of-\d{5}$"
_FIRST_PART = r"-00001-of-\d{5}$"
_ANY_PART = r"-\d{5}(-of-\d{5})$"


def model_name(path: Path) -> str:
    "The name of a model by its file, without the number of the part"
    return re.sub(_FIRST_PART, "", path.stem)


def first_part(path: Path) -> Path:
    "The first file of a split model, given any part"
    return path.with_name(re.sub(_ANY_PART, r"-00001\1", path.stem) + path.suffix)


def is_model(path: Path) -> bool:
    "Whether this is the name of a model, or of the first part of one"
    return not (path.name.startswith("mmproj") or re.search(_LATER_PART, path.stem))


def other_models() -> Iterator[tuple[str, str, Path]]:
    "(program, name, file) of the models of other programs"
    seen = set()
    for program, find in (
        ("Hugging Face", _hugging_face),
        ("LM Studio", _lm_studio),
        ("Ollama", _ollama),
        ("llm-gguf", _llm_gguf),
    ):
        with contextlib.suppress(OSError):
            for name, path in find():
                if (real := os.path.realpath(path)) not in seen:
                    seen.add(real)
                    yield program, name, path


def _hugging_face() -> Iterator[tuple[str, Path]]:
    "The newest revision of each repository"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    folder = Path(hub or f"{home}/hub").expanduser()
    for repository in sorted(folder.glob("models--*")):
        snapshots = [path for path in repository.glob("snapshots/*") if path.is_dir()]
        with contextlib.suppress(OSError):
            main = repository / "snapshots" / (repository / "refs/main").read_text()
            snapshots = [main] if main.is_dir() else snapshots
        for snapshot in sorted(snapshots, key=lambda path: path.stat().st_mtime)[-1:]:
            yield from _gguf_files(snapshot)


def _lm_studio() -> Iterator[tuple[str, Path]]:
    homes = [Path("~/.lmstudio").expanduser(), Path("~/.cache/lm-studio").expanduser()]
    with contextlib.suppress(OSError):
        pointer = Path("~/.lmstudio-home-pointer").expanduser().read_text().strip()
        homes.insert(0, Path(pointer))
    folders = [home / "models" for home in homes]
    for home in homes:
        chosen = _json(home / "settings.json").get("downloadsFolder")
        if isinstance(chosen, str):
            folders.append(Path(chosen))
    for folder in folders:
        yield from _gguf_files(folder)


def _ollama() -> Iterator[tuple[str, Path]]:
    "Files are named by digest; manifests give the names of the models"
    folders = ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    if chosen := os.environ.get("OLLAMA_MODELS"):
        folders.insert(0, chosen)
    for folder in map(Path, map(os.path.expanduser, folders)):
        manifests = folder / "manifests"
        for path in sorted(manifests.glob("*/*/*/*")):
            registry, space, model, tag = path.relative_to(manifests).parts
            name = f"{model}:{tag}"
            if (registry, space) != ("registry.ollama.ai", "library"):
                name = f"{space}/{name}"
                if registry != "registry.ollama.ai":
                    name = f"{registry}/{name}"
            layers = _json(path).get("layers")
            for layer in layers if isinstance(layers, list) else ():
                if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_MODEL:
                    digest = str(layer.get("digest")).replace(":", "-")
                    blob = folder / "blobs" / digest
                    if re.fullmatch(r"sha256-[0-9a-f]+", digest) and blob.is_file():
                        yield name, blob


def _llm_gguf() -> Iterator[tuple[str, Path]]:
    folder = Path(llm.user_dir()) / "gguf"
    for name, model in _json(folder / "models.json").items():
        if isinstance(model, dict) and Path(str(model.get("path"))).is_file():
            yield name, Path(str(model["path"]))
    yield from _gguf_files(folder / "models")


def _gguf_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.gguf")):
        if is_model(path) and path.is_file():
            yield model_name(path), path


def _json(path: Path) -> dict[str, Any]:
    "The object in a JSON file, empty if there is none"
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
