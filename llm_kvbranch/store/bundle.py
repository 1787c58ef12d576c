"""One response's whole context as a file to share.

The idea: a bundle is an uncompressed zip of the state files that lead up to a
response, and a manifest with its messages and the SHA-256 of every file. It
contains only what is in the response's context: if a branch left a state halfway,
the rows up to there. The manifest can be signed with an HMAC key that a group of
people shares, which proves that one of them made the bundle.

The invariant: nothing in a bundle is used before it is checked, and nothing is
imported unless the bundle is signed with the user's key or explicitly trusted: rows
of a KV cache steer a model's answers, and need not match the text beside them.
Imported states keep a note of their origin.

This module does not know the llama.cpp library, only the layout of its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulid import ULID

from ..engine import cut
from ..errors import BundleError, StateError, StoreError, UntrustedBundleError
from ..log import Ancestry, History, edits
from .chain import Chain, Entry, Segment
from .header import State, fingerprint_of
from .statefile import SUFFIX, open_state, read_head_of, read_state, write_state
from .store import Store
from .tokens import Prefix
from .turns import ID, is_plain, parse_turns, try_turns

FORMAT = "llm-kvbranch-bundle/1"
SIGNED = "imported, signed with your key"
TRUSTED = "imported without a signature, trusted by you"

_MANIFEST, _SIGNATURE = "bundle.json", "signature"
_MAX_MANIFEST = 1 << 26
_MAX_STATES = 100_000
# A state that was cut is named after the whole one
_STATE_ID = rf"{ID}(\.[0-9]{{1,19}})*"


@dataclass
class Transfer:
    "What was exported or imported"

    response_id: str
    n_states: int = 0
    n_tokens: int = 0
    nbytes: int = 0
    origin: str | None = None
    model: str = "unknown"
    new_states: int = 0
    thread_id: str | None = None
    known_model: bool = True


# -- export ------------------------------------------------------------


def export(
    store: Store, history: History, response_id: str, path: Path, key: str | None
) -> Transfer:
    """Write a response's context to a file (mode 0600), signed if there is a key.

    Raises BundleError, without leaving a file, when the state is incomplete or the
    file cannot be written.
    """
    entry = store.get(response_id)
    if entry is None:
        raise BundleError(f"Response {response_id} has no state to export")
    chain = store.chain(entry)
    hold = store.hold(chain)
    try:
        gone = [s.entry for s in chain.segments if not s.entry.present]
        if gone or not chain.segments:
            why = (gone and gone[0].gone) or "an earlier state is unknown"
            raise BundleError(
                f"The state of {response_id} is incomplete ({why}). Continue from it "
                "once to write its state again"
            )
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            exported = _write(store, history, entry, chain, temporary, key)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, StateError) as error:
        raise BundleError(f"Cannot export to {path}: {error}") from None
    finally:
        if hold is not None:
            hold.release()
    return exported


def _write(
    store: Store,
    history: History,
    entry: Entry,
    chain: Chain,
    path: Path,
    key: str | None,
) -> Transfer:
    conversation = conversation_of(history, entry.state.response_id)
    own = {turn["id"] for turn in conversation["turns"]}
    exported = Transfer(entry.state.response_id, len(chain.segments), len(chain.tokens))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        open(descriptor, "w+b") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as bundle,
    ):
        states, parent = [], None
        for number, segment in enumerate(chain.segments):
            state, rows, snapshots = _share(store, segment, parent, own)
            parent = state.response_id
            spare = path.with_name(f"{path.name}.{number}")
            try:
                write_state(spare, state, rows, snapshots)
                name = f"states/{number:06}{SUFFIX}"
                bundle.write(spare, name)
                states.append({"file": name, "sha256": _sha256(spare)})
            finally:
                spare.unlink(missing_ok=True)
        manifest = json.dumps(
            {
                "format": FORMAT,
                "response_id": entry.state.response_id,
                "model": json.loads(store.describe(entry.state.fingerprint) or "{}"),
                "states": states,
                **conversation,
            }
        ).encode()
        bundle.writestr(_MANIFEST, manifest)
        if key:
            bundle.writestr(_SIGNATURE, _sign(manifest, key))
        bundle.close()
        file.flush()
        os.fsync(file.fileno())
        exported.nbytes = file.seek(0, io.SEEK_END)
    return exported


def _share(
    store: Store, segment: Segment, parent: str | None, own: set[str]
) -> tuple[State, Any, dict[int, bytes]]:
    "A segment as a separate state, without anything that is not in the context"
    state = replace(segment.entry.state, parent_id=parent, thread_id=None, origin=None)
    with store.open(segment.entry) as (payload, parts):
        snapshots = {at: bytes(part) for at, part in parts.items() if at <= segment.end}
        if segment.end < state.end:
            rows = cut(payload, state.start, state.end, segment.end)
        else:
            rows = bytearray(payload)
            if state.response_id in own:
                return state, rows, snapshots
    return (
        replace(
            state,
            response_id=f"{state.response_id[:100]}.{segment.end}",
            end=segment.end,
            answer=min(state.answer, segment.end),
            tokens=state.tokens[: segment.end - state.start],
            input_hash=None,
            tip_hash=None,
        ),
        rows,
        snapshots,
    )


def conversation_of(history: History, response_id: str) -> dict[str, Any]:
    "The messages of a response's context, and their turns"
    response = history.response(response_id)
    counts = {hash: n for n, hash in enumerate(response.hashes, 1)}
    turns: list[dict[str, Any]] = []
    for at in Ancestry(history.db).context(response_id):
        turn = history.turn(at)
        n = counts.get(turn["tip_message_hash"])
        if n is not None:  # else an answer that was cut
            names = ("id", "model", "resolved_model", "datetime_utc")
            numbers = ("input_tokens", "output_tokens", "duration_ms")
            n_sent = counts.get(turn["parent_message_hash"], 0)
            turns.append(
                {
                    **{name: turn[name] for name in (*names, *numbers)},
                    "n_sent": n_sent,
                    "n_answered": n - n_sent,
                }
            )
    rows = [message.to_dict() for message in response.messages]
    if any(part.get("type") != "text" for row in rows for part in row["parts"]):
        raise BundleError("Conversations with attachments or tools cannot be exported")
    return {"messages": rows, "turns": turns}


# -- import ------------------------------------------------------------


def load(
    store: Store, history: History, path: Path, key: str | None, trust: bool = False
) -> Transfer:
    """Import a bundle's states into the store and its messages into the log.

    Raises BundleError, with the log unchanged, when the bundle is damaged or
    malicious or there is no room for its states, and UntrustedBundleError when it is
    neither signed with the key nor trusted.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            manifest, origin = _read_manifest(bundle, path, key, trust)
            turns = edits.new_turns(history, parse_turns(manifest))
            thread_id = str(ULID()).lower() if turns else None
            if thread_id:
                try_turns(history, turns, thread_id, origin)
            members = _list_states(store, bundle, manifest)
            states = []
            for member in members:  # one at a time: they may take the whole budget
                with _extracted(store, bundle, member) as (state, _):
                    states.append(state)
            _check_states(states, manifest)
            states = [replace(s, origin=origin, thread_id=thread_id) for s in states]
            imported = _import_states(store, bundle, members, states, manifest)
    except EOFError:
        raise BundleError(f"Cannot read {path}: it is incomplete") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"Cannot read {path}: {error}") from None
    except (StateError, StoreError) as error:
        raise BundleError(f"Cannot import {path}: {error}") from None
    if thread_id:
        edits.import_turns(history, turns, thread_id, origin)
    imported.thread_id = thread_id
    return imported


