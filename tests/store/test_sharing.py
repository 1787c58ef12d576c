"""export and import: what is in a bundle, whose bundle is accepted, what it saves.

A bundle with more than the response's context leaks what was not shared; one that is
trusted without reason puts words into a model's mouth.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
import sqlite_utils
from ulid import ULID

from llm_kvbranch import model as model_module
from llm_kvbranch.engine.blob import Layout, check, cut
from llm_kvbranch.errors import StateError
from llm_kvbranch.log import edits
from llm_kvbranch.store import bundle as bundle_module
from llm_kvbranch.store.statefile import open_state, read_state

from ..support.homes import SHORT, Homes, show

pytestmark = pytest.mark.model

SECRET = "The password is marzipan"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A branch from the middle of an answer, exported by ann"
    root = tmp_path_factory.mktemp("sharing")
    llm = Homes(root)
    llm("ann", *SHORT, "Why is the sky blue?")
    excerpt = " ".join(llm("ann", "logs", "-r").split()[:6])
    llm("ann", "kvbranch", "last", "--excerpt", excerpt, *SHORT[2:], "Really?")
    llm("ann", "-c", *SHORT, "Why?")
    path = str(root / "shared.kvbranch")
    llm("ann", "kvbranch", "export", "last", path, key="of the team")
    return root


@pytest.fixture
def llm(made, tmp_path, monkeypatch) -> Homes:
    "Homes, with ann's as it was when she exported"
    monkeypatch.setattr(model_module, "_sessions", {})
    shutil.copytree(made, tmp_path / "homes")
    return Homes(tmp_path / "homes")


@pytest.fixture
def bundle(llm) -> Path:
    return llm.root / "shared.kvbranch"


def manifest(path: Path) -> dict:
    with zipfile.ZipFile(path) as bundle:
        return json.loads(bundle.read("bundle.json"))


def rewrite(path: Path, name: str, data: bytes | None, **options) -> None:
    "Replace or remove one member"
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    members[name] = data
    with zipfile.ZipFile(path, "w", **options) as new:
        for member, content in members.items():
            if content is not None:
                new.writestr(member, content)


class TestRoundTrip:
    "A prompt whose reader still has to read what was read before"

    def test_nothing_is_read_again(self, llm, bundle) -> None:
        out = llm("bob", "kvbranch", "import", str(bundle), key="of the team")
        assert "signed with your key" in out
        assert "problem" in llm("bob", "kvbranch", "verify")
        theirs = llm("bob", "-c", *SHORT, "And at sunset?")
        facts = show(llm, "bob")
        assert facts["restored_tokens"] == show(llm, "ann")["state_end"]
        assert facts["imported_tokens"] == facts["restored_tokens"]
        assert facts["prefilled_tokens"] < 20
        assert theirs == llm("ann", "-c", *SHORT, "And at sunset?")

    def test_the_log_says_what_it_said(self, llm, bundle) -> None:
        response_id = manifest(bundle)["response_id"]
        llm("bob", "kvbranch", "import", str(bundle), key="of the team")
        for home in ("ann", "bob"):
            facts = show(llm, home, response_id)
            assert facts["state_end"] == show(llm, "ann", response_id)["state_end"]
        chains = [
            llm(home, "kvbranch", "diff", response_id, response_id)
            for home in ("ann", "bob")
        ]
        assert chains[0] == chains[1]
        assert "signed" in show(llm, "bob", response_id)["state_origin"]
        assert "imported: Really?" in llm("bob", "logs", "list", "--json")

    def test_twice_is_once(self, llm, bundle, tmp_path) -> None:
        llm("bob", "kvbranch", "import", str(bundle), key="of the team")
        turns = sqlite_utils.Database(llm.root / "bob" / "logs.db")["turns"].count
        again = llm("bob", "kvbranch", "import", str(bundle), key="of the team")
        assert "Imported 0 of 3 states" in again
        assert turns == sqlite_utils.Database(llm.root / "bob/logs.db")["turns"].count
        home_again = llm("ann", "kvbranch", "import", str(bundle), key="of the team")
        assert "Imported 1 of 3 states" in home_again  # the piece that was cut

    def test_a_bundle_of_an_import(self, llm, bundle, tmp_path) -> None:
        llm("bob", "kvbranch", "import", str(bundle), key="of the team")
        llm("bob", "-c", *SHORT, "And at sunset?")
        again = tmp_path / "again.kvbranch"
        llm("bob", "kvbranch", "export", "last", str(again), key="of the team")
        llm("eve", "kvbranch", "import", str(again), key="of the team")
        assert "no problem" in llm("eve", "kvbranch", "verify")


class TestPrivacy:
    "Something outside the response's context that is shared with it"

    def test_what_came_after_the_cut_is_not_in_it(self, llm, bundle) -> None:
        said = " ".join(
            part["text"] for m in manifest(bundle)["messages"] for part in m["parts"]
        )
        full = llm("ann", "logs", "-r", "--cid", first_thread(llm)).strip()
        assert full not in said
        first = read_member(bundle, "states/000000.safetensors")
        whole = show(llm, "ann", first.response_id.split(".")[0])
        assert first.end < whole["state_end"]
        assert first.tip_hash is None
        assert first.input_hash is None

    def test_nor_is_another_conversation(self, llm, tmp_path) -> None:
        document = "Once upon a time there was a harbour with many ships. " * 20
        llm("ann", *SHORT, document + SECRET)
        llm("ann", *SHORT, document + "How many ships?")
        assert show(llm, "ann")["restored_tokens"] > 100
        path = tmp_path / "second.kvbranch"
        llm("ann", "kvbranch", "export", "last", str(path))
        assert SECRET.encode() not in path.read_bytes()
        assert len(manifest(path)["turns"]) == 1
        llm("bob", "kvbranch", "import", str(path), "--trust")
        llm("bob", "-c", *SHORT, "And how many boats?")
        assert show(llm, "bob")["prefilled_tokens"] < 20

    def test_mode(self, bundle) -> None:
        assert bundle.stat().st_mode & 0o077 == 0


def first_thread(llm) -> str:
    rows = json.loads(llm("ann", "logs", "list", "--json", "-n", "0"))
    return min(rows, key=lambda row: row["id"])["conversation_id"]


def read_member(bundle: Path, name: str):
    with zipfile.ZipFile(bundle) as archive:
        path = bundle.with_name("member")
        path.write_bytes(archive.read(name))
    return read_state(path)


class TestTrust:
    "A stranger's bundle that is accepted like one's own"

    @pytest.mark.parametrize("key", ["", "of another team"])
    def test_refused_unless_signed_or_trusted(self, llm, bundle, tmp_path, key) -> None:
        out = llm("bob", "kvbranch", "import", str(bundle), key=key, fails=True)
        assert "--trust" in out
        assert not list((llm.root / "bob").rglob("*.safetensors"))
        assert sqlite_utils.Database(llm.root / "bob" / "logs.db")["turns"].count == 0
        out = llm("bob", "kvbranch", "import", str(bundle), "--trust", key=key)
        assert "without a signature" in out
        response_id = manifest(bundle)["response_id"]
        assert "trusted by you" in show(llm, "bob", response_id)["state_origin"]
        os.unlink(llm.root / "bob" / "kvbranch" / "index.db")
        assert "trusted by you" in show(llm, "bob", response_id)["state_origin"]

    def test_a_changed_manifest_is_not_signed(self, llm, bundle) -> None:
        text = json.dumps(manifest(bundle)).replace("Really", "Rarely")
        rewrite(bundle, "bundle.json", text.encode())
        out = llm(
            "bob", "kvbranch", "import", str(bundle), key="of the team", fails=True
        )
        assert "signed with another key" in out


def longer(path: Path) -> None:
    with zipfile.ZipFile(path) as bundle:
        data = bundle.read("states/000001.safetensors")
    rewrite(path, "states/000001.safetensors", data[:-1] + bytes([data[-1] ^ 1]))


def say(content: dict, text: str) -> dict:
    return {**content["messages"][0], "parts": [{"type": "text", "text": text}]}


def rest(path: Path) -> list:
    return manifest(path)["messages"][1:]


def turn(path: Path, **facts) -> None:
    "Change the last turn"
    *before, last = manifest(path)["turns"]
    named = {"response_id": facts["id"]} if "id" in facts else {}
    change(path, turns=[*before, {**last, **facts}], **named)


def cut_manifest(path: Path) -> None:
    "Let the directory of the zip promise more bytes of the manifest than there are"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"bundle.json"))
    size = (1 << 25).to_bytes(4, "little")
    data[at + 20 : at + 28] = size * 2
    path.write_bytes(data)


HOSTILE = {
    "no zip": (lambda p: p.write_bytes(b"PK nothing"), "Cannot read"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-3000]), "Cannot read"),
    "no manifest": (lambda p: rewrite(p, "bundle.json", None), "not a bundle"),
    "compressed": (
        lambda p: rewrite(p, "x", b"0", compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "manifest of nothing": (lambda p: rewrite(p, "bundle.json", b"[]"), "invalid"),
    "deep manifest": (lambda p: rewrite(p, "bundle.json", b"[" * 100_000), "invalid"),
    "future": (lambda p: change(p, format="llm-kvbranch-bundle/9"), "format"),
    "state missing": (
        lambda p: rewrite(p, "states/000001.safetensors", None),
        "missing",
    ),
    "state changed": (longer, "damaged"),
    "states in another order": (
        lambda p: change(p, states=manifest(p)["states"][::-1]),
        "follow",
    ),
    "state left out": (lambda p: change(p, states=manifest(p)["states"][1:]), "follow"),
    "no states": (lambda p: change(p, states=[]), "no states"),
    "member of elsewhere": (
        lambda p: change(p, states=[{"file": "/etc/passwd", "sha256": "0"}]),
        "missing",
    ),
    "another model": (lambda p: change(p, model={"name": "x"}), "model"),
    "model of nothing": (lambda p: change(p, model=3), "invalid"),
    "a name that clears the screen": (
        lambda p: change(p, model={**manifest(p)["model"], "name": "\x1b[2J"}),
        "invalid",
    ),
    "an id that does": (lambda p: change(p, response_id="\x1b[2J"), "invalid"),
    "attachment": (
        lambda p: change(
            p,
            messages=[
                {"role": "user", "parts": [{"type": "attachment", "path": "/etc/x"}]}
            ],
        ),
        "not text",
    ),
    "odd role": (
        lambda p: change(
            p, messages=[{"role": "root", "parts": [{"type": "text", "text": ""}]}]
        ),
        "not text",
    ),
    "turns beyond the messages": (
        lambda p: change(p, turns=[{**manifest(p)["turns"][0], "n_sent": 99}]),
        "invalid",
    ),
    "an id that is a path": (
        lambda p: change(p, turns=[{**manifest(p)["turns"][0], "id": "../x"}]),
        "invalid",
    ),
    "the same state many times": (
        lambda p: change(p, states=manifest(p)["states"][:1] * 40),
        "invalid",
    ),
    "a manifest longer than the file": (cut_manifest, "incomplete"),
    "a lone surrogate": (
        lambda p: change(p, messages=[say(manifest(p), "\ud800"), *rest(p)]),
        "invalid",
    ),
    "no messages": (lambda p: change(p, messages=[], turns=[]), "invalid"),
    "a turn twice": (lambda p: change(p, turns=manifest(p)["turns"] * 2), "invalid"),
    "another response": (
        lambda p: change(p, response_id=str(ULID()).lower()),
        "invalid",
    ),
    "a response that is not the last": (
        lambda p: change(p, response_id=manifest(p)["turns"][0]["id"]),
        "not those of its response",
    ),
    "an id that is always the last": (lambda p: turn(p, id="zzzz"), "invalid"),
    "an id of no time": (lambda p: turn(p, id="8" + "z" * 25), "invalid"),
    "an id of the future": (lambda p: turn(p, id="7" + "z" * 25), "future"),
    **{
        f"{name} of {text!r}": (lambda p, f={name: text}: turn(p, **f), "invalid")
        for name in ("model", "resolved_model", "datetime_utc")
        for text in ("\x1b[2J\x1b]0;owned\x07", "\ud800", "\u202e", "x" * 300, 7)
    },
    **{
        f"{name} of {n}": (lambda p, f={name: n}: turn(p, **f), "invalid")
        for name in ("input_tokens", "output_tokens", "duration_ms")
        for n in (1 << 63, -1, 1e300, "nan")
    },
}


def change(path: Path, **facts) -> None:
    rewrite(path, "bundle.json", json.dumps({**manifest(path), **facts}).encode())


class TestHostile:
    "A traceback, something half imported, or a file where none should be"

    def test_refused_with_nothing_taken_in(self, llm, bundle, tmp_path) -> None:
        llm("bob", "kvbranch", "import", str(bundle), "--trust")
        llm("bob", "kvbranch", "prune", "last", "--log", "-y")
        before = content(llm.root / "bob")
        for name, (harm, word) in HOSTILE.items():
            copy = tmp_path / "copy.kvbranch"
            shutil.copy(bundle, copy)
            harm(copy)
            out = llm("bob", "kvbranch", "import", str(copy), "--trust", fails=True)
            assert word in out, (name, out)
            assert out.startswith("Error: ")
            assert out.count("\n") == 1, name
            assert content(llm.root / "bob") == before, name

    def test_states_that_exceed_the_budget(self, llm, bundle, monkeypatch) -> None:
        "Fails if it takes more of the disk than the budget before it is refused"
        llm("bob", *SHORT, "Why is the sky blue?")
        llm("bob", "kvbranch", "budget", "1MB")  # which applies at once
        before = content(llm.root / "bob")
        monkeypatch.setattr(bundle_module, "_extract", None)
        path = str(bundle)
        out = llm("bob", "kvbranch", "import", path, "--trust", fails=True)
        assert "exceed the store's budget" in out
        assert content(llm.root / "bob") == before

    def test_states_that_are_here_need_no_room(self, llm, bundle) -> None:
        "Fails if a budget that was lowered below pinned states refuses their bundle"
        llm("bob", "kvbranch", "import", str(bundle), "--trust")
        llm("bob", "kvbranch", "pin", "last")
        llm("bob", "kvbranch", "budget", "1kB")
        before = content(llm.root / "bob")
        llm("bob", "kvbranch", "import", str(bundle), "--trust")
        assert content(llm.root / "bob") == before

    def test_one_temporary_file_at_a_time(self, llm, bundle, monkeypatch) -> None:
        seen, extract = [], bundle_module._extract

        def counted(archive, name, path, digest):
            seen.append(len(list(path.parent.iterdir())))
            extract(archive, name, path, digest)

        monkeypatch.setattr(bundle_module, "_extract", counted)
        llm("bob", "kvbranch", "import", str(bundle), "--trust")
        assert seen
        assert set(seen) == {0}

    def test_what_the_log_does_not_take_leaves_no_state(
        self, llm, bundle, monkeypatch
    ) -> None:
        def refuse(*_):
            raise sqlite3.IntegrityError("no")

        monkeypatch.setattr(edits, "import_turns", refuse)
        path = str(bundle)
        out = llm("bob", "kvbranch", "import", path, "--trust", fails=True)
        assert "messages are invalid" in out
        assert content(llm.root / "bob")[0] == []

    def test_no_such_state(self, llm, tmp_path) -> None:
        llm("ann", *SHORT, "Why is the sky blue?")
        llm("ann", "kvbranch", "prune", "last")
        path = tmp_path / "x.kvbranch"
        out = llm("ann", "kvbranch", "export", "last", str(path), fails=True)
        assert "no state" in out
        assert not path.exists()

    def test_a_file_that_is_there(self, llm, bundle) -> None:
        before = bundle.read_bytes()
        out = llm("ann", "kvbranch", "export", "last", str(bundle), fails=True)
        assert "--force" in out
        assert bundle.read_bytes() == before

    def test_a_link_that_was_evicted(self, llm, bundle, tmp_path) -> None:
        chain = sorted(
            (llm.root / "ann" / "kvbranch" / "states").glob("*/*"),
            key=lambda path: path.name,
        )
        chain[0].unlink()
        path = tmp_path / "x.kvbranch"
        out = llm("ann", "kvbranch", "export", "last", str(path), fails=True)
        assert "missing" in out
        assert not path.exists()


def content(home: Path) -> tuple[list[str], int]:
    files = sorted(str(p) for p in (home / "kvbranch").rglob("*.safetensors"))
    return files, sqlite_utils.Database(home / "logs.db")["turns"].count


class TestCut:
    "Rows of the wrong tokens, after a state was cut to what a context holds"

    @pytest.mark.parametrize("flash", ["on", "off"])
    def test_a_cut_capture_is_the_capture_of_less(self, flash) -> None:
        from array import array

        from llm_kvbranch.engine import Engine, Feed, Load, Settings, Weights
        from llm_kvbranch.models.catalog import embedded_model

        engine = Engine(Weights(Load(embedded_model())), Settings(flash_attn=flash))
        engine.reserve(256)
        for begin in range(
            0, 60, 4
        ):  # two sequences in turns, so that cells are not in order
            for seq in (0, 1):
                tokens = array("i", range(begin + 100, begin + 104))
                engine.decode([Feed(seq, begin, tokens)])
        whole = engine.capture(1, 10, 60)
        for upto in (11, 37, 59):
            part = cut(memoryview(whole), 10, 60, upto)
            check(memoryview(part), 10, upto, Layout())
            assert part == engine.capture(1, 10, upto)
        assert cut(memoryview(whole), 10, 60, 60) == whole

    def test_of_damage(self) -> None:
        with pytest.raises(StateError):
            cut(memoryview(bytes(40)), 0, 4, 2)

    def test_the_pieces_are_ordinary_states(self, bundle) -> None:
        with zipfile.ZipFile(bundle) as archive:
            for name in archive.namelist():
                if name.startswith("states/"):
                    path = bundle.with_name("piece")
                    path.write_bytes(archive.read(name))
                    with open_state(path) as (state, payload, _):
                        check(payload, state.start, state.end, Layout())
