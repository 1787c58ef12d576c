"""What is going on, as plain values: slots, counters, trees.

Slots are read while the engine's thread may be changing them, so each value is one
that was true a moment ago. What grows there is copied before it is looked into: a
view of an array keeps it from growing, which would fail the answer it belongs to.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ...log import Node
from ...store import common_prefix
from ..serving.served_model import Server


def describe_slots(server: Server) -> dict[str, Any]:
    "The slots of the context, and what they share"
    session, running = server.session, server.scheduler.tickets()
    slots = session.slots.all()
    cells = {slot.seq: slot.cells[:] for slot in slots}
    described = []
    for slot in slots:
        ticket, target, own = running.get(slot.seq), slot.target, cells[slot.seq]
        state = "idle" if own else "empty"
        if ticket is not None:
            state = "answering" if ticket.generation.is_answering else "reading"
        shares = (common_prefix(own, cells[s]) for s in cells if s != slot.seq)
        described.append(
            {
                "id": slot.seq,
                "state": state,
                "response_id": slot.response_id,
                "n_tokens": len(own),
                "n_target": len(target) if target is not None else None,
                "n_shared": max(shares, default=0),
                "seconds": round(time.monotonic() - ticket.started, 3)
                if ticket is not None and ticket.started is not None
                else None,
            }
        )
    return {
        "slots": described,
        "n_cells": session.engine.n_ctx,
        "n_used": _n_used(server),
        "n_limit": session.slots.limit,
        "n_waiting": server.scheduler.n_waiting_now(),
    }


def _n_used(server: Server) -> int:
    "Cells that the slots' rows take"
    return len({cell for slot in server.session.slots.all() for cell in slot.cells[:]})


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
    counts, session = Counter(server.scheduler.counts), server.session
    lines: list[str] = []

    def put(name: str, kind: str, about: str, values: dict[str, float]) -> None:
        lines.append(f"# HELP kvbranch_{name} {about}")
        lines.append(f"# TYPE kvbranch_{name} {kind}")
        lines.extend(f"kvbranch_{name}{k} {v}" for k, v in values.items())

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
    put("cells_used", "gauge", "Cells with rows", {"": _n_used(server)})
    put(
        "uptime_seconds",
        "gauge",
        "Since the server was started",
        {"": round(time.time() - server.started, 3)},
    )
    return "\n".join(lines) + "\n"
