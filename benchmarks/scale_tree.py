"""Logs with one large tree, and what it takes to show it: see scale.py.

A server is asked for the tree over HTTP, and a real Chromium opens the page where there
is one: what counts is when its map is drawn.
"""

from __future__ import annotations

import asyncio
import time

from .grow_tree import grow
from .harness.measurement import Run
from .peers.client import Server
from .peers.servers import Size, start_ours

PATHS = {
    "tree": "/branch/tree?id={id}",
    "page's data": "/-/kvbranch/tree.json?id={id}",
    "page": "/-/kvbranch/{id}",
    "list of trees": "/-/kvbranch",
}


def measure(run: Run, sizes: list[int], rounds: int) -> None:
    "How long a server takes to give a tree of each size, and how much that is"
    servers: dict[int, tuple[Server, str]] = {}
    try:
        for n in sizes:
            home = run.work / f"tree-{n}"
            home.mkdir()
            began = time.perf_counter()
            root = grow(home / "logs.db", n)[0]
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
    browse(run, sizes, rounds)


def ask(run: Run, server: Server, name: str, path: str, n: int, timed: bool) -> None:
    began = time.perf_counter()
    reply = asyncio.run(server.ask("GET", path))
    if timed:
        run.result.add(time.perf_counter() - began, "tree", name, n)
        run.result.facts[f"tree/{name}/{n}"] = len(reply.body)


def browse(run: Run, sizes: list[int], rounds: int) -> None:
    "When the page's map is drawn, by the browser's own clock"
    try:
        from . import page
    except ImportError as error:  # playwright is of the tests
        run.result.dashes["browser"] = f"there is no {error.name}"
        return
    if not page.CHROMIUM:
        run.result.dashes["browser"] = "there is no chromium"
        return
    for n in sizes:
        home = run.work / f"tree-{n}"
        with page.served(home / "logs.db", home) as url, page.chromium() as browser:
            for _ in range(rounds):
                for name, seconds in page.opened(browser, url).items():
                    run.result.add(seconds, "browser", name, n)
        run.progress.step("trees in a browser")
