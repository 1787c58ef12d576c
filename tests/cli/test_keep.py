"""The commands that maintain the store, as users run them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import llm as llm_package
import pytest
import sqlite_utils

from llm_kvbranch import model as model_module
from llm_kvbranch import settings
from llm_kvbranch.errors import SettingError
from llm_kvbranch.settings import format_size, parse_size

from ..support.homes import SHORT, Homes, show

QUESTIONS = ("Why is the sky blue?", "What is a harbour?", "Who was Euler?")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "Three conversations; the first has a second turn and a branch"
    root = tmp_path_factory.mktemp("keep")
    llm = Homes(root)
    for question in QUESTIONS:
        llm("ann", *SHORT, question)
    first = ids(llm)[0]
    llm("ann", "kvbranch", "continue", first, *SHORT[2:], "Why?")
    llm("ann", "kvbranch", "branch", first, *SHORT[2:], "Really?")
    return root


@pytest.fixture
def llm(made, tmp_path, monkeypatch) -> Homes:
    monkeypatch.setattr(model_module, "_sessions", {})
    shutil.copytree(made, tmp_path / "homes")
    return Homes(tmp_path / "homes")


def ids(llm: Homes) -> list[str]:
    return sorted(row["id"] for row in log(llm)["turns"].rows)


def log(llm: Homes) -> sqlite_utils.Database:
    return sqlite_utils.Database(llm.root / "ann" / "logs.db")


def status(llm: Homes) -> dict:
    return json.loads(llm("ann", "kvbranch", "status", "--json"))


def states(llm: Homes) -> set[str]:
    return {path.stem for path in (llm.root / "ann").rglob("*.safetensors")}


@pytest.mark.model
class TestStatus:
    "Guards against bytes that nobody can account for"

    def test_adds_up(self, llm) -> None:
        facts = status(llm)
        assert facts["responses"] == facts["states"] == len(states(llm)) == 5
        files = (llm.root / "ann").rglob("*.safetensors")
        assert facts["bytes"] == sum(path.stat().st_size for path in files)
        assert facts["bytes"] == sum(m["bytes"] for m in facts["models"])
        assert facts["bytes"] == sum(t["bytes"] for t in facts["threads"])
        assert facts["reclaimable_bytes"] == facts["bytes"]
        assert facts["prompts"] == 5
        assert 0 < facts["hit_rate"] < 1
        names = {t["name"] for t in facts["threads"]}
        assert set(QUESTIONS) <= names
        text = llm("ann", "kvbranch", "status")
        for word in ("5 of 5 responses", "a fifth of the free disk", "Who was Euler?"):
            assert word in text

    def test_of_nothing(self, llm) -> None:
        assert "none yet" in llm("bob", "kvbranch", "status")
        assert "Nothing is stored" in llm("bob", "kvbranch", "gc")


@pytest.mark.model
class TestRoom:
    "Guards against a store that grows without limit, or evicts what is in use"

    def test_budget(self, llm) -> None:
        before = status(llm)["bytes"]
        out = llm("ann", "kvbranch", "budget", f"{before // 2}")
        assert "(set)" in out
        assert "Removed 2 states" in out or "Removed 3 states" in out
        assert status(llm)["bytes"] <= before // 2
        llm("ann", *SHORT, "Something new")
        facts = status(llm)
        assert facts["bytes"] <= before // 2
        assert not facts["budget_is_default"]
        (removal,) = facts["removals"]
        assert "evicted" in removal["reason"]
        gone = show(llm, "ann", ids(llm)[1])
        assert gone["state_file"] is None
        assert "evicted" in gone["state_gone"]
        llm("ann", "kvbranch", "continue", ids(llm)[1], *SHORT[2:], "And?")
        assert "evicted" in show(llm, "ann")["miss_reason"]
        assert "no problem" in llm("ann", "kvbranch", "verify")
        assert "(default)" in llm("ann", "kvbranch", "budget", "--default")
        assert status(llm)["budget_is_default"]

    def test_a_lower_budget_keeps_what_is_pinned(self, llm) -> None:
        last = ids(llm)[-1]
        llm("ann", "kvbranch", "pin", last)
        out = llm("ann", "kvbranch", "budget", "1kB")
        assert "pinned or in use are kept" in out
        assert states(llm) == {last, ids(llm)[0]}
        llm("ann", "kvbranch", "unpin", last)
        assert "gc" in llm("ann", "kvbranch", "budget")
        assert len(states(llm)) == 2

    def test_a_budget_of_nothing_is_no_store(self, llm) -> None:
        llm("ann", "kvbranch", "budget", "0")
        before = states(llm)
        llm("ann", *SHORT, "Something new")
        assert states(llm) == before
        llm("ann", "kvbranch", "gc")
        assert not states(llm)

    def test_gc(self, llm) -> None:
        before = states(llm)
        out = llm("ann", "kvbranch", "gc", "--max-size", "2MB", "--dry-run")
        assert "Would remove" in out
        assert states(llm) == before
        llm("ann", "kvbranch", "gc", "--max-size", "2MB")
        assert status(llm)["bytes"] <= 2_000_000
        assert states(llm) < before

    def test_pins(self, llm) -> None:
        last = ids(llm)[-1]  # the branch: it needs the first response's state
        llm("ann", "kvbranch", "pin", last)
        llm("ann", "kvbranch", "gc", "--max-size", "0")
        assert states(llm) == {last, ids(llm)[0]}
        assert status(llm)["reclaimable_bytes"] == 0
        assert show(llm, "ann", last)["state_pinned"]
        assert "pinned" in llm("ann", "kvbranch", "prune", last)
        out = llm("ann", "kvbranch", "pin", ids(llm)[1], fails=True)
        assert "no state to pin" in out
        llm("ann", "kvbranch", "unpin", last)
        llm("ann", "kvbranch", "gc", "--max-size", "0")
        assert not states(llm)


@pytest.mark.model
class TestPrune:
    "Guards against removing more than was asked for, or less than was reported"

    def test_a_subtree(self, llm) -> None:
        first, *others = ids(llm)
        turns = ids(llm)
        llm("ann", "kvbranch", "prune", first)
        assert states(llm) == set(others[:2])
        assert ids(llm) == turns
        assert "no problem" in llm("ann", "kvbranch", "verify")
        llm("ann", "kvbranch", "continue", first, *SHORT[2:], "And?")

    def test_one_branch(self, llm) -> None:
        last = ids(llm)[-1]
        out = llm("ann", "kvbranch", "prune", last, "--dry-run")
        assert "Would remove 1 state" in out
        assert last in states(llm)
        llm("ann", "kvbranch", "prune", last)
        assert states(llm) == set(ids(llm)) - {last}

    def test_what_another_conversation_goes_on_from(self, llm) -> None:
        document = "A long story of ships and storms. " * 12
        llm("ann", *SHORT, document + "One?")
        one = ids(llm)[-1]
        llm("ann", *SHORT, document + "Two?")
        assert show(llm, "ann")["state_parent"] == one
        out = llm("ann", "kvbranch", "prune", one)
        assert "another response continues from it" in out
        assert one in states(llm)

    def test_with_the_log(self, llm) -> None:
        first, second, third, *_ = ids(llm)
        out = llm("ann", "kvbranch", "prune", first, "--log", fails=True)
        assert "3 responses" in out
        assert len(ids(llm)) == 5
        llm("ann", "kvbranch", "prune", first, "--log", "-y")
        assert ids(llm) == [second, third]
        db = log(llm)
        assert db["threads"].count == 2
        assert db["kvbranch_branches"].count == 0
        assert db["messages"].count == 4
        assert not list(db.query("pragma foreign_key_check"))
        assert "Euler" in llm("ann", "logs", "-n", "1")
        assert "sky" not in llm("ann", "logs", "-n", "0")
        llm("ann", "-c", *SHORT, "Why?")
        assert show(llm, "ann")["restored_tokens"] > 20

    @pytest.mark.parametrize("command", ["unpin", "prune"])
    def test_a_pinned_response_that_is_not_in_the_log_any_more(
        self, llm, command
    ) -> None:
        "Fails if its rows and token ids stay on the disk for ever"
        last = ids(llm)[-1]
        llm("ann", "kvbranch", "pin", last)
        llm("ann", "kvbranch", "prune", last, "--log", "-y")
        assert last not in ids(llm)
        assert last in states(llm)
        if command == "prune":
            assert "pinned" in llm("ann", "kvbranch", "prune", last)
        llm("ann", "kvbranch", "unpin", last)
        llm("ann", "kvbranch", "prune", last)
        assert last not in states(llm)
        out = llm("ann", "kvbranch", "unpin", last, fails=True)
        assert "No response" in out

    def test_the_last_turn_of_a_thread(self, llm) -> None:
        first, *_, second, branch = ids(llm)
        llm("ann", "kvbranch", "prune", second, "--log", "-y")
        thread = show(llm, "ann", first)["thread_id"]
        llm("ann", "--cid", thread, *SHORT, "Go on")
        assert show(llm, "ann")["parent_response_id"] == first
        assert show(llm, "ann", branch)["parent_response_id"] == first


class TestSizes:
    "Guards against a budget of megabytes where gigabytes were meant"

    @pytest.mark.parametrize(
        ("text", "nbytes"),
        [
            ("0", 0),
            ("1234", 1234),
            ("500MB", 500_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2T", 2 * 10**12),
            ("1KiB", 1024),
            ("3GiB", 3 * 1024**3),
        ],
    )
    def test_read(self, text: str, nbytes: int) -> None:
        assert parse_size(text) == nbytes

    @pytest.mark.parametrize("text", ["", "MB", "-1", "1 XB", "1,5GB", "lots", "1e9"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(SettingError, match="like 500MB"):
            parse_size(text)

    def test_written(self) -> None:
        assert format_size(999) == "999 bytes"
        assert format_size(1_250_000) == "1.2 MB"
        assert format_size(3.2e12) == "3.2 TB"


class TestSettings:
    "Guards against lost settings, or a broken file that fails without a message"

    def test_kept(self, user_path) -> None:
        settings.put("budget", "2GB")
        settings.put("other", 3)
        assert settings.budget() == 2_000_000_000
        settings.put("budget", None)
        assert settings.budget() is None
        assert settings.get("other") == 3
        (path,) = (user_path / "kvbranch").iterdir()
        assert json.loads(path.read_text()) == {"other": 3}
        assert path.stat().st_mode & 0o077 == 0

    def test_the_environment_goes_first(self, monkeypatch) -> None:
        settings.put("budget", "2GB")
        monkeypatch.setenv("LLM_KVBRANCH_BUDGET", "3GB")
        assert settings.budget() == 3_000_000_000

    @pytest.mark.parametrize("text", ["{", "[]", "3", ""])
    def test_a_broken_file(self, user_path, text) -> None:
        (user_path / "kvbranch").mkdir()
        (user_path / "kvbranch" / "settings.json").write_text(text)
        with pytest.raises(SettingError, match="Fix or delete"):
            settings.budget()
        assert issubclass(SettingError, llm_package.ModelError)


@pytest.mark.model
class TestDamagedIndex:
    "Fails if the log is blamed for it, or it stays damaged: it is a cache"

    @pytest.mark.parametrize("command", ["status", "gc", "prune", "pin"])
    def test_it_is_rebuilt(self, llm, command) -> None:
        last = ids(llm)[-1]
        path = llm.root / "ann" / "kvbranch" / "index.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("pragma wal_checkpoint(truncate)")
            size = db.execute("pragma page_size").fetchone()[0]
            query = (
                "select rootpage from sqlite_master where name in ('models', 'states')"
            )
            pages = [row[0] for row in db.execute(query)]
        data = bytearray(path.read_bytes())
        for page in pages:
            data[(page - 1) * size : page * size] = b"?" * size
        path.write_bytes(data)
        arguments = ["kvbranch", command] + [last] * (command in ("prune", "pin"))
        before = states(llm)
        out = llm("ann", *arguments, fails=True)
        assert "index of the state store was damaged" in out
        assert out.count("\n") == 1
        assert states(llm) == before
        assert "no problem" in llm("ann", "kvbranch", "verify")
        llm("ann", *arguments)
