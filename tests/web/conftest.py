"""A server for the modules that need one with default settings."""

from __future__ import annotations

import pytest

from ..support.servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A server with default settings, shared by the tests that do not stop it"
    with Server(tmp_path_factory.mktemp("home")) as server:
        yield server
        server.end()
