"""Two servers that are measured in turns, and a client's conversations with them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_servers import Reply, Server, start_ours, start_theirs

OURS, THEIRS = "ours", "theirs"
N_CTX = 8192
N_SLOTS = 8
N_ANSWER = 32
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
