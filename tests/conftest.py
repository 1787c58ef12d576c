"""A private llm home for every test, so that nothing of the user's is touched."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy makes no test wrong
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def user_path(tmp_path, monkeypatch):
    "llm's user directory, empty; state goes below it"
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))  # other programs' models are in there
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "MODEL", "BUDGET", "KEY"):
        monkeypatch.delenv(f"LLM_KVBRANCH_{name}", raising=False)
    monkeypatch.delenv("LLM_MODEL", raising=False)
    return path


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    "Toy models by name, written and loaded when they are first asked for"
    from llm_kvbranch.engine import Load, Weights

    from .support import synth
    from .support.toys import Toy

    folder, made = tmp_path_factory.mktemp("toys"), {}

    def toy(name):
        if name not in made:
            load = Load(synth.write(name, folder / f"{name}.gguf"))
            made[name] = Toy(name, load, Weights(load))
        return made[name]

    return toy


@pytest.fixture
def toy(request, toys):
    "The toy that a test's parameter names"
    return toys(request.param)


@pytest.fixture
def no_fsync(monkeypatch):
    "It takes time, and what is flushed when has tests of its own"
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def root(tmp_path):
    "Where a store may be made"
    return tmp_path / "kvbranch"


@pytest.fixture
def store(root, request):
    "A store of the BUDGET that a module of tests has, or without bounds"
    from llm_kvbranch.store.store import Store

    budget = getattr(request.module, "BUDGET", None)
    with contextlib.closing(Store(root, budget)) as store:
        yield store


@pytest.fixture(scope="module")
def browser():
    "A real Chromium"
    from .support.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(window):
    "A module's ``window``, which is put back as it was"
    yield window
    window.reset()
