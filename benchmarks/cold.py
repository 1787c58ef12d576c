"""A follow-up in a new process: time to first token, by how long the conversation is.

    python -m benchmarks --only cold

Each figure is the wall time from starting a command to the first byte of its answer,
so it holds Python, llm, the model's load and everything else. The conversation is one
document and a short answer to it; the follow-up is one short question.

In each round the document is read for the first time by a kvllama that has never seen
it, which is the *first turn* that follow-ups are compared with, and leaves the state
and the log that they go on from. Then all contenders answer the follow-up, in turns;
those that read nothing again do so several times.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .answers import Judge
from .cold_report import bars, plot, table
from .documents import SYSTEM, document, question
from .harness.measurement import Measurement, Run
from .harness.turns import rotated
from .peers import commands
from .peers.client import assistant, system, user
from .peers.commands import PARTS, Answered
from .peers.servers import environment

OURS, NO_STORE, GGUF = "kvllama", "kvllama, no store", "llm-gguf"
CACHE, FLOOR, LITTLE = "LlamaDiskCache", "floor", "floor, import llm"
QUICK_ONES = (OURS, CACHE, FLOOR)  # those that read nothing again
FIRST = "first turn"
N_ANSWER = 16
N_CTX = 8192
ROUNDS = {250: 3, 1200: 3, 2500: 2, 5000: 2, 7900: 1}  # by tokens of the document
AGAIN = 3  # turns of the quick ones in each round
HERE = Path(__file__).parent / "peers"
DOES = {
    OURS: "`llm -c QUESTION`, the state of the conversation in its store",
    NO_STORE: "the same with a budget of 0 bytes: all is read again",
    GGUF: f"`llm -c QUESTION`, n_ctx {N_CTX}, all is read again. It has no options: "
    "not greedy, and half the threads for generating. With llm 0.31, the last with "
    "which it goes on with a conversation: with later ones it forgets what was said",
    CACHE: "a script of some lines with llama-cpp-python's high-level API, which "
    f"imports no llm; n_ctx {N_CTX}, size limit raised above its 1 GB. What it has "
    "read from the cache is no longer in it (it pops), so each turn is given a copy",
    FLOOR: "a script that does nothing but import llm.cli, as any command of llm, "
    "load the model, restore the same state file, and prefill the new turn",
    LITTLE: "the same that imports llm alone, without what its commands need (openai, "
    "for one)",
}


@dataclass
class Bench:
    "One size of conversation: its homes, and how each contender is asked"

    run: Run
    n_tokens: int
    home: Path = field(default_factory=Path)  # of the first turn
    cache: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self.text = document(self.n_tokens, 1000 + self.n_tokens)
        self.question = question(self.n_tokens)
        self.said = ""  # to the document

    def new_home(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{self.n_tokens}-", dir=self.run.work))

    def ours(self, home: Path, *arguments: str, prompt: str, **more: str) -> Answered:
        options = ["-o", "max_tokens", str(N_ANSWER), "-o", "temperature", "0"]
        settings = environment(
            home, LLM_KVBRANCH_MODEL=str(self.run.tools.model), **more
        )
        command = [sys.executable, "-m", "llm", *arguments, *options]
        return commands.answer(command, prompt, settings, self.run.work)

    # -- what there is to go on from ---------------------------------------

    def first_turn(self) -> Answered:
        "Read the document for the first time; leaves log and state in a new home"
        self.home = self.new_home()
        answered = self.ours(self.home, "-m", "kvllama", "-s", SYSTEM, prompt=self.text)
        self.said = answered.text.removesuffix("\n")
        return answered

    def copy(self, *names: str) -> Path:
        "A new home with some of what the first turn left; state files are shared"
        home = self.new_home()
        for name in names:
            source = self.home / name
            if source.is_dir():
                shutil.copytree(source, home / name, copy_function=link_states)
            else:
                shutil.copy(source, home / name)
        return home

    def prepare_gguf(self) -> Path:
        "A home of llm-gguf with the model and the first turn in it"
        home, tools = self.new_home(), self.run.tools
        (home / "gguf").mkdir()
        model = {"path": str(tools.model), "aliases": [], "n_ctx": N_CTX}
        (home / "gguf" / "models.json").write_text(json.dumps({"smollm2": model}))
        turn = {"system": SYSTEM, "prompt": self.text, "answer": self.said}
        subprocess.run(
            [str(tools.peers), str(HERE / "log_answer.py"), "gguf/smollm2"],
            input=json.dumps(turn),
            text=True,
            env=self.gguf_settings(home),
            check=True,
        )
        return home

    def gguf_settings(self, home: Path, **more: str) -> dict[str, str]:
        settings = environment(home, LLM_LOAD_PLUGINS="llm-gguf", **more)
        settings.pop("PYTHONPATH", None)
        return settings

    def prepare_cache(self) -> None:
        "A cache in which LlamaDiskCache has the first turn"
        self.cache = self.new_home() / "cache"
        self.ask_cache(self.cache, [system(SYSTEM), user(self.text)])

    def ask_cache(self, cache: Path, messages: list[dict[str, str]]) -> Answered:
        tools = self.run.tools
        numbers = (tools.n_threads, N_CTX, N_ANSWER)
        command = [str(tools.peers), str(HERE / "disk_cache.py"), str(cache)]
        command += [str(tools.model), *map(str, numbers)]
        settings = self.gguf_settings(cache.parent)
        return commands.answer(command, json.dumps(messages), settings, self.run.work)

    # -- the follow-up, as each contender answers it -----------------------

    def follow_up(self, name: str) -> Answered:
        return ASK[name](self)

    def history(self) -> list[dict[str, str]]:
        first = [system(SYSTEM), user(self.text), assistant(self.said)]
        return [*first, user(self.question)]

    def by_kvllama(self) -> Answered:
        home = self.copy("logs.db", "kvbranch")
        return self.ours(home, "-c", prompt=self.question)

    def by_no_store(self) -> Answered:
        home = self.copy("logs.db")
        return self.ours(home, "-c", prompt=self.question, LLM_KVBRANCH_BUDGET="0")

    def by_gguf(self, **more: str) -> Answered:
        home = self.prepare_gguf()
        command = [str(self.run.tools.peers), "-m", "llm", "-c"]
        settings = self.gguf_settings(home, **more)
        return commands.answer(
            command, self.question, settings, self.run.work, enough=40
        )

    def by_cache(self) -> Answered:
        copy = self.new_home() / "cache"
        shutil.copytree(self.cache, copy)
        return self.ask_cache(copy, self.history())

    def by_floor(self, module: str = "llm.cli") -> Answered:
        (state,) = (self.home / "kvbranch" / "states").glob("*/*.safetensors")
        new = f"<|im_end|>\n<|im_start|>user\n{self.question}<|im_end|>\n"
        command = [sys.executable, str(HERE / "floor.py"), str(state)]
        command += [str(self.run.tools.model), str(self.run.tools.n_threads), module]
        return commands.answer(
            command,
            f"{new}<|im_start|>assistant\n",
            environment(self.home),
            self.run.work,
        )


ASK: dict[str, Callable[[Bench], Answered]] = {
    OURS: Bench.by_kvllama,
    NO_STORE: Bench.by_no_store,
    GGUF: Bench.by_gguf,
    CACHE: Bench.by_cache,
    FLOOR: Bench.by_floor,
    LITTLE: lambda bench: bench.by_floor("llm"),
}


def link_states(source: str, target: str) -> None:
    "State files are never written to, so a link does for a copy"
    if source.endswith(".safetensors"):
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def measure(run: Run) -> None:
    result, judge = run.result, Judge()
    contenders = available(run)
    sizes = run.choose(ROUNDS, {250: 1})
    again = run.choose(AGAIN, 1)
    result.settings = {"n_answer": N_ANSWER, "n_ctx": N_CTX, "sizes": list(sizes)}
    result.settings["repeats"] = again
    run.begin(sum(n * len(turns(contenders, again)) for n in sizes.values()))
    if not run.quick:
        warm_up(run, contenders)
    for n_tokens, n_rounds in sizes.items():
        bench = Bench(run, n_tokens)
        for i in range(n_rounds):
            result.add(bench.first_turn().ttft, FIRST, n_tokens)
            if i == 0:
                note_conversation(bench)
                if CACHE in contenders:
                    bench.prepare_cache()
            for name in rotated(turns(contenders, again), i):
                answered = bench.follow_up(name)
                note(bench, name, answered)
                if name != GGUF:  # whose answers are drawn by chance
                    said = answered.text.removesuffix("\n")  # llm prints one
                    judge.heard(name, "follow-up", bench.history(), said)
                run.progress.step(f"{n_tokens:,} tokens, {name}")
    if GGUF in contenders:
        check_gguf(run, judge)
    plugin_cost(run)
    judge.judge(result, run.tools.model, run.choose(20, 4))


def turns(contenders: list[str], again: int) -> list[str]:
    "Who has a turn in a round: those that read nothing again, several"
    return [
        name
        for i in range(again)
        for name in contenders
        if i == 0 or name in QUICK_ONES
    ]


def available(run: Run) -> list[str]:
    contenders = list(ASK)
    if run.tools.peers is None:
        for name in (GGUF, CACHE):
            contenders.remove(name)
            run.result.dashes[name] = run.tools.missing["peers"]
    run.result.contenders = {name: DOES[name] for name in contenders}
    return contenders


def warm_up(run: Run, contenders: list[str]) -> None:
    "What is the first of its kind in a while is not timed"
    bench = Bench(run, 60)
    bench.first_turn()
    bench.prepare_cache() if CACHE in contenders else None
    for name in contenders:
        bench.follow_up(name)


def note(bench: Bench, name: str, answered: Answered) -> None:
    result, n = bench.run.result, bench.n_tokens
    result.add(answered.ttft, "follow-up", name, n)
    for part, seconds in zip(PARTS, answered.parts(), strict=True):
        result.add(seconds, "part", name, n, part)


def note_conversation(bench: Bench) -> None:
    "How long the conversation is in tokens, by the log of a follow-up"
    home = bench.copy("logs.db", "kvbranch")
    bench.ours(home, "-c", prompt=bench.question)
    show = [sys.executable, "-m", "llm", "kvbranch", "show", "last", "--json"]
    done = subprocess.run(
        show, env=environment(home), capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    bench.run.result.facts[str(bench.n_tokens)] = {
        name: facts[f"{name}_tokens"] for name in ("prompt", "restored", "prefilled")
    }


def check_gguf(run: Run, judge: Judge) -> None:
    "Whether llm-gguf goes on with the conversation: asked greedily, not timed"
    bench = Bench(run, 250)
    bench.first_turn()
    answered = bench.by_gguf(KVBRANCH_GREEDY=str(N_ANSWER))
    judge.heard(GGUF, "follow-up, made greedy", bench.history(), answered.text)


def plugin_cost(run: Run) -> None:
    "What this plugin costs every llm command: ``llm --help`` with and without"
    rounds = run.choose(15, 2)
    names = {"without": "", "with": "llm-kvbranch"}
    for i in range(rounds + 1):
        for name in rotated(list(names), i):
            settings = environment(run.work, LLM_LOAD_PLUGINS=names[name])
            command = [sys.executable, "-m", "llm", "--help"]
            began = time.perf_counter()
            subprocess.run(command, env=settings, check=True, stdout=subprocess.DEVNULL)
            if i:  # the first one warms up
                run.result.add(time.perf_counter() - began, "help", name)


MEASUREMENT = Measurement(
    "cold",
    "Follow-ups in a new process",
    minutes=11,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
