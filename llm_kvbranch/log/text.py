"""The texts that people read: of a message, of a question, on one line.

The idea: a prompt about a part of an answer quotes that part first, so that every
model understands it. Trees and lists show only the question that follows.

This module does not know the log, only messages and strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

FOCUS = "About this part of your answer:\n\n"
FRESH = "About this text:\n\n"
# Control characters by their pictures; what turns the direction of text or is half a
# character by the sign for an unknown one
_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}
_PICTURES_OF_LINES = {k: v for k, v in _PICTURES.items() if chr(k) not in "\n\t"}
QUOTING = (FOCUS + ">", FRESH + ">")
"How prompts that quote a part of an answer start"


def message_text(message: Any) -> str:
    "The text parts of a message, without tool calls, results and attachments"
    return parts_text(part.to_dict() for part in message.parts)


def parts_text(parts: Iterable[Mapping[str, Any]], kind: str = "text") -> str:
    "The text of the parts of a kind: of text, or of reasoning"
    return "".join(as_text(part["text"]) for part in parts if part["type"] == kind)


def quoting(lead: str, excerpt: str, question: str) -> str:
    "A prompt that quotes an excerpt after FOCUS or FRESH and asks about it"
    quoted = "\n".join(f"> {line}".rstrip() for line in excerpt.splitlines())
    return f"{lead}{quoted}\n\n{question}"


def question(prompt: str) -> str:
    "The question in a prompt, without the excerpt it quotes"
    if prompt.startswith(QUOTING):
        return prompt.rpartition("\n\n")[2]
    return prompt


def printable(text: str, lines: bool = False) -> str:
    """A text that a terminal shows and does not obey.

    With ``lines`` it may have several, and tabs.
    """
    return text.translate(_PICTURES_OF_LINES if lines else _PICTURES)


def one_line(text: str, n: int) -> str:
    "The start of a text on one line of at most n characters, none of them a control"
    line = printable(" ".join(text.split()))
    return line if len(line) <= n else line[: n - 1] + "…"


def parse_object(payload: Any) -> dict[str, Any]:
    "A JSON object; empty if it is anything else"
    try:
        loaded = json.loads(payload or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def as_text(value: Any) -> str:
    "Text from a column, which may hold anything in SQLite"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def as_number(value: Any) -> int | None:
    "A whole number from a column, None for anything else"
    return value if isinstance(value, int) else None
