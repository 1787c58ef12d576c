"""Several at once: answers decoded together, and beside a long prompt being read.

    python -m benchmarks --only streams

- *streams*: tokens a second of 1, 2, 4 and 8 answers to different prompts, asked for
  at the same time from a server with 8 slots.
- *stall*: four answers are running while a prompt of 3,000 tokens is read: the longest
  time that one of them stands still, and how long the prompt's own answer takes.
- *command*: a new process of ``llm -m kvllama`` asks the server; what its first byte
  takes beyond ``llm --version`` and the server's own time to first token.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable

from .answers import Judge
from .conversations import Contender, Turn, contenders
from .documents import ENDLESS, SYSTEM, document, story
from .harness.measurement import Measurement, Run
from .harness.turns import rotated
from .peers.client import Reply, system, user
from .peers.commands import answer
from .peers.servers import LLAMA, OURS, PYTHON, Size, environment
from .streams_report import COUNTS, bars, plot, table

SIZE = Size(n_ctx=8192, slots=8)
N_TOKENS = 64
N_LONG = 3000
N_ANSWERS = 4
N_RUNNING = 800  # tokens of an answer: four of them have room beside the long prompt
PAUSE = 0.3


def measure(run: Run) -> None:
    asyncio.run(_measure(run))


async def _measure(run: Run) -> None:
    rounds, n_stalls = run.choose(5, 1), run.choose(2, 1)
    some, judge = contenders(run, SIZE, [OURS, LLAMA, PYTHON]), Judge()
    run.result.settings |= {"rounds": rounds, "n_tokens": N_TOKENS}
    run.begin(len(some) * (rounds * len(COUNTS) + n_stalls) + rounds)
    try:
        for who in some:
            who.start()
        for who in some:
            with Turn(who, some):  # what is the first of its kind is not timed
                await who.running.chat(prompt("Hello."), 4)
        for i in range(rounds):
            for n in COUNTS:
                for who in rotated(some, i):
                    with Turn(who, some):
                        await streams(run, judge, who, n, 10 * i + n)
        for i, who in run.rounds(some, n_stalls, "stall"):
            with Turn(who, some):
                await stall(run, who, 500 + i)
        await command(run, some, rounds)
    finally:
        for who in some:
            who.stop()
    judge.judge(run.result, run.tools.model, run.choose(24, 4))


def prompt(text: str) -> list[dict[str, str]]:
    return [system(SYSTEM), user(text)]


async def streams(run: Run, judge: Judge, who: Contender, n: int, salt: int) -> None:
    "Tokens a second of n answers asked for at once"
    n_tokens = run.choose(N_TOKENS, 16)
    asked = [prompt(story(salt, k)) for k in range(n)]
    replies = await asyncio.gather(
        *(who.running.chat(each, n_tokens) for each in asked)
    )
    took = max(r.texts[-1][0] for r in replies) - min(r.sent for r in replies)
    run.result.add(sum(r.generated for r in replies) / took, "streams", n, who.name)
    run.result.add(max(r.ttft for r in replies), "streams ttft", n, who.name)
    for messages, reply in zip(asked, replies, strict=True):
        judge.heard(who.name, f"{n} at once", messages, reply.text)
    await asyncio.sleep(PAUSE)
    run.progress.step(f"{n} at once, {who}")


async def stall(run: Run, who: Contender, salt: int) -> None:
    "How long running answers stand still while a long prompt is read"
    replies = [Reply(0) for _ in range(N_ANSWERS)]
    tasks = [
        asyncio.ensure_future(who.running.chat(prompt(ENDLESS), N_RUNNING, reply=reply))
        for reply in replies
    ]
    await until_all(replies, lambda each: len(each.texts) >= 30)
    text = document(run.choose(N_LONG, 300), salt)
    long = await who.running.chat(prompt(text), 1)
    after = time.perf_counter()
    await until_all(replies, lambda each: each.texts[-1][0] > after)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if any(reply.texts[-1][0] < after for reply in replies):
        run.progress.say(f"stall, {who}: an answer ended too soon, not counted")
        return
    gaps = gaps_within(replies, long.sent, long.texts[0][0])
    run.result.add(max(gaps), "stall", who.name)
    run.result.add(max(gaps_within(replies, 0, long.sent)), "stall usual", who.name)
    run.result.add(long.ttft, "stall ttft", who.name)
    run.result.add(len(gaps) / len(replies), "stall tokens", who.name)
    await asyncio.sleep(1)


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


async def command(run: Run, some: list[Contender], rounds: int) -> None:
    "A new process that asks the server, beside one that only says its version"
    (ours,) = (who for who in some if who.name == OURS)
    settings = environment(ours.home, LLM_KVBRANCH_MODEL=str(run.tools.model))
    llm = [sys.executable, "-m", "llm"]
    asked = [*llm, "-m", "kvllama", "-o", "temperature", "0", "-o", "max_tokens", "8"]
    with Turn(ours, some):
        for i in range(rounds + 1):
            version = answer([*llm, "--version"], "", settings, run.work).ttft
            text = f"Name a fruit that rhymes with {i}."
            took = answer(asked, text, settings, run.work).ttft
            facts = last_facts(settings)
            if not facts.get("served"):
                raise RuntimeError("The server was not asked")
            if i:  # the first one warms up
                own = (facts["ttft_ms"] + facts["queue_ms"]) / 1000
                run.result.add(version, "command", "version")
                run.result.add(took, "command", "first byte")
                run.result.add(own, "command", "own")
                run.result.add(took - version - own, "command", "beyond")
                run.progress.step("a command that asks the server")


def last_facts(settings: dict[str, str]) -> dict[str, float]:
    "What is known of the last answer"
    done = subprocess.run(
        [sys.executable, "-m", "llm", "kvbranch", "show", "last", "--json"],
        env=settings,
        capture_output=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


MEASUREMENT = Measurement(
    "streams",
    "Several answers at once",
    minutes=5,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
