"""llama-cpp-python built for a GPU, in an environment of its own.

What is built comes before what the present environment has, of which all the rest is
seen there, too. A build that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from .headers import ensure_headers

ROOT = Path(__file__).resolve().parent.parent.parent
BACKENDS = {  # what CMake is told, and the program without which there is no use
    "cuda": ("-DGGML_CUDA=on", "nvcc"),
    "metal": ("-DGGML_METAL=on", "xcrun"),
    "vulkan": ("-DGGML_VULKAN=on", "glslc"),
    "rocm": ("-DGGML_HIP=on", "hipcc"),
    "cpu": ("", "c++"),
}


def build(arguments: argparse.Namespace, work: Path) -> None:
    "llama-cpp-python for a GPU in an environment of its own, unless it is there"
    done, python = work / "built", environment_python(work)
    if done.exists():
        if arguments.backend not in (None, done.read_text()):
            sys.exit(f"{work} has a build for {done.read_text()}: use another --work")
        return
    backend = arguments.backend or found_backend()
    flag, compiler = BACKENDS[backend]
    flags = [flag, "-DLLAVA_BUILD=off"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if backend == "cuda" and (toolkit := found_toolkit()):
        compiler = environment["CUDACXX"] = str(toolkit / "bin" / "nvcc")
        flags += cuda_flags(toolkit, arguments.cuda, environment)
    if missing := list(missing_tools(compiler, offline=arguments.sdist is not None)):
        sys.exit(f"Cannot build for {backend}: there is no {', no '.join(missing)}")
    if backend == "vulkan":
        ensure_headers(work, environment)
    environment["CMAKE_ARGS"] = " ".join([*flags, environment.get("CMAKE_ARGS", "")])
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = str(arguments.jobs or os.cpu_count())
    make_environment(work)
    source = unpack(arguments.sdist or download(work), work)
    print(f"building {source.name} for {backend}", flush=True)
    command = [
        *(str(python), "-m", "pip", "install", "-v", "--no-deps"),
        *("--ignore-installed", f"--config-settings=build-dir={work / 'cmake'}"),
        str(source),
    ]
    if arguments.sdist:
        command += ["--no-build-isolation", "--no-index"]
    started = time.perf_counter()
    run_showing_progress(command, environment, work / "build.log")
    print(f"built in {time.perf_counter() - started:.0f} s")
    done.write_text(backend)


def found_backend() -> str:
    "The backend of the GPU that this machine seems to have"
    if sys.platform == "darwin":
        return "metal"
    for backend, program in (
        ("cuda", "nvidia-smi"),
        ("rocm", "rocminfo"),
        ("vulkan", "vulkaninfo"),
    ):
        if shutil.which(program):
            return backend
    sys.exit(f"No GPU found; name one with --backend {'|'.join(BACKENDS)}")


def found_toolkit() -> Path | None:
    "Where CUDA's compiler and libraries are"
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        folders.append(str(Path(nvcc).resolve().parent.parent))
    found = (Path(folder) for folder in folders if folder)
    return next((path for path in found if (path / "bin" / "nvcc").exists()), None)


def cuda_flags(
    toolkit: Path, architectures: str, environment: dict[str, str]
) -> Iterator[str]:
    """What CMake is told about CUDA; the environment gets what it must hear there.

    A toolkit may lack cuBLAS where a Python package has it (PyTorch brings it),
    and the driver's library to link with, which llama.cpp can do without.
    """
    yield f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"
    yield f"-DCUDAToolkit_ROOT={toolkit}"
    yield f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-rpath,{toolkit / 'lib64'}"
    stubs = ("lib*/stubs", "targets/*/lib/stubs", "lib/*/stubs", "lib/*")
    if not any(any(toolkit.glob(f"{place}/libcuda.so")) for place in stubs):
        yield "-DGGML_CUDA_NO_VMM=on"
    header = "include/cublas_v2.h"
    if any(any(toolkit.glob(place + header)) for place in ("", "targets/*/")):
        return
    for found in (f for p in sys.path for f in Path(p).glob(f"nvidia/*/{header}")):
        libraries = found.parent.parent / "lib"
        for name in ("cublas", "cublasLt"):
            (library,) = libraries.glob(f"lib{name}.so.*")
            yield f"-DCUDA_{name}_LIBRARY={library}"
        environment["CPATH"] = os.pathsep.join(
            filter(None, [str(found.parent), environment.get("CPATH")])
        )
        return


def missing_tools(compiler: str, offline: bool) -> Iterator[str]:
    "What a build needs and is not there"
    if importlib.util.find_spec("pip") is None:
        yield "pip (python -m ensurepip)"
    for program in ("c++", compiler) if compiler != "c++" else ("c++",):
        if not shutil.which(program):
            yield f"compiler {program} on the PATH"
    if not offline:  # pip gets the rest
        return
    if importlib.util.find_spec("scikit_build_core") is None:
        yield "Python package scikit-build-core"
    for program in ("cmake", "ninja"):
        if not shutil.which(program) and importlib.util.find_spec(program) is None:
            yield f"{program} (a program on the PATH or a Python package)"


def environment_python(work: Path) -> Path:
    return work / "env" / "bin" / "python"


def make_environment(work: Path) -> None:
    "An empty environment that sees what this one sees, after what is its own"
    venv.EnvBuilder(with_pip=False, symlinks=True, clear=True).create(work / "env")
    # Not as PYTHONPATH: that comes before what the environment has of its own
    folders = [f for f in os.environ.get("PYTHONPATH", "").split(os.pathsep) if f]
    folders += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    lines = [f"import site; site.addsitedir({os.path.abspath(f)!r})" for f in folders]
    library = next((work / "env" / "lib").glob("python3*")) / "site-packages"
    (library / "zz_outer.pth").write_text("\n".join(lines) + "\n")


def download(work: Path) -> Path:
    "The source distribution of the version that is installed, or of the newest"
    name = "llama-cpp-python"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        name += f"=={importlib.metadata.version(name)}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "llama-cpp-python", "-d", str(work / "sdist"), name]
    subprocess.run(command, check=True)
    return next((work / "sdist").glob("*.tar.gz"))


def unpack(sdist: Path, work: Path) -> Path:
    "The sources in a place that stays the same, so that a build can go on"
    source = work / "source"
    if not source.exists():
        shutil.rmtree(unfinished := work / "unpacking", ignore_errors=True)
        if sdist.is_dir():
            shutil.copytree(sdist, unfinished / sdist.name)
        else:
            with tarfile.open(sdist) as archive:
                archive.extractall(unfinished, filter="data")
        unfinished.rename(source)
    return next(path.parent for path in source.glob("*/pyproject.toml"))


def run_showing_progress(
    command: list[str], environment: dict[str, str], log: Path
) -> None:
    "Run a build, its output to a file; exits with the end of that if it fails"
    shown = -1
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if step := re.search(r"\[(\d+)/(\d+)\]", line):  # as ninja counts
                done = int(step[1]) * 10 // int(step[2])
                if done != shown:
                    print(f"  {step[1]} of {step[2]}", flush=True)
                shown = done
    if process.wait():
        print("".join(log.read_text().splitlines(keepends=True)[-30:]))
        sys.exit(f"The build failed; all of its output: {log}")


def in_environment(work: Path) -> bool:
    "Whether this process runs where it should: what was built is used"
    if not (work / "built").exists():
        return True
    return Path(sys.prefix).resolve() == (work / "env").resolve()


def run_there(argv: list[str], work: Path) -> int:
    "This program again, with what was built"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(environment_python(work)), "-m", "benchmarks.gpu", *argv]
    return subprocess.call([*command, "--work", str(work)], env=environment, cwd=ROOT)
