"""What is done with a server: follow-ups, branches, and coming back after a restart.

The idea: a ``Contender`` is a server in the way that it is used. llama-server is two of
them: as it is, and by a client that saves a slot after each answer and restores it
before the next. Each is asked in the way that its own documentation shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .documents import SYSTEM
from .harness.measurement import Run, Tools
from .peers.client import Message, Reply, Server, assistant, system, user
from .peers.servers import LLAMA, OURS, PYTHON, SLOTS, Size, start

N_ANSWER = 32
DOES = {
    OURS: "`llm kvbranch serve`; a branch by `/v1/chat/branch` with the id of the "
    "answer and a range of it",
    LLAMA: "`llama-server --kv-unified --no-cache-idle-slots` (with slots cleared, "
    "as by default, it reads twice as much of a tree again), cache_prompt; a branch is "
    "the history sent again, cut. After a restart nothing is left",
    SLOTS: "the same, its client saving the slot after an answer, and restoring it "
    "(counted in the time) before it asks a server that was started anew; for a tree "
    "into every slot, which no client does by itself",
    PYTHON: "llama-cpp-python's `examples/server/server.py` with its disk cache; a "
    "branch is the history sent again, cut",
}


@dataclass
class Conversation:
    "What a client keeps of a conversation, and goes on with"

    messages: list[Message] = field(default_factory=lambda: [system(SYSTEM)])
    response_id: str | None = None
    saved: str | None = None  # file of a slot

    @property
    def asked(self) -> list[Message]:
        "What the last answer was an answer to"
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    def with_prompt(self, text: str, cut: int | None = None) -> list[Message]:
        "The history with a new prompt, after the first characters of the last answer"
        answer = assistant(self.answer[:cut])
        if self.messages[-1]["role"] != "assistant":
            return [*self.messages, user(text)]
        return [*self.messages[:-1], answer, user(text)]

    def after(self, messages: list[Message], reply: Reply) -> Conversation:
        response_id = reply.last.get("response_id")
        return Conversation([*messages, assistant(reply.text)], response_id)


@dataclass
class Contender:
    "A server as it is used; nothing of it runs unless it is its turn"

    name: str
    tools: Tools
    home: Path
    size: Size
    server: Server | None = None

    def __str__(self) -> str:
        return self.name

    def start(self) -> Server:
        "Anew"
        self.stop()
        self.server = start(self.name, self.tools, self.home, self.size)
        return self.server

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    @property
    def running(self) -> Server:
        assert self.server is not None
        return self.server

    async def ask(
        self,
        conversation: Conversation,
        text: str,
        cut: int | None = None,
        n_answer: int = N_ANSWER,
        **more: Any,
    ) -> tuple[Conversation, Reply]:
        "A new turn after an answer, or after the first ``cut`` characters of it"
        messages = conversation.with_prompt(text, cut)
        if cut is not None and self.name == OURS:
            where: Any = {"parent_id": conversation.response_id, "char_range": [0, cut]}
            reply = await self.running.chat(
                [], n_answer, "/v1/chat/branch", prompt=text, **where
            )
        else:
            reply = await self.running.chat(messages, n_answer, **more)
        return conversation.after(messages, reply), reply

    # -- slots of llama-server -----------------------------------------------

    async def save(self, conversation: Conversation, filename: str) -> None:
        "Save the slot that answered last to a file in its home"
        slots = (await self.running.ask("GET", "/slots")).json
        last = max(slots, key=lambda slot: slot.get("id_task", -1))["id"]
        await self.running.ask(
            "POST", f"/slots/{last}?action=save", {"filename": filename}
        )
        conversation.saved = filename

    async def bring_back(self, conversation: Conversation, slot: int = 0) -> Any:
        "Restore a conversation that was saved; what to ask with then"
        if self.name != SLOTS or conversation.saved is None:
            return {}
        body = {"filename": conversation.saved}
        reply = await self.running.ask("POST", f"/slots/{slot}?action=restore", body)
        if not reply.json["n_restored"]:
            raise RuntimeError("llama-server restored nothing")
        return {"id_slot": slot}


def contenders(run: Run, size: Size, names: list[str]) -> list[Contender]:
    "Those that there are; why others are not is noted"
    found = []
    for name in names:
        lacks = {PYTHON: "peers", LLAMA: "llama.cpp", SLOTS: "llama.cpp"}.get(name)
        if lacks in run.tools.missing:
            run.result.dashes[name] = run.tools.missing[lacks]
            continue
        home = run.work / name.replace(", ", "-")
        found.append(Contender(name, run.tools, home, size))
        run.result.contenders[name] = DOES[name]
    run.result.settings |= {"n_ctx": size.n_ctx, "slots": size.slots}
    return found


class Turn:
    "While it is one contender's turn, the others use no processor"

    def __init__(self, contender: Contender, all_of_them: list[Contender]):
        self._server = contender.running
        self._others = [
            other.server
            for other in all_of_them
            if other.server is not None and other is not contender
        ]

    def __enter__(self) -> Server:
        for other in self._others:
            other.pause()
        self._server.resume()
        return self._server

    def __exit__(self, *_: object) -> None:
        for other in self._others:
            other.resume()
