"""The commands about models: models, use, settings, download, doctor."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from ..errors import ModelNotFound
from ..settings import format_size
from .options import hanging, json_option

if TYPE_CHECKING:
    from ..models import Model

_SIGNS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "blue")}


@click.command()
@click.option("--remove", metavar="NAME", help="Take a model off the list; files stay")
@json_option
def models(remove: str | None, json_: bool) -> None:
    """
    Show the models that there are, and those that other programs have here

    The star marks the one that kvllama stands for. What Ollama, llm-gguf, LM
    Studio and the Hugging Face cache hold can be used where it lies:

        llm kvbranch use llama3.2:3b
    """
    from ..models import doctor

    if remove is not None:
        _remove(remove)
        return
    rows = doctor.describe_models()
    if json_:
        click.echo(json.dumps(rows, indent=2))
        return
    words = [_words(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    mine = [row for row in rows if row["listed"] or row["default"]]
    for row in mine:
        _print_model(row, *widths)
    if not mine:
        click.echo("None yet: llm kvbranch download fetches one")
    if len(mine) < len(rows):
        click.echo(
            "\nOther programs have these here; llm kvbranch use NAME takes one as it is"
        )
    for row in rows[len(mine) :]:
        _print_model(row, *widths)
    if mine and not any(row["default"] for row in rows):
        click.echo(f"\nkvllama has no model: {_problem()}", err=True)


def _remove(name: str) -> None:
    from ..models import catalog

    model = None
    with contextlib.suppress(ModelNotFound):
        model = catalog.model()
    name = model.name if model and name == catalog.MODEL_ID else _bare(name)
    path = catalog.remove(name)
    click.echo(f"{name} is off the list. Its file stays: {path}")
    if model and model.name == name:
        click.echo(_problem() or f"kvllama is {catalog.model().name} now")


def _problem() -> str | None:
    "Why kvllama has no model to run"
    from ..models import catalog

    try:
        catalog.model()
    except ModelNotFound as error:
        return str(error)
    return None


def _words(row: dict[str, Any]) -> tuple[str, str]:
    "A model's name, and what it is or why it cannot be used, without the details"
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
@click.argument("name", metavar="NAME|PATH")
def use(name: str) -> None:
    """
    Choose the model that kvllama stands for

    NAME is one that llm kvbranch models shows, PATH any GGUF file; files are used
    where they are.
    """
    from ..models import catalog, doctor, hub

    try:
        chosen = _model(name)
    except ModelNotFound as error:
        if not hub.is_address(name):
            raise
        raise ModelNotFound(
            f"{error}. To get it from Hugging Face: llm kvbranch download {name}"
        ) from None
    doctor.check_model(chosen)
    chosen = catalog.use(chosen)
    also = f"also to be had as kvllama/{chosen.name}"
    if catalog.is_default(chosen):
        click.echo(f"kvllama is {chosen.name} now, {also}")
        return
    click.echo(
        f"{chosen.name} is chosen, {also}, but kvllama stays {catalog.environment()} "
        "as long as LLM_KVBRANCH_MODEL is set: unset it"
    )


@click.command()
@click.argument("name", required=False)
@click.argument("key", required=False)
@click.argument("value", required=False)
@click.option("--default", is_flag=True, help="Go back to the default")
@json_option
def settings(
    name: str | None, key: str | None, value: str | None, default: bool, json_: bool
) -> None:
    """
    Show or change what is set for a model

    What is set holds whenever the model answers, unless -o says otherwise. Without
    a NAME the settings of the model are shown that kvllama stands for.

    \b
        llm kvbranch settings kvllama n_ctx 8192
        llm kvbranch settings kvllama n_ctx --default
    """
    from ..models import ModelSettings, catalog, parse, shown

    if name in ModelSettings.model_fields:
        raise click.ClickException(
            f"Name the model first: llm kvbranch settings kvllama {name}"
        )
    model = _model(name)
    if default and (key is None or value is not None):
        raise click.ClickException(
            "--default takes a model and a setting: "
            f"llm kvbranch settings {name or 'kvllama'} {key or 'n_ctx'} --default"
        )
    if key is not None and (value is not None or default):
        kept = parse(key, value)
        model = catalog.put_setting(model, key, kept)
    elif key is not None:
        parse(key, None)
        click.echo(json.dumps(model.settings.get(key)))
        return
    if json_:
        click.echo(json.dumps(model.settings, indent=2))
        return
    click.echo(click.style(model.name, fg="yellow"))
    if key is None:
        _print_settings(model.settings)
    elif default:
        click.echo(f"{key} is the default again")
    else:
        click.echo(f"{key} is {shown(model.settings[key])}")


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
@click.argument("repository", metavar="[MODEL|REPOSITORY]", required=False)
@click.argument("file", required=False)
@click.option("--revision", help="Branch, tag or commit of the repository")
@click.option("--list", "list_", is_flag=True, help="Show the models known by name")
def download(
    repository: str | None, file: str | None, revision: str | None, list_: bool
) -> None:
    """
    Download a model from Hugging Face

    Into its cache, where every program finds it; what was begun is gone on with.
    Without arguments Llama 3.2 3B. REPOSITORY is like
    bartowski/Llama-3.2-3B-Instruct-GGUF, FILE one of its files or a quantisation
    like Q5_K_M.

        llm kvbranch download --list
    """
    from ..models import DEFAULT, PRESETS, catalog, doctor, hub

    if list_:
        width = max(map(len, PRESETS))
        for known in PRESETS.values():
            star = "* " if known.name == DEFAULT else "  "
            click.echo(
                click.style(star, fg="green", bold=True)
                + click.style(known.name.ljust(width), fg="yellow")
                + f"  {format_size(known.nbytes):>8}  {known.note}"
            )
        return
    preset = PRESETS.get((repository or DEFAULT).lower())
    try:
        path = hub.download(*hub.resolve(repository, file), revision)
    except KeyboardInterrupt:
        raise click.ClickException(
            "Stopped. Run this again, and it goes on where it was"
        ) from None
    doctor.check_model(catalog.Model(path.stem, path, "Hugging Face"))
    name = preset.name if preset and not file else None
    model = catalog.add(path, "Hugging Face", name)
    if catalog.default_name() is None:
        catalog.use(model)
    if catalog.is_default(model):
        click.echo("Ready, as kvllama: llm -m kvllama 'Why is the sky blue?'")
        return
    click.echo(
        f"Ready: llm -m kvllama/{model.name} 'Why is the sky blue?'\n"
        f"To make it the one that kvllama stands for: llm kvbranch use {model.name}"
    )


@click.command(name="doctor")
@json_option
def doctor_(json_: bool) -> None:
    """
    Check what models can be run with here, and whether all is well

    Devices and their memory, whether the model that kvllama stands for fits, the
    store, and how to install a build for the GPU. Exit code 1 if nothing could be
    answered.
    """
    from ..models import doctor

    found = doctor.examine()
    if json_:
        click.echo(json.dumps(found, indent=2))
    else:
        for name, text in doctor.lines(found):
            label = click.style(name.ljust(10), dim=True)
            click.echo(label + hanging(text, 10))
        _print_problems(found)
    if any(level == "error" for level, _ in found["problems"]):
        raise click.exceptions.Exit(1)


def _print_problems(found: dict[str, Any]) -> None:
    from ..models import doctor

    click.echo()
    for level, text in found["problems"]:
        sign, colour = _SIGNS[level]
        click.echo(f"{click.style(sign, fg=colour, bold=True)} {hanging(text, 2)}")
    if not found["problems"]:
        click.echo(f"{click.style('✓', fg='green', bold=True)} All is well")
    if builds := doctor.gpu_builds(found):
        click.echo("\nTo use a GPU, build llama-cpp-python for it:")
    for kind, needs in builds:
        click.echo(f"\n{click.style(kind, bold=True)}: {needs}")
        click.echo(f"  {found['install'][kind]}")


def _model(name: str | None) -> Model:
    "A model by its name, as llm knows it or as we do"
    from ..models import catalog

    if name is None or name == catalog.MODEL_ID:
        return catalog.model()
    return catalog.find(_bare(name))


def _bare(name: str) -> str:
    from ..models import catalog

    return name.removeprefix(f"{catalog.MODEL_ID}/")
