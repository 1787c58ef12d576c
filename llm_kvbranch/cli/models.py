"""The commands about models: list, download, use, remove, settings."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from ..errors import ModelNotFound
from ..settings import format_size
from .groups import LazyGroup
from .options import completing, json_option
from .text import hanging

if TYPE_CHECKING:
    from ..models import Model


@click.group(
    cls=LazyGroup,
    default="list",
    default_if_no_args=True,
    sections={
        "Commands": {
            "list": "models:list_",
            "download": "models:download",
            "use": "models:use",
            "remove": "models:remove",
            "settings": "models:settings",
        }
    },
)
def models() -> None:
    """
    List, download, choose and configure models

    A NAME is one that the list shows, or kvllama for the default model.
    """


@click.command(name="list")
@click.option("remove_", "--remove", metavar="NAME", hidden=True)
@json_option
def list_(remove_: str | None, json_: bool) -> None:
    """
    List models, including those of other programs

    An asterisk marks the default model, which is kvllama. Models of Ollama,
    llm-gguf, LM Studio and the Hugging Face cache can be used where they are:

    \b
        llm kvbranch models use llama3.2:3b
    """
    from ..models import describe_models

    if remove_ is not None:
        if json_:
            raise click.UsageError("Give --remove or --json, not both")
        _remove(remove_)
        return
    rows = describe_models()
    if json_:
        click.echo(json.dumps(rows, indent=2))
        return
    words = [_words(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    mine = [row for row in rows if row["listed"] or row["default"]]
    for row in mine:
        _print_model(row, *widths)
    if not mine:
        click.echo("No models yet. Download one: llm kvbranch models download")
    if len(mine) < len(rows):
        click.echo(
            "\nModels of other programs; to use one: llm kvbranch models use NAME"
        )
    for row in rows[len(mine) :]:
        _print_model(row, *widths)
    if mine and not any(row["default"] for row in rows):
        click.echo(f"\nThere is no default model: {_problem()}", err=True)


@click.command()
@click.argument("name", shell_complete=completing("models"))
def remove(name: str) -> None:
    """
    Remove a model from the list

    Its settings are removed as well; its file is kept. A model in a models folder
    is detected automatically: to remove it, delete its file.
    """
    _remove(name)


def _remove(name: str) -> None:
    from ..models import catalog

    model = None
    with contextlib.suppress(ModelNotFound):
        model = catalog.model()
    name = model.name if model and name == catalog.MODEL_ID else _bare(name)
    path = catalog.remove(name)
    click.echo(f"Removed {name} from the list. Its file is kept: {path}")
    if model and model.name == name:
        click.echo(_problem() or f"kvllama is now {catalog.model().name}")


def _problem() -> str | None:
    "Why there is no default model"
    from ..models import catalog

    try:
        catalog.model()
    except ModelNotFound as error:
        return str(error)
    return None


def _words(row: dict[str, Any]) -> tuple[str, str]:
    "A model's name, and its description or, in short, why it cannot be used"
    problem = (row["problem"] or "").partition(": ")[0].partition(". ")[0]
    return row["name"], problem or row["about"]


def _print_model(row: dict[str, Any], *widths: int) -> None:
    from ..models import shown

    name, about = (word.ljust(n) for word, n in zip(_words(row), widths, strict=True))
    changed = (f"{key} {shown(value)}" for key, value in row["settings"].items())
    click.echo(
        click.style("* " if row["default"] else "  ", fg="green", bold=True)
        + click.style(name, fg=None if row["problem"] else "yellow")
        + f"  {about}"
        + click.style(f"  {row['source']}", dim=True)
        + "".join(f"  {text}" for text in changed)
    )


@click.command()
@click.argument(
    "name",
    metavar="NAME|PATH",
    type=click.Path(),
    shell_complete=completing("usable models"),
)
def use(name: str) -> None:
    """
    Choose the default model, which is kvllama

    NAME is a model that llm kvbranch models lists, PATH is any GGUF file. The file
    is used where it is, not copied.
    """
    from ..models import catalog, check_model, hub

    try:
        chosen = _model(name)
    except ModelNotFound as error:
        if not hub.is_address(name):
            raise
        raise ModelNotFound(
            f"{error}. To get it from Hugging Face: llm kvbranch models download {name}"
        ) from None
    check_model(chosen)
    chosen = catalog.use(chosen)
    also = f"also available as kvllama/{chosen.name}"
    if catalog.is_default(chosen):
        click.echo(f"kvllama is now {chosen.name}, {also}")
        return
    click.echo(
        f"Chose {chosen.name}, {also}. But LLM_KVBRANCH_MODEL is set, so kvllama stays "
        f"{catalog.environment()} until you unset it"
    )


@click.command()
@click.argument("name", required=False, shell_complete=completing("models"))
@click.argument("key", required=False, shell_complete=completing("settings"))
@click.argument("value", required=False)
@click.option("--default", is_flag=True, help="Return to the default")
@json_option
def settings(
    name: str | None, key: str | None, value: str | None, default: bool, json_: bool
) -> None:
    """
    Show or change the settings of a model

    Settings apply to every answer of the model; -o overrides them for one answer.
    Without NAME, the settings of the default model are shown.

    \b
        llm kvbranch models settings kvllama n_ctx 8192
        llm kvbranch models settings kvllama n_ctx --default
    """
    from ..models import ModelSettings, catalog, parse

    if name in ModelSettings.model_fields:
        raise click.ClickException(
            f"Name the model first: llm kvbranch models settings kvllama {name}"
        )
    model = _model(name)
    if default and (key is None or value is not None):
        raise click.UsageError(
            "--default needs a model and a setting: llm kvbranch models settings "
            f"{name or 'kvllama'} {key or 'n_ctx'} --default"
        )
    if key is None:
        if json_:
            click.echo(json.dumps(model.settings, indent=2))
            return
        click.echo(click.style(model.name, fg="yellow"))
        _print_settings(model.settings)
        return
    parsed = parse(key, value)
    if value is None and not default:
        found = model.settings.get(key)
        click.echo(json.dumps(found, indent=2) if json_ else _shown(model, key))
        return
    model = catalog.put_setting(model, key, parsed)
    if json_:
        click.echo(json.dumps(model.settings, indent=2))
        return
    click.echo(click.style(model.name, fg="yellow"))
    has = "is back to its default" if default else f"is {_shown(model, key)}"
    click.echo(f"{key} {has}")


def _shown(model: Model, key: str) -> str:
    from ..models import shown

    return shown(model.settings[key]) if key in model.settings else "default"


def _print_settings(given: dict[str, Any]) -> None:
    from ..models import ModelSettings, shown

    width = max(map(len, ModelSettings.model_fields))
    for field, about in ModelSettings.model_fields.items():
        text = hanging(str(about.description), width + 4)
        if field in given:
            text = click.style(shown(given[field]), bold=True)
        else:
            text = click.style(text, dim=True)
        click.echo(f"  {field.ljust(width)}  {text}")


@click.command()
@click.argument(
    "repository",
    metavar="[MODEL|REPOSITORY]",
    required=False,
    shell_complete=completing("presets"),
)
@click.argument("file", required=False)
@click.option("--revision", help="Branch, tag or commit of the repository")
@click.option("--list", "list_", is_flag=True, help="List the short names")
@click.option("json_", "--json", is_flag=True, help="With --list: output as JSON")
def download(
    repository: str | None,
    file: str | None,
    revision: str | None,
    list_: bool,
    json_: bool,
) -> None:
    """
    Download a model from Hugging Face

    The file goes into the Hugging Face cache, where every program finds it. An
    interrupted download is resumed. MODEL is a short name (see --list; the default
    is llama-3.2-3b) and REPOSITORY is like bartowski/Llama-3.2-3B-Instruct-GGUF.
    FILE is one of its files, or a quantisation like Q5_K_M.
    """
    from ..models import DEFAULT, PRESETS, catalog, check_model, hub

    if list_:
        if repository is not None or revision is not None:
            raise click.UsageError("--list takes neither a model nor --revision")
        _list_presets(json_)
        return
    if json_:
        raise click.UsageError("--json needs --list")
    preset = PRESETS.get((repository or DEFAULT).lower())
    try:
        path = hub.download(*hub.resolve(repository, file), revision)
    except KeyboardInterrupt:
        raise click.ClickException(
            "Interrupted. Run the same command again to resume the download"
        ) from None
    check_model(catalog.Model(path.stem, path, "Hugging Face", {}))
    name = preset.name if preset and not file else None
    model = catalog.add(path, "Hugging Face", name)
    if catalog.default_name() is None:
        catalog.use(model)
    if catalog.is_default(model):
        click.echo("Ready, as kvllama: llm -m kvllama 'Why is the sky blue?'")
        return
    click.echo(
        f"Ready: llm -m kvllama/{model.name} 'Why is the sky blue?'\n"
        f"To make it the default model: llm kvbranch models use {model.name}"
    )


def _list_presets(json_: bool) -> None:
    from ..models import DEFAULT, PRESETS

    if json_:
        facts = [
            {
                "name": known.name,
                "repository": known.repo,
                "file": known.file,
                "bytes": known.nbytes,
                "note": known.note,
                "default": known.name == DEFAULT,
            }
            for known in PRESETS.values()
        ]
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, PRESETS))
    for known in PRESETS.values():
        star = "* " if known.name == DEFAULT else "  "
        click.echo(
            click.style(star, fg="green", bold=True)
            + click.style(known.name.ljust(width), fg="yellow")
            + f"  {format_size(known.nbytes):>8}  {known.note}"
        )


def _model(name: str | None) -> Model:
    "A model by its name, with or without kvllama/"
    from ..models import catalog

    if name is None or name == catalog.MODEL_ID:
        return catalog.model()
    return catalog.find(_bare(name))


def _bare(name: str) -> str:
    from ..models import catalog

    return name.removeprefix(f"{catalog.MODEL_ID}/")
