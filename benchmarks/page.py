"""The page on a large tree, by the browser's own clock.

    python -m benchmarks.page [--nodes 2000] [--rounds 5] [--out benchmarks/results]

A plain datasette serves a log with one made-up tree (``grow_tree.py``); a real Chromium
without a GPU opens it. Needs chromium and the test extra.

- ``first``: with nothing in the browser's cache. ``again``: a reload.
- From the beginning of the navigation: until something is painted, until the map is
  drawn, until the conversation is shown.
- Frames while the map is panned through its densest column and zoomed, at several
  sizes: 16.7 ms is as fast as the screen. ``work`` is our share of a frame.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.browser import CHROMIUM, Tab, chromium
from tests.support.serving import environment

from .grow_tree import grow

__all__ = ["CHROMIUM", "chromium", "opened", "served"]
FRAMES = 120
ZOOMS = (1, 0.5, 0.25, 0.1)
LOADED = """() => {
    const paint = performance.getEntriesByName("first-contentful-paint")[0]
    const mark = name => performance.getEntriesByName(`kvbranch:${name}`)[0].startTime
    const [map, conversation] = [mark("map"), mark("path")]
    return {"first paint": paint.startTime, map, conversation}
}"""
PREPARE = """() => {
    const {graph} = kvbranch, draw = graph.draw.bind(graph)
    window.work = []
    graph.draw = () => {
        const begin = performance.now()
        draw()
        work.push(performance.now() - begin)
    }
    window.frames = (n, step) => new Promise(done => {
        const times = []
        let last = null
        work.length = 0
        const frame = now => {
            if (last !== null) times.push(now - last)
            last = now
            if (times.length === n) return done({times, work: [...work]})
            step(times.length)
            requestAnimationFrame(frame)
        }
        requestAnimationFrame(frame)
    })
}"""
PAN = """async (n, zoom) => {
    const {camera, plane} = kvbranch.graph
    const column = plane.columns.reduce((a, b) => a.length > b.length ? a : b)
    const box = plane.box(column[column.length >> 1])
    camera.set(box.x - camera.width / 2 / zoom, box.y - camera.height / 2 / zoom, zoom)
    return frames(n, () => camera.pan(4, 23))
}"""
ZOOM = """async n => {
    kvbranch.graph.fit()
    await new Promise(go => setTimeout(go, 400))
    return frames(n, () => kvbranch.graph.camera.zoomBy(1.03))
}"""
LAY_OUT = """() => {
    const begin = performance.now()
    kvbranch.graph.layOut()
    return performance.now() - begin
}"""


@contextlib.contextmanager
def served(log: Path, home: Path) -> Iterator[str]:
    "A plain datasette on a log"
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", str(log), "--port", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(home),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/-/versions.json").close()
                break
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def spread(values: list[float]) -> dict[str, float]:
    "Median and 95th percentile"
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 2),
    }


def opened(browser: Any, url: str) -> dict[str, float]:
    "Seconds until the map is drawn: the first time, and again"
    tab, found = Tab(browser, url), {}
    for kind in ("first", "again"):
        tab.open("/-/kvbranch/last")
        tab.page.wait_for_timeout(500)
        found[kind] = tab.js(LOADED, 0)["map"] / 1000
    tab.close()
    return found


def measure(browser: Any, url: str, rounds: int) -> dict[str, Any]:
    "Loads, in turn with nothing cached and with all of it, then frames"
    loads: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
    for _ in range(rounds):
        tab = Tab(browser, url)
        for times in loads.values():
            tab.open("/-/kvbranch/last")
            tab.page.wait_for_timeout(500)
            times.append(tab.js(LOADED, 0))
        if len(loads["first"]) < rounds:
            tab.close()
    tab.js(PREPARE, 0)
    frames = {f"pan at {zoom}": tab.js(PAN, FRAMES, zoom) for zoom in ZOOMS}
    frames["zoom"] = tab.js(ZOOM, FRAMES)
    layout = [tab.js(LAY_OUT, 0) for _ in range(20)]
    nodes = tab.js("kvbranch.state.tree.nodes.size")
    tab.close()
    return {
        "nodes": nodes,
        "load": {
            f"{kind}: {what}": spread([each[what] for each in times])
            for kind, times in loads.items()
            for what in times[0]
        },
        "layout": {"lay out the tree": spread(layout)},
        "frames": {
            f"{name}, {what}": spread(found[key])
            for name, found in frames.items()
            for what, key in (("frame", "times"), ("work", "work"))
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"| {found['nodes']:,} responses, ms | median | 95th percentile |",
        "| --- | ---: | ---: |",
    ]
    for group in ("load", "layout", "frames"):
        for name, each in found[group].items():
            lines.append(f"| {name} | {each['median']:.1f} | {each['p95']:.1f} |")
    return "\n".join([*lines, "", found["machine"], ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["LLM_USER_PATH"] = folder
        grow(home / "logs.db", wanted.nodes)
        with served(home / "logs.db", home) as url, chromium() as browser:
            found = measure(browser, url, wanted.rounds)
    print(table(found))
    if wanted.out:
        wanted.out.mkdir(parents=True, exist_ok=True)
        (wanted.out / "page.json").write_text(json.dumps(found, indent=1) + "\n")
        (wanted.out / "page.md").write_text(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
