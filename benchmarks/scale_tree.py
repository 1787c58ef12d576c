"""Logs with one large tree, and what a server takes to show it: see scale.py.

Every response is logged as the commands log theirs, by the code they use; only the
model is made up. The same seed gives the same shape and the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm

from llm_kvbranch import branching
from llm_kvbranch.branching import Place
from llm_kvbranch.history import History, open_log

from .harness.measurement import Run
from .peers.client import Server
from .peers.servers import Size, start_ours

# How often a verb is used, of a hundred
VERBS = {"continue": 66, "branch": 16, "focus": 8, "retry": 10}
# What is asked for; some are there only in versions that have the page
PATHS = {
    "tree": "/branch/tree?id={id}",
    "page's data": "/-/kvbranch/tree.json?id={id}",
    "page": "/-/kvbranch/{id}",
    "list of trees": "/-/kvbranch",
}
TEXT = """
the light of a star is bent where mass is near and waves of every length are
scattered by small things in air so that blue arrives from all sides while red
goes straight on until evening when its way is long
"""
WORDS = TEXT.split()


class Chatter(llm.Model):
    "Says words by chance"

    model_id = "chatter"
    can_stream = False

    def __init__(self, chance: random.Random):
        self.chance = chance

    def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> Iterator[str]:
        text = sentences(self.chance, self.chance.randint(1, 6))
        response.set_usage(input=len(prompt.prompt or ""), output=len(text.split()))
        yield text


def sentences(chance: random.Random, n: int) -> str:
    said = (
        " ".join(chance.choices(WORDS, k=chance.randint(5, 16))).capitalize() + "."
        for _ in range(n)
    )
    return " ".join(said)


def grow(path: Path, n: int) -> str:
    "Log a tree of so many responses; the id of its root"
    chance = random.Random(1)
    db = open_log(str(path), create=True)
    history, model = History(db), Chatter(chance)
    with contextlib.closing(db), history.writing():
        first = llm.Conversation(model=model).prompt(sentences(chance, 1))
        first.text()
        thread = {"id": first.conversation.id, "name": "a large tree"}
        history.log_by_content(first, thread)
        ids = [first.id]
        while len(ids) < n:
            (verb,) = chance.choices(list(VERBS), list(VERBS.values()))
            # People go on with what they did last, and come back to all the rest
            newest = ids[-3:] if chance.random() < 0.6 else ids
            branch = plan(history, verb, chance.choice(newest), chance)
            response = branching.ask(branch, model)
            response.text()
            branching.log_only(history, branch, response)
            ids.append(response.id)
    return str(ids[0])


def plan(history: History, verb: str, parent: str, chance: random.Random) -> Any:
    "A branch from a response, by a verb"
    asked = sentences(chance, 1)
    if verb == "continue":
        return branching.continue_(history, parent, asked)
    if verb == "retry":
        return branching.retry(history, parent)
    text = history.response(parent).text
    start = chance.randrange(max(1, len(text) - 12))
    place = Place(range=(start, min(len(text), start + chance.randint(8, 60))))
    verb_of = branching.focus if verb == "focus" else branching.branch
    return verb_of(history, parent, asked, place)


def measure(run: Run, sizes: list[int], rounds: int) -> None:
    "How long a server takes to give a tree of each size, and how much that is"
    servers: dict[int, tuple[Server, str]] = {}
    try:
        for n in sizes:
            home = run.work / f"tree-{n}"
            home.mkdir()
            began = time.perf_counter()
            root = grow(home / "logs.db", n)
            run.result.add((time.perf_counter() - began) / n, "grow", n)
            servers[n] = start_ours(run.tools, home, Size(1024, 1)), root
        for i in range(rounds + 1):  # the first one warms up
            for n, (server, root) in servers.items():
                for name, path in PATHS.items():
                    ask(run, server, name, path.format(id=root), n, i > 0)
            run.progress.step("trees")
    finally:
        for server, _ in servers.values():
            server.stop()


def ask(run: Run, server: Server, name: str, path: str, n: int, timed: bool) -> None:
    result = run.result
    if f"tree/{name}" in result.dashes:
        return
    began = time.perf_counter()
    try:
        reply = asyncio.run(server.ask("GET", path))
    except RuntimeError:
        result.dashes[f"tree/{name}"] = "not in this version"
        return
    if timed:
        result.add(time.perf_counter() - began, "tree", name, n)
        result.facts[f"tree/{name}/{n}"] = len(reply.body)
