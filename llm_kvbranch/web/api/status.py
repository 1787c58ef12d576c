"""What is served and what it is doing: the model, its slots, its counters.

This module does not know the log, or how the engine knows.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ..door import READ
from ..serving import Server
from .endpoint import Call, json_response, view

_METRICS = ("n_running", "counts")  # of the host's status


@view("GET", READ)
async def models(call: Call) -> Any:
    "The served model"
    server = call.server
    model = {
        "id": server.model.model_id,
        "object": "model",
        "created": int(server.started),
        "owned_by": "llm-kvbranch",
        "name": server.host.name,
        "context_length": server.host.n_ctx_train or None,
    }
    return json_response({"object": "list", "data": [model]})


@view("GET", READ)
async def slots(call: Call) -> Any:
    "What each slot holds"
    told = await call.server.host.status()
    return json_response({k: v for k, v in told.items() if k not in _METRICS})


@view("GET", READ)
async def metrics(call: Call) -> Any:
    "Counters and gauges, for Prometheus"
    from datasette import Response

    return Response(
        metrics_text(call.server, await call.server.host.status()),
        content_type="text/plain; version=0.0.4; charset=utf-8",
    )


async def response_in_slot(server: Server, seq: int) -> str | None:
    "The logged response at the end of a slot"
    for slot in (await server.host.status())["slots"]:
        if slot["id"] == seq and slot["response_id"] is not None:
            return str(slot["response_id"])
    return None


def metrics_text(server: Server, told: dict[str, Any]) -> str:
    "The metrics in Prometheus' text format; ``told`` is the host's status"
    counts = Counter(told["counts"])
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
    put("running", "gauge", "Running answers", {"": told["n_running"]})
    waiting = told["n_waiting"]
    put("waiting", "gauge", "Waiting requests", {"": waiting})
    put("cells", "gauge", "Cells of the context", {"": told["n_cells"]})
    put("cells_used", "gauge", "Cells with rows", {"": told["n_used"]})
    put(
        "engine_restarts_total",
        "counter",
        "Times that the engine ended and was started again",
        {"": server.host.n_restarts},
    )
    put(
        "uptime_seconds",
        "gauge",
        "Since the server was started",
        {"": round(time.time() - server.started, 3)},
    )
    return "\n".join(lines) + "\n"
