"""A process may end, or any of its calls fail, at any moment without losing anything.

Every test looks at the store as the next process does, and asks three things: does
``verify`` find no problem, is everything still there that was stored before, and are
answers that continue from it right?
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import llm_kvbranch.store.database as database_module
import llm_kvbranch.store.statefile as state_module
from llm_kvbranch.store.maintenance import prune, verify
from llm_kvbranch.store.store import EVICTED, Store

from ..support.children import as_line, child, from_line
from ..support.life import Life

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def problems(root: Path) -> list[tuple[str, str]]:
    with contextlib.closing(Store(root)) as store:
        return list(verify(store))


def stored(root: Path) -> dict[str, str | None]:
    "Response ids in the store, and the reasons of those without a file"
    with contextlib.closing(Store(root)) as store:
        return {e.state.response_id: e.gone for e in store.entries()}


class TestKill:
    "A state that a kill leaves half written, or a complete one that it loses"

    @pytest.mark.parametrize(
        ("budget", "n_kills"),
        [
            pytest.param(None, 80, id="room"),
            pytest.param(30_000, 50, id="eviction"),
            pytest.param(None, 300, id="room-more", marks=pytest.mark.slow),
            pytest.param(30_000, 100, id="eviction-more", marks=pytest.mark.slow),
        ],
    )
    def test_at_random_moments(
        self, tmp_path: Path, budget: int | None, n_kills: int
    ) -> None:
        chance = random.Random(7)
        known: dict[str, list] = {}
        n_lost = 0
        for seed in range(n_kills):
            life = f"life {seed}"
            begun, ended = self._live(tmp_path, seed, known, budget, chance)
            assert not problems(tmp_path), life
            there = stored(tmp_path)
            for name in ended:
                gone = there[name]
                assert gone is None or (budget and gone == EVICTED), (life, name, gone)
            (unsure,) = [*(set(begun) - set(ended)), None][:1]
            n_lost += unsure is not None and there.get(unsure, "lost") is not None
        total = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
        assert budget is None or total <= budget
        # Some kills must have happened while something was written
        assert n_lost > 0

    def _live(self, root, seed, known, budget, chance) -> tuple[list, list]:
        "A life that is killed; the commits that it had begun and finished"

        def work(out: int) -> None:
            life = Life(root, seed, known, budget)
            while True:
                name, answer = life.step(
                    lambda name: os.write(out, f"begun {name}\n".encode())
                )
                os.write(out, f"ended {name} {as_line(answer.chain)}\n".encode())

        with child(work) as (pid, reading):
            file = os.fdopen(os.dup(reading))
            lines = [file.readline()]
            time.sleep(chance.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            lines += file.readlines()
            file.close()
        failed = [line for line in lines if line.startswith("failed")]
        assert not failed, failed
        ended = []
        for line in lines:
            word, name, *rest = line.rstrip("\n").split(" ", 2)
            if word == "ended" and line.endswith("\n"):
                ended.append(name)
                known[name] = from_line(rest[0])
        for name in list(known)[:-12]:
            del known[name]  # continue from the newest ones: deep trees
        return [line.split()[1] for line in lines if line.startswith("begun")], ended


class Faults:
    """Counts the calls that change the disk, and lets the nth of them fail.

    ``mode``: "error" raises what the system would, "before" and "after" end the
    process around the call.
    """

    def __init__(self, nth: int, mode: str):
        self.nth, self.mode, self.count = nth, mode, 0
        self.armed = False
        self.calls: list[str] = []

    def call(self, name: str, function: Callable, *arguments, **options):
        if self.armed:
            self.count += 1
            self.calls.append(name)
        if not self.armed or self.count != self.nth:
            return function(*arguments, **options)
        if self.mode == "error":
            if name.startswith("sqlite"):
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(5, "Input/output error")
        if self.mode == "after":
            function(*arguments, **options)
        os._exit(9)

    def install(self) -> None:
        "In a child process, permanently"
        for name in ("open", "fsync", "replace", "unlink", "mkdir"):
            self._wrap(os, name)
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, *arguments):
                word = sql.split()[0]
                if word in ("select", "pragma", "with", "rollback"):
                    return super().execute(sql, *arguments)
                run = super().execute
                return faults.call(f"sqlite {word}", run, sql, *arguments)

            def executemany(self, sql, rows):
                return faults.call("sqlite many", super().executemany, sql, rows)

        connect = sqlite3.connect
        database_module.sqlite3 = _Namespace(sqlite3)
        database_module.sqlite3.connect = lambda *a, **k: connect(
            *a, factory=Connection, **k
        )

        class File(io.FileIO):
            def write(self, data):
                return faults.call("write", super().write, data)

        def opened(path, mode="r", **options):
            return File(path, mode) if mode == "wb" else open(path, mode, **options)

        state_module.open = opened

    def _wrap(self, module, name: str) -> None:
        function = getattr(module, name)
        setattr(module, name, lambda *a, **k: self.call(name, function, *a, **k))


class _Namespace:
    def __init__(self, module):
        self.__dict__.update(vars(module))


def put_one(life: Life) -> None:
    life.step()


def put_and_evict(life: Life) -> None:
    life.session.store.limit = life.session.store.nbytes()
    life.step()


def heal(life: Life) -> None:
    "Continue from a chain whose first file is damaged"
    store = life.session.store
    name = max(life.known, key=lambda n: len(life.known[n]))
    chain = store.chain(store.get(name))
    store.path(chain.segments[0].entry.state).write_bytes(b"damaged")
    life.prompt = lambda: [*life.known[name], life.known[name][0]]  # type: ignore
    life.step()


def prune_one(life: Life) -> None:
    prune(life.session.store, list(life.known)[-1:])


def rebuild(life: Life) -> None:
    life.session.store.rebuild()


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> tuple[Path, dict]:
    "A store with a small tree in it, closed, and its conversations"
    root = tmp_path_factory.mktemp("grown") / "store"
    life = Life(root, 1, {})
    for _ in range(6):
        life.step()
    life.session.store.close()
    return root, life.known


class TestFaults:
    "A call that fails, or is the last one, at any step of any change"

    # To end after a call is nearly to end before the next one: most of it is slow
    @pytest.mark.parametrize(
        ("mode", "change"),
        [
            *(
                (mode, change)
                for mode in ("error", "before")
                for change in (put_one, put_and_evict, heal, prune_one, rebuild)
            ),
            ("after", put_one),
            *(
                pytest.param("after", change, marks=pytest.mark.slow)
                for change in (put_and_evict, heal, prune_one, rebuild)
            ),
        ],
    )
    def test_at_every_step(self, grown, tmp_path, change, mode) -> None:
        origin, known = grown
        for nth in range(1, 500):
            root = tmp_path / f"{nth}"
            shutil.copytree(origin, root)
            calls = self._run(root, known, change, nth, mode)
            if calls is not None:
                break
            where = (change.__name__, mode, nth)
            assert not [p for p in problems(root) if not _damaged(p, change)], where
            self._check(root, known, change, where)
            shutil.rmtree(root)
        assert nth > 5, "nothing was refused"
        if change in (put_one, put_and_evict, heal):
            assert {"write", "fsync", "replace", "sqlite commit"} <= set(calls)

    def test_a_file_in_its_place_is_kept(self, grown, tmp_path) -> None:
        origin, known = grown
        for name in ("whole", "cut"):
            shutil.copytree(origin, tmp_path / name)
        calls = self._run(tmp_path / "whole", known, put_one, 1000, "after")
        nth = calls.index("replace") + 1
        assert self._run(tmp_path / "cut", known, put_one, nth, "after") is None
        assert stored(tmp_path / "cut")["r0005-0"] is None
        assert not problems(tmp_path / "cut")

    def _run(self, root, known, change, nth, mode) -> list[str] | None:
        "The calls made, if all of them succeeded"

        def work(out: int) -> None:
            faults = Faults(nth, mode)
            faults.install()
            life = Life(root, 5, known)
            faults.armed = True
            with contextlib.suppress(Exception):
                change(life)
            faults.armed = False
            whole = faults.count < nth
            os.write(out, (",".join(faults.calls) if whole else "cut").encode())

        with child(work) as (pid, reading):
            with os.fdopen(os.dup(reading)) as file:
                said = file.read()
            os.waitpid(pid, 0)
        assert not said.startswith("failed"), said
        return said.split(",") if said not in ("", "cut") else None

    def _check(self, root, known, change, where) -> None:
        "Whatever was stored is still there, and can be continued from"
        there = stored(root)
        for name in known:
            gone = there.get(name, "pruned")
            if change is put_one or change is rebuild:
                assert gone is None, (where, name, gone)
        life = Life(root, 99, known)
        for _ in range(3):
            _, answer = life.step()
            assert answer.entry is not None, where
        life.session.store.close()
        assert not problems(root), where


def _damaged(problem: tuple[str, str], change: Callable) -> bool:
    "Whether a problem is the one that the test itself made"
    return change is heal and problem[1].startswith("state file is ")


class TestOrder:
    "Calls that the disk may reorder"

    def test_power_loss(self, tmp_path: Path, monkeypatch) -> None:
        events: list[str] = []
        life = Life(tmp_path, 1, {})
        life.step()
        life.session.store.close()

        class Recorder(sqlite3.Connection):
            def execute(self, sql, *arguments):
                if sql.startswith("commit"):
                    events.append("commit")
                return super().execute(sql, *arguments)

        connect = sqlite3.connect
        monkeypatch.setattr(
            database_module.sqlite3,
            "connect",
            lambda *a, **k: connect(*a, **{**k, "factory": Recorder}),
        )
        for name in ("fsync", "replace"):
            function = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *a, f=function, n=name: (events.append(n), f(*a))[1]
            )
        again = Life(tmp_path, 2, life.known)
        assert again.session.store.db.execute("pragma synchronous").fetchone()[0] == 2
        events.clear()
        again.step()
        again.session.store.close()
        # Counting the prompt, then: content, announcement, name, directory, done
        assert events == ["commit", "fsync", "commit", "replace", "fsync", "commit"]
