"""Restoring against prefilling where the model is on a GPU: one script does it all.

    python benchmarks/gpu.py --build --work DIR --out DIR
    python benchmarks/gpu.py --phase measure --work DIR --tokens 1024,4096
    python benchmarks/gpu.py --shape tiny --tokens 512,1024 --no-tests

It needs llm-kvbranch importable with what its tests need (``.[test]``), on Linux
or macOS. Phases, each of which finds what the others left in ``--work``:

- ``build``, only when asked for: llama-cpp-python for the GPU found, into
  ``DIR/env``, an environment that has everything the present one has, too. All
  other phases run there from then on. ``--sdist`` (a file or a folder) builds
  without network, with the scikit-build-core, cmake and ninja that are there. A
  build that was interrupted goes on.
- ``tests``: the engine's tests; whatever can be offloaded is.
- ``model``: a model of ``--shape`` with random weights (``gpu_model.py``).
- ``measure``: for each KV type and number of tokens, in processes of their own,
  so that one which runs out of memory takes nothing along; sizes that are
  measured already are not measured again.

What is compared is the time until the next token is drawn, all else being
loaded. *Prefill* decodes all tokens; *restore* finds the state in a store, maps
and verifies its file, hands the rows to llama.cpp, and decodes the last token,
without which there are no logits. The first in a new process pay for whatever
the GPU's driver does first; *cold* is when the file is not in the page cache.
What follows must be the same: tokens, and the bytes of their rows, which depend
on everything before them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import site
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_model import BATCHES, SHAPES, STEPS, TYPES, Task, write_model

from llm_kvbranch.engine.devices import devices
from llm_kvbranch.engine.lib import build as llama_build
from llm_kvbranch.errors import KVBranchError

HERE = Path(__file__).resolve().parent
PHASES = ("build", "tests", "model", "measure")
TESTS = [
    f"tests/test_{name}.py"
    for name in ("engine", "restored_equals_live", "architectures")
]
OUTCOMES = ("passed", "failed", "error", "skipped")
BACKENDS = {  # what CMake is told, and the program without which there is no use
    "cuda": ("-DGGML_CUDA=on", "nvcc"),
    "metal": ("-DGGML_METAL=on", "xcrun"),
    "vulkan": ("-DGGML_VULKAN=on", "glslc"),
    "rocm": ("-DGGML_HIP=on", "hipcc"),
    "cpu": ("", "c++"),
}
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
FRESH = ("prefill", "warm", "cold")  # in a new process; the last two restore


# -- building ----------------------------------------------------------


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
    "This script again, with what was built"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(environment_python(work)), str(Path(__file__).resolve()), *argv]
    return subprocess.call([*command, "--work", str(work)], env=environment)


# -- the tests, the model ----------------------------------------------


def run_tests(work: Path) -> dict[str, Any]:
    "The engine's tests: how many passed, failed, were skipped"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    started = time.perf_counter()
    process = subprocess.run(
        command, check=False, cwd=HERE.parent, capture_output=True, text=True
    )
    (work / "tests.log").write_text(process.stdout + process.stderr)
    lines = process.stdout.splitlines() or [""]
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
    result = {
        "llama_cpp": llama_build(),
        "seconds": round(time.perf_counter() - started, 1),
        **dict.fromkeys(OUTCOMES, 0),
        **{outcome: int(n) for n, outcome in found},
    }
    if process.returncode:
        print("\n".join(lines[-30:]), process.stderr[-3000:])
    (work / "tests.json").write_text(json.dumps(result))
    print(tests_line(result), flush=True)
    return result


def tests_line(tests: dict[str, Any]) -> str:
    numbers = ", ".join(f"{tests[outcome]} {outcome}" for outcome in OUTCOMES)
    return f"engine tests: {numbers} in {tests['seconds']:.0f} s"


def model_path(arguments: argparse.Namespace, work: Path) -> Path:
    return work / f"{arguments.shape}-random-{arguments.type}.gguf"


def ensure_model(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    "The model, written unless it is there, and looked at by llama.cpp"
    path, started = model_path(arguments, work), time.perf_counter()
    if not path.exists():
        write_model(
            path,
            SHAPES[arguments.shape],
            arguments.type,
            lambda text: print(f"  {text}", flush=True),
        )
        seconds = time.perf_counter() - started
        print(f"wrote {path.name}, {path.stat().st_size / 1e9:.2f} GB, {seconds:.1f} s")
    try:
        found = do(Task("check", str(path), threads=arguments.threads))
    except Failed as error:
        sys.exit(f"The model is no good: {error}")
    print(
        f"loaded in {found['load_s']:.1f} s, {found['offloaded_bytes'] / 1e9:.2f} GB of"
        f" it to a GPU; its logits depend on the prompt",
        flush=True,
    )
    return {
        "shape": arguments.shape,
        "type": arguments.type,
        "bytes": path.stat().st_size,
        **found,
    }


# -- measuring ---------------------------------------------------------


class Failed(Exception):
    "Why a task was not done"


def do(task: Task) -> dict[str, Any]:
    "What a new process finds out; raises Failed"
    process = subprocess.run(
        [sys.executable, str(HERE / "gpu_model.py")],
        check=False,
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
    )
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return result
    said = (process.stderr.strip() or "nothing said").splitlines()[-1]
    said = re.sub(r"(/[\w.+-]+)+/", "", said)  # which folder is nobody's business
    raise Failed(f"{task.mode}: {said} (exit status {process.returncode})")


def measure(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    "All sizes with all KV types, those that are not measured yet"
    path, model = work / "measured.json", model_path(arguments, work)
    about = {
        "llama_cpp": llama_build(),
        "devices": [device.description for device in devices()],
        "model": model.name,
        "repeat": arguments.repeat,
        "threads": arguments.threads,
    }
    known: list[dict[str, Any]] = []
    if path.exists() and (found := json.loads(path.read_text()))["about"] == about:
        known = found["runs"]
    runs = []
    for kv in arguments.kv:
        for n in arguments.tokens:
            run = next((r for r in known if (r["kv"], r["tokens"]) == (kv, n)), None)
            if run is None:
                run = measure_one(arguments, work, kv, n)
                if "skipped" not in run:
                    known.append(run)
                    path.write_text(json.dumps({"about": about, "runs": known}))
            print(f"  {kv} {n:,} tokens: {in_words(run)}", flush=True)
            runs.append(run)
    return runs


def measure_one(
    arguments: argparse.Namespace, work: Path, kv: str, n: int
) -> dict[str, Any]:
    "One KV type and number of tokens"
    run: dict[str, Any] = {"kv": kv, "tokens": n}
    shape = SHAPES[arguments.shape]
    nbytes = n * shape.state_bytes(KV_BYTES[kv])
    if reason := no_room(work, int(nbytes)):
        return {**run, "skipped": reason}
    # New processes take their time: several for the first KV type only
    first = kv == arguments.kv[0]
    with tempfile.TemporaryDirectory(prefix="store-", dir=work) as store:
        task = Task(
            "live",
            model=str(model_path(arguments, work)),
            kv=kv,
            n=n,
            store=store,
            repeat=arguments.repeat,
            threads=arguments.threads,
        )
        try:
            run |= do(task)
            run["fresh"] = {mode: [] for mode in (FRESH if first else ("warm",))}
            for mode, results in run["fresh"].items():
                for _ in range(arguments.repeat if first else 1):
                    result = do(replace(task, mode=mode))
                    if "all" in result:
                        results.append(result)
        except Failed as error:
            return {"kv": kv, "tokens": n, "skipped": str(error)}
    return {**run, **derived(run)}


def no_room(work: Path, nbytes: int) -> str | None:
    "Why rows of that many bytes cannot be measured, None if they can"
    free = shutil.disk_usage(work).free
    if free < 1.1 * nbytes:
        return f"its file takes {nbytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    # On the host: as llama.cpp gives them, as they are read, as a CPU has them
    free = memory("MemAvailable")
    if free and free < 3 * nbytes:
        return f"it takes {3 * nbytes / 1e9:.1f} GB of memory of {free / 1e9:.1f}"
    return None


def memory(what: str) -> int:
    "Bytes of MemTotal or MemAvailable, 0 where that is not known"
    found = re.search(rf"{what}: +(\d+)", text_of("/proc/meminfo"))
    return 1024 * int(found[1]) if found else 0


def text_of(path: str) -> str:
    "What is in a file of /proc, nothing where there is none"
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def derived(run: dict[str, Any]) -> dict[str, Any]:
    "What follows from the times: rates, ratios, whether anything differs"
    prefill = min(statistics.median(run[f"prefill_{n}_s"]) for n in BATCHES)
    everywhere = run["restore"] + run["fresh"]["warm"] + run["fresh"].get("cold", [])
    after = [times.pop("after") for times in everywhere]
    live, new = run.pop("live"), run["fresh"]
    result = {
        "bytes_per_token": run["state_bytes"] / run["tokens"],
        "capture_bytes_per_s": run["state_bytes"] / statistics.median(run["capture_s"]),
        "ratio": median_of(run["restore"]) / prefill,
        "same_tokens": all(one["tokens"] == live["tokens"] for one in after),
        "same_rows": all(one["rows"] == live["rows"] for one in after),
    }
    if new.get("prefill"):
        result["fresh_ratio"] = median_of(new["warm"]) / median_of(new["prefill"])
    return result


def median_of(results: list[dict[str, float]], what: str = "all") -> float:
    return statistics.median(result[what] for result in results)


# -- telling -----------------------------------------------------------


def machine() -> dict[str, Any]:
    "What it ran on; nothing that names a person or a place"
    seen = [asdict(device) for device in devices()]
    for device in seen:
        del device["free"]
    return {
        "devices": seen,
        "offloads": any(device.takes_layers for device in devices()),
        "driver": output_of(
            *("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        ),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory("MemTotal"),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "llama_cpp": llama_build(),
    }


def output_of(*command: str) -> str | None:
    "The first line that a program prints, None where it does not run"
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[0]
    return None


def processor() -> str:
    if found := re.search(r"model name\s*: (.+)", text_of("/proc/cpuinfo")):
        return found[1]
    return output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def device_line(machine: dict[str, Any]) -> str:
    gpus = [d for d in machine["devices"] if d["kind"] in ("GPU", "iGPU")]
    if not gpus:
        return "No GPU in this build: nothing is offloaded, all figures are the CPU's"
    return "; ".join(
        f"{gpu['name']}: {gpu['description']}, {gpu['total'] / 2**30:.0f} GiB"
        for gpu in gpus
    )


def machine_line(machine: dict[str, Any]) -> str:
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    return (
        f"{device_line(machine)}{driver}. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB ({machine['architecture']}, "
        f"{machine['system']}), Python {machine['python']}, "
        f"llama.cpp {machine['llama_cpp']}"
    )


def in_words(run: dict[str, Any]) -> str:
    if reason := run.get("skipped"):
        return f"skipped: {reason}"
    restored, ratio = median_of(run["restore"]), run["ratio"]
    same = "the same follows" if run["same_tokens"] else "SOMETHING ELSE FOLLOWS"
    return (
        f"restored in {ms(restored)} ms instead of prefilled in "
        f"{ms(restored / ratio)} ms ({ratio:.3f}); {same}"
    )


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


def middle(run: dict[str, Any], what: str) -> str:
    return ms(statistics.median(run[what]))


def new_process(run: dict[str, Any]) -> str:
    results = [run["fresh"].get(mode) for mode in FRESH]
    return " / ".join(ms(median_of(some)) if some else "-" for some in results)


def steps(run: dict[str, Any]) -> str:
    return " + ".join(ms(median_of(run["restore"], step)) for step in STEPS)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "KV": lambda run: run["kv"],
    "tokens": lambda run: f"{run['tokens']:,}",
    "bytes / token": lambda run: f"{run['bytes_per_token']:,.0f}",
    f"prefill, n_batch {BATCHES[1]}": lambda run: middle(
        run, f"prefill_{BATCHES[1]}_s"
    ),
    f"prefill, n_batch {BATCHES[0]}": lambda run: middle(
        run, f"prefill_{BATCHES[0]}_s"
    ),
    "capture": lambda run: middle(run, "capture_s"),
    "GB/s": lambda run: f"{run['capture_bytes_per_s'] / 1e9:.1f}",
    "write": lambda run: ms(run["write_s"]),
    "restore": lambda run: ms(median_of(run["restore"])),
    f"= {' + '.join(STEPS)}": steps,
    "restore / prefill": lambda run: f"{run['ratio']:.3f}",
    f"new process: {' / '.join(FRESH)}": new_process,
    "decode, tokens/s": lambda run: f"{run['decode_tokens_per_s']:.0f}",
    "same tokens": lambda run: "yes" if run["same_tokens"] else "NO",
    "same rows": lambda run: "yes" if run["same_rows"] else "NO",
}


def table(runs: list[dict[str, Any]]) -> str:
    "Markdown: a row for each KV type and size, times in ms"
    rows = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)]]
    rows += [[cell(run) for cell in COLUMNS.values()] for run in runs]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def report(result: dict[str, Any]) -> str:
    "The table and all that is to be said of it"
    model = result["model"]
    parts = [
        table([run for run in result["runs"] if "skipped" not in run]),
        "Medians, in ms where no other unit is named.",
        *(
            f"{run['kv']}, {run['tokens']:,} tokens: {in_words(run)}."
            for run in result["runs"]
            if "skipped" in run
        ),
        f"Model: {model['shape']}, random weights, {model['type']}, "
        f"{model['bytes'] / 1e9:.2f} GB, of which {model['offloaded_bytes'] / 1e9:.2f} "
        f"went to a GPU, loaded in {model['load_s']:.1f} s.",
        *([f"{tests_line(result['tests'])}."] if result["tests"] else []),
        f"{machine_line(result['machine'])}.",
    ]
    return "\n\n".join(parts) + "\n"


def plot(result: dict[str, Any], out: Path) -> None:
    "gpu.png and .svg: time to the next token against tokens, both logarithmic"
    try:
        import matplotlib

        matplotlib.use("agg")
        matplotlib.rcParams["svg.hashsalt"] = "gpu"  # same file every time
        import matplotlib.pyplot as plt
    except ImportError:
        print("No plot: matplotlib is missing (python -m pip install matplotlib)")
        return
    runs = [run for run in result["runs"] if "skipped" not in run]
    kinds = list(dict.fromkeys(run["kv"] for run in runs))
    if not kinds:
        return
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(1 + 5.5 * len(kinds), 5.2), sharey=True, squeeze=False
    )
    for axis, kv in zip(axes[0], kinds, strict=True):
        some = sorted((r for r in runs if r["kv"] == kv), key=lambda run: run["tokens"])
        for title, (style, seconds) in LINES.items():
            there = [run for run in some if seconds(run)]
            axis.plot(
                [run["tokens"] for run in there],
                [1000 * statistics.median(seconds(run)) for run in there],
                style,
                label=title,
                markersize=4,
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        sizes = [run["tokens"] for run in some]
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_title(f"KV {kv}", loc="left", fontsize=11)
        axis.set_xlabel("tokens")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("milliseconds to the next token")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", bbox_to_anchor=(0.5, 0.04), ncols=3)
    figure.text(0.01, 0.01, machine_line(result["machine"]), fontsize=6, color="#555")
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(out / "gpu.png", dpi=120)
    figure.savefig(out / "gpu.svg", metadata={"Date": None})


# Of the plot: title, style, where the seconds are
LINES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    f"prefill, n_batch {BATCHES[1]}": ("C3o-", lambda r: r[f"prefill_{BATCHES[1]}_s"]),
    f"prefill, n_batch {BATCHES[0]}": ("C1o-", lambda r: r[f"prefill_{BATCHES[0]}_s"]),
    "restore": ("C0o-", lambda r: totals(r["restore"])),
    "prefill in a new process": ("C3o:", lambda r: totals(r["fresh"].get("prefill"))),
    "restore in a new process": ("C0o:", lambda r: totals(r["fresh"].get("warm"))),
    "the same, file not cached": ("C4o:", lambda r: totals(r["fresh"].get("cold"))),
}


def totals(results: list[dict[str, float]] | None) -> list[float]:
    return [result["all"] for result in results or ()]


# -- all of it ---------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    add = parser.add_argument
    add("--phase", nargs="+", choices=PHASES, default=list(PHASES[1:]))
    add("--work", type=Path, help="folder to keep model and build in (else temporary)")
    add("--out", type=Path, help="folder for the results")
    add("--build", action="store_true", help="build llama-cpp-python first")
    add("--backend", choices=BACKENDS, help="to build for (else the GPU found)")
    add("--sdist", type=Path, help="of llama-cpp-python: build without network")
    add("--jobs", type=int, help="compilers at a time (else one for each core)")
    add("--cuda", default="native", help="CUDA architectures, such as 90")
    add("--no-tests", action="store_true")
    add("--shape", choices=SHAPES, default="llama-3.2-3b")
    add("--type", choices=TYPES, default="q8_0", help="of the weights")
    add("--kv", nargs="+", choices=KV_BYTES, default=["f16", "q8_0"])
    add("--tokens", type=numbers, default=[1024, 4096, 16384, 32768])
    add("--repeat", type=int, default=3, help="times that all is measured")
    add("--threads", type=int, help="of the CPU (else one for tiny, all for others)")
    arguments = parser.parse_args(argv)
    if arguments.shape == "tiny":  # there is nothing to share out
        arguments.threads = arguments.threads or 1
    if min(arguments.tokens) < 2:
        parser.error("--tokens: at least 2")
    if arguments.build:
        arguments.phase.append("build")
    if arguments.no_tests:
        arguments.phase = [phase for phase in arguments.phase if phase != "tests"]
    return arguments


def run(arguments: argparse.Namespace, argv: list[str], work: Path) -> int:
    if "build" in arguments.phase:
        build(arguments, work)
    if not in_environment(work):
        return run_there(argv, work)
    result: dict[str, Any] = {"machine": machine(), "model": None, "tests": None}
    print(f"{machine_line(result['machine'])}", flush=True)
    if "tests" in arguments.phase:
        run_tests(work)
    if {"model", "measure"} & set(arguments.phase):
        result["model"] = ensure_model(arguments, work)
    if "measure" not in arguments.phase:
        return 0
    result["runs"] = measure(arguments, work)
    tests = work / "tests.json"
    if tests.exists():
        result["tests"] = json.loads(tests.read_text())
    print(f"\n{report(result)}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "gpu.md").write_text(report(result))
        plot(result, arguments.out)
    done = [run for run in result["runs"] if "skipped" not in run]
    return 0 if done and all(run["same_tokens"] for run in done) else 1


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        if arguments.work:
            arguments.work.mkdir(parents=True, exist_ok=True)
            return run(arguments, argv, arguments.work.resolve())
        with tempfile.TemporaryDirectory(prefix="kvbranch-") as work:
            return run(arguments, argv, Path(work).resolve())
    except KVBranchError as error:  # what was built cannot be loaded, say
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
