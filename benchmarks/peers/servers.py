"""Starting the servers that are compared, each as its own documentation says.

All have the same model, threads, context, room for as many answers at once, one KV
cache for all of them in f16, and flash attention.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..harness.measurement import Tools
from .client import Server
from .worker import plain

OURS = "kvllama"
LLAMA = "llama-server"
SLOTS = "llama-server, slots"
PYTHON = "server.py"
READY_LINE = re.compile(r"OPENAI_BASE_URL=http://127\.0\.0\.1:(\d+)/v1 .*KEY=(\S+)")


@dataclass(frozen=True)
class Size:
    "What every server is given"

    n_ctx: int = 8192
    slots: int = 8


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a user with this home, no settings, and no other plugin of llm's.

    Nor with settings of Python's: without compiled modules all is slower to start.
    """
    return {
        **plain(),
        "LLM_USER_PATH": str(home),
        "LLM_LOAD_PLUGINS": "llm-kvbranch",
        **more,
    }


def start(name: str, tools: Tools, home: Path, size: Size) -> Server:
    "Start a server and wait until it answers"
    home.mkdir(parents=True, exist_ok=True)
    if name == OURS:
        return start_ours(tools, home, size)
    port = free_port()
    started = time.perf_counter()
    command = (
        python_command(tools, home, size, port)
        if name == PYTHON
        else llama_command(tools, home, size, port)
    )
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            command,
            env=plain(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
        )
    path = "healthz" if name == PYTHON else "health"
    while process.poll() is None:
        with contextlib.suppress(OSError):  # 503 while it loads the model
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5)
            took = time.perf_counter() - started
            return Server(name, port, "none", process, home, took)
        time.sleep(0.02)
    raise RuntimeError(f"{name} does not start: {(home / 'log').read_text()[-500:]}")


def start_ours(
    tools: Tools, home: Path, size: Size, more: Mapping[str, str] | None = None
) -> Server:
    started = time.perf_counter()
    command = [
        *(sys.executable, "-m", "llm", "kvbranch", "serve", "--port", "0"),
        *("--ctx", str(size.n_ctx), "--slots", str(size.slots), "--no-open"),
    ]
    settings = {"LLM_KVBRANCH_MODEL": str(tools.model), **(more or {})}
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            command,
            env=environment(home, **settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if found := READY_LINE.search(line):
            took = time.perf_counter() - started
            port, token = found.groups()
            return Server(OURS, int(port), token, process, home, took)
    raise RuntimeError(f"{OURS} does not start: {(home / 'log').read_text()[-500:]}")


def llama_command(tools: Tools, home: Path, size: Size, port: int) -> list[str]:
    """llama-server, with its defaults beside what all have in common.

    But for one: that idle slots are cleared when another is asked makes it read more
    of a tree again, and forget what was restored into them.
    """
    assert tools.llama is not None
    threads = str(tools.n_threads)
    return [
        *(str(tools.llama / "llama-server"), "-m", str(tools.model)),
        *("--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads),
        *("-c", str(size.n_ctx), "-np", str(size.slots), "--kv-unified"),
        *("--no-context-shift", "--slot-save-path", str(home), "--metrics"),
        "--no-cache-idle-slots",
    ]


def python_command(tools: Tools, home: Path, size: Size, port: int) -> list[str]:
    "llama-cpp-python's examples/server/server.py with its disk cache"
    threads = tools.n_threads
    config = {
        "server": {"port": port},
        "model": {
            "path": str(tools.model),
            "n_ctx": size.n_ctx,
            "n_seq_max": size.slots,
            "n_batch": 512,
            "threads": threads,
            "threads_batch": threads,
            "kv_unified": True,
            "flash_attn": True,
            "store_logits": False,
        },
        "disk_cache": {"path": str(home / "cache"), "max_bytes": 1 << 36},
    }
    path = home / "config.json"
    path.write_text(json.dumps(config))
    return [str(tools.peers), str(tools.server_py), "-C", str(path)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def forget_pages(folder: Path) -> int:
    "Have the kernel drop a folder's files from its page cache; bytes"
    nbytes = 0
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                nbytes += os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
    return nbytes
