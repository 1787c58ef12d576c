"""What a scheduler and its slots are doing.

The idea: slots are read while the engine's thread may be changing them, so each value
was true a moment ago.

The invariant: a growing array is copied before it is read. A view of it would keep
it from growing, and the answer that it belongs to would fail.
"""

from __future__ import annotations

import time
from typing import Any

from ..store import common_prefix
from .scheduler import Scheduler


def describe(scheduler: Scheduler) -> dict[str, Any]:
    """The slots of the context and how much they share, the queue, the counters.

    All values can be written as JSON. Cells, tokens and requests are counted.
    """
    session, running = scheduler.session, scheduler.tickets()
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
        "n_used": len({cell for own in cells.values() for cell in own}),
        "n_limit": session.slots.max_cells,
        "n_waiting": scheduler.n_waiting_now(),
        "n_running": scheduler.n_running(),
        "counts": dict(scheduler.counts),
    }
