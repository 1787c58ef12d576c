"""The llama.cpp bindings, loaded late and quietly.

The idea: only ``llama_cpp.llama_cpp``, the ctypes layer, is needed. Importing the
package ``llama_cpp`` also imports numpy, jinja2 and its chat code, and takes four times
as long, so the submodule is imported without running the package's ``__init__``. If
another plugin imports ``llama_cpp`` later, it still gets the whole package, sharing the
bindings that are loaded.

The invariant: llama.cpp writes nothing to the terminal. The last errors that it
reported are kept for the messages of our exceptions.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ModelLoadError
from .threads import choose_spins

_ERROR, _CONTINUATION = 4, 5  # enum ggml_log_level
_SOURCE = re.compile(r"^(?:llama|gguf|ggml)_\w+: ")  # the function that reports it
_ECHOES = ("failed to load model", "failed to read header")  # of an earlier message
_errors: collections.deque[str] = collections.deque(maxlen=8)
_callbacks: list[Any] = []  # C holds a pointer to them


@functools.cache
def llama() -> Any:
    "The ctypes bindings, with their log silenced and the backends started"
    # Without this a crash inside ggml starts gdb, if it is installed
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    choose_spins()
    try:
        bindings = _import_bindings()
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"Cannot load llama-cpp-python: {error}. "
            "Reinstall it: llm install --force-reinstall llama-cpp-python"
        ) from None
    _callbacks.append(bindings.llama_log_callback(_on_log))
    bindings.llama_log_set(_callbacks[0], None)
    bindings.llama_backend_init()
    return bindings


def listen() -> None:
    """Forget old errors and redirect llama.cpp's log, before a call that may fail.

    Another plugin may have imported the whole package, which sends the log to the
    terminal.
    """
    llama().llama_log_set(_callbacks[0], None)
    _errors.clear()


def _import_bindings() -> Any:
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("it is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["llama_cpp"] = package
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if sys.modules.get("llama_cpp") is package:
            del sys.modules["llama_cpp"]


def _on_log(level: int, text: bytes | None, _: Any) -> None:
    if level == _ERROR and text:
        _errors.append(text.decode("utf-8", "replace").strip())


@contextlib.contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and other signals that Python handles, until the end.

    For calls during which llama.cpp calls Python: an exception would be lost there.
    Yields a function that tells whether there was a signal.
    """
    caught: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and callable(handler := signal.getsignal(number)):
                handlers[number] = handler
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: caught.append(number))
        yield lambda: bool(caught)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            signal.raise_signal(number)


def take_errors() -> str:
    "What llama.cpp reported as errors since listen(), as one line"
    said = dict.fromkeys(_SOURCE.sub("", line) for line in _errors if line)
    _errors.clear()
    telling = [line for line in said if line not in _ECHOES] or list(said)
    return "; ".join(telling) or "llama.cpp gave no reason"


@contextlib.contextmanager
def stderr() -> Iterator[Callable[[], str]]:
    "Capture what C writes to standard error; yields a function that returns it"
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            yield read
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@functools.cache
def row_validator() -> Callable[[int, int, int], bool]:
    """ggml's test for NaN and infinite values: (ggml type, address, bytes).

    Always true if the shared library does not export it.
    """
    try:
        validate = llama()._lib.ggml_validate_row_data
    except AttributeError:  # pragma: no cover  (Windows)
        return lambda *_: True
    validate.restype = ctypes.c_bool
    validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return lambda *arguments: bool(validate(*arguments))


@functools.cache
def build() -> str:
    "Versions of the bindings, of llama.cpp, and of its state format"
    bindings = llama()
    own = bindings.llama_version()
    own = own.decode() if isinstance(own, bytes) else own
    package = importlib.metadata.version("llama-cpp-python")
    return f"{package}/{own}/seq{bindings.LLAMA_STATE_SEQ_VERSION}"
