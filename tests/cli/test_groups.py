"""The commands by name: groups, defaults, older names, and help that fits a screen."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner, Result

from llm_kvbranch.cli import kvbranch


def command(*names: str) -> click.Command:
    found: click.Command = kvbranch
    for name in names:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
        assert found is not None
    return found


def everything(*names: str) -> Iterator[tuple[str, ...]]:
    "The group itself, and all commands below it"
    yield names
    group = command(*names)
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            yield from everything(*names, name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvbranch, arguments, prog_name="llm kvbranch")


class TestNames:
    "Guards against a script that worked before, or a command that nobody finds"

    @pytest.mark.parametrize(
        "names",
        [
            *(("models", name) for name in ("use", "settings", "download")),
            *(("store", name) for name in ("status", "budget", "gc", "verify")),
            *(("store", name) for name in ("pin", "unpin")),
        ],
    )
    def test_an_older_name_is_the_same_command(self, names: tuple[str, str]) -> None:
        assert command(names[1]) is command(*names)
        assert names[1] not in kvbranch.list_commands(click.Context(kvbranch))
        assert f"  {names[1]} " not in run("--help").output

    def test_all_are_shown_in_this_order(self) -> None:
        assert [" ".join(names) for names in everything()] == [
            "",
            *("branch", "focus", "continue", "retry", "tree", "show", "diff"),
            *("star", "note", "prune", "export", "import", "serve", "doctor"),
            *("models", "models list", "models download", "models use"),
            *("models remove", "models settings"),
            *("store", "store status", "store budget", "store gc", "store verify"),
            *("store pin", "store unpin"),
        ]

    @pytest.mark.parametrize(
        ("group", "default"), [("models", "list"), ("store", "status")]
    )
    def test_a_group_has_a_default(self, group: str, default: str) -> None:
        for options in ([], ["--json"]):
            alone, named = run(group, *options), run(group, default, *options)
            assert alone.exit_code == named.exit_code == 0
            assert alone.output == named.output
        assert json.loads(alone.output)

    @pytest.mark.parametrize("group", ["models", "store"])
    def test_a_misspelt_command_is_not_an_argument_of_the_default(self, group) -> None:
        done = run(group, "vrify")
        assert done.exit_code == 2
        assert "No such command 'vrify'" in done.output

    def test_anything_else_is_a_response_to_branch_from(self) -> None:
        done = run("01abc", "Why?")
        assert done.exit_code == 1
        assert "logs.db" in done.output

    def test_a_model_is_removed_from_the_list(self, user_path) -> None:
        settings = user_path / "kvbranch" / "settings.json"
        settings.parent.mkdir()
        for arguments in (("models", "remove"), ("models", "--remove")):
            settings.write_text('{"models": {"tern": {"path": "/tmp/tern.gguf"}}}')
            done = run(*arguments, "tern")
            assert "Removed tern from the list" in done.output
            assert json.loads(settings.read_text()) == {}


class TestHelp:
    "Guards against help that scrolls away or stops in the middle of a sentence"

    @pytest.mark.parametrize("names", list(everything()), ids=" ".join)
    def test_it_fits_a_screen(self, names: tuple[str, ...]) -> None:
        said = run(*names, "--help").output
        is_group = isinstance(command(*names), click.Group)
        assert len(said.splitlines()) <= (24 if is_group else 40)
        assert max(map(len, said.splitlines())) <= 80
        if is_group:
            assert "...\n" not in said.partition("\n")[2]  # none is cut
