"""What is going on, as plain values: slots, counters, trees.

The values of slots are read while the engine's thread may be changing them: each is
one that was true a moment ago.
"""

from __future__ import annotations

import time
from typing import Any

from ..tree import Node
from .server import Server


def describe_slots(server: Server) -> dict[str, Any]:
    "The slots of the context, and what they share"
    session, running = server.session, server.scheduler.tickets()
    slots = []
    for slot in session.slots.all():
        ticket = running.get(slot.seq)
        generation = ticket.generation if ticket is not None else None
        state = "idle" if slot.tokens else "empty"
        if generation is not None:
            state = "answering" if generation.is_answering else "reading"
        slots.append(
            {
                "id": slot.seq,
                "state": state,
                "response_id": slot.response_id,
                "n_tokens": len(slot.tokens),
                "n_target": len(slot.target) if slot.target is not None else None,
                "n_shared": session.slots.n_shared(slot),
                "seconds": round(time.monotonic() - ticket.started, 3)
                if ticket is not None and ticket.started is not None
                else None,
            }
        )
    return {
        "slots": slots,
        "n_cells": session.engine.n_ctx,
        "n_used": session.slots.n_used(),
        "n_limit": session.slots.limit,
        "n_waiting": server.scheduler.n_waiting_now(),
    }


def response_in_slot(server: Server, seq: int) -> str | None:
    "The logged response that a slot ends with"
    for slot in server.session.slots.all():
        if slot.seq == seq:
            return slot.response_id
    return None


def describe_node(node: Node) -> dict[str, Any]:
    "A tree as nested values; deep ones do not end in a deep recursion"
    described: dict[str, dict[str, Any]] = {}
    for each in node.walk():
        described[each.id] = {
            "id": each.id,
            "thread_id": each.thread_id,
            "model": each.model,
            "prompt": each.prompt,
            "input_tokens": each.input_tokens,
            "output_tokens": each.output_tokens,
            "verb": each.verb,
            "mode": each.mode,
            "excerpt": each.excerpt,
            "parent_id": each.parent.id if each.parent else None,
        }
    return {"root": node.id, "nodes": list(described.values())}


def metrics_text(server: Server) -> str:
    "Prometheus' text format"
    counts, session = server.scheduler.counts, server.session
    lines: list[str] = []

    def put(name: str, kind: str, about: str, values: dict[str, float]) -> None:
        lines.append(f"# HELP kvbranch_{name} {about}")
        lines.append(f"# TYPE kvbranch_{name} {kind}")
        lines.extend(f"kvbranch_{name}{k} {v:g}" for k, v in values.items())

    put("requests_total", "counter", "Requests", {"": counts["requests"]})
    put("refused_total", "counter", "Refused: too many", {"": counts["refused"]})
    put(
        "answers_total",
        "counter",
        "Answers, by how they ended",
        {
            f'{{end="{name.removeprefix("ended ")}"}}': n
            for name, n in sorted(counts.items())
            if name.startswith("ended ")
        },
    )
    put(
        "tokens_total",
        "counter",
        "Tokens: of prompts, restored or resident of them, prefilled, generated",
        {
            f'{{kind="{kind}"}}': counts[f"{kind}_tokens"]
            for kind in ("prompt", "restored", "resident", "prefilled", "generated")
        },
    )
    put("running", "gauge", "Running answers", {"": server.scheduler.n_running()})
    waiting = server.scheduler.n_waiting_now()
    put("waiting", "gauge", "Waiting requests", {"": waiting})
    put("cells", "gauge", "Cells of the context", {"": session.engine.n_ctx})
    put("cells_used", "gauge", "Cells with rows", {"": session.slots.n_used()})
    put(
        "uptime_seconds",
        "gauge",
        "Since the server was started",
        {"": time.time() - server.started},
    )
    return "\n".join(lines) + "\n"
