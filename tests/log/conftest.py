"""A log that the tests of this room write response by response."""

from __future__ import annotations

import pytest

from ..support.logged import Log


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    yield log
    log.close()
