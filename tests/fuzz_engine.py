"""Hostile states against a real engine: run in a process that may crash.

The idea: a chain of three short answers is stored as a prompt stores them. Then
one file at a time is damaged and restored from (``files``), or a payload that
lies is given to the engine itself (``payloads``): every field of its structure
with odd values, then whole ones that agree with themselves, then noise. What is
refused must leave everything as it was; what is accepted must have become the
rows that the payload says, and be one of ``ACCEPTED``.

The invariant: each case is announced on standard output before it is tried, so
that whoever started this process knows what ended it.

    python -m tests.fuzz_engine MODEL files|payloads|all-payloads SEED FIRST N FOLDER
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import llm

from llm_kvbranch.catalog import embedded_model
from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings
from llm_kvbranch.errors import StateError
from llm_kvbranch.session import Generation, Request, Session, open_session
from llm_kvbranch.store import Entry

from . import synth
from .fuzz import ACCIDENTS, Random, Report, mutated, put, rng_of

GREEDY = Sampling(temperature=0)
QUESTIONS = ("Tell me of the sea.", "And then? What became of them?", "Who says so?")
LAST = "Why?"
N = 4  # tokens of an answer
EVERY = 25  # cases between looks at whether good states are restored all the same

# What llama.cpp takes although the payload was changed. It ignores the ids of
# sequences, and no field says which rows are right, nor how many of a window's
# there were. The digests are what tells.
ACCEPTED = {
    "blob.sequence",
    "cells.seq_id",
    "window.seq_id",
    "cells in another order",
    "rows",
    "a shorter window",
}


# -- what a payload is made of -----------------------------------------


@dataclass
class Part:
    "One number in a payload: a format of struct, and where it is"

    name: str
    form: str
    at: int


@dataclass
class Block:
    "The cells of one kind of memory: where they are, and the rows of each layer"

    name: str
    at: int
    count: int
    areas: list[tuple[int, int]] = field(default_factory=list)  # (offset, row size)
    end: int = 0


@dataclass
class Anatomy:
    parts: list[Part] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


def anatomy(payload: bytes | bytearray, kind: str, windowed: bool) -> Anatomy:
    "What a good payload is made of, read apart from how the package reads it"
    found = Anatomy([Part("blob.magic", "<I", 0), Part("blob.sequence", "<i", 4)])
    at = 8
    names = [] if kind == "recurrent" else ["cells"] + ["window"] * windowed
    for name in names:
        at = _attention_block(payload, at, name, found)
    if kind != "attention":
        at = _recurrent_block(payload, at, found)
    assert at == len(payload), "a good payload is not understood"
    return found


def _attention_block(payload: Any, at: int, name: str, found: Anatomy) -> int:
    (count,) = struct.unpack_from("<I", payload, at + 4)
    block = Block(name, at, count)
    found.parts += [
        Part(f"{name}.streams", "<I", at),
        Part(f"{name}.count", "<I", at + 4),
    ]
    at += 8
    for cell in range(count):
        for i, (part, form) in enumerate(
            (("position", "<i"), ("n_seq", "<I"), ("seq_id", "<i"))
        ):
            found.parts.append(Part(f"{name}.{part}", form, at + 12 * cell + 4 * i))
    at += 12 * count
    transposed, n_layer = struct.unpack_from("<II", payload, at)
    assert not transposed
    found.parts += [
        Part(f"{name}.transposed", "<I", at),
        Part(f"{name}.layers", "<I", at + 4),
    ]
    at += 8
    for _ in range(2 * n_layer):
        at = _area(payload, at, block, found)
    block.end = at
    found.blocks.append(block)
    return at


def _recurrent_block(payload: Any, at: int, found: Anatomy) -> int:
    block = Block("state", at, 1)
    for part, form in (
        ("count", "<I"),
        ("position", "<i"),
        ("n_seq", "<I"),
        ("transposed", "<I"),
        ("layers", "<I"),
    ):
        found.parts.append(Part(f"state.{part}", form, at))
        at += 4
    while at < len(payload):
        at = _area(payload, at, block, found)
    block.end = at
    found.blocks.append(block)
    return at


def _area(payload: Any, at: int, block: Block, found: Anatomy) -> int:
    (size,) = struct.unpack_from("<Q", payload, at + 4)
    found.parts.append(Part(f"{block.name}.type", "<i", at))
    found.parts.append(Part(f"{block.name}.row size", "<Q", at + 4))
    block.areas.append((at + 12, size))
    return at + 12 + size * block.count


def canonical(payload: bytes | bytearray, kind: str, windowed: bool) -> bytes:
    "A payload with its cells in order of position and no ids of sequences"
    result = bytearray(payload)
    found = anatomy(payload, kind, windowed)
    for part in found.parts:
        if part.name.endswith(("sequence", "seq_id")):
            struct.pack_into(part.form, result, part.at, 0)
    for block in found.blocks:
        if block.name == "state":
            continue
        cells = range(block.count)
        order = sorted(
            cells,
            key=lambda i: struct.unpack_from("<i", payload, block.at + 8 + 12 * i),
        )
        for at, size in [(block.at + 8, 12), *block.areas]:
            source = bytes(result[at : at + size * block.count])
            for new, old in enumerate(order):
                result[at + new * size : at + (new + 1) * size] = source[
                    old * size : (old + 1) * size
                ]
    return bytes(result)


# -- lies --------------------------------------------------------------

Lie = tuple[str, bytes]


def field_lies(payload: bytes, parts: list[Part]) -> Iterator[Lie]:
    "Every number replaced by odd ones"
    for part in parts:
        n = struct.calcsize(part.form)
        bits, at = 8 * n, part.at
        value = int.from_bytes(payload[at : at + n], "little")
        near = {value - 1, value + 1, 2 * value, value ^ 1 << bits - 1, value + 256}
        far = {0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**31}
        if bits == 64:  # some of which wrap around when multiplied
            far |= {value + 2**32, 2**64 // 20 + 1, 2**64 - 12, 2**64 - 13}
        for new in sorted({number % 2**bits for number in near | far} - {value}):
            yield (
                part.name,
                payload[:at] + new.to_bytes(n, "little") + payload[at + n :],
            )


def some(parts: list[Part]) -> list[Part]:
    "Of the many of each name the first, the last and one between"
    named: dict[str, list[Part]] = {}
    for part in parts:
        named.setdefault(part.name, []).append(part)
    return [
        same[i]
        for same in named.values()
        for i in sorted({0, len(same) // 2, len(same) - 1})
    ]


def length_lies(payload: bytes, parts: list[Part]) -> Iterator[Lie]:
    "Cut at the begin of every field and around it, or with something after"
    ends = {part.at + d for part in parts for d in (0, 1)} | {len(payload) - 1, 0, 3}
    for end in sorted(ends):
        yield "cut short", payload[:end]
    for more in (b"\0", bytes(12), bytes(4096), payload[-100:], payload):
        yield "bytes after the end", payload + more


def whole_lies(payload: bytes, found: Anatomy, kind: str) -> Iterator[Lie]:
    "Payloads that agree with themselves, and not with the model or the tokens"
    for block in found.blocks:
        if block.name == "state":
            yield from _recurrent_lies(payload, block)
        else:
            yield from _attention_lies(payload, block)
    first, last = found.blocks[0], found.blocks[-1]
    yield "a block twice", payload[: first.end] + payload[first.at :]
    if first is not last:
        yield "a block less", payload[: first.end]
        yield "a block less", payload[:8] + payload[last.at :]
        yield (
            "blocks swapped",
            payload[:8] + payload[first.end :] + payload[8 : first.end],
        )
    if kind != "recurrent":
        cells = struct.pack("<II", 1, 0) + struct.pack("<II", 0, 0)
        yield "nothing in it", payload[:8] + cells
    yield "nothing in it", payload[:8]


def _attention_lies(payload: bytes, block: Block) -> Iterator[Lie]:
    count, n_layer = block.count, len(block.areas) // 2
    cells = block.at + 8
    layers = cells + 12 * count + 4
    areas = [payload[at - 12 : at + size * count] for at, size in block.areas]
    positions = [
        struct.unpack_from("<i", payload, cells + 12 * i)[0] for i in range(count)
    ]

    def rebuilt(changed: list[bytes], n: int = n_layer, transposed: int = 0) -> bytes:
        head = payload[: layers - 4] + struct.pack("<II", transposed, n)
        return head + b"".join(changed) + payload[block.end :]

    def moved(new: list[int]) -> bytes:
        spoilt = bytearray(payload)
        for i, position in enumerate(new):
            struct.pack_into("<i", spoilt, cells + 12 * i, position)
        return bytes(spoilt)

    name = block.name
    for by in (-1, 1, 64, 2**20, -(2**30)):
        yield f"{name} moved", moved([p + by for p in positions])
    if count > 1:
        yield f"{name} twice", moved([positions[0]] * count)
        yield f"{name} twice", moved([positions[0], *positions[:-1]])
        yield f"{name} with a gap", moved([*positions[:-1], positions[-1] + 1])
        yield f"{name} with a gap", moved([positions[0] - 1, *positions[1:]])
        if name == "cells":
            yield "cells in another order", moved(positions[::-1])
        short = [
            area[:12] + area[12 + size * (count - 1) :]
            for area, (_, size) in zip(areas, block.areas, strict=True)
        ]
        yield (
            "a shorter window" if name == "window" else "cells too few",
            payload[: block.at + 4]
            + struct.pack("<I", 1)
            + payload[cells + 12 * (count - 1) : layers + 4]
            + b"".join(short)
            + payload[block.end :],
        )
    keys, values = areas[:n_layer], areas[n_layer:]
    yield f"{name}: a layer less", rebuilt(keys[:-1] + values[:-1], n_layer - 1)
    yield f"{name}: a layer more", rebuilt(keys + keys[-1:] + values * 2, n_layer + 1)
    yield f"{name}: no layer", rebuilt([], 0)
    yield f"{name}: keys only", rebuilt(keys)
    yield f"{name}: half the layers, twice", rebuilt(areas, 2 * n_layer)
    (_, size) = block.areas[0]
    kind = areas[0][:4]
    wide = kind + struct.pack("<Q", 2 * size) + areas[0][12:] + areas[1][12:]
    none = kind + struct.pack("<Q", 0)
    yield f"{name}: rows of two layers in one", rebuilt([wide, none, *areas[2:]])
    transposed = [
        value[:4] + struct.pack("<II", 2, size // 2) + value[12:]
        for value, (_, size) in zip(values, block.areas[n_layer:], strict=True)
    ]
    yield f"{name}: transposed", rebuilt(keys + transposed, transposed=1)
    empty = [kind + struct.pack("<II", 0, 2**32 - 1)] * n_layer
    yield f"{name}: rows of nothing", rebuilt(keys + empty, transposed=1)
    yield f"{name}: rows of nothing", rebuilt([none] * (2 * n_layer))


def _recurrent_lies(payload: bytes, block: Block) -> Iterator[Lie]:
    head, layers = payload[: block.at], payload[block.at + 16 : block.at + 20]
    areas = [payload[at - 12 : at + size] for at, size in block.areas]
    (position,) = struct.unpack_from("<i", payload, block.at + 4)

    def rebuilt(cells: bytes, changed: list[bytes], s_trans: int = 0) -> bytes:
        count = struct.pack("<I", len(cells) // 8)
        return b"".join(
            [head, count, cells, struct.pack("<I", s_trans), layers, *changed]
        )

    cell = struct.pack("<iI", position, 0)
    with_ids = struct.pack("<iIi", position, 1, 0)
    several = [area + area[12:] for area in areas]
    yield "state: two cells", rebuilt(cell * 2, several)
    yield "state: two cells", rebuilt(cell + bytes(8), several)  # reads as no layers
    yield (
        "state: two cells",
        rebuilt(cell + struct.pack("<iI", position - 1, 0), several),
    )
    yield (
        "state: a hundred cells",
        rebuilt(cell * 100, [a + a[12:] * 99 for a in areas]),
    )
    yield "state: no cell", rebuilt(b"", [])
    yield "state: no cell", rebuilt(b"", [area[:12] for area in areas])
    yield (
        "state: with a sequence",
        b"".join([head, struct.pack("<I", 1), with_ids, bytes(4), layers, *areas]),
    )
    yield "state: a layer less", rebuilt(cell, areas[:-1])
    yield "state: a layer less", rebuilt(cell, areas[1:])
    yield "state: a layer more", rebuilt(cell, [*areas, areas[-1]])
    yield "state: nothing in it", rebuilt(cell, [])
    yield "state: transposed", rebuilt(cell, areas, s_trans=1)
    for area in (areas[0], areas[-1]):
        others = [one for one in areas if one is not area]
        if len(area) < 20:  # this architecture has none here
            continue
        smaller = area[:4] + struct.pack("<Q", len(area) - 16) + area[16:]
        larger = area[:4] + struct.pack("<Q", len(area) - 8) + area[12:] + bytes(4)
        half = (
            struct.pack("<iQ", 1, (len(area) - 12) // 2) + area[12 : 6 + len(area) // 2]
        )
        for changed in (smaller, larger, half, area[:12], area[:4] + bytes(8)):
            yield "state: another row", rebuilt(cell, [changed, *others])
            yield "state: another row", rebuilt(cell, [*others, changed])


def row_lies(
    payload: bytes, found: Anatomy, rng: Random
) -> Iterator[tuple[bytes, bool]]:
    "Payloads whose rows hold something else, and whether that is all numbers"
    for block in found.blocks:
        areas = [(at, size) for at, size in block.areas if size]
        chosen = {0, len(areas) - 1, *range(0, len(areas), 7)}
        half = block.name != "state"
        for at, size in (areas[i] for i in sorted(chosen)):
            form, step = ("<e", 2) if half else ("<f", 4)
            where = at + step * rng.randrange(size * block.count // step)
            for value in (float("nan"), float("inf"), float("-inf"), 1.0, -2.5):
                spoilt = bytearray(payload)
                struct.pack_into(form, spoilt, where, value)
                if bytes(spoilt) != payload:
                    yield bytes(spoilt), abs(value) < 3


def noise(payload: bytes, found: Anatomy, rng: Random) -> bytes:
    "A payload damaged anywhere, more often where it says what it is"
    spoilt = bytearray(payload)
    kind = rng.randrange(6)
    if kind <= 2:
        for _ in range(rng.choice([1, 1, 2, 3])):
            part = rng.choice(found.parts)
            at = part.at + rng.randrange(struct.calcsize(part.form))
            spoilt[at] = (
                rng.randrange(256) if kind else spoilt[at] ^ 1 << rng.randrange(8)
            )
        return bytes(spoilt)
    begin = rng.randrange(len(payload))
    end = min(len(payload), begin + rng.choice([1, 4, 12, 64, 1000]))
    if kind == 3:
        return payload[:begin] + rng.randbytes(end - begin) + payload[end:]
    if kind == 4:
        return payload[:begin] + payload[end:]
    return payload[:end] + payload[begin:]


# -- running -----------------------------------------------------------


@dataclass
class Answer:
    "What came of a prompt"

    tokens: list[int]
    restored: int
    miss_reason: str | None


class Home:
    "A model, a store with three answers in a chain, and what is right"

    def __init__(self, model: str, folder: Path):
        self.model = model
        root = folder / f"home-{model}"
        shutil.rmtree(root, ignore_errors=True)
        path = embedded_model()
        if model != "smollm2":
            path = folder / f"{model}.gguf"
            if not path.exists():
                synth.write(model, path)
        assert path is not None
        self.warnings: list[str] = []
        settings = Settings(n_threads=1, n_seq=3)
        self.session: Session = open_session(
            Load(path), settings, root, self.warnings.append
        )
        self.engine: Engine = self.session.engine
        weights = self.engine.weights
        self.shape = weights.kind, weights.n_swa > 0
        assert self.session.store is not None
        self.store = self.session.store
        self.messages: list[Any] = []
        self.entries: list[Entry] = []
        for i, question in enumerate(QUESTIONS):
            self.messages.append(llm.user(question))
            generation, text = self._generate(self.messages)
            self.messages.append(llm.assistant(text))
            entry = generation.commit(f"r{i}")
            assert entry is not None
            self.entries.append(entry)
        self.files = [self.path(entry).read_bytes() for entry in self.entries]
        self.payloads = []
        for entry in self.entries:
            with self.store.open(entry) as rows:
                self.payloads.append(bytes(rows))
        live = self.ask()  # from what is in memory still
        self.right = self.ask_anew()
        assert self.right == replace(live, restored=self.right.restored)
        assert self.right.restored == self.entries[-1].state.end, self.right
        self.without = [self._answer_without(entry) for entry in self.entries]

    def path(self, entry: Entry) -> Path:
        return self.store.path(entry.state)

    def _generate(self, messages: list[Any]) -> tuple[Generation, str]:
        generation = self.session.generate(
            Request(messages=list(messages), sampling=GREEDY, max_tokens=N)
        )
        return generation, "".join(generation)

    def ask(self) -> Answer:
        generation, _ = self._generate([*self.messages, llm.user(LAST)])
        facts = generation.facts
        tokens = list(generation.tokens[generation.answer :])
        return Answer(tokens, facts["restored_tokens"], facts["miss_reason"])

    def ask_anew(self) -> Answer:
        "As a new process asks: nothing in memory"
        self.clear()
        return self.ask()

    def clear(self) -> None:
        slots = self.session.slots
        for slot in slots._slots:
            assert not slot.busy
            slots.truncate(slot, 0)

    def _answer_without(self, entry: Entry) -> Answer:
        "What is answered when a file is missing; the same rows are decoded again"
        self.path(entry).unlink()
        answer = self.ask_anew()
        assert answer.miss_reason == "state file is missing"
        self.put_back(entry)
        return answer

    def put_back(self, entry: Entry) -> None:
        "The good file, and the index as it was"
        data = self.files[self.entries.index(entry)]
        put(self.path(entry), data)
        current = self.store.get(entry.state.response_id, entry.state.fingerprint)
        if current is None or (current.state, current.nbytes) != (
            entry.state,
            len(data),
        ):
            self.store.adopt(entry.state, len(data))

    def is_right(self) -> bool:
        "Whether good files are restored and lead to the right answer"
        return self.ask_anew() == self.right

    def prepare(self, which: int) -> None:
        "Sequence 0 as it is before the state is appended, nothing in the others"
        self.clear()
        self.engine.reserve(512)
        for entry, payload in zip(self.entries[:which], self.payloads, strict=False):
            self.restore(payload, entry)

    def restore(self, payload: bytes, entry: Entry) -> None:
        view = memoryview(bytearray(payload))
        start, end = entry.state.start, entry.state.end
        self.engine.restore(0, view, start, end, end)

    def holds(self, which: int, payload: bytes) -> bool:
        "Whether the rows of a state, now in sequence 0, are those of a payload"
        state = self.entries[which].state
        found = self.engine.capture(0, state.start, state.end)
        if found == payload:
            return True
        try:
            expected = canonical(payload, *self.shape)
        except (AssertionError, struct.error):  # not a payload at all
            return False
        return canonical(found, *self.shape) == expected

    def is_as_before(self, which: int) -> bool:
        "Whether a refusal left everything as it was"
        lengths = [self.engine.length(seq) for seq in range(4)]  # and the scratch one
        return lengths == [self.entries[which].state.start, 0, 0, 0]


def run_files(home: Home, seed: int, first: int, n: int, report: Report) -> None:
    "Damaged files in place of good ones, restored from directly and by a prompt"
    for i in range(first, first + n):
        rng = rng_of(seed, i)
        which = rng.randrange(len(home.entries))
        entry = home.entries[which]
        name, data = mutated(rng, home.files, ACCIDENTS, which)
        if rng.random() < 0.02:
            name, data = "an older file", home.files[which - 1]
        announce(i, name)
        report.tried += 1
        put(home.path(entry), data)
        home.prepare(which)
        start, end = entry.state.start, entry.state.end
        try:
            with home.store.open(entry) as payload:
                report.accepted[name] += 1
                report.failures.append(f"{case(home, seed, i, name)}: accepted")
                home.engine.restore(0, payload, start, end, end)
        except StateError as error:
            report.refuse(error)
        asked = home.model != "smollm2" or i % (2 * EVERY) == 0 or i == first + n - 1
        if asked:
            answer = home.ask_anew()
            expected = replace(home.without[which], miss_reason=answer.miss_reason)
            if answer != expected or not answer.miss_reason:
                report.failures.append(f"{case(home, seed, i, name)}: {answer}")
        home.put_back(entry)
        home.prepare(which)
        home.restore(home.payloads[which], entry)
        if not home.holds(which, home.payloads[which]):
            report.failures.append(f"{case(home, seed, i, name)}: good rows differ")
        if i % EVERY == 0 and not decodes_right(home, which):
            report.failures.append(f"{case(home, seed, i, name)}: wrong tokens after")
        if asked and not home.is_right():
            report.failures.append(f"{case(home, seed, i, name)}: a wrong answer after")


def run_payloads(
    home: Home, seed: int, first: int, n: int, report: Report, thorough: bool = False
) -> None:
    """Lies about each state in turn, given to the engine; at the end n random ones.

    ``thorough``: about every cell and every layer.
    """
    i = -1
    for which, good in enumerate(home.payloads):
        found = anatomy(good, *home.shape)
        parts = found.parts if thorough else some(found.parts)
        lies = list(field_lies(good, parts))
        lies += length_lies(good, parts)
        lies += whole_lies(good, found, home.shape[0])
        for name, data in lies:
            i += 1
            if i >= first:
                try_payload(home, which, name, data, f"{i} {name}", report)
        for data, finite in row_lies(good, found, rng_of(seed, which)):
            i += 1
            if i >= first:
                announce(i, "rows")
                check_finite(home, which, data, finite, report)
                if finite:
                    try_payload(home, which, "rows", data, f"{i} rows", report)
    first = max(first, i + 1)
    for number in range(first, first + n):
        rng = rng_of(seed, number)
        which = rng.randrange(len(home.payloads))
        good = home.payloads[which]
        data = noise(good, anatomy(good, *home.shape), rng)
        if data != good:
            try_payload(home, which, None, data, f"{number} noise", report)
    announce(first + n, "by a prompt")
    ask_about_lies(home, report, 1 if thorough or home.model != "smollm2" else 12)


def try_payload(
    home: Home, which: int, name: str | None, data: bytes, label: str, report: Report
) -> None:
    "One payload; ``name`` is that of the lie, None where anything may be changed"
    print("CASE", label, flush=True)  # noqa: T201
    report.tried += 1
    entry, where = home.entries[which], f"{home.model}, state {which}, {label}"
    home.prepare(which)
    try:
        home.restore(data, entry)
    except StateError as error:
        report.refuse(error)
        if name in ACCEPTED:
            report.failures.append(f"{where}: refused ({error})")
        if not home.is_as_before(which):
            report.failures.append(f"{where}: refused, yet something changed")
    else:
        report.accepted[name or "noise"] += 1
        if name is not None and name not in ACCEPTED:
            report.failures.append(f"{where}: accepted")
        elif not home.holds(which, data):
            report.failures.append(f"{where}: other rows than it said")
        home.prepare(which)
    home.restore(home.payloads[which], entry)
    if not home.holds(which, home.payloads[which]):
        report.failures.append(f"{where}: good rows differ afterwards")
    if report.tried % EVERY == 0 and not decodes_right(home, which):
        report.failures.append(f"{where}: wrong tokens afterwards")
    if report.tried % (20 * EVERY) == 0 and not home.is_right():
        report.failures.append(f"{where}: a wrong answer afterwards")


def decodes_right(home: Home, which: int) -> bool:
    "Whether sequence 0, just restored, goes on as it did the first time"
    key = f"_next_{which}"
    drawn, at = [], home.engine.length(0)
    sampler = home.engine.sampler(GREEDY, array("i"))
    token = 30
    for _ in range(3):
        (index,) = home.engine.decode([Feed(0, at, array("i", [token]))])
        token = home.engine.sample(sampler, index)
        drawn.append(token)
        at += 1
    sampler.close()
    expected: list[int] = vars(home).setdefault(key, drawn)
    return drawn == expected


def check_finite(
    home: Home, which: int, data: bytes, finite: bool, report: Report
) -> None:
    state = home.entries[which].state
    found = home.engine.is_finite(bytearray(data), state.start, state.end)
    report.tried += 1
    if found != finite:
        report.failures.append(
            f"{home.model}, state {which}: rows {'are no' if finite else 'are'} numbers"
        )
    elif finite:
        report.accepted["finite rows"] += 1
    else:
        report.refused["state payload holds values that are no numbers"] += 1


def ask_about_lies(home: Home, report: Report, step: int) -> None:
    """Stored with sound digests, found by a prompt: each a miss, each answered right.

    Every ``step``th of the lies about each state.
    """
    for which, entry in enumerate(home.entries):
        good = home.payloads[which]
        found = anatomy(good, *home.shape)
        nan, _ = next(row_lies(good, found, rng_of(0, which)))
        lies = [("not a number", nan), *whole_lies(good, found, home.shape[0])]
        lies = [lie for lie in dict(lies).items() if lie[0] not in ACCEPTED]
        for name, data in lies[::step]:
            report.tried += 1
            where = f"{home.model}, state {which}, {name} by a prompt"
            origin = "somebody" if name == "not a number" else None
            home.store.put(replace(entry.state, origin=origin), data)
            answer = home.ask_anew()
            reason = answer.miss_reason or ""
            report.refuse(StateError(f"by a prompt: {reason}"))
            if answer != replace(home.without[which], miss_reason=reason) or not reason:
                report.failures.append(f"{where}: {answer}")
            home.put_back(entry)
        if not home.is_right():
            report.failures.append(f"{home.model}, state {which}: a wrong answer after")


def announce(i: int, name: str) -> None:
    print("CASE", i, name, flush=True)  # noqa: T201


def case(home: Home, seed: int, i: int, name: str) -> str:
    return f"{home.model}, seed {seed}, file {i} ({name})"


def main(arguments: list[str]) -> None:
    model, task, seed, first, n, folder = arguments
    home, report = Home(model, Path(folder)), Report()
    for which in range(len(home.entries)):  # before anything hostile
        home.prepare(which)
        home.restore(home.payloads[which], home.entries[which])
        assert decodes_right(home, which)
    if task == "files":
        run_files(home, int(seed), int(first), int(n), report)
    else:
        thorough = task == "all-payloads"
        run_payloads(home, int(seed), int(first), int(n), report, thorough)
    if home.warnings:
        report.failures.append(f"{model}: warned: {home.warnings[:3]}")
    print("REPORT", json.dumps(vars(report)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
