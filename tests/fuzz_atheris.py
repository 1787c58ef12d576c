"""The reader of state files and payloads as a target of coverage-guided fuzzing.

    python tests/fuzz_atheris.py -runs=200000

Takes libFuzzer's options, and directories of inputs to begin with. Nothing but
StateError may come out. Needs atheris, which is in no extra of this package: it
has wheels for some Python versions only.
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

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(
    include=["llm_kvbranch.state", "llm_kvbranch.engine.blob"]
):
    from llm_kvbranch.engine import blob
    from llm_kvbranch.errors import StateError
    from llm_kvbranch.state import SUFFIX, open_state, read_head

from tests import fuzz

KINDS = ("attention", "recurrent", "hybrid")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
PATH = FOLDER / f"input{SUFFIX}"
GOOD = fuzz.good_files(FOLDER)


def read(data: bytes) -> None:
    "As a file: what is accepted says of itself what its head says"
    fuzz.put(PATH, data)
    with contextlib.suppress(StateError), open_state(PATH) as (state, payload):
        assert read_head(PATH) == (state, len(data))
        assert len(state.tokens) == state.end - state.start
        walk(bytes(payload), state.start, state.end)
    with contextlib.suppress(StateError):
        read_head(PATH)


def walk(data: bytes, start: int, end: int) -> None:
    "As a payload, of every kind of model"
    view = memoryview(data)
    for kind in KINDS:
        for window in (0, 4):
            with contextlib.suppress(StateError):
                for area in blob.check(view, start, end, window, kind):
                    assert 8 < area.at <= area.at + area.nbytes <= len(data)
    with contextlib.suppress(StateError):
        found = blob.cut(view, start, end, end - 1)
        if end - 1 > start:
            blob.check(memoryview(found), start, end - 1, 0)


def one(data: bytes) -> None:
    "The first byte says as what the rest is read"
    what, data = data[:1], data[1:]
    if what < b"\x40":
        read(data)
    elif what < b"\xb0":
        read(fuzz.sign(data))
    else:
        walk(data, 0, 20)


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    "Half of the time a change that keeps a header readable, where it was"
    rng = fuzz.rng_of(seed, 0)
    if rng.random() < 0.5:
        with contextlib.suppress(Exception):
            change = rng.choice([*fuzz.LIES, *fuzz.ACCIDENTS])
            data = data[:1] + change(rng, data[1:], rng.choice(GOOD))
            return data[:longest]
    return bytes(atheris.Mutate(data, longest))


def corpus() -> Path:
    "Good files and payloads to begin with"
    folder = FOLDER / "corpus"
    folder.mkdir()
    for i, data in enumerate(GOOD):
        for what in (b"\x00", b"\x80"):
            (folder / f"file-{i}-{what[0]}").write_bytes(what + data)
    (folder / "payload").write_bytes(b"\xff" + fuzz.payload_of(0, 20))
    return folder


if __name__ == "__main__":
    options = sys.argv[1:]
    if all(option.startswith("-") for option in options):
        options.append(str(corpus()))
    if not any(option.startswith("-max_len=") for option in options):
        options.append("-max_len=8192")
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()
