"""Hostile states against a real engine, in a process that may crash.

The idea: prompts store a chain of three answers. Then, one file at a time is damaged
and restored (``files``), or lying rows and snapshots are given to the engine directly
(``payloads``), or are stored with valid digests and found by a prompt (``prompts``).
Lies are every field with odd values, then consistent blobs of something else, then
noise. A refusal must change nothing; what is accepted must do what it says and be
listed in ``ACCEPTED``; an answer must be the one that decoding the whole prompt gives.

The invariant: each case is printed before it is tried, so that the parent process knows
what caused a crash.

    python -m tests.support.fuzz_engine MODEL TASK SEED FIRST N FOLDER

TASK is files, payloads, prompts, all-payloads or all-prompts.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import llm
import numpy as np

from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings
from llm_kvbranch.errors import StateError
from llm_kvbranch.inference.session import Generation, Request, Session, open_session
from llm_kvbranch.models.catalog import embedded_model
from llm_kvbranch.store.chain import Entry

from . import synth
from .fuzz import ACCIDENTS, Random, Report, hit, mutated, put, rng_of

GREEDY = Sampling(temperature=0)
SETTINGS = Settings(n_threads=1, n_seq=3)
QUESTIONS = ("Tell me of the sea.", "And then? What became of them?", "Who says so?")
LAST = "Why?"
N = 4  # tokens of an answer
LONG = 40  # tokens of a toy's second answer, with snapshots inside
CLOSE = 0.05  # in logits; the likeliest tokens are typically 0.2 apart
EVERY = 25  # cases between checks that good states are still restored

# Changes that llama.cpp accepts; only digests can detect them. It ignores sequence ids,
# and no field says which rows are right or how many a window had; rows before the
# window are not read. Where positions have several dimensions, only the first can be
# checked; the others, and a token id beside them, are for images. A shorter window is
# not wrong for sliding: it reaches less far, or is not used.
_ROWS = {"blob.sequence", "cells.seq_id", "cells in another order", "rows"}
_WIDE = {"cells.x", "cells.y", "cells.token"}
_SNAPSHOT = {"blob.sequence", "rows"}
_WINDOW = {
    *("window.seq_id", "window in another order"),
    *("a shorter window", "a longer window"),
}
ACCEPTED = {
    *(f"restore: {name}" for name in _ROWS | _WIDE),
    *(f"resume: {name}" for name in _SNAPSHOT | _WINDOW),
    *(f"slide: {name}" for name in _SNAPSHOT | _WINDOW),
}


# -- the parts of blobs ------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a model's blobs look like.

    ``wide`` cells have positions of several dimensions.
    """

    kind: str
    windowed: bool
    wide: bool = False

    @property
    def has_snapshots(self) -> bool:
        return self.kind != "attention" or self.windowed


@dataclass
class Part:
    "One number in a blob: a format of struct, and where it is"

    name: str
    form: str
    at: int


@dataclass
class Block:
    "The cells of one kind of memory, and the rows of each layer"

    name: str
    at: int
    count: int
    cell: int = 12
    areas: list[tuple[int, int]] = field(default_factory=list)  # (offset, row size)
    end: int = 0


@dataclass
class Anatomy:
    "``tail`` is where the end of the rows begins"

    parts: list[Part] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    tail: int = 0


def anatomy(blob: bytes | bytearray, shape: Shape, is_snapshot: bool) -> Anatomy:
    "The parts of good rows or a good snapshot, parsed independently of the package"
    found = Anatomy([Part("blob.magic", "<I", 0), Part("blob.sequence", "<i", 4)])
    at = 8
    if is_snapshot:
        if shape.windowed:
            at = _attention_block(blob, at, Block("window", at, 0), found)
        if shape.kind != "attention":
            at = _recurrent_block(blob, at, found)
    else:
        if shape.kind != "recurrent":
            cells = Block("cells", at, 0, 24 if shape.wide else 12)
            at = _attention_block(blob, at, cells, found)
        found.tail = at
        at = _tail(blob, at, shape, found)
    assert at == len(blob), "a good blob is not understood"
    return found


def _attention_block(blob: Any, at: int, block: Block, found: Anatomy) -> int:
    name, more = block.name, ("x", "y", "token") if block.cell > 12 else ()
    (block.count,) = struct.unpack_from("<I", blob, at + 4)
    found.parts += [
        Part(f"{name}.streams", "<I", at),
        Part(f"{name}.count", "<I", at + 4),
    ]
    at += 8
    for _ in range(block.count):
        for part in ("position", "n_seq", *more, "seq_id"):
            form = "<I" if part == "n_seq" else "<i"
            found.parts.append(Part(f"{name}.{part}", form, at))
            at += 4
    transposed, n_layer = struct.unpack_from("<II", blob, at)
    assert not transposed
    found.parts += [
        Part(f"{name}.transposed", "<I", at),
        Part(f"{name}.layers", "<I", at + 4),
    ]
    at += 8
    for _ in range(2 * n_layer):
        at = _area(blob, at, block, found)
    block.end = at
    found.blocks.append(block)
    return at


