"""Damaged state files and payloads, close to what a reader expects.

The idea: good files are mutated, so most of each is valid. There are two kinds of
cases. Unsigned damage is what accidents and stale copies leave: some digest does not
match, so no such file may be accepted, nor any part of it that changed. Signed lies
have all digests recomputed after the change, so only a check of the content can refuse
them.

The invariant: a seed and a number always give the same case, so one line of a report is
enough to reproduce it.

This module does not know llama.cpp: ``fuzz_engine`` runs it in another process, so that
a crash there is a finding here.

    python -m tests.support.fuzz --files 10000 --engine 500 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from llm_kvbranch.errors import KVBranchError, StateError
from llm_kvbranch.store.header import State
from llm_kvbranch.store.maintenance import repair, verify
from llm_kvbranch.store.statefile import SUFFIX, open_state, read_head, write_state
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest, token_bytes, tokens_of

# The models to run: SmolLM2, and toys from tests.support.synth
MODELS = ("smollm2", "gemma3", "mamba", "granitehybrid", "lfm2", "qwen35")
WINDOW = 4  # tokens that made-up snapshots look back

Random = random.Random
Mutation = Callable[[Random, bytes, bytes], bytes]  # of a file, with another file
Parts = tuple[State, bytes, dict[int, bytes]]  # parts of a file: rows, snapshots


@dataclass
class Report:
    """The results; a failure names its case.

    ``partial`` counts refused files of which a good part was still read.
    """

    tried: int = 0
    partial: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    def refuse(self, error: StateError) -> None:
        "Count a refusal by its reason, without the numbers in it"
        self.refused[re.sub(r"-?\d+", "N", str(error))] += 1

    def add(self, other: Report) -> Report:
        self.tried += other.tried
        self.partial += other.partial
        self.refused += other.refused
        self.accepted += other.accepted
        self.failures += other.failures
        self.crashes += other.crashes
        return self

    def lines(self) -> Iterator[str]:
        accepted, crashes = sum(self.accepted.values()), len(self.crashes)
        yield (
            f"tried {self.tried:,}: refused {sum(self.refused.values()):,},"
            f" {self.partial:,} of them partly good, accepted {accepted:,},"
            f" failures {len(self.failures):,}, crashes {crashes:,}"
        )
        for name, counts in (("refused", self.refused), ("accepted", self.accepted)):
            for reason, n in counts.most_common():
                yield f"  {n:8,} {name}: {reason}"
        yield from (f"  FAILED {line}" for line in self.failures)
        yield from (f"  CRASHED {line}" for line in self.crashes)


def rng_of(seed: int, i: int) -> Random:
    return Random(f"{seed}/{i}")


# -- good files --------------------------------------------------------


def payload_of(
    start: int, end: int, n_layer: int = 2, row: int = 8, tail: bytes = b""
) -> bytes:
    "Small rows of [start, end) as llama.cpp would write them"
    cells = b"".join(struct.pack("<iIi", p, 1, 3) for p in range(start, end))
    area = struct.pack("<iQ", 1, row) + bytes(range(row)) * (end - start)
    return b"".join(
        [
            struct.pack("<IiII", 0xAF143CD8, 3, 1, end - start),
            cells,
            struct.pack("<II", 0, n_layer),
            area * (2 * n_layer),
            tail,
        ]
    )


def tail_of(kind: str, window: int) -> bytes:
    "How the rows of a model of some kind end: nothing in a window, no recurrent state"
    tail = struct.pack("<II", 1, 0) if window and kind != "recurrent" else b""
    if kind != "attention":
        tail += struct.pack("<III", 0, 0, 2) + struct.pack("<iQ", 0, 8) * 4
    return tail


def rows_of(kind: str, window: int, start: int, end: int) -> bytes:
    "Rows of [start, end) for a kind of model"
    tail = tail_of(kind, window)
    whole = payload_of(start, end, tail=tail)
    return whole[:8] + tail if kind == "recurrent" else whole


def snapshot_of(kind: str, window: int, position: int) -> bytes:
    "The snapshot of a kind of model at a position"
    whole = payload_of(max(0, position - window), position)
    found = whole if window else whole[:8]
    if kind != "attention":
        found += struct.pack("<IiIII", 1, position - 1, 0, 0, 2)
        found += (struct.pack("<iQ", 0, 8) + bytes(8)) * 4
    return found


def good_files(folder: Path) -> list[bytes]:
    """A chain of three states, a branch of the first, and an unrelated state.

    All but the first have snapshots, one at their end or several.
    """
    tokens = tokens_of(range(100, 150))
    found = []
    for name, parent, start, end, marks, facts in (
        ("01first", None, 0, 20, (), {}),
        ("01second", "01first", 20, 23, (23,), {"input_hash": "ab" * 32}),
        (
            *("01third", "01second", 23, 50, (32, 48, 50)),
            {"tip_hash": "cd" * 32, "thread_id": "t1"},
        ),
        ("01branch", "01first", 11, 13, (12, 13), {"render": "00ff"}),
        ("01ünïcode", None, 0, 1, (1,), {"origin": "a colleague's machine"}),
    ):
        state = State(
            response_id=name,
            fingerprint="some-model",
            start=start,
            end=end,
            answer=start + (end - start) // 2,
            tokens=tokens[start:end],
            prefix=prefix_digest(tokens, start),
            parent_id=parent,
            created="2026-01-01T00:00:00",
            **facts,
        )
        path = folder / f"source{SUFFIX}"
        kind = "hybrid" if marks else "attention"
        snapshots = {mark: snapshot_of(kind, WINDOW, mark) for mark in marks}
        write_state(
            path, state, rows_of(kind, WINDOW * bool(marks), start, end), snapshots
        )
        found.append(path.read_bytes())
        path.unlink()
    return found


def parts_of(good: list[bytes], folder: Path) -> dict[str, Parts]:
    "The parts of good files, by digest"
    found, path = {}, folder / f"whole{SUFFIX}"
    for data in good:
        put(path, data)
        with open_state(path) as (state, payload, snapshots):
            copies = {mark: bytes(part) for mark, part in snapshots.items()}
            found[state.digest] = state, bytes(payload), copies
    path.unlink()
    return found


# -- damage ------------------------------------------------------------


def span(rng: Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    "A range of some data, sometimes a long one"
    if rng.random() < 0.1:
        longest = len(data)
    begin = rng.randrange(len(data))
    return begin, min(len(data), begin + rng.randint(1, longest))


def flip(rng: Random, data: bytes, _: bytes) -> bytes:
    "Flip a bit, or a few"
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header(rng: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(split(data)[0]))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: Random, data: bytes, _: bytes) -> bytes:
    "Overwrite a range with noise, with zeros as in a lost block, or with ones"
    begin, end = span(rng, data, 512)
    n = end - begin
    new = rng.choice([rng.randbytes(n), bytes(n), b"\xff" * n, b" " * n])
    return data[:begin] + new + data[end:]


def delete(rng: Random, data: bytes, _: bytes) -> bytes:
    begin, end = span(rng, data)
    return data[:begin] + data[end:]


def duplicate(rng: Random, data: bytes, _: bytes) -> bytes:
    begin, end = span(rng, data)
    return data[:end] + data[begin:]


def move(rng: Random, data: bytes, _: bytes) -> bytes:
    "Move a range; the length stays the same"
    begin, end = span(rng, data)
    rest = data[:begin] + data[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + data[begin:end] + rest[at:]


def mix(rng: Random, data: bytes, other: bytes) -> bytes:
    "Copy a range from another file, as an interrupted copy would"
    begin, end = span(rng, data, 512)
    return data[:begin] + other[begin:end] + data[end:]


def splice(rng: Random, data: bytes, other: bytes) -> bytes:
    "Join the beginning of one file and the end of another"
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def truncate(rng: Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.choice([rng.randrange(len(data)), len(data) - 1, 4096, 512, 8])]


def extend(rng: Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice([b"\0", b" ", bytes(4096), data, other, data[-64:]])


def length_field(rng: Random, data: bytes, _: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    odd = [0, 1, 2**20, 2**20 + 1, 2**31, 2**32 + length, 2**63, 2**64 - 1]
    near = [length - 1, length + 1, length - 64, length + 64, len(data) - 8]
    return struct.pack("<Q", rng.choice([*odd, *near, len(data)])) + data[8:]


def foreign_header(rng: Random, data: bytes, other: bytes) -> bytes:
    "Put the header of one file before the body of another"
    (header, tokens, rows), theirs = split(data), split(other)
    return b"".join(
        rng.choice(
            [
                (theirs[0], tokens, rows),
                (header, theirs[1], theirs[2]),
                (header, theirs[1], rows),
                (header, tokens, theirs[2]),
                (header, rows, tokens),
                (theirs[0], theirs[1], rows),
            ]
        )
    )


def header_text(rng: Random, data: bytes, _: bytes) -> bytes:
    "Write the same header another way"
    header, *body = split(data)
    text = header[8:].decode()
    facts = json.loads(text)
    text = rng.choice(
        [
            text.rstrip(),
            text + " " * rng.randint(1, 200),
            "\ufeff" + text,
            text.replace(": ", ":", rng.randint(1, 9)),
            json.dumps(facts, indent=1),
            json.dumps(facts, ensure_ascii=False),
            json.dumps(dict(reversed(facts.items()))),
            text.replace('"', "'"),
            text.replace("}", ",}", 1),
            "[" * 200_000 + "]" * 200_000,
            '{"__metadata__":' * 20_000 + "1" + "}" * 20_000,
            "null",
        ]
    )
    encoding = rng.choice(["utf-8"] * 6 + ["utf-16", "utf-32", "utf-16-le"])
    return framed(text.encode(encoding), b"".join(body))


def header_value(rng: Random, data: bytes, _: bytes) -> bytes:
    "Replace one value in the header with an odd one"
    header, *body = split(data)
    facts = json.loads(header[8:])
    within, key = place(rng, facts)
    within[key] = odd(rng, within[key])
    return framed(json.dumps(facts).encode(), b"".join(body))


def header_key(rng: Random, data: bytes, _: bytes) -> bytes:
    "Remove, repeat, rename or add a key"
    header, *body = split(data)
    facts = json.loads(header[8:])
    within, key = place(rng, facts)
    what = rng.randrange(4)
    if what == 0:
        del within[key]
    elif what == 1:
        within[key + rng.choice(["x", "\0", " "])] = within.pop(key)
    elif what == 2:
        within[rng.choice(["extra", "format ", "tokens", "", "\ud800"])] = odd(rng, "7")
    text = json.dumps(facts)
    if what == 3:
        value = json.dumps(odd(rng, within[key]))
        named = f"{json.dumps(key)}: "
        end = rng.random() < 0.5
        twice = f'{named}{value}, {named}"1", {named}' if end else f"{named}{value}, "
        text = text.replace(named, twice if end else twice + named, 1)
    return framed(text.encode(), b"".join(body))


def positions(rng: Random, data: bytes, _: bytes) -> bytes:
    "Change positions, so that they agree with each other or nearly do"
    header, *body = split(data)
    facts = json.loads(header[8:])
    metadata = facts["__metadata__"]
    by = rng.choice([1, -1, 20, -20, 2**31, -(2**31), 2**32, 2**63, 2**64, 10**30])
    names = rng.choice([["start", "answer", "end"], ["start", "end"], ["end"]])
    for name in names:
        metadata[name] = str(int(metadata[name]) + by)
    return framed(json.dumps(facts).encode(), b"".join(body))


def names(rng: Random, data: bytes, _: bytes) -> bytes:
    "Change the format, or the place in the tree: a state's own child, say"
    header, *body = split(data)
    facts = json.loads(header[8:])
    key = rng.choice(["format", "parent_id", "response_id", "fingerprint"])
    facts["__metadata__"][key] = rng.choice(_TEXTS)
    return framed(json.dumps(facts).encode(), b"".join(body))


def offsets(rng: Random, data: bytes, _: bytes) -> bytes:
    "Change where tensors begin or end"
    header, *body = split(data)
    facts = json.loads(header[8:])
    tensor = facts[rng.choice(list(facts)[1:])]
    if rng.random() < 0.5:
        by = rng.choice([1, -1, 4, -4, 2**31, 2**63, -(2**63), 0.5])
        at = rng.randrange(2)
        tensor["data_offsets"][at] += by
    else:
        tensor["data_offsets"] = odd(rng, tensor["data_offsets"])
    return framed(json.dumps(facts).encode(), b"".join(body))


def marks(rng: Random, data: bytes, _: bytes) -> bytes:
    "Change snapshots: other positions or order, repeated, or odd digests"
    header, *body = split(data)
    facts = json.loads(header[8:])
    metadata = facts["__metadata__"]
    items = snapshots_in(metadata) or [["7", "0" * 32]]
    start, end = int(metadata["start"]), int(metadata["end"])
    item = rng.choice(items)
    old, what = item[0], rng.randrange(6)
    if what <= 1:
        far = [0, -1, 2**31, 2**32 + int(old), 2**63, 2**64, 10**30]
        near = [start - 1, start, start + 1, end - 1, end, end + 1, int(old) + 1]
        item[0] = str(rng.choice([*far, *near, rng.choice(items)[0]]))
        if rng.random() < 0.7:  # rename the tensor, too
            moved = {f"snapshot.{old}": f"snapshot.{item[0]}"}
            facts = {moved.get(name, name): value for name, value in facts.items()}
    elif what == 2:
        item[0] = rng.choice(
            [*_spellings(old), "", "x", "7:7", "snapshot.7", "9" * 5000]
        )
    elif what == 3:
        rng.shuffle(items)
    elif what == 4:
        items.insert(rng.randrange(len(items) + 1), list(item))
    else:
        item[1] = rng.choice([item[1].upper(), item[1][:-1], item[1] + "0", *_TEXTS])
    between = rng.choice([" "] * 6 + ["  ", "\t", "\n", "\u3000", ",", ""])
    metadata["snapshots"] = between.join(map(":".join, items))
    if rng.random() < 0.05:
        metadata["snapshots"] = rng.choice(_TEXTS)
    return framed(json.dumps(facts).encode(), b"".join(body))


def tensors(rng: Random, data: bytes, _: bytes) -> bytes:
    "Remove or add snapshots, empty them, or let them overlap"
    header, *body = split(data)
    facts = json.loads(header[8:])
    metadata = facts["__metadata__"]
    items = snapshots_in(metadata)
    inner = list(facts)[2:]  # the rows, and the snapshots in order
    last, what = facts[inner[-1]]["data_offsets"], rng.randrange(8)
    one, other = (facts[rng.choice(inner)]["data_offsets"] for _ in range(2))
    if what == 0:  # a digest without a tensor
        del facts[rng.choice(inner)]
    elif what == 1 and items:  # a tensor without a digest
        items.remove(rng.choice(items))
    elif what == 2 and items:  # remove the last one, with or without its bytes
        del facts[inner[-1]], items[-1]
        if rng.random() < 0.7:
            body[-1] = body[-1][: last[0] - last[1]] if last[0] < last[1] else body[-1]
    elif what == 3:  # one that is not listed
        name = rng.choice(
            ["extra", "snapshot.", "snapshot.٤٨", "Snapshot.48", "state "]
        )
        facts[name] = {"dtype": "U8", "shape": [0], "data_offsets": [last[1]] * 2}
    elif what == 4:  # one more, empty or not, in place or not
        position = rng.choice([int(metadata["end"]), int(metadata["end"]) - 1, 0, 31])
        more = rng.randbytes(rng.choice([0, 0, 1, 64]))
        place = rng.choice([len(items), len(items), 0])
        items.insert(place, [str(position), "0" * 32])
        facts[f"snapshot.{position}"] = {
            "dtype": "U8",
            "shape": [len(more)],
            "data_offsets": [last[1], last[1] + len(more)],
        }
        body.append(more)
    elif what == 5:  # swap two
        one[:], other[:] = list(other), list(one)
    elif what == 6:  # let one overlap another
        one[:] = rng.choice([list(other), [other[0], one[1]], [one[0], other[1]]])
    else:  # move the boundary between two
        at = rng.randrange(max(1, len(inner) - 1))
        left, right = (facts[name]["data_offsets"] for name in (inner * 2)[at : at + 2])
        left[1] = right[0] = rng.choice([left[0], right[1], left[1] + 1, left[1] - 8])
    metadata["snapshots"] = " ".join(map(":".join, items))
    return framed(json.dumps(facts).encode(), b"".join(body))


def snapshots_in(metadata: dict[str, str]) -> list[list[str]]:
    "Position and digest of each snapshot of a good file"
    return [item.split(":") for item in metadata.get("snapshots", "").split()]


def _spellings(number: str) -> list[str]:
    "The same number in other spellings"
    arabic = number.translate({ord("0") + i: 0x660 + i for i in range(10)})
    wide = number.translate({ord("0") + i: 0xFF10 + i for i in range(10)})
    signed = [f"+{number}", f"-{number}", f"0{number}", "_".join(number)]
    return [*signed, f"{number}.0", f"{int(number):#x}", arabic, wide]


ACCIDENTS: tuple[Mutation, ...] = (
    *(flip, flip_header, overwrite, delete, duplicate, move, mix, splice),
    *(truncate, extend, length_field, foreign_header, header_text, header_value),
    *(header_key, positions, names, offsets, marks, tensors),
)
LIES: tuple[Mutation, ...] = (
    *(header_value, header_key, header_text, positions, offsets, foreign_header),
    *(names, flip, overwrite, delete, duplicate, truncate, extend, length_field),
    *(marks, tensors),
)

_TEXTS = (
    *("", "-1", "0", "1", "7", "20", "23", " 23 ", "+23", "2_3", "٢٣", "23.0", "0x17"),
    *("1e400", "nan", "inf", "9" * 30, "9" * 5000, str(2**31), str(2**63), "x" * 70000),
    *("\0", "\n\x1b[2J", "\ud800", "\udc00", "𝟚𝟛", "é", "../../x", "/", ".", "a/b"),
    *("0" * 32, "f" * 32, "F" * 32, "f" * 31, "f" * 33, "0" * 32 + "\n", "١" * 32),
    *("llm-kvbranch/2", "llm-kvbranch/4", "llm-kvbranch/", "llm-kvbranch/\ud800"),
    *("llm-kvbranch/\x1b[2J\n", "pt", "01first", "01second", "01third", "some-model"),
)
_VALUES = (
    *(None, True, False, 0, 1, -1, 23, 23.0, 0.5, 1e300, float("nan"), float("inf")),
    *(2**31, 2**63, 2**64, -(2**63), 10**400, [], {}, [[]], [0], [0, 80], ["0", "80"]),
    *([0.0, 80.0], [False, 80], [None, None], [0, 2**64], {"start": "0"}, [0] * 9),
)


def odd(rng: Random, value: Any) -> Any:
    "A replacement for a value: close to it, of another type, or absurd"
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice(_TEXTS)
    if rng.random() < 0.1:
        nested: Any = value
        for _ in range(rng.choice([1, 3, 500])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return rng.choice(_VALUES)


def place(rng: Random, facts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    "A dictionary in a header and one of its keys"
    within = facts
    if rng.random() < 0.9:
        inner = ["__metadata__"] * 5 + list(facts)[1:]
        within = facts[rng.choice(inner)]
    return within, rng.choice(list(within))


def split(data: bytes) -> tuple[bytes, bytes, bytes]:
    "Split a good file: header with its length, token ids, and the rest"
    (length,) = struct.unpack("<Q", data[:8])
    begin = 8 + length
    (_, n) = json.loads(data[8:begin])["tokens"]["data_offsets"]
    return data[:begin], data[begin : begin + n], data[begin + n :]


def framed(text: bytes, body: bytes) -> bytes:
    "A file from header text and body, correctly aligned"
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + body


def sign(data: bytes) -> bytes:
    "Recompute all digests of a file"
    if len(data) < 8:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[: 8 + length], data[8 + length :]
    n, ranges = _n_token_bytes(header), _ranges(header)

    def digest_of(tensor: str) -> bytes:
        first, last = ranges.get(tensor, (n, len(body)))
        return xxhash.xxh3_128_hexdigest(body[first:last]).encode()

    def of_snapshot(found: re.Match[bytes]) -> bytes:
        mark = found[1].decode()
        try:
            mark = str(int(json.loads(f'"{mark}"')))  # in any spelling
        except ValueError:
            return found[0]
        return found[1] + b":" + digest_of(f"snapshot.{mark}")

    def of_snapshots(found: re.Match[bytes]) -> bytes:
        return found[1] + re.sub(_SNAPSHOT, of_snapshot, found[2])

    zeros = b"0" * 32
    payload = rb"\g<1>" + digest_of("state")
    header = re.sub(rb'("payload": ")[0-9a-f]{32}', payload, header)
    header = re.sub(rb'("snapshots": ")([^"]*)', of_snapshots, header)
    header = re.sub(rb'("digest": ")[0-9a-f]{32}', rb"\g<1>" + zeros, header, count=1)
    digest = xxhash.xxh3_128_hexdigest(header + body[:n]).encode()
    return header.replace(zeros, digest, 1) + body


_SNAPSHOT = rb"((?:[0-9+_.-]|\\u[0-9a-f]{4})+):[0-9a-f]{32}(?![0-9a-f])"


def _n_token_bytes(header: bytes) -> int:
    "Where the payload begins, as far as the header is readable"
    try:
        metadata = json.loads(header[8:])["__metadata__"]
        return max(0, 4 * (int(metadata["end"]) - int(metadata["start"])))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0


def _ranges(header: bytes) -> dict[str, tuple[int, int]]:
    "Where the tensors are, as far as the header is readable"
    found: dict[str, tuple[int, int]] = {}
    try:
        facts = json.loads(header[8:])
    except (ValueError, RecursionError):
        return found
    for name, tensor in facts.items() if isinstance(facts, dict) else ():
        at = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if isinstance(at, list) and [type(number) for number in at] == [int, int]:
            found[name] = max(0, at[0]), max(0, at[1])
    return found


def put(path: Path, data: bytes) -> None:
    "Write a new file, because some file systems flush overwritten ones"
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def hit(good: bytes, data: bytes) -> set[int | None] | None:
    """The damaged parts of a good file: None for its rows, snapshots by position.

    Returns None if the head or the length of the file changed.
    """
    header, tokens, _ = split(good)
    if len(data) != len(good) or not data.startswith(header + tokens):
        return None
    found: set[int | None] = set()
    for name, (first, last) in _ranges(header).items():
        part = slice(len(header) + first, len(header) + last)
        if data[part] != good[part]:
            found.add(int(name.rpartition(".")[2]) if "." in name else None)
    return found


def mutated(
    rng: Random, good: list[bytes], mutations: Iterable[Mutation], which: int = -1
) -> tuple[str, bytes]:
    "A mutation's name and its result, which is never a good file"
    while True:
        data = good[which] if which >= 0 else rng.choice(good)
        other = rng.choice([file for file in good if file is not data])
        mutation = rng.choice(list(mutations))
        changed = mutation(rng, data, other)
        if changed not in good:
            return mutation.__name__, changed


# -- the reader --------------------------------------------------------


def check_files(n: int, seed: int, folder: Path, first: int = 0) -> Report:
    "Check that all accidental damage is refused with StateError"
    report, good = Report(), good_files(folder)
    heads = [(len(file), b"".join(split(file)[:2])) for file in good]
    known = parts_of(good, folder)
    path = folder / f"accident{SUFFIX}"
    for i in range(first, first + n):
        name, data = mutated(rng_of(seed, i), good, ACCIDENTS)
        where = f"seed {seed}, file {i} ({name})"
        put(path, data)
        report.tried += 1
        try:
            with open_state(path):
                report.accepted[name] += 1
                report.failures.append(f"{where}: accepted")
        except StateError as error:
            _count(report, error, where)
        except Exception as error:
            report.crashes.append(f"{where}: {error!r}")
        try:
            _check_parts(path, known, where, report)
        except Exception as error:
            report.crashes.append(f"{where}: parts: {error!r}")
        try:  # a head does not cover the rows, so they may differ
            _, size = read_head(path)
            if not any(size == n and data.startswith(head) for n, head in heads):
                report.failures.append(f"{where}: its head was accepted")
        except StateError:
            pass
        except Exception as error:
            report.crashes.append(f"{where}: head: {error!r}")
    return report


def _check_parts(
    path: Path, known: dict[str, Parts], where: str, report: Report
) -> None:
    "Check that parts read from a damaged file are unchanged"
    try:
        with open_state(path, ()) as (state, payload, none):
            whole, rows, snapshots = known[state.digest]
            if none or state != whole or payload != rows:
                report.failures.append(f"{where}: other rows were accepted")
    except StateError:
        return
    report.partial += 1
    n_good = 0
    for mark in state.marks:
        try:
            with open_state(path, [mark]) as (_, payload, found):
                n_good += 1
                if payload != rows or found != {mark: snapshots[mark]}:
                    report.failures.append(f"{where}: another snapshot was accepted")
        except StateError:
            pass
    if n_good == len(snapshots):
        report.failures.append(f"{where}: refused, yet each of its parts is read")


def check_signed(n: int, seed: int, folder: Path, first: int = 0) -> Report:
    "Check that signed lies are refused with StateError, or agree with their file"
    report, good = Report(), good_files(folder)
    path = folder / f"lie{SUFFIX}"
    for i in range(first, first + n):
        name, data = mutated(rng_of(seed, i), good, LIES)
        data = sign(data)
        where = f"seed {seed}, lie {i} ({name})"
        put(path, data)
        report.tried += 1
        try:
            with open_state(path) as (state, payload, snapshots):
                report.accepted[name] += 1
                parts = {mark: bytes(part) for mark, part in snapshots.items()}
                for problem in contradictions(state, bytes(payload), parts, data):
                    report.failures.append(f"{where}: {problem}")
            if read_head(path) != (state, len(data)):
                report.failures.append(f"{where}: its head says something else")
            for wanted in ((), state.marks[:1], state.marks[1:]):
                with open_state(path, wanted) as (same, _, snapshots):
                    if same != state or snapshots != {at: parts[at] for at in wanted}:
                        report.failures.append(f"{where}: parts say something else")
        except StateError as error:
            _count(report, error, where)
        except Exception as error:
            report.crashes.append(f"{where}: {error!r}")
    return report


def _count(report: Report, error: StateError, where: str) -> None:
    "Count a refusal; its reason must be one short printable line"
    reason = str(error)
    report.refuse(error)
    if len(reason) > 120 or not reason.isprintable() or not reason.isascii():
        report.failures.append(f"{where}: the reason is {reason[:80]!r}")


def contradictions(
    state: State, payload: bytes, snapshots: dict[int, bytes], data: bytes
) -> Iterator[str]:
    "Contradictions in an accepted file"
    parts = [token_bytes(state.tokens), payload, *snapshots.values()]
    if not data.endswith(b"".join(parts)):
        yield "tokens, payload and snapshots are not the file's"
    if not 0 <= state.start <= state.answer <= state.end < 1 << 63:
        yield "positions are out of order"
    if not 0 < len(state.tokens) == state.end - state.start:
        yield "tokens are not those of the positions"
    if xxhash.xxh3_128_hexdigest(payload) != state.payload:
        yield "the payload has another digest"
    places = [state.start, *snapshots, state.end + 1]
    if any(one >= other for one, other in itertools.pairwise(places)):
        yield "snapshots are out of order"
    digests = {at: xxhash.xxh3_128_hexdigest(part) for at, part in snapshots.items()}
    if tuple(digests.items()) != state.snapshots:
        yield "a snapshot has another digest"
    "".join(v for v in vars(state).values() if isinstance(v, str)).encode()


# -- the store ---------------------------------------------------------


def check_stores(n: int, seed: int, folder: Path, first: int = 0) -> Report:
    """Open, inspect and repair stores without an index whose files lie.

    Each has a dozen signed lies, named as they claim or like a good file.
    """
    report, good = Report(), good_files(folder)
    for i in range(first, first + n):
        rng = rng_of(seed, i)
        where = f"seed {seed}, store {i}"
        root = folder / f"store-{i}"
        states = root / "states" / "some-model"
        states.mkdir(parents=True)
        names = []
        for number in range(12):
            name, data = mutated(rng, good, (*LIES, *ACCIDENTS))
            names.append(name)
            data = sign(data) if rng.random() < 0.8 else data
            path = states / f"{_claimed(data) or number}{SUFFIX}"
            path.write_bytes(data)
        report.tried += 1
        try:
            store = Store(root)
            for _ in range(2):
                list(verify(store))
                for entry in list(store.entries()):
                    store.chain(entry)
                    store.longest_prefix("some-model", entry.state.tokens)
                    try:
                        with store.open(entry) as (_, snapshots):
                            report.accepted["state"] += 1
                            report.accepted["snapshot"] += len(snapshots)
                    except StateError as error:
                        _count(report, error, where)
                        store.lost(entry, str(error))
                list(repair(store))
            store.close()
        except KVBranchError as error:
            report.failures.append(f"{where} ({', '.join(names)}): {error}")
        except Exception as error:
            report.crashes.append(f"{where} ({', '.join(names)}): {error!r}")
    return report


def _claimed(data: bytes) -> str | None:
    "The name that a file claims, if it is a valid file name"
    found = re.search(rb'"response_id": "([A-Za-z0-9]{1,80})"', data)
    return found[1].decode() if found else None


# -- the engine, in another process ------------------------------------


def run_engine(
    model: str, task: str, n: int, seed: int, folder: Path, first: int = 0
) -> Report:
    """Run cases against a model's engine, restarting after a crash.

    ``task`` is "files", "payloads", "prompts", "all-payloads" or "all-prompts"; see
    ``fuzz_engine``.
    """
    report, end, restarts = Report(), first + n, 0
    while first < end and restarts < 10:
        command = [sys.executable, "-m", "tests.support.fuzz_engine", model, task]
        command += map(str, (seed, first, end - first, folder))
        child = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = child.stdout.splitlines()
        found = [json.loads(line[7:]) for line in lines if line.startswith("REPORT ")]
        cases = [line[5:] for line in lines if line.startswith("CASE ")]
        if found:
            facts = found[-1]
            report.tried += facts["tried"]
            report.partial += facts.get("partial", 0)
            report.refused += Counter(facts["refused"])
            report.accepted += Counter(facts["accepted"])
            report.failures += facts["failures"]
            break
        case = cases[-1] if cases else "before the first case"
        errors = child.stderr.strip().splitlines()[-6:]
        report.crashes.append(
            f"{model}, seed {seed}, {task} {case}: exit {child.returncode}"
            f" {' | '.join(errors)}"
        )
        report.tried += len(cases)
        if not cases:
            break
        first, restarts = int(case.split()[0]) + 1, restarts + 1
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz state files and the engine")
    parser.add_argument("--files", type=int, default=10_000, help="accidents")
    parser.add_argument("--lies", type=int, help="signed ones, default: a fifth")
    parser.add_argument("--stores", type=int, default=40, help="of a dozen lies each")
    parser.add_argument("--engine", type=int, default=500, help="files for SmolLM2")
    parser.add_argument("--toys", type=int, default=200, help="files for each toy")
    parser.add_argument("--payloads", type=int, default=400, help="random, each model")
    parser.add_argument("--thorough", action="store_true", help="about every cell")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    chosen = parser.parse_args(arguments)
    lies = chosen.files // 5 if chosen.lies is None else chosen.lies
    total = Report()
    with tempfile.TemporaryDirectory() as name:
        folder, at = Path(name), (chosen.seed, Path(name), chosen.first)

        def show(title: str, report: Report) -> None:
            print(f"{title}: " + "\n".join(report.lines()), flush=True)  # noqa: T201
            total.add(report)

        show("files", check_files(chosen.files, *at))
        show("signed files", check_signed(lies, *at))
        show("stores", check_stores(chosen.stores, *at))
        for model in chosen.models:
            n = chosen.engine if model == "smollm2" else chosen.toys
            every = "all-" * chosen.thorough
            for task, count in (
                ("files", n),
                (f"{every}payloads", chosen.payloads),
                (f"{every}prompts", chosen.payloads),
            ):
                if count and (model != "smollm2" or not task.endswith("prompts")):
                    run = run_engine(model, task, count, chosen.seed, folder, at[2])
                    show(f"{model} {task}", run)
    print(next(total.lines()))  # noqa: T201
    return int(bool(total.failures or total.crashes))


if __name__ == "__main__":
    sys.exit(main())
