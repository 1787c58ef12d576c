"""A conversation or a whole tree as Markdown or JSON, to keep or to share.

The idea: Markdown reads well as it is, JSON has everything. An answer that a branch
cuts ends at the cut, as the model saw it.

This module does not know files or HTTP.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .deadline import checked
from .history import History
from .path import Turn, as_path, read_turns
from .text import one_line
from .tree import Node

FORMATS = {"markdown": "md", "json": "json"}
"Each format, and the extension of its files"


def path_text(history: History, node: Node, format: str) -> str:
    "The conversation up to a response"
    return path_of_turns(read_turns(history, node.path()), format)


def tree_text(history: History, root: Node, format: str) -> str:
    "A response with all below it"
    return tree_of_turns(read_turns(history, list(root.walk())), format)


def path_of_turns(turns: list[Turn], format: str) -> str:
    "A conversation, from its turns as they were read"
    turns = as_path(turns)
    if format == "json":
        described = [_turn(turn) for turn in checked(turns)]
        return _json({"id": turns[-1].node.id, "turns": described})
    parts = [f"# {_title(turns[0])}", *(_markdown(turn, 2) for turn in checked(turns))]
    return "\n\n".join(parts) + "\n"


def tree_of_turns(turns: list[Turn], format: str) -> str:
    "A tree, from its turns as they were read"
    root = turns[0].node
    if format == "json":
        described = [_turn(turn) for turn in checked(turns)]
        return _json({"root": root.id, "responses": described})
    lines = [
        f"{lead}{node.id}  {_one_line(node.prompt, 60)}"
        for lead, node in root.outline()
    ]
    drawn = _fenced("\n".join(lines))
    parts = [f"# {_title(turns[0])}", drawn]
    parts += [_markdown(turn, 2) for turn in checked(turns)]
    return "\n\n".join(parts) + "\n"


def file_name(node: Node, what: str, format: str) -> str:
    "A file's name: the first words of the question, and the start of the id"
    words = re.findall(r"[a-z0-9]+", node.prompt[:200].lower())
    name = "-".join(words)[:40].strip("-") or "conversation"
    return f"{name}-{node.id[:10]}-{what}.{FORMATS[format]}"


def _json(data: dict[str, Any]) -> str:
    pieces = json.JSONEncoder(indent=2).iterencode(data)  # as json.dumps does
    return "".join(checked(pieces)) + "\n"


def _turn(turn: Turn) -> dict[str, Any]:
    node = turn.node
    facts = {
        "id": node.id,
        "parent": node.parent.id if node.parent else None,
        "thread": node.thread_id,
        "model": node.model,
        "created": node.created,
        "verb": node.verb,
        "mode": node.mode,
        "excerpt": node.excerpt,
        "start": node.start,
        "end": node.end,
        "system": turn.system,
        "prompt": turn.prompt,
        "attachments": turn.attachments,
        "results": turn.results,
        "reasoning": turn.reasoning or None,
        "text": turn.text,
        "cut": turn.cut,
        "leaves": turn.leaves,
        "apart": turn.apart,
        "calls": turn.calls,
        "facts": turn.facts,
        "starred": node.starred,
        "note": node.note,
    }
    return {k: v for k, v in facts.items() if v not in (None, [], {}, False)}


def _markdown(turn: Turn, level: int) -> str:
    "A turn under a heading of some level"
    node, mark = turn.node, "#" * level
    about = [
        node.model,
        *([node.created[:16].replace("T", " ")] if node.created else []),
    ]
    star = "★ " if node.starred else ""
    parts = [f"{mark} {star}{_heading(turn)}", f"*{', '.join(about)}, {node.id}*"]
    if turn.apart:
        parts.append("*Starts a new context: nothing above is in it.*")
    if node.note:
        parts.append(f"> **Note:** {_one_line(node.note, len(node.note))}")
    if turn.system:
        parts += [f"**System:**\n\n{_closed(turn.system)}"]
    parts += [f"**Prompt:**\n\n{_closed(turn.prompt)}"] if turn.prompt else []
    for result in turn.results:
        parts.append(f"**Result of {result['name']}:**\n\n{_fenced(result['output'])}")
    parts += [f"*Attached: {_one_line(each, 200)}*" for each in turn.attachments]
    if turn.reasoning:
        parts.append(f"**Thinking:**\n\n{_closed(turn.reasoning)}")
    text = turn.text if turn.cut is None else turn.text[: turn.cut]
    parts.append(f"**Answer:**\n\n{_closed(text)}")
    if turn.cut is not None and turn.cut < len(turn.text):
        parts.append("*The next turn continues from here, inside the answer.*")
    for call in turn.calls:
        arguments = json.dumps(call["arguments"], indent=2, ensure_ascii=False)
        parts.append(f"**Calls {call['name']}:**\n\n{_fenced(arguments)}")
    return "\n\n".join(parts)


def _heading(turn: Turn) -> str:
    "The verb of a turn, and its question"
    verb = turn.node.verb
    how = "fresh" if turn.node.mode == "fresh" else verb
    lead = f"{how}: " if how in ("branch", "focus", "retry", "fresh") else ""
    return lead + (_one_line(turn.question, 80) or "(no text)")


def _title(turn: Turn) -> str:
    return _one_line(turn.question, 80) or "A conversation"


def _one_line(text: str, n: int) -> str:
    return one_line(text[: 4 * n], n)  # enough of a long text


def _fenced(text: Any) -> str:
    "A text in a code block with a fence longer than any in it"
    text = str(text)
    longest = max((len(each) for each in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _closed(text: str) -> str:
    "A text with its last code block closed, so that it ends before what follows"
    fence = ""
    for found in re.finditer(r"^ {0,3}(`{3,}|~{3,})(.*)$", text, re.MULTILINE):
        marks, rest = found.groups()
        if not fence:
            fence = marks
        elif marks.startswith(fence) and not rest.strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text