def _read_manifest(
    bundle: zipfile.ZipFile, path: Path, key: str | None, trust: bool
) -> tuple[dict[str, Any], str]:
    "The manifest, and the reason to trust it"
    members = {info.filename: info for info in bundle.infolist()}
    if _MANIFEST not in members:
        raise BundleError(f"{path} is not a bundle of KV state")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise BundleError(f"{path} is compressed, but bundles never are")
    if members[_MANIFEST].file_size > _MAX_MANIFEST:
        raise BundleError(f"The manifest of {path} is too large")
    data = bundle.read(_MANIFEST)
    signature = None
    if _SIGNATURE in members and members[_SIGNATURE].file_size <= 128:
        signature = bundle.read(_SIGNATURE)
    if key and signature and hmac.compare_digest(signature, _sign(data, key)):
        origin = SIGNED
    elif trust:
        origin = TRUSTED
    else:
        what = "is signed with another key" if signature else "is not signed"
        raise UntrustedBundleError(
            f"{path} {what}. Its state steers the model's answers"
        )
    try:
        manifest = json.loads(data)
        json.dumps(manifest, ensure_ascii=False).encode()  # no lone surrogates
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"The manifest of {path} is invalid") from None
    if not known:
        raise BundleError(f"{path} has a format other than {FORMAT}")
    manifest["response_id"] = str(manifest.get("response_id"))
    if not re.fullmatch(ID, manifest["response_id"]):
        raise BundleError(f"The manifest of {path} is invalid")
    return manifest, origin


