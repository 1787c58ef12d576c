"""Coverage-guided fuzzing of the reader of state files, rows and snapshots.

    python tests/support/fuzz_atheris.py -runs=200000

Takes libFuzzer's options and seed corpus directories. No exception but StateError is
allowed. Needs atheris, which is not in any of our extras because it has wheels for only
some Python versions.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris (Python 3.11 or older)")

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(
    include=[
        "llm_kvbranch.store.header",
        "llm_kvbranch.store.statefile",
        "llm_kvbranch.engine.blob",
    ]
):
    from llm_kvbranch.engine import blob
    from llm_kvbranch.errors import StateError
    from llm_kvbranch.store.statefile import SUFFIX, open_state, read_head

from tests.support import fuzz

KINDS = [
    *(("attention", 0), ("attention", fuzz.WINDOW), ("recurrent", 0)),
    *(("hybrid", 0), ("hybrid", fuzz.WINDOW)),
]
LAYOUTS = [
    blob.Layout(*kind, cell=cell, tail=fuzz.tail_of(*kind))
    for kind in KINDS
    for cell in (blob.CELL, blob.CELL_2D)
]
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
PATH = FOLDER / f"input{SUFFIX}"
GOOD = fuzz.good_files(FOLDER)


def read(data: bytes) -> None:
    "Read as a file; an accepted file must agree with its head"
    fuzz.put(PATH, data)
    with contextlib.suppress(StateError), open_state(PATH) as (state, payload, parts):
        assert read_head(PATH) == (state, len(data))
        copies = {mark: bytes(part) for mark, part in parts.items()}
        assert not list(fuzz.contradictions(state, bytes(payload), copies, data))
        walk(bytes(payload), state.start, state.end)
        for mark, part in copies.items():
            walk_snapshot(part, mark)
    with contextlib.suppress(StateError):
        state, _ = read_head(PATH)
        for mark in state.marks:
            with contextlib.suppress(StateError), open_state(PATH, [mark]) as found:
                assert list(found[2]) == [mark]


def walk(data: bytes, start: int, end: int) -> None:
    "Read as rows, for every kind of model"
    view = memoryview(data)
    for layout in LAYOUTS:
        with contextlib.suppress(StateError):
            check_areas(blob.check(view, start, end, layout), data)
    with contextlib.suppress(StateError):
        blob.cut(view, start, end, end - 1)


def walk_snapshot(data: bytes, position: int) -> None:
    "Read as a snapshot, for every kind of model"
    view = memoryview(data)
    for layout in LAYOUTS:
        with contextlib.suppress(StateError):
            check_areas(blob.check_snapshot(view, position, layout), data)
            if layout.n_swa:
                assert 0 <= blob.window_start(view, position) < position


def check_areas(areas: list[blob.Area], data: bytes) -> None:
    for area in areas:
        assert 8 < area.at <= area.at + area.nbytes <= len(data)


def one(data: bytes) -> None:
    "The first byte selects how the rest is read"
    what, data = data[:1], data[1:]
    if what < b"\x40":
        read(data)
    elif what < b"\xb0":
        read(fuzz.sign(data))
    elif what < b"\xd8":
        walk(data, 0, 20)
    else:
        walk_snapshot(data, 20)


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    "Half of the time, mutate in a way that keeps the header readable"
    rng = fuzz.rng_of(seed, 0)
    if rng.random() < 0.5:
        with contextlib.suppress(Exception):
            change = rng.choice([*fuzz.LIES, *fuzz.ACCIDENTS])
            data = data[:1] + change(rng, data[1:], rng.choice(GOOD))
            return data[:longest]
    return bytes(atheris.Mutate(data, longest))


def corpus() -> Path:
    "The seed corpus: good files, rows and snapshots"
    folder = FOLDER / "corpus"
    folder.mkdir()
    for i, data in enumerate(GOOD):
        for what in (b"\x00", b"\x80"):
            (folder / f"file-{i}-{what[0]}").write_bytes(what + data)
    for i, kind in enumerate(KINDS):
        (folder / f"rows-{i}").write_bytes(b"\xc0" + fuzz.rows_of(*kind, 0, 20))
        (folder / f"snapshot-{i}").write_bytes(b"\xff" + fuzz.snapshot_of(*kind, 20))
    return folder


if __name__ == "__main__":
    options = sys.argv[1:]
    if all(option.startswith("-") for option in options):
        options.append(str(corpus()))
    if not any(option.startswith("-max_len=") for option in options):
        options.append("-max_len=8192")
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()
