"""The commands about models: models, use, settings, download, doctor."""

from __future__ import annotations

import json
from typing import Any

import click

from ..settings import format_size
from .options import json_option

_SIGNS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "blue")}


@click.command()
@click.option("--remove", metavar="NAME", help="Take a model off the list; files stay")
@json_option
def models(remove: str | None, json_: bool) -> None:
    """
    Show the models that there are, and those that other programs have here

    The star marks the one that kvllama stands for. What Ollama, LM Studio,
    llm-gguf and the Hugging Face cache hold can be used where it lies:

        llm kvbranch use llama3.2:3b
    """
    from .. import catalog, doctor

    if remove is not None:
        path = catalog.remove(_name(remove))
        click.echo(f"{_name(remove)} is off the list. Its file stays: {path}")
        return
    rows = doctor.describe_models()
    if json_:
        click.echo(json.dumps(rows, indent=2))
        return
    listed = [row for row in rows if row["listed"]]
    offered = [row for row in rows if not row["listed"]]
    width = max((len(row["name"]) for row in rows), default=0)
    for row in listed:
        _print_model(row, width)
    if not listed:
        click.echo("None yet: llm kvbranch download fetches one")
    if offered:
        click.echo(
            "\nOther programs have these here; llm kvbranch use NAME takes one as it is"
        )
    for row in offered:
        _print_model(row, width)


def _print_model(row: dict[str, Any], width: int) -> None:
    about = row["problem"] or row["about"]
    changed = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
    click.echo(
        click.style("* " if row["default"] else "  ", fg="green", bold=True)
        + click.style(row["name"].ljust(width), fg=None if row["problem"] else "yellow")
        + f"  {about}"
        + click.style(f"  {row['source']}", dim=True)
        + (f"  {changed}" if changed else "")
    )


@click.command()
@click.argument("name", metavar="NAME|PATH")
def use(name: str) -> None:
    """
    Choose the model that kvllama stands for

    NAME is one that llm kvbranch models shows, PATH any GGUF file; files are used
    where they are.
    """
    from .. import catalog, doctor

    chosen = catalog.find(_name(name))
    doctor.check_model(chosen.path)
    chosen = catalog.use(chosen)
    click.echo(f"kvllama is {chosen.name} now, also to be had as kvllama/{chosen.name}")


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

        llm kvbranch settings kvllama n_ctx 8192
        llm kvbranch settings kvllama n_ctx --default
    """
    from .. import catalog
    from ..options import ModelSettings, parse

    if name in ModelSettings.model_fields:
        raise click.ClickException(
            f"Name the model first: llm kvbranch settings kvllama {name}"
        )
    model = catalog.model(_name(name) if name else None)
    if key is not None and (value is not None or default):
        kept = None if default else parse(key, value)
        if default:
            parse(key, None)
        catalog.put_setting(model, key, kept)
        model = catalog.model(model.name)
    elif key is not None:
        parse(key, None)
        click.echo(json.dumps(model.settings.get(key)))
        return
    if json_:
        click.echo(json.dumps(model.settings, indent=2))
        return
    click.echo(click.style(model.name, fg="yellow"))
    if key is not None:
        shown = model.settings.get(key)
        click.echo(f"{key} is {'the default again' if shown is None else shown}")
        return
    width = max(map(len, ModelSettings.model_fields))
    for field, about in ModelSettings.model_fields.items():
        if (given := model.settings.get(field)) is not None:
            text = f"{click.style(str(given), bold=True)}  {about.description}"
        else:
            text = click.style(str(about.description), dim=True)
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
    from .. import catalog, doctor, hub

    if list_:
        width = max(map(len, hub.PRESETS))
        for preset in hub.PRESETS.values():
            star = "* " if preset.name == hub.DEFAULT else "  "
            click.echo(
                click.style(star, fg="green", bold=True)
                + click.style(preset.name.ljust(width), fg="yellow")
                + f"  {format_size(preset.nbytes):>8}  {preset.note}"
            )
        return
    path = hub.download(*hub.resolve(repository, file), revision)
    doctor.check_model(path)
    model = catalog.add(path, "Hugging Face")
    if catalog.default_name() is None:
        catalog.use(model)
    if catalog.default_name() == model.name:
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
    from .. import doctor

    found = doctor.examine()
    if json_:
        click.echo(json.dumps(found, indent=2))
    else:
        for name, text in doctor.lines(found):
            click.echo(f"{click.style(name.ljust(10), dim=True)}{text}")
        _print_problems(found)
    if any(level == "error" for level, _ in found["problems"]):
        raise click.exceptions.Exit(1)


def _print_problems(found: dict[str, Any]) -> None:
    from ..doctor import NEEDS

    click.echo()
    for level, text in found["problems"]:
        sign, colour = _SIGNS[level]
        click.echo(f"{click.style(sign, fg=colour, bold=True)} {text}")
    if not found["problems"]:
        click.echo(f"{click.style('✓', fg='green', bold=True)} All is well")
    compute = found["compute"]
    if compute is None or compute["can_offload"]:
        return
    click.echo("\nTo use a GPU, build llama-cpp-python for it:")
    for kind, line in found["install"].items():
        wanted = kind == compute["gpu_build_wanted"]
        click.echo(f"\n{click.style(kind, bold=wanted)}: {NEEDS[kind]}")
        click.echo(f"  {line}")


def _name(name: str) -> str:
    "A model's name, as llm knows it or as we do"
    from .. import catalog

    if name == catalog.MODEL_ID:
        return catalog.model().name
    return name.removeprefix(f"{catalog.MODEL_ID}/")
