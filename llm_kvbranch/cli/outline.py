"""One line of a tree: its place, the verb that made it, the prompt, its state.

The idea: a line never wraps. On a narrow terminal it first loses the note, then the
tokens, the state and the excerpt, and a deep branch loses the left part of its lead.

This module does not know how wide the terminal is.
"""

from __future__ import annotations

from typing import Any

import click

from ..settings import format_size
from .text import count, fit, width

_LEAST = 12  # columns for a prompt, before something else is left out


def node_line(node: dict[str, Any], columns: int) -> str:
    "The line of a node in so many columns"
    from ..log import one_line, printable

    id = printable(node["short_id"])
    prompt = one_line(node["prompt"], 2 * columns)
    least = min(_LEAST, width(prompt))
    lead = _lead(node["lead"], columns - width(id) - 2 - least)
    room = columns - width(lead) - width(id) - 2
    parts = _parts(node)
    how, tail = next(
        (part for part in parts if sum(map(width, part)) + least <= room), ("", "")
    )
    return (
        click.style(lead, dim=True)
        + click.style(id, fg="yellow")
        + click.style("* " if node["current"] else "  ", fg="green", bold=True)
        + click.style(how, fg="cyan")
        + fit(prompt, max(4, room - width(how) - width(tail)))
        + click.style(tail, dim=True)
    )


def _lead(lead: str, room: int) -> str:
    "What connects a node to its parent: the end of it, if there is no room for all"
    if width(lead) <= room:
        return lead
    room = max(3, room)
    return lead[-room:] if room < 6 else "…" + lead[1 - room :]


def _parts(node: dict[str, Any]) -> list[tuple[str, str]]:
    "What to show around the prompt, as (before, after), from all of it to little"
    from ..log import one_line
    from ..store import is_evicted

    verb = {"branch": "at ", "focus": "on ", "retry": "retry "}.get(node["verb"], "")
    if node["mode"] == "fresh":
        verb = "fresh "
    star = "★ " if node["starred"] else ""

    def how(n: int) -> str:
        if node["excerpt"] and n:
            return f"{verb}“{fit(one_line(node['excerpt'], 24), n)}” {star}"
        return f"{'branch ' if node['verb'] == 'branch' else verb}{star}"

    kept = "evicted" if is_evicted(node["state_gone"]) else "no state"
    if node["state_bytes"]:
        kept = format_size(node["state_bytes"])
    state = f"  {kept}"
    all_of_it, counts = state, (node["input_tokens"], node["output_tokens"])
    if None not in counts:
        all_of_it = f"  {count(sum(counts), 'token')}, {kept}"
    note = f"  “{one_line(node['note'], 40)}”" if node["note"] else ""
    return [
        (how(24), all_of_it + note),
        (how(24), all_of_it),
        (how(24), state),
        (how(24), ""),
        (how(12), ""),
        (how(0), ""),
        (star, ""),
    ]
