"""README and docs say everything: commands, options, settings, addresses, rooms."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from docs.tables import commands
from llm_kvbranch.cli import kvbranch
from llm_kvbranch.model import KVLlama
from llm_kvbranch.models import ModelSettings

from ..test_layers import ROOMS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
COMMANDS = {" ".join(path): command for path, command in commands(kvbranch) if path}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_generated_parts_are_up_to_date():
    pages = [str(path.relative_to(ROOT)) for path in PAGES]
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", *pages],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_is_short():
    assert README.count("\n") < 200


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_and_has_help(name):
    assert f"## `llm kvbranch {name}`" in DOCS["commands.md"]
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented_and_has_help(name):
    reference = DOCS["commands.md"].partition(f"## `llm kvbranch {name}`")[2]
    reference = reference.partition("\n## ")[0]
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            assert all(option in reference for option in parameter.opts)


@pytest.mark.parametrize("name", KVLlama.Options.model_fields)
def test_every_option_is_documented(name):
    assert f"| `{name}` |" in DOCS["models.md"]


@pytest.mark.parametrize("name", ModelSettings.model_fields)
def test_every_setting_is_documented(name):
    assert f"| `{name}` |" in DOCS["models.md"]


def test_every_environment_variable_is_documented():
    source = "".join(p.read_text() for p in (ROOT / "llm_kvbranch").rglob("*.py"))
    named = set(re.findall(r"LLM_KVBRANCH_[A-Z]+", source))
    assert len(named) >= 4
    for name in {*named, "LLM_KVBRANCH_BUDGET"}:
        assert f"| `{name}` |" in DOCS["models.md"]


def test_every_address_is_documented():
    from llm_kvbranch.web.api.openapi import document
    from llm_kvbranch.web.routes import ROUTES

    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"| `{method.upper()} {path}` |" in DOCS["server.md"]
    for pattern, _ in ROUTES:
        path = re.sub(r"\(\?P<id>.*?\)", "ID", pattern.strip("^$").replace("\\", ""))
        path = path.partition("(")[0]
        documented = re.findall(r"`(?:GET |POST )?(/[^`\s]*)`", DOCS["server.md"])
        assert path in documented or path.rstrip("/") in documented


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_documented(room):
    assert f"| `{room}` |" in DOCS["architecture.md"]


def test_files_that_the_architecture_names_are_there():
    text = DOCS["architecture.md"] + (ROOT / "docs/way.svg").read_text()
    named = set(re.findall(r"\b((?:\w+/)*\w+\.py)\b", text))
    assert len(named) > 10
    for name in named:
        assert (ROOT / "llm_kvbranch" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for link in LINK.findall(text):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_the_repository_is_where_pyproject_says():
    "Whoever moves it changes the address there, and is told of every other place"
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    home = urls["Homepage"]
    repository = home.removeprefix("https://github.com/")
    places = [*PAGES, *(ROOT / ".github").rglob("*.yml"), ROOT / "docs" / "conf.py"]
    places += [ROOT / "pyproject.toml", *(ROOT / "llm_kvbranch").rglob("*.py")]
    links = re.compile(r"\bgithub[\w./-]*/([\w-]+/llm-kvbranch)\b")
    named = {name for path in places for name in links.findall(path.read_text())}
    assert named == {repository}


def anchors(text: str) -> set[str]:
    "What headings are called in links, as GitHub does it"
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title).strip().lower() for title in titles)
    return {title.replace(" ", "-") for title in plain}


def said() -> str:
    "All texts in the package's code, those with values in them in pieces"
    texts = []
    for path in (ROOT / "llm_kvbranch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_in_troubleshooting_are_those_that_are_printed():
    code, stale = said(), []
    bullets = re.findall(r"^- (.*?)(?:: |$)", DOCS["troubleshooting.md"], re.MULTILINE)
    messages = re.findall(r"^- ((?:`[^`]+`(?:, )?)+)", DOCS["troubleshooting.md"], re.M)
    assert len(messages) == len(bullets) > 30
    for message in re.findall(r"`([^`]+)`", " ".join(messages)):
        if not all(piece.strip() in code for piece in message.split("…")):
            stale.append(message)
    assert stale == []


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^[a-z-]+$", DOCS["index.md"], re.MULTILINE))
    assert {f"{name}.md" for name in listed} == set(DOCS) - {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_examples_are_there(page):
    "Each llm kvbranch ... of a code block is a command that takes these options"
    lines = [
        line
        for kind, block in FENCE.findall(page.read_text())
        if kind in ("bash", "")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in lines:
        for words in re.findall(r"llm kvbranch ([^|#'\"]*)", line):
            command, rest = kvbranch, words.split()
            while rest and isinstance(command, click.Group):
                context = click.Context(command)
                found = command.get_command(context, rest[0])
                if found is None:
                    break
                command, rest = found, rest[1:]
            if isinstance(command, click.Group):
                command = COMMANDS["branch"]
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            for word in rest:
                if word.startswith("-"):
                    assert word in {*known, "--help"}, line


def test_ci_runs_what_readme_says():
    "The test command is the one that a reader would copy"
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[test]'" in README
    assert "'.[test]'" in script
    assert "/pytest" in script
    assert "sphinx -W" in script


def test_read_the_docs_installs_what_the_extra_does():
    "Without the package itself, which would compile llama.cpp there"
    project = (ROOT / "pyproject.toml").read_text()
    for line in (ROOT / "docs" / "requirements.txt").read_text().splitlines():
        assert f'  "{line}",\n' in project
