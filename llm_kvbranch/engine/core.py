"""One context: sequences of decoded tokens, and their KV rows in and out.

The idea: a single unified KV cache holds several sequences. A sequence's rows [a, b)
are captured by copying that range to a scratch sequence, which shares the cells, and
asking llama.cpp for the scratch sequence's state. They are restored the same way
backwards. The context is only as large as its rows need; to grow, it is made again
around the same rows.

The invariants: nothing is restored straight into a live sequence. The scratch sequence
is empty between calls, also after a failure. After a decode that failed or was stopped,
the caller cuts its sequences back to the tokens that it knows of.

This module does not know messages, files or why something is restored.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ContextError, KVBranchError, StateError
from . import blob
from .classes import Classes, classes_of
from .lib import (
    build,
    listen,
    llama,
    signals_held,
    take_errors,
)
from .parameters import Settings, context_parameters, no_context
from .sampler import Sampler, Sampling
from .threads import check_process, default_threads, is_forked, own_process
from .weights import Weights

_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_MAX_CELLS = 1 << 30
_N_CTX_STEP = 256  # llama.cpp pads the context to this many cells


@dataclass
class Feed:
    "Tokens to decode into one sequence from a position on"

    seq: int
    start: int
    tokens: array[int]
    logits: bool = True  # of the last token


@dataclass(frozen=True)
class Kept:
    "A sequence that survives its context; rows below ``shared`` are its donor's"

    seq: int
    donor: int = -1
    shared: int = 0


class Engine:
    """A model and one context over it. Not thread-safe: one call at a time.

    ``n_ctx`` is the size of the context in cells. ``cuts_anywhere`` says whether a
    sequence can be cut at any position and continued; if not, snapshots are needed.
    ``window`` is the size in tokens of a sliding window, if that is all a sequence
    remembers beside its rows; else 0. ``classes`` says how many rows must be computed
    together to come out the same, bit for bit, as with more of them. A batch of a
    multiple of ``tile`` rows is cheapest, 1 if that does not matter.
    """

    def __init__(self, weights: Weights, settings: Settings):
        self.weights = weights
        self.settings = settings
        self.n_ctx = 0
        self.cuts_anywhere = weights.kind == "attention" and weights.n_swa == 0
        self.window = weights.n_swa if weights.kind == "attention" else 0
        known = classes_of(settings, on_cpu=not weights.gpu_layers)
        self.tile, self.classes = known.tile, known if self.cuts_anywhere else Classes()
        n_threads = settings.n_threads or default_threads()
        self._survives_fork = n_threads == 1 and not weights.gpu_layers
        self._llama = llama()
        self._context: Any = None
        self._memory: Any = None
        self._layout = blob.Layout()
        self._batch: Any = None
        self._scratch = settings.n_seq
        self._stop: Callable[[], bool] = lambda: False
        self._abort = self._llama.ggml_abort_callback(lambda _: self._stop())
        self._no_abort = self._llama.ggml_abort_callback(0)
        self.check_process()

    @property
    def n_ctx_train(self) -> int:
        "The most tokens that the model can place in a context, 0 for no limit"
        rope, trained = self.settings.rope, self.weights.n_ctx_train
        scale = rope.freq_scale or 1.0
        return round((rope.yarn_orig_ctx or trained) / scale) if scale < 1 else trained

    def check_process(self) -> None:
        "Raise KVBranchError in a forked process in which decode would never return"
        if not self._survives_fork:
            check_process()

    def close(self) -> None:
        if self.weights.gpu_layers and is_forked():
            self._batch = self._context = None  # the driver cannot free them here
        if getattr(self, "_batch", None) is not None:
            self._llama.llama_batch_free(self._batch)
            self._batch = None
        if getattr(self, "_context", None):
            self._llama.llama_free(self._context)
            self._context = self._memory = None
            self.n_ctx = 0

    __del__ = close

    def fingerprint(self, digest: Callable[[Path], str]) -> dict[str, str]:
        """All that must be equal for a stored state to be used with this model.

        ``digest`` returns the digest of a file's content.
        """
        load = self.weights.load
        lora = [f"{digest(path)} x {scale:g}" for path, scale in load.lora]
        fields = {
            "model": " ".join(map(digest, load.files)),
            "llama.cpp": build(),
            "kv_type": f"{self.settings.type_k}/{self.settings.type_v}",
            "flash_attn": self._flash_attn,
            "rope": str(self.settings.rope),
            "lora": ", ".join(lora) or "none",
            "n_rs_seq": "0",
            "attn_rot_disable": os.environ.get("LLAMA_ATTN_ROT_DISABLE", ""),
        }
        split = (load.split_mode, load.tensor_split, load.main_gpu)
        if split != ("layer", (), 0):
            shares = ":".join(f"{share:g}" for share in load.tensor_split)
            fields["split"] = f"{load.split_mode} {shares} {load.main_gpu}"
        return fields

    @functools.cached_property
    def _flash_attn(self) -> str:
        """The setting that states depend on: "off" if a GPU turned "auto" off.

        llama.cpp decides that when it makes a context, and shows it only in the layout
        of a state, where values are transposed without flash attention.
        """
        chosen, weights = self.settings.flash_attn, self.weights
        if chosen != "auto" or not weights.gpu_layers or weights.kind == "recurrent":
            return chosen
        self.reserve(1)
        self.decode([Feed(0, 0, array("i", [0]), logits=False)])
        transposed = blob.is_transposed(self.capture(0, 0, 1), self._layout)
        self.cut(0, 0)
        return "off" if transposed else chosen

    @property
    def placement(self) -> str:
        "Where layers and KV cache are, in words"
        split = self.weights.gpu_layers and not self.settings.offload_kqv
        return self.weights.placement + (", KV cache in main memory" if split else "")

    # -- the context ---------------------------------------------------

    def reserve(self, n_cells: int, live: Iterable[Kept] = ()) -> None:
        """Make room for n_cells in total, keeping the rows of the live sequences.

        Donors come before those that share their rows. Logits are lost. Raises
        ContextError when llama.cpp cannot allocate that much. Whether it raises or not,
        a sequence whose rows could not be kept has fewer than before, maybe none:
        compare ``length``.
        """
        if n_cells <= self.n_ctx:
            return
        if n_cells > _MAX_CELLS:
            raise ContextError(f"llama.cpp cannot make a context of {n_cells} tokens")
        kept = [(one, self._keep(one)) for one in live if self.length(one.seq)]
        size = -(-n_cells // _N_CTX_STEP) * _N_CTX_STEP
        previous = self.n_ctx
        self.close()
        try:
            self._create(size)
        except BaseException:
            if previous:  # that still fits
                self._create(previous)
                self._put_back(kept)
            raise
        self._put_back(kept)

    def _keep(self, one: Kept) -> tuple[int, bytearray]:
        "The length of a sequence, and those of its rows that no donor has"
        end = self.length(one.seq)
        if not self.cuts_anywhere:
            return end, self._get(one.seq)
        empty = one.shared >= end
        return end, bytearray() if empty else self.capture(one.seq, one.shared, end)

    def _create(self, n_ctx: int) -> None:
        try:
            self._make(n_ctx)
        except BaseException:
            self.close()  # it may lack adapters, or a batch
            raise

    def _make(self, n_ctx: int) -> None:
        lib, settings = self._llama, self.settings
        parameters = context_parameters(settings, n_ctx, not self.weights.gpu_layers)
        listen()
        with signals_held():
            self._context = lib.llama_init_from_model(self.weights.model, parameters)
        if not self._context:
            on_gpu = bool(self.weights.gpu_layers)
            raise ContextError(no_context(settings, n_ctx, on_gpu, take_errors()))
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(settings.n_batch, 0, 1)
        self.n_ctx = n_ctx
        self.weights.adapt(self._context)
        tail = b""
        if not self.cuts_anywhere:  # of the scratch sequence, which is empty
            tail = bytes(self._get(self._scratch, _PARTIAL)[blob.HEADER :])
        self._layout = blob.Layout(
            self.weights.kind,
            self.weights.n_swa,
            (parameters.type_k, parameters.type_v),
            blob.CELL_2D if self.weights.is_2d else blob.CELL,
            tail,
            self.weights.has_values,
        )

    def _put_back(self, kept: list[tuple[Kept, tuple[int, bytearray]]]) -> None:
        "Give sequences their rows; one that cannot have all of them is left empty"
        for one, (end, data) in kept:
            with contextlib.suppress(StateError):
                if not self.cuts_anywhere:
                    self._set(memoryview(data), one.seq)
                    continue
                if one.shared:
                    self.share(one.donor, one.seq, 0, one.shared)
                if data and self.length(one.seq) == one.shared:
                    self.restore(one.seq, memoryview(data), one.shared, end, end)
        for one, (end, _) in kept:
            if self.length(one.seq) != end:
                self.cut(one.seq, 0)

    # -- decoding ------------------------------------------------------

    def decode(
        self, feeds: list[Feed], stop: Callable[[], bool] | None = None
    ) -> list[int]:
        """Decode all feeds in one batch, at most ``n_batch`` tokens together.

        Returns for each feed the index to sample from, -1 without logits. Indices are
        valid until the next decode or reserve. ``stop`` is called during the
        computation. When it returns true, KeyboardInterrupt is raised, and the
        sequences hold an unknown part of the tokens. Raises ContextError when the
        context is full or was lost, KVBranchError when llama.cpp fails or would wait
        forever in a forked process.
        """
        if not self._survives_fork:
            own_process()
        if self._context is None:
            raise ContextError("The context was lost: llama.cpp could not make another")
        lib, batch = self._llama, self._batch
        n, indices = 0, []
        for feed in feeds:
            for offset, token in enumerate(feed.tokens):
                batch.token[n] = token
                batch.pos[n] = feed.start + offset
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = feed.seq
                batch.logits[n] = 0
                n += 1
            indices.append(n - 1 if feed.logits else -1)
            batch.logits[n - 1] = feed.logits
        batch.n_tokens = n
        if stop is not None:
            self._stop = stop
            lib.llama_set_abort_callback(self._context, self._abort, None)
        try:
            result = lib.llama_decode(self._context, batch)
        finally:
            if stop is not None:
                lib.llama_set_abort_callback(self._context, self._no_abort, None)
                self._stop = lambda: False
        if result == 2:
            raise KeyboardInterrupt
        if result == 1:
            raise ContextError(
                f"The context of {self.n_ctx} tokens is full: "
                "end other generations, or give a larger n_ctx"
            )
        if result != 0:
            raise KVBranchError(f"llama.cpp failed to decode: {take_errors()}")
        return indices

    def sampler(
        self, sampling: Sampling, history: array[int], waits: bool = False
    ) -> Sampler:
        """A sampler for one generation; ``history`` is what repetition penalties see.

        If it ``waits``, a constraint holds from its ``constrain()`` on.
        """
        return Sampler(self.weights, sampling, history, waits)

    def sample(self, sampler: Sampler, index: int) -> int:
        "Draw a token from the logits at an index that decode returned"
        return sampler.sample(self._context, index)

    # -- sequences -----------------------------------------------------

    def length(self, seq: int) -> int:
        "Position after the last token of a sequence, 0 when it is empty"
        if self._memory is None:
            return 0
        return int(self._llama.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def cut(self, seq: int, n: int) -> bool:
        """Forget the rows at positions >= n.

        False, with the sequence unchanged, if the architecture cannot do that: then a
        snapshot is needed.
        """
        lib, memory = self._llama, self._memory
        if memory is None:
            return True
        if n == 0:  # rows alone may count as length 0
            return bool(lib.llama_memory_seq_rm(memory, seq, -1, -1))
        if self.length(seq) <= n:
            return True
        return self.cuts_anywhere and bool(lib.llama_memory_seq_rm(memory, seq, n, -1))

    def share(self, source: int, seq: int, start: int, end: int) -> None:
        "Let a sequence share the rows [start, end) of another; takes no cells"
        self._llama.llama_memory_seq_cp(self._memory, source, seq, start, end)

    def capture(self, seq: int, start: int, end: int) -> bytearray:
        """The KV rows [start, end) of a sequence, in llama.cpp's format.

        Without what a sliding window or a recurrent layer remembers: see snapshot.
        """
        lib = self._llama
        lib.llama_memory_seq_cp(self._memory, seq, self._scratch, start, end)
        try:
            data = self._get(self._scratch)
        finally:
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)
        if self.cuts_anywhere:
            return data
        return blob.with_tail(data, start, end, self._layout)

    def snapshot(self, seq: int) -> bytearray:
        """What a sequence remembers beside its rows, as of now.

        With this and its rows it can be continued from here at any later time. For a
        sliding window these are the last rows, for recurrent layers their states.
        """
        return self._get(seq, _PARTIAL)

    def nbytes(self, seq: int, start: int, end: int) -> int:
        "How many bytes capture would return"
        lib, context, scratch = self._llama, self._context, self._scratch
        lib.llama_memory_seq_cp(self._memory, seq, scratch, start, end)
        try:
            size = int(lib.llama_state_seq_get_size_ext(context, scratch, 0))
            if not self.cuts_anywhere:
                appended = lib.llama_state_seq_get_size_ext(context, scratch, _PARTIAL)
                size += blob.HEADER - int(appended) + len(self._layout.tail)
            return size
        finally:
            lib.llama_memory_seq_rm(self._memory, scratch, -1, -1)

    def snapshot_nbytes(self, seq: int) -> int:
        "How many bytes snapshot would return, 0 if rows are enough to continue"
        if self.cuts_anywhere:
            return 0
        lib = self._llama
        return int(lib.llama_state_seq_get_size_ext(self._context, seq, _PARTIAL))

    def restore(
        self,
        seq: int,
        payload: memoryview,
        start: int,
        end: int,
        upto: int,
        begin: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Append captured rows [start, end) to a sequence, those below ``upto``.

        The sequence must have ``begin`` tokens (by default its length), at least
        ``start``, and they must be the same tokens. If rows are not enough to continue
        from, call resume before decoding. ``check`` is called when llama.cpp has read
        the payload, and may raise StateError. Raises StateError, with the sequence
        unchanged, when the payload does not fit.
        """
        begin = self.length(seq) if begin is None else begin
        lib = self._llama
        blob.check(payload, start, end, self._layout)
        try:
            read = self._set(payload, self._scratch)
            last = lib.llama_memory_seq_pos_max(self._memory, self._scratch)
            if read != len(payload) or (self.cuts_anywhere and last != end - 1):
                raise StateError(f"llama.cpp refuses the state ({take_errors()})")
            check()
            lib.llama_memory_seq_cp(self._memory, self._scratch, seq, begin, upto)
        finally:
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    def resume(
        self, seq: int, snapshot: memoryview, position: int, cut: bool = True
    ) -> None:
        """Make a sequence that has the rows up to a position, or more, end there.

        Without ``cut`` later rows stay, for slide. Raises StateError when the snapshot
        does not fit; the sequence must then be cleared.
        """
        lib = self._llama
        blob.check_snapshot(snapshot, position, self._layout)
        if self._set(snapshot, seq, _PARTIAL) != len(snapshot):
            raise StateError(f"llama.cpp refuses the state ({take_errors()})")
        removed = not cut or lib.llama_memory_seq_rm(self._memory, seq, position, -1)
        if not removed or self.length(seq) != position:
            raise StateError("llama.cpp cannot continue from the state")

    def slide(
        self, seq: int, snapshot: memoryview, position: int, begin: int, upto: int
    ) -> bool:
        """Move a window from ``begin`` to ``upto``, with the rows of a later snapshot.

        ``position`` is the snapshot's. False if the snapshot does not reach back to
        ``begin``, where the sequence then ends. Raises StateError like resume.
        """
        lib = self._llama
        blob.check_snapshot(snapshot, position, self._layout)
        if blob.window_start(snapshot, position) > begin:
            lib.llama_memory_seq_rm(self._memory, seq, begin, -1)
            return False
        try:
            if self._set(snapshot, self._scratch, _PARTIAL) != len(snapshot):
                raise StateError(f"llama.cpp refuses the state ({take_errors()})")
            lib.llama_memory_seq_cp(self._memory, self._scratch, seq, begin, upto)
        finally:
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)
        if self.length(seq) != upto:
            raise StateError("llama.cpp cannot continue from the state")
        return True

    def is_finite(self, payload: memoryview | bytearray, start: int, end: int) -> bool:
        """Whether captured rows hold no NaN or infinite value.

        Such values would spread, without flash attention even to other sequences.
        Raises StateError when the payload is not a capture of [start, end).
        """
        view = memoryview(payload)
        return blob.all_finite(view, blob.check(view, start, end, self._layout))

    def is_finite_snapshot(
        self, snapshot: memoryview | bytearray, position: int
    ) -> bool:
        "The same for the snapshot of a position"
        view = memoryview(snapshot)
        areas = blob.check_snapshot(view, position, self._layout)
        return blob.all_finite(view, areas)

    def _get(self, seq: int, flags: int = 0) -> bytearray:
        lib, context = self._llama, self._context
        size = lib.llama_state_seq_get_size_ext(context, seq, flags)
        data = bytearray(size)
        pointer = (ctypes.c_uint8 * size).from_buffer(data)
        written = lib.llama_state_seq_get_data_ext(context, pointer, size, seq, flags)
        if written != size:
            raise KVBranchError(f"llama.cpp could not write its state: {take_errors()}")
        return data

    def _set(self, payload: memoryview, seq: int, flags: int = 0) -> int:
        "Bytes that llama.cpp read, 0 when it refused"
        size = len(payload)
        pointer = (ctypes.c_uint8 * size).from_buffer(payload)
        return int(
            self._llama.llama_state_seq_set_data_ext(
                self._context, pointer, size, seq, flags
            )
        )
