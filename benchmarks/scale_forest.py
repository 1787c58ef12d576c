"""A store filled with a made-up forest of conversations: see scale.py.

Conversations have 1 to 30 turns of 50 to 400 tokens; some branch inside an earlier
answer, and a third begin with one of a few long system prompts. KV rows are a few
bytes each, since no question to the index depends on them. The same seed gives the
same forest.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_kvbranch.store.chain import Chain, Entry
from llm_kvbranch.store.header import State
from llm_kvbranch.store.maintenance import pin
from llm_kvbranch.store.store import Store
from llm_kvbranch.store.tokens import prefix_digest, tokens_of

MODELS = ("5ca1ab1e" * 2, "0ddba115" * 2)  # the second has a tenth of the roots
RENDER = "f00d" * 4
N_VOCABULARY = 49152
N_SYSTEM = (900, 1400, 2100, 3000)  # tokens of the shared system prompts
N_LIVE = 12  # conversations that take turns
BRANCHES = 0.1  # of all turns go on from inside an earlier answer
N_PINS = 10
PLENTY = 1 << 50  # a budget under which nothing is evicted


@dataclass
class Node:
    "A stored response, and where the answer to what it was asked begins"

    entry: Entry
    parent: Node | None

    @property
    def state(self) -> State:
        return self.entry.state

    def tokens(self, end: int | None = None) -> array[int]:
        "All token ids up to a position"
        end = self.state.end if end is None else end
        if self.parent is None:
            return self.state.tokens[: end - self.state.start]
        if end <= self.state.start:
            return self.parent.tokens(end)
        return (
            self.parent.tokens(self.state.start)
            + self.state.tokens[: end - self.state.start]
        )


@dataclass
class Conversation:
    "Responses that go on from each other, until there are enough of them"

    n: int
    nodes: list[Node]


@dataclass
class Forest:
    "A store, and what was put into it; the same for the same seed"

    root: Path
    store: Store
    rng: random.Random
    nodes: list[Node] = field(default_factory=list)
    live: list[Conversation] = field(default_factory=list)
    by_id: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.systems = [self.text(n) for n in N_SYSTEM]

    # -- making --------------------------------------------------------

    def text(self, n: int) -> array[int]:
        "Token ids that nothing else begins with"
        return tokens_of(self.rng.choices(range(N_VOCABULARY), k=n))

    def name(self) -> str:
        "As unique as llm's, and in order of time as those are"
        return f"{len(self.nodes):010x}{self.rng.getrandbits(64):016x}"

    def hash(self) -> str:
        return f"{self.rng.getrandbits(256):064x}"

    def grow(self, n: int) -> None:
        "Fill the store up to n responses"
        while len(self.nodes) < n:
            if len(self.live) < N_LIVE:
                first = self.add(*self.new_root())
                self.live.append(Conversation(self.rng.randint(1, 30), [first]))
            conversation = self.rng.choice(self.live)
            nodes = conversation.nodes
            if len(nodes) >= conversation.n:
                self.live.remove(conversation)
                continue
            above, end = nodes[-1], nodes[-1].state.end
            if self.rng.random() < BRANCHES:
                above = self.rng.choice(nodes)
                end = self.rng.randint(above.state.answer + 1, above.state.end)
            nodes.append(self.add(*self.follow_up(above, end)))

    def new_root(self) -> tuple[State, Chain, Node | None]:
        "The first response of a conversation, on the store's own prefix"
        tokens = self.text(self.rng.randint(50, 400))
        if self.rng.random() < 1 / 3:
            tokens = self.rng.choice(self.systems) + tokens
        model = MODELS[self.rng.random() < 0.1]
        chain = self.store.longest_prefix(model, tokens)
        last = chain.segments[-1].entry.state if chain.segments else None
        state = self.state(model, tokens, chain, thread_id=self.name())
        return state, chain, self.by_id[last.response_id] if last else None

    def follow_up(self, above: Node, end: int) -> tuple[State, Chain, Node | None]:
        "The response to a new turn after the first tokens of another's"
        tokens = above.tokens(end) + self.text(self.rng.randint(50, 400))
        chain = self.store.chain(above.entry).cut(end)
        thread = above.state.thread_id if end == above.state.end else self.name()
        state = self.state(
            above.state.fingerprint,
            tokens,
            chain,
            thread_id=thread,
            input_hash=self.hash(),
        )
        return state, chain, above

    def state(
        self, model: str, tokens: array[int], chain: Chain, **facts: Any
    ) -> State:
        start = len(chain.tokens)
        return State(
            **{
                "response_id": self.name(),
                "fingerprint": model,
                "start": start,
                "end": len(tokens),
                "answer": start + (len(tokens) - start) // 3,
                "tokens": tokens[start:],
                "prefix": prefix_digest(tokens, start),
                "parent_id": chain.segments[-1].entry.state.response_id
                if chain.segments
                else None,
                "input_hash": self.hash(),
                "tip_hash": self.hash(),
                "render": RENDER,
                **facts,
            }
        )

    def add(self, state: State, chain: Chain, parent: Node | None) -> Node:
        entry = self.store.put(state, state.response_id.encode(), chain)
        node = Node(entry, parent)
        self.nodes.append(node)
        self.by_id[state.response_id] = node
        return node

    # -- asking --------------------------------------------------------

    def any_node(self) -> Node:
        return self.rng.choice(self.nodes)

    def question(self, kind: str) -> tuple[str, array[int], int]:
        "A model, a prompt, and how many of its tokens the store knows"
        node = self.any_node()
        model, known = node.state.fingerprint, tokens_of()
        if kind == "follow_up":
            known = node.tokens()
        elif kind == "branch":
            known = node.tokens(
                self.rng.randint(node.state.answer + 1, node.state.end - 1)
            )
        elif kind == "system":
            model, known = MODELS[0], self.rng.choice(self.systems)
        return model, known + self.text(200), len(known)


def fill(root: Path, n: int) -> tuple[Forest, float]:
    "A store of n responses, written without flushing anything"
    started, fsync = time.perf_counter(), os.fsync
    os.fsync = lambda _: None
    try:
        store = Store(root, PLENTY)
        store.db.execute("pragma synchronous = off")
        forest = Forest(root, store, random.Random(7))
        forest.grow(n)
        store.db.execute("pragma wal_checkpoint(truncate)")
        store.close()
    finally:
        os.fsync = fsync
    os.sync()
    forest.store = Store(root, PLENTY)
    for node in forest.rng.sample(forest.nodes, N_PINS):
        pin(forest.store, node.state.response_id)
    return forest, time.perf_counter() - started
