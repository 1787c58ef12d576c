"""A private llm home for every test, so that nothing of the user's is touched."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def user_path(tmp_path, monkeypatch):
    "llm's user directory, empty; state goes below it"
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    for name in ("DIR", "MODEL", "BUDGET", "KEY"):
        monkeypatch.delenv(f"LLM_KVBRANCH_{name}", raising=False)
    monkeypatch.delenv("LLM_MODEL", raising=False)
    return path