def _recurrent_block(blob: Any, at: int, found: Anatomy) -> int:
    block = Block("state", at, 1)
    for part in ("count", "position", "n_seq", "transposed", "layers"):
        form = "<i" if part == "position" else "<I"
        found.parts.append(Part(f"state.{part}", form, at))
        at += 4
    while at < len(blob):
        at = _area(blob, at, block, found)
    block.end = at
    found.blocks.append(block)
    return at


def _tail(blob: Any, at: int, shape: Shape, found: Anatomy) -> int:
    "What llama.cpp writes for an empty window or recurrent state"
    names = ("streams", "count") if shape.windowed else ()
    if shape.kind != "attention":
        names = (*names, "cells", "transposed", "layers")
    for name in names:
        found.parts.append(Part(f"tail.{name}", "<I", at))
        at += 4
    while shape.kind != "attention" and at < len(blob):
        at = _area(blob, at, Block("tail", at, 0), found)
    return at


def _area(blob: Any, at: int, block: Block, found: Anatomy) -> int:
    (size,) = struct.unpack_from("<Q", blob, at + 4)
    found.parts.append(Part(f"{block.name}.type", "<i", at))
    found.parts.append(Part(f"{block.name}.row size", "<Q", at + 4))
    block.areas.append((at + 12, size))
    return at + 12 + size * block.count


def canonical(blob: bytes | bytearray, shape: Shape, is_snapshot: bool) -> bytes:
    "A blob with cells in order of position, without sequence ids"
    result = bytearray(blob)
    found = anatomy(blob, shape, is_snapshot)
    for part in found.parts:
        if part.name.endswith(("sequence", "seq_id")):
            struct.pack_into(part.form, result, part.at, 0)
    for block in found.blocks:
        if block.name == "state":
            continue
        positions = _positions(blob, block)
        order = sorted(range(block.count), key=positions.__getitem__)
        for at, size in [(block.at + 8, block.cell), *block.areas]:
            source = bytes(result[at : at + size * block.count])
            for new, old in enumerate(order):
                result[at + new * size : at + (new + 1) * size] = source[
                    old * size : (old + 1) * size
                ]
    return bytes(result)


def _positions(blob: Any, block: Block) -> list[int]:
    cells = block.at + 8
    at = range(cells, cells + block.cell * block.count, block.cell)
    return [struct.unpack_from("<i", blob, where)[0] for where in at]


def window_of(snapshot: bytes | bytearray, shape: Shape) -> dict[int, bytes]:
    "The content of a window's snapshot by position, in all layers"
    (block,) = anatomy(snapshot, shape, True).blocks
    return {
        position: b"".join(
            snapshot[at + i * size : at + (i + 1) * size] for at, size in block.areas
        )
        for i, position in enumerate(_positions(snapshot, block))
    }


# -- lies --------------------------------------------------------------

Lie = tuple[str, bytes]


