"""The pictures in README: the page of ``llm kvbranch serve``, made with the real model.

    python -m benchmarks.screenshots [--out benchmarks/results]

A server of its own answers greedily in a directory that is thrown away, a real
Chromium looks at it. What is asked is below, what is answered is the model's. Needs
Pillow beside the test extra.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.browser import PHONE, Tab, chromium
from tests.support.serving import Serving

SIZE = {"width": 1360, "height": 850}
TIDES = "Why does the sea have tides?"


class Talk:
    "Greedy answers from a server"

    def __init__(self, server: Serving):
        self.server = server

    def ask(self, path: str, **body: Any) -> tuple[str, str]:
        "A response's id and text"
        asked = {"temperature": 0, "max_tokens": 150, **body}
        status, _, text = self.server.ask("POST", path, asked)
        if status != 200:
            raise RuntimeError(text)
        choice = json.loads(text)["choices"][0]
        return choice["response_id"], choice["message"]["content"]

    def part(self, id: str, text: str, words: str, prompt: str) -> tuple[str, str]:
        "Branch behind some words of an answer"
        start = text.index(words)
        place = [start, start + len(words)]
        return self.ask(
            "/v1/chat/branch", parent_id=id, char_range=place, prompt=prompt
        )


def grow(talk: Talk) -> tuple[str, str]:
    "A conversation with branches: its root, and the end of its longest path"
    root, text = talk.ask("/generate", prompt=TIDES)
    moon, _ = talk.ask("/continue", message_id=root, prompt="How far away is the Moon?")
    talk.ask("/continue", message_id=moon, prompt="Has anybody been there?")
    talk.ask("/retry", message_id=moon, temperature=0.7, seed=3)
    words = "a gravitational pull that causes the oceans to bulge out"
    pull, more = talk.part(root, text, words, "Explain gravity to a child.")
    end, _ = talk.ask("/continue", message_id=pull, prompt="Give an example from home.")
    talk.part(pull, more, more[:40], "Who found that out?")
    start = text.index("high and low tides")
    talk.ask(
        "/focus",
        message_id=root,
        char_start=start,
        char_end=start + len("high and low tides"),
        followup="Where are they the highest?",
    )
    for prompt in ("Plan a lesson about tides.", "Write a short poem about the sea."):
        last, _ = talk.ask("/continue", message_id=root, prompt=prompt)
    talk.ask("/retry", message_id=last, temperature=0.8, seed=5)
    for prompt in (
        "What are three good ways to learn a new language?",
        "Explain how a rainbow forms, step by step.",
    ):
        first, _ = talk.ask("/generate", prompt=prompt)
        talk.ask("/continue", message_id=first, prompt="Sum that up in one sentence.")
        talk.ask("/retry", message_id=first, temperature=0.7, seed=2)
    return root, end


def shoot(browser: Any, server: Serving, root: str, end: str, out: Path) -> None:
    first = Tab(browser, server.url, lambda: server.login)
    session = first.context.storage_state()

    def tab(viewport: dict[str, int] = SIZE, **context: Any) -> Tab:
        sharp = {"device_scale_factor": 2, "storage_state": session}
        tab = Tab(browser, server.url, viewport=viewport, **sharp, **context)
        return tab.open(f"/-/kvbranch/{end}")

    def save(tab: Tab, name: str) -> None:
        tab.page.wait_for_timeout(400)
        image = Image.open(io.BytesIO(tab.page.screenshot()))
        # Few colours, so a third of the bytes
        image.convert("RGB").quantize(256).save(out / f"page-{name}.png", optimize=True)
        tab.close()

    dark = tab()
    dark.select_words(root, "a gravitational pull")
    save(dark, "tree")
    compared = tab()
    poems = [node["id"] for node in compared.nodes if "poem" in node["prompt"]]
    compared.js("ids => void kvbranch.does.compare(ids)", poems)
    save(compared, "compare")
    save(tab(color_scheme="light"), "light")
    save(tab(PHONE), "phone")
    first.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        Serving(Path(home), "--port", "0") as server,
        chromium() as browser,
    ):
        shoot(browser, server, *grow(Talk(server)), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
