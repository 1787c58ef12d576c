"""Whatever happened to files or index, one repair makes them agree.

A repair must leave nothing wrong, break nothing that was sound, and find nothing to
do the second time. So each test ends with a check that finds no problem, and with a
second repair that does nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.errors import StateError
from llm_kvbranch.store.chain import Entry
from llm_kvbranch.store.maintenance import pin, repair, verify
from llm_kvbranch.store.statefile import write_state
from llm_kvbranch.store.store import Store

from ..support.fake import fake_session
from ..support.life import Answer, user
from ..support.stores import (
    DOCUMENT,
    MODEL,
    contents,
    die_while_writing,
    files,
    find,
    flip,
    pinned,
    put,
    rows_of,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


Damage = Callable[[Store], Any]


def path_of(store: Store, name: str, model: str = MODEL) -> Path:
    return store.root / "states" / model / f"{name}.safetensors"


def edit(*statements: str) -> Damage:
    "Damage rows of the index"

    def damage(store: Store) -> None:
        for statement in statements:
            store.db.execute(statement)

    return damage


def noise(store: Store) -> None:
    descriptor = os.open(path_of(store, "noise"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"noise")
    os.close(descriptor)


def copy(source: str, target: str, model: str = MODEL) -> Damage:
    def damage(store: Store) -> None:
        path_of(store, target, model).parent.mkdir(0o700, exist_ok=True)
        shutil.copy(path_of(store, source), path_of(store, target, model))

    return damage


def write_in_place(store: Store) -> None:
    "The right state, but not in the file that is in the index"
    entry = store.get("three")
    assert entry is not None
    path_of(store, "three").unlink()
    state = replace(entry.state, created="later")
    write_state(path_of(store, "three"), state, rows_of("three"))


def come_back(store: Store) -> None:
    entry = store.get("two")
    assert entry is not None
    path_of(store, "two").rename(store.root / "kept")
    store.lost(entry, "gone")
    (store.root / "kept").rename(path_of(store, "two"))


def open_to_all(store: Store) -> None:
    for path in (path_of(store, "two"), store.root / "index.db"):
        path.chmod(0o644)
    path_of(store, "two").parent.chmod(0o755)


DAMAGED = "removed: state file is damaged (digest does not match)"
TAKEN, GONE = "added to the index", "file is missing: index updated"
REBUILT = ("index.db", "rebuilt from the files")
FINDABLE = "indexed by its tokens"
MISPLACED = "removed: the file has the name of another state"
CASES: dict[str, tuple[Damage, list[tuple[str, str]]]] = {
    "nothing": (lambda store: None, []),
    "a damaged file": (
        lambda store: flip(path_of(store, "three")),
        [("three", DAMAGED)],
    ),
    "a damaged file that others go on from": (
        lambda store: flip(path_of(store, "one")),
        [("one", DAMAGED)],
    ),
    "a file cut short": (
        lambda store: os.truncate(path_of(store, "two"), 300),
        [("two", "removed: state file is truncated")],
    ),
    "a good file that the index does not know": (
        edit("delete from states where id = 'three'"),
        [("three", TAKEN)],
    ),
    "one that others go on from": (
        edit("delete from states where id = 'two'"),
        [("two", TAKEN)],
    ),
    "a whole conversation": (
        edit("delete from states where id in ('one', 'two', 'three')"),
        [("one", TAKEN), ("three", TAKEN), ("two", TAKEN), ("three", FINDABLE)],
    ),
    "a bad file that the index does not know": (
        noise,
        [("noise", "removed: state file is truncated")],
    ),
    "a copy under another name": (copy("one", "copy"), [("copy", MISPLACED)]),
    "a copy among another model's": (copy("one", "one", "x"), [("one", MISPLACED)]),
    "a copy in the place of another": (
        copy("one", "three"),
        [("three", MISPLACED), ("three", GONE)],
    ),
    "a file that is gone": (
        lambda store: path_of(store, "two").unlink(),
        [("two", GONE)],
    ),
    "all files gone": (
        lambda store: shutil.rmtree(path_of(store, "one").parent),
        [(name, GONE) for name in ("one", "two", "three", "solo")],
    ),
    "a file written again": (write_in_place, [("three", TAKEN)]),
    "a file that came back": (come_back, [("two", TAKEN)]),
    "another size": (
        edit("update states set nbytes = nbytes + 1 where id = 'two'"),
        [("two", TAKEN)],
    ),
    "other token ids": (
        edit("update token_ids set ids = zeroblob(4) where length(ids) = 4"),
        [("three", TAKEN)],
    ),
    "totals": (edit("update models set nbytes = nbytes + 1"), [REBUILT]),
    "totals of threads": (edit("update threads set nbytes = 0"), [REBUILT]),
    "blocks of one": (
        edit("delete from blocks where state = (select key from states limit 1)"),
        [("one", FINDABLE)],
    ),
    "all blocks": (
        edit("delete from blocks"),
        [(name, FINDABLE) for name in ("one", "two", "three", "solo")],
    ),
    "an unknown parent": (
        lambda store: put(store, "x", DOCUMENT, 50, "nobody"),
        [("x", "removed: its parent nobody is unknown")],
    ),
    "unknown parents of parents": (
        lambda store: (
            put(store, "x", DOCUMENT, 50, "nobody"),
            put(store, "y", [*DOCUMENT, 1], 100, "x"),
        ),
        [
            ("x", "removed: its parent nobody is unknown"),
            ("y", "removed: its parent x is unknown"),
        ],
    ),
    "others may read": (
        open_to_all,
        [
            (name, "made private")
            for name in (
                "index.db",
                f"states/{MODEL}",
                f"states/{MODEL}/two.safetensors",
            )
        ],
    ),
    "a temporary file": (
        lambda store: (store.root / "tmp" / "0.safetensors").touch(0o600),
        [("0.safetensors", "deleted a temporary file")],
    ),
}


@pytest.fixture
def filled(store: Store) -> Entry:
    "A conversation of three turns and a separate turn; returns the third entry"
    put(store, "one", DOCUMENT)
    put(store, "two", DOCUMENT[:50] + [7] * 30, 50, "one")
    last = put(store, "three", DOCUMENT[:50] + [7] * 30 + [8], 80, "two")
    put(store, "solo", [9] * 40)
    pin(store, "two")
    return last


def check_all(store: Store) -> None:
    "Nothing is wrong, nothing is left to repair, every row is the right one"
    assert list(verify(store)) == []
    before = contents(store.root), list(store.db.iterdump())
    assert list(repair(store)) == []
    assert (contents(store.root), list(store.db.iterdump())) == before
    for entry in store.entries():
        if entry.present:
            with store.open(entry) as (rows, _):
                assert rows == rows_of(entry.state.response_id)


class TestRepair:
    "A repair that breaks what is sound, or never ends, is worse than the damage"

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.usefixtures("filled")
    def test_mends(self, store: Store, case: str) -> None:
        damage, done = CASES[case]
        damage(store)
        assert bool(list(verify(store))) == bool(done)
        assert list(repair(store)) == done
        check_all(store)

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.usefixtures("filled")
    def test_loses_nothing_else(self, store: Store, case: str) -> None:
        "All states whose own file was sound are still there"
        damage, done = CASES[case]
        damage(store)
        list(repair(store))
        bad = {name for name, what in done if what.startswith(("removed", "file is"))}
        for name in {"one", "two", "three", "solo"} - bad:
            entry = store.get(name)
            assert entry is not None
            assert entry.present
        chain = find(store, DOCUMENT[:50] + [7] * 30 + [8])
        assert len(chain.tokens) == 81
        assert find(store, [9] * 40).tokens
        assert "two" in pinned(store)

    @pytest.mark.usefixtures("filled")
    def test_all_at_once(self, store: Store) -> None:
        flip(path_of(store, "one"))
        path_of(store, "two").unlink()
        store.db.execute("delete from states where id = 'three'")
        noise(store)
        put(store, "x", DOCUMENT, 50, "nobody")
        path_of(store, "solo").chmod(0o644)
        (store.root / "tmp" / "0.safetensors").touch(0o600)
        assert len(list(repair(store))) == 7
        check_all(store)
        assert len(find(store, DOCUMENT[:50] + [7] * 30 + [8]).tokens) == 81

    @pytest.mark.usefixtures("filled")
    def test_what_a_killed_writer_left(self, store: Store) -> None:
        die_while_writing(store)
        ((name, done),) = repair(store)
        assert name.endswith(".safetensors")
        assert done == "deleted a temporary file"
        check_all(store)

    @pytest.mark.parametrize("keep", [0, 100, 4096, 8192])
    def test_an_index_that_is_no_database(
        self, store: Store, filled: Entry, keep: int
    ) -> None:
        store.count_miss("known so far")
        store.db.execute("pragma wal_checkpoint(truncate)")
        path = store.root / "index.db"
        size = path.stat().st_size
        with (
            contextlib.closing(Store(store.root)) as other,
            open(path, "r+b") as file,
        ):
            file.seek(keep)
            file.write(b"\xa5" * (size - keep))
            file.flush()
            problems = list(verify(other))
            assert {name for name, _ in problems} == {"index.db"}
            assert list(repair(other)) == [REBUILT]
            check_all(other)
            assert pinned(other) == ["two"]
            assert len(other.chain(filled).tokens) == 81

    @pytest.mark.usefixtures("filled")
    def test_what_no_file_says_is_kept(self, store: Store) -> None:
        store.count_miss("known so far")
        store.describe(MODEL, "{}")
        flip(path_of(store, "three"))
        list(repair(store))
        assert [miss["reason"] for miss in store.misses()] == ["known so far"]
        assert store.describe(MODEL) == "{}"

    @pytest.mark.usefixtures("filled")
    def test_the_reason_is_kept(self, store: Store) -> None:
        flip(path_of(store, "three"))
        list(repair(store))
        entry = store.get("three")
        assert entry is not None
        reason = "state file is damaged (digest does not match)"
        assert (entry.present, entry.gone) == (False, reason)
        with pytest.raises(StateError, match="damaged"):
            store.open(entry).__enter__()

    @pytest.mark.usefixtures("filled")
    def test_a_directory_in_a_files_place_stops_nothing(self, store: Store) -> None:
        path_of(store, "x").mkdir(0o700)
        flip(path_of(store, "three"))
        assert list(repair(store)) == [("three", DAMAGED)]
        assert list(verify(store)) == []

    def test_what_hangs_on_nothing_is_forgotten(self, store: Store) -> None:
        "Even if it was pinned: its token ids are not a whole context"
        put(store, "x", DOCUMENT, 50, "nobody")
        pin(store, "x")
        list(repair(store))
        assert store.get("x") is None
        assert not files(store.root)

    def test_leaves_alone_what_is_being_written(self, store: Store) -> None:
        with contextlib.closing(Store(store.root)) as other:
            leftover = store.root / "tmp" / "0.safetensors"
            leftover.touch(0o600)
            other.locks.hold([leftover.name])
            assert list(repair(store)) == []
            assert leftover.exists()


class TestDamageMetWhileWriting:
    "Otherwise nothing is stored until something is planned from the same index"

    @pytest.fixture
    def damaged(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        "The next writes meet a damaged page"
        remaining = [0]
        write = Store._write

        @contextlib.contextmanager
        def damaged(store: Store) -> Iterator[Any]:
            if remaining[0]:
                remaining[0] -= 1
                raise sqlite3.DatabaseError("database disk image is malformed")
            with write(store) as db:
                yield db

        monkeypatch.setattr(Store, "_write", damaged)

        def arm(n: int) -> None:
            remaining[0] = n

        return arm

    @staticmethod
    def asked(root: Path) -> tuple[Answer, list[str]]:
        session, warnings = fake_session(root), []
        session.warn = warnings.append
        return Answer(session, [user("A question " * 20)], log=False), warnings

    def test_an_answer_is_stored(
        self, tmp_path: Path, damaged: Callable[[int], None]
    ) -> None:
        answer, warnings = self.asked(tmp_path)
        damaged(1)
        entry = answer.log()
        assert entry is not None, warnings
        assert warnings == ["The index of the state store was damaged: it was rebuilt"]
        assert not list(verify(answer.session.store))
        after = Answer(fake_session(tmp_path), [*answer.chain, user("?")]).check()
        assert after.facts["restored_tokens"] == entry.state.end

    def test_what_stays_damaged_is_warned_of(
        self, tmp_path: Path, damaged: Callable[[int], None]
    ) -> None:
        answer, warnings = self.asked(tmp_path)
        damaged(99)
        assert answer.log() is None
        assert "not stored" in warnings[-1]

    def test_a_bad_file_is_deleted(
        self, tmp_path: Path, damaged: Callable[[int], None]
    ) -> None:
        one, _ = self.asked(tmp_path)
        entry = one.log()
        session, warnings = fake_session(tmp_path), []
        session.warn = warnings.append
        damaged(1)
        session._lost(entry, StateError("state file is damaged"))
        assert warnings == ["The index of the state store was damaged: it was rebuilt"]
        assert not session.store.get(one.id).present
