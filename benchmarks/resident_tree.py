"""Twenty branches at twenty places of one conversation: see resident.py.

The conversation has a document and some turns; each branch cuts one of its answers
somewhere, asks something new there, and gets a short answer. The places are others in
each round, so that no branch was asked for before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from .answers import Judge
from .conversations import Contender, Conversation, Turn
from .documents import question
from .harness.measurement import Run
from .harness.turns import rotated
from .peers.client import Reply
from .peers.servers import PYTHON, SLOTS

N_BRANCHES = 20
N_TURNS = 5  # of the conversation
N_ANSWER = 16  # tokens of each branch's answer
PAUSE = 0.3
WAYS = ("at once", "in turn")
# What reads everything again for most branches is measured once, and at once only
SLOW = {PYTHON: 1}


class Tree:
    """A conversation with each contender, and branches from all over it.

    ``kind`` is what its figures are called, ``text`` the document it begins with.
    """

    def __init__(
        self,
        run: Run,
        some: Sequence[Contender],
        judge: Judge,
        text: str,
        kind: str = "tree",
        ways: Sequence[str] = WAYS,
    ) -> None:
        self.run, self.result = run, run.result
        self.kind, self.ways = kind, ways
        self.some, self.judge, self.text = list(some), judge, text
        self.n_branches = run.choose(N_BRANCHES, 6)
        self.n_trunk = run.choose(N_TURNS, 2)
        self.trunks: dict[str, list[Conversation]] = {}

    def n_turns(self, rounds: int) -> int:
        return len(self._turns(rounds)) + len(self._restarts(rounds))

    def _turns(self, rounds: int) -> list[tuple[int, Contender, str]]:
        "Who does it in which way while it is hot"
        return [
            (i, who, way)
            for i in range(rounds)
            for way in self.ways
            for who in rotated(self.some, i)
            if who.name != SLOTS
            and not (who.name in SLOW and (i >= SLOW[who.name] or way != WAYS[0]))
        ]

    def _restarts(self, rounds: int) -> list[tuple[int, Contender]]:
        return [
            (i, who)
            for i in range(rounds)
            for who in rotated(self.some, i)
            if i < SLOW.get(who.name, rounds)
        ]

    async def measure(self, rounds: int) -> None:
        await self.grow()
        for i, who, way in self._turns(rounds):
            with Turn(who, self.some):
                # Nobody asks the same twice
                asked = i * len(self.ways) + self.ways.index(way)
                seconds, _ = await self.branch(who, asked, way)
                self.result.add(seconds, self.kind, "hot", way, who.name)
            self.run.progress.step(f"{self.kind} {way}, {who}")
        for i, who in self._restarts(rounds):
            for other in self.some:
                other.stop()
            who.start()
            await asyncio.sleep(PAUSE)
            asked = rounds * len(self.ways) + i
            seconds, read = await self.branch(who, asked, WAYS[0])
            self.result.add(seconds, self.kind, "restart", WAYS[0], who.name)
            self.result.add(read, self.kind, "restart read", who.name)
            self.run.progress.step(f"{self.kind} after a restart, {who}")
        self.result.dashes[f"{self.kind}/hot/{SLOTS}"] = "the same as llama-server"
        if len(self.ways) > 1:
            reason = "it answers one after the other in any case: measured at once only"
            self.result.dashes[f"{self.kind}/hot/{WAYS[1]}/{PYTHON}"] = reason

    async def grow(self) -> None:
        "The conversation that is branched from, with every contender"
        for who in self.some:
            who.start()
        for who in self.some:
            with Turn(who, self.some):
                conversation, trunk = Conversation(), []
                for i in range(self.n_trunk):
                    text = f"{self.text}\n\nSum it up." if i == 0 else question(i)
                    conversation, _ = await who.ask(conversation, text)
                    trunk.append(conversation)
                    await asyncio.sleep(PAUSE)
                if who.name == SLOTS:
                    await who.save(trunk[-1], self.kind.replace(" ", "-"))
                self.trunks[who.name] = trunk

    async def branch(self, who: Contender, i: int, way: str) -> tuple[float, int]:
        "Twenty branches: seconds to the end of the last one, and tokens that were read"
        trunk = self.trunks[who.name]
        began = time.perf_counter()
        if who.name == SLOTS:  # into every slot, so that all can work
            for slot in range(who.size.slots):
                await who.bring_back(trunk[-1], slot)
        asked = [self._ask(who, trunk, i, k) for k in range(self.n_branches)]
        if way == WAYS[0]:
            answers = await asyncio.gather(*asked)
        else:
            answers = [await each for each in asked]
        seconds = max(reply.texts[-1][0] for _, reply in answers) - began
        for messages, reply in answers:
            self.judge.heard(who.name, self.kind, messages, reply.text)
        return seconds, sum(map(read_tokens, (reply for _, reply in answers)))

    async def _ask(
        self, who: Contender, trunk: list[Conversation], i: int, k: int
    ) -> tuple[list[dict[str, str]], Reply]:
        n = self.n_trunk
        conversation = trunk[k % n]
        share = (k // n + 1) / (self.n_branches // n + 1)
        cut = max(1, int(share * len(conversation.answer)) - i)
        more: dict[str, Any] = {}
        if who.name == SLOTS:
            more = {"id_slot": k % who.size.slots}
        text = question(self.n_branches * i + k)
        _, reply = await who.ask(conversation, text, cut, N_ANSWER, **more)
        return conversation.with_prompt(text, cut), reply


def read_tokens(reply: Reply) -> int:
    "Tokens of a prompt that were read, as far as a server says so"
    if facts := reply.last.get("kvbranch"):
        return int(facts["prefilled_tokens"])
    return int(reply.timings.get("prompt_n", 0))
