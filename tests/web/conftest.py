"""A server with default settings, and datasettes without a model."""

from __future__ import annotations

import shutil

import pytest

from llm_kvbranch.log.history import open_log
from llm_kvbranch.web.door import Door, close_door
from llm_kvbranch.web.serving import launch

from ..support.asgi import TOKEN, plugged
from ..support.servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A server with default settings, shared by the tests that do not stop it"
    with Server(tmp_path_factory.mktemp("home")) as server:
        yield server
        server.end()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    "A log, created once because that takes longer than most of these tests"
    path = tmp_path_factory.mktemp("log") / "logs.db"
    open_log(str(path), create=True).close()
    return path


@pytest.fixture
def log(user_path, migrated):
    return shutil.copy(migrated, user_path / "logs.db")


@pytest.fixture
async def plain(log):
    "datasette as anybody starts it, with this plugin installed"
    from datasette.app import Datasette

    plugged()
    datasette = Datasette([str(log)])
    if hasattr(datasette, "root_enabled"):
        datasette.root_enabled = True
    await datasette.invoke_startup()
    return datasette


@pytest.fixture
async def served(log):
    "datasette as serve starts it, without a model"
    datasette, name = launch.build(log)
    assert name == "logs"
    close_door(datasette, Door(TOKEN))
    await datasette.invoke_startup()
    return datasette
