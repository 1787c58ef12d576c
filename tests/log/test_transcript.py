"""Conversations and trees as Markdown and JSON."""

from __future__ import annotations

import json
import re

import pytest

from llm_kvbranch.log.marks import mark
from llm_kvbranch.log.transcript import file_name, path_text, tree_text
from llm_kvbranch.log.tree import Forest

from ..support.logged import HOSTILE


class TestExport:
    "Fails if an export is not what was said"

    @pytest.mark.parametrize("name", HOSTILE)
    def test_whatever_is_said(self, log, name):
        text = HOSTILE[name]
        one = log.begin(text, text)
        log.go_on(one, text, text)
        root = Forest(log.history).tree(one)
        *_, last = root.walk()
        for kind in ("markdown", "json"):
            for file in (
                path_text(log.history, last, kind),
                tree_text(log.history, root, kind),
            ):
                if kind == "json":
                    data = json.loads(file)
                    turns = data.get("turns") or data["responses"]
                    assert [t["text"] for t in turns] == [text] * 2
                else:
                    assert file.count(text) >= 4
        name = file_name(root, "path", "markdown")
        assert re.fullmatch(r"[a-z0-9-]+\.md", name)

    def test_as_the_model_saw_it(self, log):
        one = log.begin("Why?", "Because of Rayleigh.", system="Be brief.")
        two = log.branch(one, 8, 10, "Of what?", "Of light.")
        mark(log.history, two, starred=True, note="good")
        *_, node = Forest(log.history).tree(one).walk()
        text = path_text(log.history, node, "markdown")
        assert "Because of\n" in text
        assert "Rayleigh" not in text
        assert "## ★ branch: Of what?" in text
        assert "**Note:** good" in text
        assert "**System:**\n\nBe brief." in text
        turns = json.loads(path_text(log.history, node, "json"))["turns"]
        assert [turn.get("cut") for turn in turns] == [10, None]
        assert turns[0]["text"] == "Because of Rayleigh."
        assert turns[1]["parent"] == one

    def test_code_that_never_ends_swallows_nothing(self, log):
        one = log.begin("Why?", "```python\nprint(1)")
        log.go_on(one, "And?", "~~~~\n```\nx\n~~~\n")
        root = Forest(log.history).tree(one)
        text = tree_text(log.history, root, "markdown")
        opened = 0
        for line in text.splitlines():
            if re.match(r"(```|~~~)", line):
                opened += 1
        assert "print(1)\n```\n" in text
        assert text.rstrip().endswith("~~~~")
