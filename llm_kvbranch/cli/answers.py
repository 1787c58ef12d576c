"""Answers as they stream in: the first as it comes, the others after it.

This module does not know what was asked.
"""

from __future__ import annotations

from typing import Any

from .streams import Answers


def show_answers(
    responses: list[Any], silent: bool, hide_reasoning: bool = False
) -> Answers:
    """Print answers in order; ``check`` the result once they are logged.

    All of them are advanced in turn, so that later answers do not wait.
    """
    out, thinks = Answers(), False
    events = [iter(response.stream_events()) for response in responses]
    held: list[list[Any]] = [[] for _ in events]
    shown = 0
    _show_number(out, shown, len(events), silent)
    while shown < len(events):
        for i in range(shown, len(events)):
            event = next(events[i], None)
            if event is not None:
                held[i].append(event)
            elif held[i][-1:] != [None]:
                held[i].append(None)
        while shown < len(events) and held[shown]:
            event = held[shown].pop(0)
            if event is not None:
                if not silent and not (event.type == "reasoning" and hide_reasoning):
                    thinks = _show_event(out, event, thinks)
                continue
            if not silent:
                out.end()
            shown += 1
            _show_number(out, shown, len(events), silent)
    return out


def _show_number(out: Answers, i: int, n: int, silent: bool) -> None:
    if 1 < n > i and not silent:
        out.write("\n" if i else "")
        out.write(f"{i + 1} of {n}\n", bold=True)


def _show_event(out: Answers, event: Any, thinks: bool) -> bool:
    """Text to standard output, reasoning dimmed to standard error, as in llm.

    ``thinks`` says whether the last event was reasoning; returns whether this one is.
    """
    if event.type == "text":
        if thinks:
            out.write("\n", err=True)
        out.write(event.chunk)
        return False
    if event.type == "reasoning":
        out.write(event.chunk, err=True, dim=True)
        return True
    return thinks
