"""llm-kvbranch: explore a conversation with a local model as a tree.

This module only has llm's hooks. Every llm command runs them, so they import little,
and only when they are called: llm does not pay for llama.cpp, numpy or datasette, nor
datasette for llm.
"""

from __future__ import annotations

from typing import Any

from pluggy import HookimplMarker

hookimpl = HookimplMarker("llm")


@hookimpl
def register_models(register: Any) -> None:
    from .model import AsyncKVLlama, KVLlama, model_names

    for model_id, name in model_names():
        register(KVLlama(model_id, name), AsyncKVLlama(model_id, name))


@hookimpl
def register_commands(cli: Any) -> None:
    from .cli import kvbranch

    cli.add_command(kvbranch)
