"""The command that checks this machine: doctor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from ..settings import format_size
from .options import json_option
from .text import count, hanging

_SIGNS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "blue")}


@click.command()
@click.option(
    "--exact",
    is_flag=True,
    help="Try whether the same prompt gets the same answer each time",
)
@json_option
def doctor(exact: bool, json_: bool) -> None:
    """
    Check devices, memory, the default model and the store

    Also shows how to install a build of llama-cpp-python for your GPU. The exit
    code is 1 if no model can answer.

    With --exact, the default model answers a prompt again and again: fresh, from
    memory, from disk and in branches. The answers are compared. That takes under a
    minute for a small model.
    """
    from ..models import doctor as checks

    found = checks.examine()
    if exact and not any(level == "error" for level, _ in found["problems"]):
        from ..models import exact as trial

        found["exact"] = trial.try_answers()
    if json_:
        click.echo(json.dumps(found, indent=2))
    else:
        for name, text in _lines(found):
            label = click.style(name.ljust(10), dim=True)
            click.echo(label + hanging(text, 10))
        if "exact" in found:
            _print_exact(found["exact"])
        _print_problems(found)
    if any(level == "error" for level, _ in found["problems"]):
        raise click.exceptions.Exit(1)


def _print_exact(exact: dict[str, Any]) -> None:
    "What was tried, and what it means"
    click.echo(
        f"\nThe same answer again, tried with {exact['model']} "
        f"({exact['seconds']:.0f} s):"
    )
    for sizes in reversed(exact["classes"]):
        least, most = min(sizes), max(sizes)
        numbers = f"{least} to {most}" if most > least else str(least)
        label = f"{numbers} token{'s' if most > 1 else ''} together".ljust(30)
        click.echo(f"  {label}round alike")
    for way in exact["ways"]:
        verdict, colour = "another answer", "red"
        if way["same"]:
            verdict, colour = "the same answer, rounded differently", "yellow"
        if way["bits"]:
            verdict, colour = "the same, bit for bit", "green"
        click.echo(f"  {way['way'].ljust(30)}{click.style(verdict, fg=colour)}")
    for note in exact["notes"]:
        sign, colour = _SIGNS["note"]
        click.echo(f"{click.style(sign, fg=colour, bold=True)} {hanging(note, 2)}")


def _print_problems(found: dict[str, Any]) -> None:
    from ..models import gpu

    click.echo()
    for level, text in found["problems"]:
        sign, colour = _SIGNS[level]
        click.echo(f"{click.style(sign, fg=colour, bold=True)} {hanging(text, 2)}")
    if not found["problems"]:
        click.echo(f"{click.style('✓', fg='green', bold=True)} All is well")
    compute = found["compute"]
    if compute is None or compute["can_offload"]:
        return
    click.echo("\nTo use a GPU, build llama-cpp-python for it:")
    for kind, needs in gpu.builds(compute["gpu_build_wanted"]):
        click.echo(f"\n{click.style(kind, bold=True)}: {needs}")
        click.echo(f"  {found['install'][kind]}")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    "What was found, as (label, text)"
    theirs = [name for name in found["versions"] if "llama" in name]
    ours = [name for name in found["versions"] if name not in theirs]
    for label, names in (("Versions", ours), ("", theirs)):
        yield label, ", ".join(f"{name} {found['versions'][name]}" for name in names)
    if compute := found["compute"]:
        for device in compute["devices"]:
            threads = ""
            if device["kind"] == "CPU":
                threads = f", {count(compute['threads'], 'thread')}"
            memory = ""
            if device["total"]:
                free, total = format_size(device["free"]), format_size(device["total"])
                memory = f", {free} of {total} free"
            yield device["name"], f"{device['description']}{threads}{memory}"
        if not compute["can_offload"]:
            yield "GPU", "none: this build of llama-cpp-python uses the CPU only"
    if model := found["model"]:
        yield from _model_lines(model, bool(compute and compute["can_offload"]))
    if store := found["store"]:
        yield "Store", store["directory"]
        held = "nothing yet"
        if store["responses"]:
            held = (
                f"{count(store['states'], 'state')}, {format_size(store['bytes'])} of "
                f"{format_size(store['budget'])}"
            )
        yield "", f"{held}; {format_size(store['free_disk'])} free on the disk"
    if log := found["log"]:
        yield "Log", f"{log['path']}, {'on' if log['on'] else 'off'}"


def _model_lines(model: dict[str, Any], can_offload: bool) -> Iterator[tuple[str, str]]:
    from ..models import short_count, shown

    parameters = short_count(model["parameters"])
    yield "Model", f"{model['name']} ({model['source']})"
    trained = f", trained for {model['n_ctx_train']:,} tokens"
    kind = f" {model['file_type']}" if model["file_type"] else ""
    yield (
        "",
        f"{model['architecture']}, {parameters} parameters{kind}, "
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
    yield "", f"{', '.join(costs)}: room for {most}{count(fits, 'token')}"
    if can_offload:
        yield "", f"{model['gpu_layers']} of {model['layers']} layers on a GPU"
    for key, value in model["settings"].items():
        yield "", f"{key} is set to {shown(value)}"
