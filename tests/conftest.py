"""A private llm home for every test, so that nothing of the user's is touched."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def user_path(tmp_path, monkeypatch):
    "llm's user directory, empty; state goes below it"
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    for name in ("LLM_KVBRANCH_DIR", "LLM_KVBRANCH_MODEL", "LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return path
