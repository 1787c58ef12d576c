"""What a host and its engine's process say to each other: lines of JSON.

The events of an answer are those of the protocol by which other processes use a running
server (client.py): text, thinking and calls, then facts, or an error. With them come
the tokens, so that another process can continue an answer.

This module does not know how lines get there, or processes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import llm

from ... import errors
from ...chat import Call
from ...engine import Load, Rope, Sampling, Settings
from ...errors import KVBranchError, OverloadedError
from ..request import Request, Resumed


@dataclass(frozen=True)
class Opening:
    """Which model to load, and how to serve it.

    ``max_cells`` is how many tokens all slots may hold together, None for what memory
    allows. ``n_waiting`` is how many requests may wait for a slot, ``max_pause`` for
    how many seconds answers may stand still while prompts are read, None for the
    default. The rest is as open_session takes it.
    """

    load: Load
    settings: Settings
    root: Path | None = None
    budget: int | None = None
    name: str | None = None
    template: str | None = None
    max_cells: int | None = None
    n_waiting: int = 64
    max_pause: float | None = None


def to_line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def opening_to_json(opening: Opening) -> dict[str, Any]:
    load = opening.load
    return {
        **asdict(opening),
        "root": None if opening.root is None else str(opening.root),
        "load": {
            **asdict(load),
            "path": str(load.path),
            "lora": [[str(path), scale] for path, scale in load.lora],
        },
    }


def opening_of(data: dict[str, Any]) -> Opening:
    load, settings, root = data["load"], data["settings"], data["root"]
    lora = tuple((Path(path), scale) for path, scale in load["lora"])
    split = tuple(load["tensor_split"])
    return Opening(
        **{
            **data,
            "root": None if root is None else Path(root),
            "load": Load(
                **{
                    **load,
                    "path": Path(load["path"]),
                    "lora": lora,
                    "tensor_split": split,
                }
            ),
            "settings": Settings(**{**settings, "rope": Rope(**settings["rope"])}),
        }
    )


def request_to_json(request: Request) -> dict[str, Any]:
    # asdict would take llm's messages apart
    plain = asdict(replace(request, messages=()))
    return {**plain, "messages": [each.to_dict() for each in request.messages]}


def request_of(data: dict[str, Any]) -> Request:
    resumed = data["resumed"]
    if resumed is not None:
        calls = tuple(Call(**call) for call in resumed["calls"])
        given = {**resumed, "tokens": tuple(resumed["tokens"]), "calls": calls}
        resumed = Resumed(**given)
    return Request(
        **{
            **data,
            "messages": [llm.parts.Message.from_dict(m) for m in data["messages"]],
            "sampling": Sampling(**data["sampling"]),
            "stop": tuple(data["stop"]),
            "tools": tuple(data["tools"]),
            "must_call": tuple(data["must_call"]),
            "resumed": resumed,
        }
    )


def error_to_json(error: BaseException) -> dict[str, Any]:
    "An error; the text of an unforeseen one, which may contain a prompt, is left out"
    expected = isinstance(error, KVBranchError)
    return {
        "type": type(error).__name__,
        "message": str(error) if expected else "",
        "retry_after": getattr(error, "retry_after", None),
    }


def error_of(data: dict[str, Any]) -> Exception:
    kind = getattr(errors, data["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, KVBranchError)):
        return RuntimeError(f"{data['type']} in the engine's process")
    if issubclass(kind, OverloadedError):
        return kind(data["message"], data["retry_after"])
    try:
        return kind(data["message"])
    except TypeError:  # it takes more than a message
        return KVBranchError(data["message"])
