"""The layering of the package: who may import whom, and what start-up imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llm_kvbranch"

# Module -> the modules of ours that it may import. Nothing else is allowed, at
# the top of a file or inside a function.
LAYERS = {
    "errors": set(),
    "text": set(),
    "digests": {"errors"},
    "state": {"digests", "errors"},
    "settings": {"errors"},
    "locks": {"errors"},
    "database": {"errors"},
    "accounts": {"database", "errors"},
    "index": {"database", "state"},
    "files": {"accounts", "index", "database", "locks", "state", "errors"},
    "store": {"files", "index", "database", "digests", "state", "errors"},
    "upkeep": {"store", "files", "index", "database", "state", "errors"},
    "engine": {"errors"},
    "chat": {"errors"},
    "resume": {"index"},
    "toolcalls": set(),
    "planning": {"store", "index", "resume", "state", "chat", "toolcalls"},
    "cells": {"engine", "resume", "state", "errors"},
    "slots": {"cells", "engine", "index", "resume", "digests", "state", "errors"},
    "storing": {
        "cells",
        "slots",
        "planning",
        "store",
        "index",
        "state",
        "errors",
        "session",  # for its type alone
    },
    "batching": {"engine", "generation"},  # the latter for its type alone
    "generation": {
        "cells",
        "storing",
        "slots",
        "planning",
        "engine",
        "index",
        "state",
        "text",
        "toolcalls",
        "errors",
        "session",  # for its type alone
    },
    "session": {
        "batching",
        "digests",
        "storing",
        "generation",
        "slots",
        "planning",
        "engine",
        "store",
        "index",
        "database",
        "chat",
        "state",
        "errors",
    },
    "scheduler": {"session", "generation", "errors"},
    "remote": {"toolcalls", "settings", "errors"},
    "elsewhere": set(),
    "catalog": {"elsewhere", "settings", "errors"},
    "options": {"session", "errors"},
    "presets": set(),
    "hub": {"presets", "errors"},
    "excerpt": {"errors"},
    "tables": set(),
    "history": {"tables", "errors"},
    "ancestry": set(),
    "marks": {"ancestry", "history", "tables", "errors"},
    "branching": {"history", "excerpt", "errors"},
    "tree": {"ancestry", "branching", "history", "marks", "errors"},
    "search": {"ancestry", "branching"},
    "listing": {"ancestry", "history", "search", "tree"},
    "conversation": {"ancestry", "branching", "history", "tree"},
    "transcript": {"conversation", "history", "tree", "words"},
    "words": set(),
    "states": {"database", "settings"},
    "edits": {"history"},
    "bundle": {
        "ancestry",
        "edits",
        "engine",  # for the layout of its rows alone
        "errors",
        "history",
        "index",
        "state",
        "store",
    },
    "model": {
        "session",
        "toolcalls",
        "remote",
        "options",
        "catalog",
        "settings",
        "errors",
    },
    "doctor": {"catalog", "engine", "options", "report", "settings", "errors"},
    "report": {"ancestry", "tree", "words", "history", "store", "settings", "errors"},
    "web": {
        "branching",
        "catalog",
        "conversation",
        "edits",
        "errors",
        "history",
        "listing",
        "marks",
        "model",
        "options",
        "remote",
        "scheduler",
        "search",
        "session",
        "settings",
        "state",
        "states",
        "tables",
        "toolcalls",
        "transcript",
        "tree",
        "upkeep",
        "words",
    },
    "cli": {
        "branching",
        "bundle",
        "catalog",
        "doctor",
        "edits",
        "errors",
        "history",
        "hub",
        "marks",
        "options",
        "presets",
        "report",
        "settings",
        "states",
        "tree",
        "upkeep",
        "web",
        "words",
    },
    "__init__": {"model", "cli"},
}
OUTSIDE = {
    "llama_cpp": {"engine"},
    "huggingface_hub": {"hub"},
    "datasette": {"web"},
    "uvicorn": {"web"},
    "sqlite3": {
        "database",
        "index",
        "files",
        "states",
        "upkeep",
        "storing",
        "session",
        "web",
        "cli",
    },
}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    "Top-level names imported: ours with a leading dot"
    found = set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = (node.module or "").split(".")[0]
            if node.level == 0:
                found.add(name)
            elif node.level == depth:
                names = [name] if name else [alias.name for alias in node.names]
                found |= {f".{name}" for name in names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_follow_the_layers(path):
    module = module_of(path)
    ours = {name[1:] for name in imports(path) if name.startswith(".")}
    assert ours <= LAYERS[module], f"{module} may not import {ours - LAYERS[module]}"
    for name, owners in OUTSIDE.items():
        assert name not in imports(path) or module in owners


def test_a_module_that_is_gone_leaves_the_table():
    assert set(LAYERS) == {module_of(path) for path in PACKAGE.rglob("*.py")}


def test_every_module_opens_with_its_idea():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_nothing_grows_out_of_hand():
    "No file much over 400 lines, no function over 60"
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert source.count("\n") <= 490, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


HEAVY = (
    "llama_cpp",
    "numpy",
    "datasette",
    "jinja2",
    "huggingface_hub",
    "llm_kvbranch.session",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["kvbranch", "--help"], ["models", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    "sqlite-utils imports numpy where there is one, so numpy is hidden from it"
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import llm.cli\n"
        f"llm.cli.cli({arguments!r}, standalone_mode=False)\n"
        "del sys.modules['numpy']\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environment(), "LLM_LOAD_PLUGINS": "llm-kvbranch"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HEAVY []" in done.stdout
    assert "kvbranch" in done.stdout or arguments[0] == "models"


def _environment():
    import os

    return dict(os.environ)