def field_lies(payload: bytes, parts: list[Part]) -> Iterator[Lie]:
    "Replace each number with odd ones"
    for part in parts:
        n = struct.calcsize(part.form)
        bits, at = 8 * n, part.at
        value = int.from_bytes(payload[at : at + n], "little")
        near = {value - 1, value + 1, 2 * value, value ^ 1 << bits - 1, value + 256}
        far = {0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**31}
        if bits == 64:  # some overflow when multiplied
            far |= {value + 2**32, 2**64 // 20 + 1, 2**64 - 12, 2**64 - 13}
        for new in sorted({number % 2**bits for number in near | far} - {value}):
            yield (
                part.name,
                payload[:at] + new.to_bytes(n, "little") + payload[at + n :],
            )


def some(parts: list[Part]) -> list[Part]:
    "Of the cases of each name, the first, the last and one between"
    named: dict[str, list[Part]] = {}
    for part in parts:
        named.setdefault(part.name, []).append(part)
    return [
        same[i]
        for same in named.values()
        for i in sorted({0, len(same) // 2, len(same) - 1})
    ]


def length_lies(payload: bytes, parts: list[Part]) -> Iterator[Lie]:
    "Cut at and around the start of every field, or extend"
    ends = {part.at + d for part in parts for d in (0, 1)} | {len(payload) - 1, 0, 3}
    for end in sorted(ends):
        yield "cut short", payload[:end]
    for more in (b"\0", bytes(12), bytes(4096), payload[-100:], payload):
        yield "bytes after the end", payload + more


def rows_lies(rows: bytes, found: Anatomy, snapshot: bytes) -> Iterator[Lie]:
    "Consistent rows that do not match the model or the tokens"
    for block in found.blocks:
        yield from _attention_lies(rows, block)
        yield "a block twice", rows[: block.end] + rows[block.at :]
        cells = struct.pack("<II", 1, 0) + struct.pack("<II", 0, 0)
        yield "nothing in it", rows[:8] + cells
    yield "nothing in it", rows[:8]
    tail = rows[found.tail :]
    if tail:
        yield "no tail", rows[: found.tail]
        yield "another tail", rows + tail
        yield "another tail", rows[: found.tail] + bytes(len(tail))
        yield "another tail", rows[: found.tail] + tail[:-12] + tail[-4:]
        yield "a snapshot in them", rows[: found.tail] + snapshot[8:]
        yield "a snapshot", snapshot


def snapshot_lies(
    snapshot: bytes, found: Anatomy, rows: bytes, others: Sequence[bytes]
) -> Iterator[Lie]:
    "The same for snapshots; ``others`` are those of other positions"
    for block in found.blocks:
        if block.name == "state":
            yield from _recurrent_lies(snapshot, block)
        else:
            yield from _attention_lies(snapshot, block)
        yield "a block twice", snapshot[: block.end] + snapshot[block.at :]
    first, last = found.blocks[0], found.blocks[-1]
    if first is not last:
        yield "a block less", snapshot[: first.end]
        yield "a block less", snapshot[:8] + snapshot[last.at :]
    yield "nothing in it", snapshot[:8]
    yield "nothing in it", snapshot[:8] + struct.pack("<IIII", 1, 0, 0, 0)
    yield "rows in its place", rows
    if len(rows) > 8 + 12 * 32:  # recurrent models have none
        yield "rows in it", rows + snapshot[8:]
        yield "rows in it", snapshot + rows[8:]
        yield "rows without an end", rows[:-8]
    for other in others:
        yield "another one", other


def _attention_lies(payload: bytes, block: Block) -> Iterator[Lie]:
    count, n_layer = block.count, len(block.areas) // 2
    cells = block.at + 8
    layers = cells + block.cell * count + 4
    areas = [payload[at - 12 : at + size * count] for at, size in block.areas]
    positions = _positions(payload, block)

    def rebuilt(changed: list[bytes], n: int = n_layer, transposed: int = 0) -> bytes:
        head = payload[: layers - 4] + struct.pack("<II", transposed, n)
        return head + b"".join(changed) + payload[block.end :]

    def moved(new: list[int]) -> bytes:
        spoilt = bytearray(payload)
        for i, position in enumerate(new):
            struct.pack_into("<i", spoilt, cells + block.cell * i, position)
        return bytes(spoilt)

    name = block.name
    for by in (-1, 1, 64, 2**20, -(2**30)):
        yield f"{name} moved", moved([p + by for p in positions])
    if count > 1:
        yield f"{name} twice", moved([positions[0]] * count)
        yield f"{name} twice", moved([positions[0], *positions[:-1]])
        yield f"{name} with a gap", moved([*positions[:-1], positions[-1] + 1])
        yield f"{name} with a gap", moved([positions[0] - 1, *positions[1:]])
        yield f"{name} in another order", moved(positions[::-1])
        short = [
            area[:12] + area[12 + size * (count - 1) :]
            for area, (_, size) in zip(areas, block.areas, strict=True)
        ]
        yield (
            "a shorter window" if name == "window" else "cells too few",
            payload[: block.at + 4]
            + struct.pack("<I", 1)
            + payload[cells + block.cell * (count - 1) : layers + 4]
            + b"".join(short)
            + payload[block.end :],
        )
    if name == "window" and min(positions) > 0:
        earlier = range(max(0, min(positions) - count), min(positions))
        more, n = len(earlier), count + len(earlier)
        long = [
            area[:12] + area[12 : 12 + size * more] + area[12:]
            for area, (_, size) in zip(areas, block.areas, strict=True)
        ]
        yield (
            "a longer window",
            payload[: block.at + 4]
            + struct.pack("<I", n)
            + b"".join(struct.pack("<iIi", position, 1, 0) for position in earlier)
            + payload[cells : layers + 4]
            + b"".join(long)
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
    yield "state: two cells", rebuilt(cell + bytes(8), several)  # parsed as no layers
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
        if len(area) < 20:  # absent in this architecture
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
    "Blobs with other row contents, and whether all of them are numbers"
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
    "A blob damaged anywhere, but more often in its metadata"
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
    "The answer to a prompt; the prompt's tokens come first"

    prompt: list[int] = field(repr=False)
    tokens: list[int]
    restored: int
    miss_reason: str | None


Read = tuple[int, int | None]  # by a prompt: which file, and its rows or which snapshot


class Home:
    """A model, a store with a chain of three answers, and the expected results.

    ``reads`` has what each of ``prompts`` needs, ``right`` its expected answer, and
    ``without`` the expected answer when a file is missing.
    """

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
        self.prepared: list[int] = []
        self.session: Session = open_session(
            Load(path), SETTINGS, root, self.warnings.append
        )
        self.engine: Engine = self.session.engine
        weights = self.engine.weights
        self.shape = Shape(weights.kind, weights.n_swa > 0, model == "qwen35")
        assert self.session.store is not None
        self.store = self.session.store
        self.read: set[Read] = set()
        self._watch()
        self.entries: list[Entry] = []
        self._converse()
        self.files = [self.path(entry).read_bytes() for entry in self.entries]
        self.payloads: list[bytes] = []
        self.snapshots: list[dict[int, bytes]] = []
        for entry in self.entries:
            with self.store.open(entry) as (rows, snapshots):
                self.payloads.append(bytes(rows))
                copies = {mark: bytes(part) for mark, part in snapshots.items()}
                self.snapshots.append(copies)
        self._oracle = Engine(weights, replace(SETTINGS, n_seq=1))
        self._asked: dict[tuple[tuple[int, ...], tuple[int, ...]], bool] = {}
        self.reads: dict[str, set[Read]] = {}
        self.right: dict[str, Answer] = {}
        self.without: dict[tuple[str, int], Answer] = {}
        for prompt in self.prompts:
            self._learn(prompt)

    def _converse(self) -> None:
        "Three answers, and prompts that continue each or branch inside one"
        messages: list[Any] = []
        self.prompts: dict[str, list[Any]] = {}
        for i, question in enumerate(QUESTIONS):
            messages.append(llm.user(question))
            long = i == 1 and self.shape.has_snapshots
            generation, text = self._generate(messages, LONG if long else N)
            entry = generation.commit(f"r{i}")
            assert entry is not None
            self.entries.append(entry)
            if long:
                half = llm.assistant(text[: 3 * len(text) // 4])
                self.prompts["inside r1"] = [*messages, half, llm.user(LAST)]
            messages.append(llm.assistant(text))
            if self.shape.has_snapshots or i == len(QUESTIONS) - 1:
                self.prompts[f"after r{i}"] = [*messages, llm.user(LAST)]
        self.last = f"after r{len(QUESTIONS) - 1}"

    def _learn(self, prompt: str) -> None:
        "Record what a prompt needs and its expected answer"
        self.right[prompt] = right = self.ask_anew(prompt)
        self.reads[prompt] = reads = set(self.read)
        assert right.miss_reason is None or prompt == "inside r1", right
        assert right.restored > 0, right
        assert any(mark for _, mark in reads) == self.shape.has_snapshots, reads
        assert self.is_oracles(right), "the oracle says something else"
        live = self.ask(prompt)  # from memory
        assert live.tokens == right.tokens
        for which in sorted({which for which, _ in reads}):
            self.path(self.entries[which]).unlink()
            answer = self.without[prompt, which] = self.ask_anew(prompt)
            assert answer.miss_reason == "state file is missing"
            assert answer.restored < right.restored
            assert self.is_oracles(answer), "the oracle says something else"
            self.put_back(which)

    def _watch(self) -> None:
        "Record which parts of which files are opened"
        home = self

        class Watched:
            prefetch = staticmethod(self.store.prefetch)

            def open(self, entry: Entry, marks: Sequence[int], *more: Any) -> Any:
                which = int(entry.state.response_id[1:])
                home.read |= {(which, mark) for mark in (None, *marks)}
                return home.store.open(entry, marks, *more)

        self.session.filler.store = Watched()

    def path(self, entry: Entry) -> Path:
        return self.store.path(entry.state)

    def _generate(self, messages: list[Any], n: int) -> tuple[Generation, str]:
        generation = self.session.generate(
            Request(messages=list(messages), sampling=GREEDY, max_tokens=n)
        )
        return generation, "".join(event.text for event in generation)

    def ask(self, prompt: str) -> Answer:
        self.read.clear()
        generation, _ = self._generate(self.prompts[prompt], N)
        facts, at = generation.facts, generation.n_prompt
        return Answer(
            list(generation.tokens[:at]),
            list(generation.tokens[at:]),
            facts["restored_tokens"],
            facts["miss_reason"],
        )

    def ask_anew(self, prompt: str) -> Answer:
        "Ask as a new process would, with nothing in memory"
        self.clear()
        return self.ask(prompt)

    def clear(self) -> None:
        slots = self.session.slots
        for slot in slots._slots:
            assert not slot.busy
            slots.truncate(slot, 0)

    def is_oracles(self, answer: Answer) -> bool:
        "Whether decoding the whole prompt alone gives the same answer"
        key = tuple(answer.prompt), tuple(answer.tokens)
        if key not in self._asked:
            self._asked[key] = self._is_close(answer)
        return self._asked[key]

    def _is_close(self, answer: Answer) -> bool:
        engine, tokens = self._oracle, array("i", answer.prompt)
        engine.reserve(512)
        engine.cut(0, 0)
        behind = []
        for token in answer.tokens:
            feed = Feed(0, engine.length(0), tokens)
            (index,) = engine.decode([feed])
            pointer = engine._llama.llama_get_logits_ith(engine._context, index)
            logits = np.ctypeslib.as_array(pointer, (engine.weights.n_vocab,))
            behind.append(float(logits.max() - logits[token]))
            tokens = array("i", [token])
        return len(behind) == N and max(behind) <= CLOSE

    def misses(self) -> Counter[str]:
        return Counter({row["reason"]: row["count"] for row in self.store.misses()})

    def why_not_missed(self, prompt: str, which: int) -> str | None:
        """What is wrong with an answer when a part of a file cannot be used.

        None if it is the same as without the file, and the reason is reported and
        counted once.
        """
        before = self.misses()
        answer = self.ask_anew(prompt)
        reason, counted = answer.miss_reason or "", self.misses() - before
        entry = self.store.get(f"r{which}")
        if answer != replace(self.without[prompt, which], miss_reason=reason):
            return f"{answer}"
        if not reason or counted != Counter([reason]):
            return f"{reason!r} is told, counted are {counted}"
        if entry is None or entry.gone != reason:
            return f"{reason!r} is told, of the file {entry and entry.gone!r} is known"
        return None

    def put_back(self, which: int) -> None:
        "Put back the good file and the index"
        entry, data = self.entries[which], self.files[which]
        put(self.path(entry), data)
        current = self.store.get(entry.state.response_id, entry.state.fingerprint)
        if current is None or (current.state, current.nbytes) != (
            entry.state,
            len(data),
        ):
            self.store.add_to_index(entry.state, len(data))

    def is_right(self, prompt: str) -> bool:
        "Whether good files are restored and give the right answer"
        return self.ask_anew(prompt) == self.right[prompt]

    # -- sequences -----------------------------------------------------

    def prepare(self, which: int) -> None:
        """Set up sequence 0 as before a state is appended.

        With snapshots, sequence 1 has the first state, as a bystander.
        """
        self.clear()
        self.engine.reserve(512)
        if self.shape.has_snapshots:
            self.restore(0, seq=1)
            self.resume(0, seq=1)
        self.lead_up(which)
        self.prepared = self.sizes()

    def sizes(self) -> list[int]:
        """The size of each sequence in bytes, the scratch sequence last.

        Incomplete rows have a size, although their length is 0.
        """
        engine = self.engine
        size_of = engine._llama.llama_state_seq_get_size_ext
        return [size_of(engine._context, seq, 0) for seq in range(4)]

    def lead_up(self, which: int) -> None:
        for before in range(which):
            self.restore(before)
        if which:
            self.resume(which - 1)

    def restore(
        self, which: int, rows: bytes | None = None, upto: int = 0, seq: int = 0
    ) -> None:
        "Restore a state's rows, or others in their place"
        state = self.entries[which].state
        view = memoryview(bytearray(self.payloads[which] if rows is None else rows))
        start, end = state.start, state.end
        self.engine.restore(seq, view, start, end, upto or end, start)

    def resume(self, which: int, data: bytes | None = None, seq: int = 0) -> None:
        "Resume from a state's last snapshot, or another in its place"
        if self.shape.has_snapshots:
            view = memoryview(bytearray(self.last_of(which) if data is None else data))
            end = self.entries[which].state.end
            self.engine.resume(seq, view, end, cut=False)

    def slide(self, which: int, data: bytes | None = None) -> bool:
        view = memoryview(bytearray(self.last_of(which) if data is None else data))
        state = self.entries[which].state
        return self.engine.slide(0, view, state.end, state.start, self.middle(which))

    def last_of(self, which: int) -> bytes:
        "A state's last snapshot, or None if it only has rows"
        return self.snapshots[which].get(self.entries[which].state.end, b"")

    def middle(self, which: int) -> int:
        state = self.entries[which].state
        return (state.start + state.end) // 2

    def holds(self, which: int, payload: bytes) -> bool:
        "Whether the rows in sequence 0 are those of a payload"
        state = self.entries[which].state
        return self._same(self.engine.capture(0, state.start, state.end), payload)

    def remembers(self, snapshot: bytes, seq: int = 0) -> bool:
        "Whether a sequence's state matches a snapshot"
        if not self.shape.has_snapshots:
            return True
        found = self.engine.snapshot(seq)
        if self._same(found, snapshot, is_snapshot=True):
            return True
        if not self.shape.windowed:
            return False
        seen, said = window_of(found, self.shape), window_of(snapshot, self.shape)
        return seen == {
            at: said[at] for at in said if at >= max(said) + 1 - synth.WINDOW
        }

    def _same(self, one: Any, other: bytes, is_snapshot: bool = False) -> bool:
        if one == other:
            return True
        try:
            expected = canonical(other, self.shape, is_snapshot)
        except (AssertionError, struct.error):  # not a good one at all
            return False
        return canonical(one, self.shape, is_snapshot) == expected

    def slid(self, which: int, data: bytes) -> bool:
        "Whether the window of sequence 0 matches a snapshot, up to the middle"
        start, middle = self.entries[which].state.start, self.middle(which)
        expected = window_of(self.last_of(which - 1), self.shape) if which else {}
        theirs = window_of(data, self.shape)
        expected |= {at: theirs[at] for at in range(start, middle)}
        expected = {at: expected[at] for at in expected if at >= middle - synth.WINDOW}
        return window_of(self.engine.snapshot(0), self.shape) == expected

    def stands_by(self) -> bool:
        "Whether only sequence 0 changed, and the scratch sequence is empty"
        if self.sizes()[1:] != self.prepared[1:]:
            return False
        return self.remembers(self.last_of(0), seq=1)

    def is_as_before(self, which: int) -> bool:
        "Whether a refusal left sequence 0 unchanged since ``prepare``"
        if self.engine.length(0) != self.entries[which].state.start:
            return False
        if self.sizes()[0] != self.prepared[0]:
            return False
        return not which or self.remembers(self.last_of(which - 1))


def run_files(home: Home, seed: int, first: int, n: int, report: Report) -> None:
    "Restore damaged files in place of good ones, directly and by a prompt"
    for i in range(first, first + n):
        rng = rng_of(seed, i)
        which = rng.randrange(len(home.entries))
        name, data = mutated(rng, home.files, ACCIDENTS, which)
        if rng.random() < 0.02:
            name, data = "an older file", home.files[which - 1]
        announce(i, name)
        report.tried += 1
        put(home.path(home.entries[which]), data)
        home.prepare(which)
        where = f"{home.model}, seed {seed}, file {i} ({name})"
        parts = hit(home.files[which], data)
        read_file(home, which, name, where, parts, report)
        asked = home.model != "smollm2" or i % (2 * EVERY) == 0 or i == first + n - 1
        prompts = [p for p, reads in home.reads.items() if (which, None) in reads]
        prompt = rng.choice(prompts)
        if asked:
            lost = {None} if parts is None else parts
            if home.reads[prompt] & {(which, part) for part in lost}:
                problem = home.why_not_missed(prompt, which)
            else:  # the damaged part is not needed
                problem = None if home.is_right(prompt) else "it was needed"
            if problem:
                report.failures.append(f"{where}, {prompt}: {problem}")
        home.put_back(which)
        home.prepare(which)
        goes_on(home, which, where, report)
        if i % EVERY == 0 and not decodes_right(home, which):
            report.failures.append(f"{where}: wrong tokens after")
        if asked and not home.is_right(prompt):
            report.failures.append(f"{where}, {prompt}: a wrong answer after")


def read_file(
    home: Home,
    which: int,
    name: str,
    where: str,
    parts: set[int | None] | None,
    report: Report,
) -> None:
    "A damaged file must be refused, and so must each damaged part"
    entry = home.entries[which]
    try:
        with home.store.open(entry) as (payload, _):
            report.accepted[name] += 1
            report.failures.append(f"{where}: accepted")
            home.restore(which, bytes(payload))
    except StateError as error:
        report.refuse(error)
    if parts is not None and None not in parts:
        report.partial += 1
    for mark in (None, *home.snapshots[which]):
        good = parts is not None and not parts & {None, mark}
        try:
            wanted = () if mark is None else (mark,)
            with home.store.open(entry, wanted) as (rows, snapshots):
                expected = {at: home.snapshots[which][at] for at in wanted}
                if not good or rows != home.payloads[which] or snapshots != expected:
                    report.failures.append(f"{where}: a part of it was accepted")
        except StateError as error:
            if good:
                report.failures.append(f"{where}: a good part was refused ({error})")


# How a blob is used: the name of the Engine method
OPS = ("restore", "resume", "slide")


def run_payloads(
    home: Home, seed: int, first: int, n: int, report: Report, thorough: bool = False
) -> int:
    """Give lies about each state to the engine, then n random ones.

    ``thorough``: about every cell and layer. Returns the number of cases.
    """
    i = -1
    for which in range(len(home.entries)):
        for op in ops_of(home):
            good = blob_of(home, which, op)
            found = anatomy(good, home.shape, op != "restore")
            parts = found.parts if thorough else some(found.parts)
            lies = list(field_lies(good, parts))
            lies += length_lies(good, parts)
            lies += whole_lies(home, which, op)
            for name, data in lies:
                i += 1
                if i >= first:
                    try_blob(home, which, op, name, data, f"{i} {name}", report)
            for data, finite in row_lies(good, found, rng_of(seed, which)):
                i += 1
                if i < first:
                    continue
                announce(i, "rows")
                check_finite(home, which, op, data, finite, report)
                if finite:
                    try_blob(home, which, op, "rows", data, f"{i} rows", report)
    first = max(first, i + 1)
    for number in range(first, first + n):
        rng = rng_of(seed, number)
        which = rng.randrange(len(home.entries))
        op = rng.choice(ops_of(home))
        good = blob_of(home, which, op)
        data = noise(good, anatomy(good, home.shape, op != "restore"), rng)
        if data != good:
            try_blob(home, which, op, None, data, f"{number} noise", report)
    return first + n


def ops_of(home: Home) -> tuple[str, ...]:
    "The operations on a state; only a window can slide"
    if not home.shape.has_snapshots:
        return OPS[:1]
    return OPS if home.shape.windowed else OPS[:2]


def blob_of(home: Home, which: int, op: str) -> bytes:
    return home.payloads[which] if op == "restore" else home.last_of(which)


def whole_lies(home: Home, which: int, op: str, mark: int = 0) -> Iterator[Lie]:
    "Lies about a state's rows or one of its snapshots"
    rows, shape = home.payloads[which], home.shape
    if op == "restore":
        yield from rows_lies(rows, anatomy(rows, shape, False), home.last_of(which))
        return
    good = home.snapshots[which][mark] if mark else home.last_of(which)
    others = [other for one in home.snapshots for other in one.values()]
    others = [other for other in others if other != good]
    yield from snapshot_lies(good, anatomy(good, shape, True), rows, others)


def try_blob(
    home: Home,
    which: int,
    op: str,
    name: str | None,
    data: bytes,
    label: str,
    report: Report,
) -> None:
    "Try rows or a snapshot; ``name`` is the lie's, None for noise"
    print("CASE", label, flush=True)  # noqa: T201
    report.tried += 1
    where, named = f"{home.model}, state {which}, {op} {label}", f"{op}: {name}"
    home.prepare(which)
    if op != "restore":
        home.restore(which, upto=home.middle(which) if op == "slide" else 0)
    as_before = False
    try:
        reached = use(home, which, op, data)
    except StateError as error:
        report.refuse(error)
        if named in ACCEPTED:
            report.failures.append(f"{where}: refused ({error})")
        as_before = op == "restore"
        if not home.stands_by() or (as_before and not home.is_as_before(which)):
            report.failures.append(f"{where}: refused, yet something changed")
    else:
        report.accepted[named if name else "noise"] += 1
        if name is not None and named not in ACCEPTED:
            report.failures.append(f"{where}: accepted")
        elif not is_what_it_said(home, which, op, data, reached):
            report.failures.append(f"{where}: something else than it said")
        elif name is not None:  # noise may contain NaN, which spreads
            home.engine.decode([Feed(0, home.engine.length(0), array("i", [30]))])
        if not home.stands_by():
            report.failures.append(f"{where}: accepted, and others changed")
    if not as_before:  # a slot drops its sequence when a snapshot is refused
        home.engine.cut(0, 0)
        home.lead_up(which)
    goes_on(home, which, where, report)
    look_around(home, which, where, report)


def look_around(home: Home, which: int, where: str, report: Report) -> None:
    "Check from time to time that good states still give the same tokens"
    if report.tried % EVERY == 0 and not decodes_right(home, which):
        report.failures.append(f"{where}: wrong tokens afterwards")
    if report.tried % (20 * EVERY) == 0 and not home.is_right(home.last):
        report.failures.append(f"{where}: a wrong answer afterwards")


def use(home: Home, which: int, op: str, data: bytes) -> bool:
    "Use a blob; returns whether it was accepted"
    if op == "slide":
        return home.slide(which, data)
    if op == "resume":
        home.resume(which, data)
    else:
        home.restore(which, data)
    return True


def is_what_it_said(
    home: Home, which: int, op: str, data: bytes, reached: bool
) -> bool:
    "Whether sequence 0 matches the accepted blob"
    if not reached:  # then it ends where it did, as without rows
        return home.is_as_before(which)
    if op == "slide":
        return home.slid(which, data) and home.engine.length(0) == home.middle(which)
    if op == "resume":
        return home.remembers(data) and home.holds(which, home.payloads[which])
    if not home.holds(which, data):
        return False
    home.resume(which)
    return home.remembers(home.last_of(which))


def goes_on(home: Home, which: int, where: str, report: Report) -> None:
    "A good state must still be restored as it was stored"
    home.restore(which)
    home.resume(which)
    snapshot = home.last_of(which)
    if not home.holds(which, home.payloads[which]) or not home.remembers(snapshot):
        report.failures.append(f"{where}: a good state differs afterwards")


def decodes_right(home: Home, which: int) -> bool:
    "Whether the restored sequence 0 continues as it did the first time"
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
    home: Home, which: int, op: str, data: bytes, finite: bool, report: Report
) -> None:
    state, copy = home.entries[which].state, bytearray(data)
    if op == "restore":
        found = home.engine.is_finite(copy, state.start, state.end)
    else:
        found = home.engine.is_finite_snapshot(copy, state.end)
    report.tried += 1
    if found != finite:
        report.failures.append(
            f"{home.model}, state {which}, {op}: these {'are no' if finite else 'are'}"
            " numbers"
        )
    elif finite:
        report.accepted["finite rows"] += 1
    else:
        report.refused["state payload holds NaN or infinite values"] += 1


# Other replacements for a part of a file
MISSING, DAMAGED, NO_NUMBER = "missing", "damaged", "not a number"


def run_prompts(
    home: Home, first: int, report: Report, step: int, begin: int = 0
) -> None:
    """Store lies with valid digests; prompts must report a miss and answer right.

    Runs every ``step``th lie about each part that a prompt needs, counted from
    ``begin`` on.
    """
    i = begin - 1
    for prompt, reads in home.reads.items():
        for which, mark in sorted(reads, key=lambda read: (read[0], read[1] or 0)):
            for name, data in prompt_lies(home, prompt, which, mark, step):
                i += 1
                if i >= first:
                    announce(i, name)
                    ask_about(home, prompt, (which, mark), name, data, report)
        if not home.is_right(prompt):
            report.failures.append(f"{home.model}, {prompt}: a wrong answer after")


def prompt_lies(
    home: Home, prompt: str, which: int, mark: int | None, step: int
) -> Iterator[Lie]:
    "The replacements for rows or a snapshot that a prompt needs"
    op = "resume"
    if mark is None:
        if prompt != home.last:
            return  # another prompt would try the same
        good, op = home.payloads[which], "restore"
    else:
        good = home.snapshots[which][mark]
        yield MISSING, b""
    yield DAMAGED, good[:-1] + bytes([good[-1] ^ 1])
    found = anatomy(good, home.shape, mark is not None)
    for data, _ in row_lies(good, found, rng_of(0, which)):
        yield NO_NUMBER, data
        break
    lies = dict(whole_lies(home, which, op, mark or 0))
    refused = [lie for lie in lies.items() if f"{op}: {lie[0]}" not in ACCEPTED]
    yield from refused[which % step :: step]
    if is_slide(home, prompt, which, mark):
        yield "a shorter window", lies["a shorter window"]


def is_slide(home: Home, prompt: str, which: int, mark: int | None) -> bool:
    "Whether a prompt needs a snapshot beyond where it reaches"
    return mark is not None and mark > home.right[prompt].restored


def ask_about(
    home: Home, prompt: str, read: Read, name: str, data: bytes, report: Report
) -> None:
    which, mark = read
    entry, rows = home.entries[which], home.payloads[which]
    snapshots = dict(home.snapshots[which])
    good = rows if mark is None else snapshots[mark]
    if mark is None:
        rows = data
    elif name == MISSING:
        del snapshots[mark]
    else:
        snapshots[mark] = data
    report.tried += 1
    where = f"{home.model}, {prompt}, state {which}, {mark}, {name}"
    if name == DAMAGED:
        assert home.files[which].count(good) == 1
        put(home.path(entry), home.files[which].replace(good, data))
    else:
        origin = "somebody" if name == NO_NUMBER else None
        home.store.put(replace(entry.state, origin=origin), rows, None, snapshots)
    if name in (MISSING, "a shorter window"):  # the file is good
        answer, restored = home.ask_anew(prompt), home.right[prompt].restored
        report.accepted[f"by a prompt: {name}"] += 1
        # A window may slide from the next snapshot instead
        less = answer.restored < restored + (name == MISSING and home.shape.windowed)
        if not home.is_oracles(answer) or not less:
            report.failures.append(f"{where}: {answer}")
    else:
        problem = home.why_not_missed(prompt, which)
        if problem:
            report.failures.append(f"{where}: {problem}")
        current = home.store.get(f"r{which}")
        report.refuse(StateError(f"by a prompt: {current and current.gone}"))
    home.put_back(which)


def announce(i: int, name: str) -> None:
    print("CASE", i, name, flush=True)  # noqa: T201


def main(arguments: list[str]) -> None:
    model, task, seed, first, n, folder = arguments
    home, report = Home(model, Path(folder)), Report()
    for which in range(len(home.entries)):  # before anything hostile
        home.prepare(which)
        goes_on(home, which, "before the first case", report)
        assert decodes_right(home, which)
        if home.shape.windowed:
            home.prepare(which)
            home.restore(which, upto=home.middle(which))
            assert home.slide(which)
            assert home.slid(which, home.last_of(which))
    if task == "files":
        run_files(home, int(seed), int(first), int(n), report)
    elif task.endswith("payloads"):
        thorough = task == "all-payloads"
        done = run_payloads(home, int(seed), int(first), int(n), report, thorough)
        if not home.shape.has_snapshots:  # too few for a separate process
            run_prompts(home, int(first), report, 1 if thorough else 24, done)
    else:
        run_prompts(home, int(first), report, 1 if task == "all-prompts" else 2)
    if home.warnings:
        report.failures.append(f"{model}: warned: {home.warnings[:3]}")
    print("REPORT", json.dumps(vars(report)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
