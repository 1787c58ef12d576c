"""What is asked of both servers, and how that is timed: see serve.py.

Each is a function of a Bench, to which it adds times and facts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from first_token import LLM, document, first_byte
from serve_bench import N_SLOTS, OURS, THEIRS, Bench, Conversation, say, user
from serve_servers import Reply, environment, forget_pages

N_DOCUMENT = 2400
N_LONG = 3000
N_ANSWERS = 4
# An answer to this goes on for as long as it may
ENDLESS = "Count from one to ten thousand, and write every number in words."
N_RUNNING = 800  # tokens of an answer: four of them have room beside the long prompt
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
            replies = [Reply(0) for _ in range(N_ANSWERS)]
            tasks = [
                asyncio.ensure_future(
                    server.chat([user(ENDLESS)], N_RUNNING, reply=reply)
                )
                for reply in replies
            ]
            await until_all(replies, lambda each: len(each.texts) >= 30)
            long = await server.chat([user(document(N_LONG, salt))], 1)
            after = time.perf_counter()
            await until_all(replies, lambda each, t=after: each.texts[-1][0] > t)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if any(reply.texts[-1][0] < after for reply in replies):
                say(f"stall {name}: an answer ended too soon, this round is left out")
                continue
            gaps = gaps_within(replies, long.sent, long.texts[0][0])
            before = gaps_within(replies, 0, long.sent)
            bench.add(f"stall {name}", max(gaps))
            bench.add(f"stall {name} usual", max(before))
            bench.add(f"stall {name} ttft", long.ttft)
            bench.add(f"stall {name} tokens", len(gaps) / len(replies))
            bench.facts[f"long prompt {name}"] = long.prompt_tokens
            await asyncio.sleep(1)
        say(f"stall {i + 1}/{bench.few}: {bench.latest('stall')}")


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
    "What is known of the last answer"
    done = subprocess.run(
        [*LLM, "kvbranch", "show", "last", "--json"],
        env=settings,
        capture_output=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


SCENARIOS = {
    "hot": hot,
    "restart": restart,
    "streams": streams,
    "stall": stall,
    "command": command,
}
