"""What is served and what it is doing: the model, its slots, its counters.

The idea: slots are read while the engine's thread may be changing them, so each value
was true a moment ago.

The invariant: a growing array is copied before it is read. A view of it would keep
it from growing, and the answer that it belongs to would fail.

This module does not know the log.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ...store import common_prefix
from ..door import READ
from ..serving import Server
from .endpoint import Call, json_response, view


@view("GET", READ)
async def models(call: Call) -> Any:
    "The served model"
    server = call.server
    model = {
        "id": server.model.model_id,
        "object": "model",
        "created": int(server.started),
        "owned_by": "llm-kvbranch",
        "name": server.session.name,
        "context_length": server.session.engine.n_ctx_train or None,
    }
    return json_response({"object": "list", "data": [model]})


@view("GET", READ)
async def slots(call: Call) -> Any:
    "What each slot holds"
    return json_response(describe_slots(call.server))


@view("GET", READ)
async def metrics(call: Call) -> Any:
    "Counters and gauges, for Prometheus"
    from datasette import Response

    return Response(
        metrics_text(call.server),
        content_type="text/plain; version=0.0.4; charset=utf-8",
    )


def describe_slots(server: Server) -> dict[str, Any]:
    "The slots of the context, and how much they share"
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
        "n_limit": session.slots.max_cells,
        "n_waiting": server.scheduler.n_waiting_now(),
    }


def _n_used(server: Server) -> int:
    "How many cells hold rows of the slots"
    return len({cell for slot in server.session.slots.all() for cell in slot.cells[:]})


def response_in_slot(server: Server, seq: int) -> str | None:
    "The logged response at the end of a slot"
    for slot in server.session.slots.all():
        if slot.seq == seq:
            return slot.response_id
    return None


def metrics_text(server: Server) -> str:
    "The metrics in Prometheus' text format"
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
