"""An engine without a model, whose output shows every mistake in its KV rows.

The row at position i is a hash of the tokens up to i, and the next token is drawn from
a hash of all rows. A wrong, missing or misordered segment therefore changes the output,
and a comparison with ``oracle`` (the naive twin: decode everything, store nothing)
fails.

Its tokenizer prefers pairs of bytes but also generates single bytes, so tokenising
generated text again gives other ids.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

from llm_kvbranch.chat.template import CHATML, Chat
from llm_kvbranch.engine import Classes, Feed, Load, Sampling
from llm_kvbranch.errors import ContextError, StateError
from llm_kvbranch.inference.planning import Planner
from llm_kvbranch.inference.session import Session
from llm_kvbranch.store.store import Store

CONTROLS = {"<|im_start|>": 1, "<|im_end|>": 2}
NAMES = {token: text for text, token in CONTROLS.items()}
EOG = 2
BYTE, PAIR = 100, 1000
ROW = 16


class FakeVocab:
    "A vocabulary of bytes, pairs of bytes and two control tokens"

    bos_text = ""
    eos_text = "<|im_end|>"
    gpu_layers = 0
    chat_template = CHATML
    control_texts = tuple(CONTROLS)
    longest_piece = 2

    def __init__(self, n_ctx_train: int = 100_000):
        self.n_ctx_train = n_ctx_train

    def tokenize(self, text: str, special: bool, bos: bool = False) -> array[int]:
        tokens = array("i")
        while text:
            at, control = min(
                ((text.find(c), c) for c in CONTROLS if special and c in text),
                default=(len(text), None),
            )
            data = text[:at].encode()
            for i in range(0, len(data) - 1, 2):
                tokens.append(PAIR + data[i] * 256 + data[i + 1])
            if len(data) % 2:
                tokens.append(BYTE + data[-1])
            if control:
                tokens.append(CONTROLS[control])
            text = text[at + len(control or "") :]
        return tokens

    def piece(self, token: int) -> bytes:
        if token >= PAIR:
            return bytes(divmod(token - PAIR, 256))
        return bytes([token - BYTE]) if token >= BYTE else b""

    def is_user_defined(self, token: int) -> bool:
        return False

    def control_text(self, token: int) -> str:
        return NAMES.get(token, "")

    def text(self, token: int) -> str:
        return self.control_text(token) or self.piece(token).decode("utf-8", "replace")

    def is_eog(self, token: int) -> bool:
        return token == EOG


@dataclass(frozen=True)
class FakeSettings:
    n_batch: int = 16
    n_seq: int = 3


class FakeSampler:
    def constrain(self) -> None: ...

    def accept(self, token: int) -> None: ...

    def close(self) -> None: ...


class FakeEngine:
    """The part of Engine that Slots and Generation use.

    ``recurrent``: beside its rows, a sequence needs one value that cannot be rolled
    back. With a ``window``, that value is the last rows, which a later snapshot may
    also contain.
    """

    placement = "CPU"

    def __init__(
        self,
        recurrent: bool = False,
        window: int = 0,
        n_ctx_train: int = 100_000,
        settings: FakeSettings | None = None,
    ):
        self.weights = FakeVocab(n_ctx_train)
        self.n_ctx_train = n_ctx_train
        self.settings = settings or FakeSettings()
        self.memory_kind = {"recurrent": recurrent, "window": window}
        self.cuts_anywhere = not (recurrent or window)
        self.window = window
        self.tile, self.classes = 1, Classes()
        self.n_ctx = 0
        self.decoded: list[int] = []  # every token ever decoded
        self.n_batches = 0
        self.rows: dict[int, list[bytes]] = {}
        self.memory: dict[int, bytes] = {}  # the recurrent state
        self.seen: dict[int, dict[int, bytes]] = {}  # the window's rows
        self._logits: list[bytes] = []

    def check_process(self):
        "It works in any process"

    def reserve(self, n_cells, live=()):
        if n_cells <= self.n_ctx:
            return
        self.n_ctx, before, self.rows = n_cells, self.rows, {}
        self._logits = []  # of the discarded context
        for kept in live:  # in separate cells, except for shared rows
            if not before.get(kept.seq):
                continue
            rows = self.rows.get(kept.donor, [])[: kept.shared]
            assert rows == before[kept.seq][: kept.shared]
            rows += [_copy(row) for row in before[kept.seq][kept.shared :]]
            self.rows[kept.seq] = rows

    @property
    def n_cells(self) -> int:
        "Cells in use; rows shared by sequences count once"
        return len({id(row) for rows in self.rows.values() for row in rows})

    def decode(self, feeds: list[Feed], stop=None) -> list[int]:
        if stop is not None and stop():
            raise KeyboardInterrupt
        assert sum(len(feed.tokens) for feed in feeds) <= self.settings.n_batch
        self._logits = []
        self.n_batches += 1
        for feed in feeds:
            rows = self.rows.setdefault(feed.seq, [])
            assert feed.start == len(rows), "decoded at the wrong position"
            for token in feed.tokens:
                before = rows[-1] if rows else b""
                rows.append(_hash(before + struct.pack("<i", token)))
                memory = self.memory.get(feed.seq, b"")
                self.memory[feed.seq] = _hash(memory + rows[-1])
                seen = self.seen.setdefault(feed.seq, {})
                seen[len(rows) - 1] = _hash(b"seen" + rows[-1])
                self.decoded.append(token)
            self._logits.append(self._output(feed.seq) if feed.logits else b"")
        if self.n_cells > self.n_ctx:
            raise ContextError("full")
        return list(range(len(feeds)))

    def _output(self, seq: int) -> bytes:
        data = b"".join(self.rows[seq])
        if self.window:
            data += b"".join(self.seen[seq][at] for at in self._window(seq))
        elif not self.cuts_anywhere:
            data += self.memory[seq]
        return _hash(data)

    def _window(self, seq: int) -> range:
        "The positions in the window at the end of a sequence"
        n = len(self.rows[seq])
        return range(max(0, n - self.window), n)

    def sampler(self, sampling: Sampling, history, waits=False) -> FakeSampler:
        return FakeSampler()

    def sample(self, sampler, index: int) -> int:
        assert self._logits[index], "sampled without logits"
        return draw(self._logits[index])

    def length(self, seq: int) -> int:
        return len(self.rows.get(seq, ()))

    def cut(self, seq: int, n: int) -> bool:
        if self.length(seq) <= n:
            return True
        if n and not self.cuts_anywhere:
            return False
        del self.rows[seq][n:]
        if not n:
            self._forget(seq)
        return True

    def _forget(self, seq: int) -> None:
        "Drop the recurrent value, without which nothing can be decoded"
        self.memory.pop(seq, None)
        self.seen.pop(seq, None)

    def share(self, source: int, seq: int, start: int, end: int) -> None:
        rows = self.rows.setdefault(seq, [])
        assert len(rows) == start < end <= len(self.rows[source])
        rows += self.rows[source][start:end]
        self._forget(seq)

    def capture(self, seq: int, start: int, end: int) -> bytearray:
        rows = self.rows[seq]
        assert 0 <= start < end <= len(rows)
        data = struct.pack("<ii", start, end) + b"".join(rows[start:end])
        return bytearray(data)

    def snapshot(self, seq: int) -> bytearray:
        n = len(self.rows[seq])
        if self.window:
            data = b"".join(self.seen[seq][at] for at in self._window(seq))
        else:
            data = self.memory[seq]
        return bytearray(struct.pack("<i", n) + data)

    def is_finite(self, payload, start: int, end: int) -> bool:
        return True

    def is_finite_snapshot(self, snapshot, position: int) -> bool:
        return True

    def nbytes(self, seq: int, start: int, end: int) -> int:
        return 8 + ROW * (end - start)

    def snapshot_nbytes(self, seq: int) -> int:
        return 0 if self.cuts_anywhere else len(self.snapshot(seq))

    def restore(
        self,
        seq: int,
        payload,
        start: int,
        end: int,
        upto: int,
        begin=None,
        check=lambda: None,
    ) -> None:
        data = bytes(payload)
        if len(data) != 8 + ROW * (end - start):
            raise StateError("state payload has the wrong size")
        if struct.unpack_from("<ii", data) != (start, end):
            raise StateError("state payload holds other positions")
        check()
        rows = self.rows.setdefault(seq, [])
        begin = len(rows) if begin is None else begin
        assert start <= begin == len(rows) < upto <= end, "restored out of order"
        new = [data[8 + i * ROW : 8 + (i + 1) * ROW] for i in range(upto - start)]
        rows += new[begin - start :]
        if not self.window:
            self._forget(seq)

    def resume(self, seq: int, snapshot, position: int, cut: bool = True) -> None:
        data = bytes(snapshot)
        if struct.unpack_from("<i", data)[0] != position:
            raise StateError("state payload holds other positions")
        rows = self.rows[seq]
        assert len(rows) >= position, "resumed without rows"
        if cut:
            del rows[position:]
        self._forget(seq)
        if self.window:
            self.seen[seq] = dict(self._seen(data, position))
        else:
            self.memory[seq] = data[4:]

    def slide(self, seq: int, snapshot, position: int, begin: int, upto: int) -> bool:
        held = dict(self._seen(bytes(snapshot), position))
        assert len(self.rows[seq]) == upto, "slid without rows"
        if begin not in held:
            del self.rows[seq][begin:]
            return False
        seen = self.seen.setdefault(seq, {})
        seen |= {at: row for at, row in held.items() if begin <= at < upto}
        return True

    def _seen(self, data: bytes, position: int):
        rows = [data[at : at + ROW] for at in range(4, len(data), ROW)]
        return zip(range(position - len(rows), position), rows, strict=True)


def _copy(row: bytes) -> bytes:
    return bytes(bytearray(row))


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=ROW).digest()


def draw(logits: bytes) -> int:
    "A token drawn from a hash: usually text, sometimes the end of the turn"
    kind, first, second = logits[0], logits[1], logits[2]
    letters = b"abcdefgh \n.xyzABC"
    if kind < 16:
        return EOG
    if kind < 24:  # a character in two tokens
        return BYTE + 0xC3
    if kind < 120:
        return BYTE + letters[first % len(letters)]
    return PAIR + 256 * letters[first % len(letters)] + letters[second % len(letters)]


def oracle(
    tokens: array[int], n: int, recurrent: bool = False, window: int = 0
) -> list[int]:
    "At most n tokens, generated by an engine that never stored anything"
    engine = FakeEngine(recurrent, window, settings=FakeSettings(n_batch=1 << 30))
    engine.reserve(1 << 30)
    tokens, generated = array("i", tokens), []
    (index,) = engine.decode([Feed(0, 0, tokens)])
    while (token := engine.sample(None, index)) != EOG and len(generated) < n:
        generated.append(token)
        start = len(tokens) + len(generated) - 1
        (index,) = engine.decode([Feed(0, start, array("i", [token]))])
    return generated


def fake_session(
    root: Path | None,
    warnings: list[str] | None = None,
    fingerprint: str = "fake",
    template: str | None = None,
    **engine_options,
) -> Session:
    "A session as a new process would open it"
    engine = FakeEngine(**engine_options)
    store = Store(root) if root is not None else None
    planner = Planner(
        Chat(engine.weights, template),
        store,
        fingerprint,
        engine.cuts_anywhere,
        engine.window,
    )
    warn = (warnings if warnings is not None else []).append
    return Session(engine, planner, warn, Load(Path("fake.gguf")))
