"""A pytest plugin: where the models and KV caches of the tests are.

    pytest -p tests.support.placement --gpu-layers 3 --kv-in-main-memory FILE...

It changes the defaults of ``Load`` and ``Settings``, so it holds wherever a test does
not choose for itself, in this process. With ``--toy-model``, tests of the real model
take a toy of random weights, where the real one would be slow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("placement")
    group.addoption("--gpu-layers", type=int, default=-1)
    group.addoption("--kv-in-main-memory", action="store_true")
    group.addoption("--toy-model", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    from llm_kvbranch.engine import Load, Settings

    change_default(Load, "n_gpu_layers", config.getoption("gpu_layers"))
    change_default(Settings, "offload_kqv", not config.getoption("kv_in_main_memory"))


def change_default(kind: Any, name: str, value: Any) -> None:
    "Change the default of a dataclass's field"
    fields = [f for f in dataclasses.fields(kind) if f.default is not f.default_factory]
    defaults = {field.name: field.default for field in fields}
    assert tuple(defaults.values()) == kind.__init__.__defaults__
    kind.__init__.__defaults__ = tuple({**defaults, name: value}.values())
