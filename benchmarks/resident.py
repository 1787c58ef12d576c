"""Servers that keep the model in memory: follow-ups, branches, a tree of twenty.

    python -m benchmarks --only resident

- *hot*: a conversation about a document of some 2,500 tokens is in a slot. Time to
  first token of a follow-up, and of a branch in the middle of the last answer.
- *restart*: every server was started anew. The same follow-up and branch, once with
  the files in the page cache and once not.
- *tree*: twenty branches at twenty places of a conversation of several turns, asked
  for at once, and one after the other: until the last of the answers is complete. Hot,
  and after a restart. *Long tree*: the same of a conversation of 5,000 tokens, at once,
  for those who need not read it again.

All servers are asked over HTTP by the same client for greedy answers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .answers import Judge
from .conversations import Contender, Conversation, Turn, contenders
from .documents import document, question
from .harness.measurement import Measurement, Run
from .peers.client import Reply
from .peers.servers import LLAMA, OURS, PYTHON, SLOTS, Size, forget_pages
from .resident_report import LONG, bars, plot, table
from .resident_tree import N_BRANCHES, WAYS, Tree

ALL = [OURS, LLAMA, SLOTS, PYTHON]
HOT = [OURS, LLAMA, PYTHON]
SIZE = Size(n_ctx=49152, slots=8)  # eight times what is restored for a long tree
N_DOCUMENT = 2400
PAUSE = 0.3  # seconds between two turns: nobody types faster


def measure(run: Run) -> None:
    asyncio.run(_measure(run))


async def _measure(run: Run) -> None:
    rounds, n_trees = run.choose(4, 1), run.choose(2, 1)
    some = contenders(run, SIZE, ALL)
    n_document = run.choose(N_DOCUMENT, 200)
    run.result.settings |= {"rounds": rounds, "n_branches": run.choose(N_BRANCHES, 6)}
    hot_ones = [each for each in some if each.name in HOT]
    tree = Tree(run, some, judge := Judge(), document(run.choose(1200, 200), 8))
    fewer = [each for each in some if each.name != LLAMA]
    text = document(run.choose(5000, 200), 11)
    long = Tree(run, fewer, judge, text, LONG, WAYS[:1])
    n_turns = rounds * len(hot_ones) + 2 * rounds * len(some)
    run.begin(n_turns + tree.n_turns(n_trees) + long.n_turns(1))
    try:
        bench = Bench(run, some, judge, document(n_document, 7))
        await bench.hot(hot_ones, rounds)
        await bench.restart(rounds)
        await tree.measure(n_trees)
        for each in some:
            each.stop()
        await long.measure(1)
    finally:
        for each in some:
            each.stop()
    judge.judge(run.result, run.tools.model, run.choose(40, 6))


class Bench:
    "All contenders, and the conversations that each of them has had"

    def __init__(
        self, run: Run, some: list[Contender], judge: Judge, text: str
    ) -> None:
        self.run, self.result = run, run.result
        self.some, self.judge, self.text = some, judge, text
        self.begun: dict[str, Conversation] = {}

    async def asked(
        self, who: Contender, what: str, conversation: Conversation, *arguments: Any
    ) -> tuple[Conversation, Reply]:
        "An answer that is judged later on"
        found = await who.ask(conversation, *arguments)
        self.judge.heard(who.name, what, found[0].asked, found[1].text)
        return found

    async def begin(self, who: Contender) -> Conversation:
        "A conversation about a document, from its first turn"
        first = Conversation()
        conversation, reply = await who.ask(first, f"{self.text}\n\nSum it up.")
        self.result.add(reply.ttft, "first turn", who.name)
        self.note(who, reply, "first turn")
        return conversation

    def note(self, who: Contender, reply: Reply, *what: str) -> None:
        "What a server itself says of an answer"
        if facts := reply.last.get("kvbranch"):
            self.result.add(facts["ttft_ms"] / 1000, "own", *what, who.name)
            self.result.add(facts["prefilled_tokens"], "read", *what, who.name)
        elif timings := reply.timings:
            self.result.add(timings["prompt_ms"] / 1000, "own", *what, who.name)
            self.result.add(timings["prompt_n"], "read", *what, who.name)

    # -- in memory -----------------------------------------------------------

    async def hot(self, hot_ones: list[Contender], rounds: int) -> None:
        for who in hot_ones:
            who.start()
        for who in hot_ones:
            with Turn(who, self.some):
                conversation = await self.begin(who)
                # Until nothing is the first of its kind
                conversation, _ = await who.ask(conversation, "Thank you.")
                cut = len(conversation.answer) // 2
                conversation, _ = await who.ask(conversation, "Well, thanks.", cut)
                self.begun[who.name] = conversation
        for i, who in self.run.rounds(hot_ones, rounds, "hot"):
            with Turn(who, self.some):
                conversation = self.begun[who.name]
                for what in ("follow-up", "branch"):
                    await asyncio.sleep(PAUSE)
                    cut = len(conversation.answer) // 2 if what == "branch" else None
                    conversation, reply = await self.asked(
                        who, f"hot {what}", conversation, question(i), cut
                    )
                    self.result.add(reply.ttft, "hot", what, who.name)
                    self.note(who, reply, "hot", what)
                self.begun[who.name] = conversation
        reason = "the same as llama-server while the slot is in memory"
        self.result.dashes[f"hot/{SLOTS}"] = reason

    # -- after a restart -----------------------------------------------------

    async def restart(self, rounds: int) -> None:
        await self.prepare_restart()
        n = rounds  # questions that were asked: each is asked once
        for where in ("cached", "evicted"):
            for i, who in self.run.rounds(self.some, rounds, f"restart, {where},"):
                if who.name == LLAMA and not self._reads_again(where, i):
                    continue
                for other in self.some:  # the memory of others is not its own
                    other.stop()
                for what in ("follow-up", "branch"):
                    await self.come_back(who, where, what, n := n + 1)
        for who in self.some:
            who.stop()

    def _reads_again(self, where: str, i: int) -> bool:
        "It takes its time, and is the same with files and without"
        self.result.dashes[f"restart/evicted/{LLAMA}"] = "it reads no files"
        return where == "cached" and i < 2

    async def prepare_restart(self) -> None:
        "Conversations to come back to, with what each keeps of them on disk"
        for who in self.some:
            if who.server is None:
                who.start()
            with Turn(who, self.some):
                if who.name not in self.begun:
                    self.begun[who.name] = await self.begin(who)
                    await asyncio.sleep(PAUSE)
                if who.name == SLOTS:
                    await who.save(self.begun[who.name], "slot")
                    path = who.home / "slot"
                    self.result.facts["slot file"] = path.stat().st_size

    async def come_back(self, who: Contender, where: str, what: str, i: int) -> None:
        "Start a server, and ask it the first thing"
        self.result.add(who.start().started, "start", who.name)
        await asyncio.sleep(PAUSE)
        if where == "evicted":
            forget_pages(who.home)
        conversation = self.begun[who.name]
        cut = len(conversation.answer) // 2 if what == "branch" else None
        began = time.perf_counter()
        more = await who.bring_back(conversation)
        _, reply = await who.ask(conversation, question(i), cut, **more)
        took = reply.texts[0][0] - began
        self.judge.heard(
            who.name,
            f"{what} after restart",
            conversation.with_prompt(question(i), cut),
            reply.text,
        )
        self.result.add(took, "restart", where, what, who.name)
        self.note(who, reply, "restart", where, what)


MEASUREMENT = Measurement(
    "resident",
    "Follow-ups, branches and a tree, the model in memory",
    minutes=15,
    measure=measure,
    bars=bars,
    table=table,
    plot=plot,
)