def _list_states(
    store: Store, bundle: zipfile.ZipFile, manifest: dict[str, Any]
) -> list[tuple[str, str]]:
    "Name and digest of each member with a state, which together fit into the store"
    try:
        listed = [(str(row["file"]), str(row["sha256"])) for row in manifest["states"]]
        model = {str(k): str(v) for k, v in manifest["model"].items()}
    except (KeyError, TypeError, AttributeError):
        raise BundleError("The bundle's list of states is invalid") from None
    if not all(map(is_plain, (*model, *model.values()))):
        raise BundleError("The bundle's model is invalid")  # it will be shown
    if not 0 < len(listed) <= _MAX_STATES:
        raise BundleError("The bundle has no states, or too many")
    names = {name for name, _ in listed}
    if len(names) < len(listed):
        raise BundleError("The bundle's list of states is invalid")
    sizes = {info.filename: info.file_size for info in bundle.infolist()}
    if not names <= sizes.keys():
        raise BundleError("A state is missing from the bundle")
    nbytes, budget = sum(sizes[name] for name in names), store.budget()
    if nbytes > budget and not all(_is_member_here(store, bundle, n) for n in names):
        raise BundleError(
            f"The bundle's states of {nbytes:,} bytes exceed the store's budget of "
            f"{budget:,} bytes. Raise the budget"
        )
    manifest["model"] = model
    return listed


def _is_here(store: Store, state: State) -> bool:
    "Whether the store has a file with the same rows; raises BundleError if others"
    here = store.get(state.response_id, state.fingerprint)
    if here is None:
        return False
    known = here.state
    if (known.start, known.prefix, known.tokens) != (
        state.start,
        state.prefix,
        state.tokens,
    ):
        raise BundleError(
            f"The store has a different state of response {state.response_id}. "
            "Prune that one first"
        )
    return here.present


def _is_member_here(store: Store, bundle: zipfile.ZipFile, name: str) -> bool:
    "The same for a member, by what it says about itself, which is not verified yet"
    with contextlib.suppress(BundleError, StateError), bundle.open(name) as member:
        size = bundle.getinfo(name).file_size
        return _is_here(store, read_head_of(member, size))
    return False


@contextlib.contextmanager
def _extracted(
    store: Store, bundle: zipfile.ZipFile, member: tuple[str, str]
) -> Iterator[tuple[State, Path]]:
    "A state, verified, and the temporary file that it is in"
    spare = store.root / "tmp" / f"{secrets.token_hex(8)}{SUFFIX}"
    with store.locks.hold([spare.name]):
        try:
            _extract(bundle, member[0], spare, member[1])
            yield read_state(spare), spare
        finally:
            spare.unlink(missing_ok=True)


def _extract(bundle: zipfile.ZipFile, name: str, path: Path, digest: str) -> None:
    "Copy a member to a file, and check its digest"
    hashed = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        try:
            member = bundle.open(name)
        except KeyError:
            raise BundleError("A state is missing from the bundle") from None
        with member:
            while data := member.read(1 << 20):
                hashed.update(data)
                file.write(data)
    if not hmac.compare_digest(hashed.hexdigest(), digest):
        raise BundleError("The bundle is damaged: the digest of a state does not match")


def _import_states(
    store: Store,
    bundle: zipfile.ZipFile,
    members: list[tuple[str, str]],
    states: list[State],
    manifest: dict[str, Any],
) -> Transfer:
    "Put the states that the store does not have yet into it"
    model, last = manifest["model"], states[-1]
    imported = Transfer(
        manifest["response_id"],
        len(states),
        last.end,
        origin=last.origin,
        model=model.get("name", "unknown"),
        known_model=store.describe(last.fingerprint) is not None,
    )
    if not imported.known_model:
        store.describe(last.fingerprint, json.dumps(model))
    chain = Chain()
    for state, member in zip(states, members, strict=True):
        if not _is_here(store, state):
            with (
                _extracted(store, bundle, member) as (_, spare),
                open_state(spare) as (_, payload, snapshots),
            ):
                put = store.put(state, payload, chain, snapshots, True)
            imported.new_states += 1
            imported.nbytes += put.nbytes
        here = store.get(state.response_id, state.fingerprint)
        links = len(chain.tokens), state.parent_id
        if here and (here.state.start, here.state.parent_id) == links:
            chain = chain.then(here)
        elif here:  # it was here already, after another state
            chain = store.chain(here)
    return imported


def _check_states(states: list[State], manifest: dict[str, Any]) -> None:
    "Raise BundleError unless states lead up to the response, each from the one before"
    model = {k: v for k, v in manifest["model"].items() if k != "name"}
    if {state.fingerprint for state in states} != {fingerprint_of(model)}:
        raise BundleError(
            "The bundle's states belong to a model other than the one it names"
        )
    prefix, parent = Prefix(states[0].fingerprint), None
    for state in states:
        links = state.start, state.parent_id, state.prefix
        if links != (prefix.n, parent, prefix.digest):
            raise BundleError("The bundle's states do not follow each other")
        prefix.add(state.tokens)
        parent = state.response_id
    ids = [state.response_id for state in states]
    if ids[-1] != manifest["response_id"] or not all(
        re.fullmatch(_STATE_ID, each) for each in ids
    ):
        raise BundleError("The bundle's states are not those of its response")


def _sign(manifest: bytes, key: str) -> bytes:
    return hmac.new(key.encode(), manifest, hashlib.sha256).hexdigest().encode()


def _sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            hashed.update(data)
    return hashed.hexdigest()
