"""The ``llm`` command in this process, for several users with their own homes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from llm import cli as llm_cli

SHORT = ("-m", "kvllama", "-o", "temperature", "0", "-o", "max_tokens", "24")


class Homes:
    "Runs llm as different users, whose homes are below a directory"

    def __init__(self, root: Path):
        self.root = root

    def __call__(
        self, home: str, *arguments: str, key: str = "", fails: int = False
    ) -> str:
        path = self.root / home
        path.mkdir(exist_ok=True)
        environment = {"LLM_USER_PATH": str(path), "LLM_KVBRANCH_KEY": key or None}
        result = CliRunner(env=environment).invoke(llm_cli.cli, [*arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == fails, result.output
        return result.output


def show(llm: Homes, home: str, response_id: str = "last") -> dict:
    return json.loads(llm(home, "kvbranch", "show", response_id, "--json"))
