"""What a GGUF file says about a model: what it is, and whether it can be used here.

The idea: only the header of a file is read, which takes no time.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ..engine import check_known, gguf
from ..errors import KVBranchError, ModelLoadError
from ..settings import format_size
from . import catalog


def check_model(model: catalog.Model) -> None:
    "Raise ModelLoadError for a model that this llama.cpp cannot chat with"
    if problem := unusable(model, gguf.read_header(model.path)):
        raise ModelLoadError(problem)


def unusable(
    model: catalog.Model, about: gguf.Header, tokenizer: bool = True
) -> str | None:
    "Why a model cannot be used for chat, None if it can"
    if about.unfit:
        # Ollama's files are named by digest
        named = model.path.suffix == ".gguf"
        return f"{model.path.name if named else model.name} {about.unfit}"
    try:
        check_known(model.path, tokenizer)
    except ModelLoadError as error:
        return str(error)
    return None


def describe_models() -> list[dict[str, Any]]:
    """All models on this machine: name, path, source, settings, about, problem.

    ``listed`` models are known to llm as kvllama/<name>; the others belong to other
    programs. ``default`` is the default model, which may be neither.
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
    "A model in a few words: architecture, parameters, file type, size"
    words = f"{header.architecture} {short_count(header.n_params)} {header.file_type}"
    return f"{words.rstrip()}, {format_size(header.nbytes)}"


def short_count(n: float) -> str:
    "A number of parameters, as in 135M"
    unit = ""
    for larger in ("K", "M", "B"):
        if n < 1000:
            break
        n, unit = n / 1000, larger
    return f"{n:.3g}{unit}"
