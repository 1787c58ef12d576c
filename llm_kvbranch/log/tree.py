"""The trees that a log's responses form.

The idea: every response is a child of the one it continues. llm's messages already
form a tree, so walking down from the first response finds a whole tree without
reading the rest of the log.

This module knows the log's tables. It does not know KV state or how a tree is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .ancestry import Ancestry
from .deadline import check, checked
from .history import History
from .marks import read_marks
from .tables import IN, json_list
from .text import QUOTING, as_number, as_text, question

# The text of a part; if it refers to fragments, only the literal text around them
_TEXT = """coalesce(parts.text, (
  select group_concat(json_extract(piece.value, '$.literal'), '')
  from json_each(iif(json_valid(parts.payload), parts.payload, '{}'), '$.text_ref')
    piece))"""


@dataclass
class Node:
    "A response in its tree"

    id: str
    rowid: int  # in the order in which responses were logged
    thread_id: str
    model: str
    prompt: str
    input_tokens: int | None
    output_tokens: int | None
    verb: str | None = None
    mode: str | None = None
    excerpt: str | None = None
    start: int | None = None
    end: int | None = None
    created: str | None = None
    duration_ms: int | None = None
    answer: str = ""
    starred: bool = False
    note: str | None = None
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def n_tokens(self) -> int | None:
        "Tokens of prompt and answer, None if the model did not count them"
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def path(self) -> list[Node]:
        "The nodes from the root to this one"
        nodes = [self]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        return nodes[::-1]

    def walk(self) -> Iterator[Node]:
        "This node and all below it, parents first, children by age"
        waiting = [self]
        while waiting:
            check()
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def outline(self) -> Iterator[tuple[str, Node]]:
        """This node and all below it, each with the lines drawn before it.

        An only child is not indented, so that a long conversation stays at the left
        edge; only branches are.
        """
        waiting: list[tuple[str, str, Node]] = [("", "", self)]
        while waiting:
            check()
            lead, below, node = waiting.pop()
            yield lead, node
            if len(node.children) == 1:
                waiting.append((below, below, node.children[0]))
                continue
            last = len(node.children) - 1
            for i, child in reversed(list(enumerate(node.children))):
                elbow, line = ("└─ ", "   ") if i == last else ("├─ ", "│  ")
                waiting.append((below + elbow, below + line, child))


class Forest:
    """The trees of one log.

    ``n_characters`` of each text are read, all of them if it is None.
    """

    def __init__(self, history: History, n_characters: int | None = None):
        self.history = history
        self.db = history.db
        self.n_characters = n_characters
        self.ancestry = Ancestry(self.db)
        self._has_branches = self.db["kvbranch_branches"].exists()

    def tree(self, response_id: str) -> Node:
        "The root of the tree that contains a response"
        return self.below(self.ancestry.root(response_id))

    def recent(self, n: int) -> list[Node]:
        "The roots of the n trees with the newest responses, newest first"
        roots: dict[str, None] = {}
        newest = self.db.query("select id from turns order by rowid desc")
        while len(roots) < n and (ids := [row["id"] for row in islice(newest, 20 * n)]):
            self.ancestry.load(ids)
            roots |= dict.fromkeys(map(self.ancestry.root, ids))
        return self.load(list(roots)[:n])

    def newest(self, n: int, prefix: str = "") -> list[Node]:
        "The n responses that were logged last, newest first, without their relations"
        found = self.db.query(
            "select id from turns where substr(id, 1, length(:prefix)) = :prefix"
            " order by rowid desc limit :n",
            {"prefix": prefix, "n": n},
        )
        ids = [row["id"] for row in found]
        nodes = {row["id"]: _node(row) for row in self._rows(ids)}
        self._load_prompts(nodes)
        return [nodes[id] for id in ids]

    def below(self, root: str) -> Node:
        "A response with all below it"
        return self.load([root])[0]

    def load(self, roots: list[str]) -> list[Node]:
        "Responses of different trees, each with all below it"
        ids = self.ancestry.descendants(roots)
        nodes = {row["id"]: _node(row) for row in self._rows(ids)}
        for mark in read_marks(self.db, nodes):
            nodes[mark.response_id].starred = mark.starred
            nodes[mark.response_id].note = mark.note
        self._load_prompts(nodes)
        self.ancestry.load(nodes)
        for node in checked(sorted(nodes.values(), key=lambda node: node.rowid)):
            parent = None if node.id in roots else self.ancestry.parent(node.id)
            if parent in nodes:
                node.parent = nodes[parent]
                node.parent.children.append(node)
        # SQLite cuts an id at a NUL: such a response cannot be found by it
        return [nodes[root] for root in roots if root in nodes]

    def _rows(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        "Rows of turns, with the verb that reached each"
        join = (
            "left join kvbranch_branches b on b.response_id = turns.id"
            if self._has_branches
            else "left join (select null verb, null mode, null excerpt,"
            " null start, null end) b on 0"
        )
        query = (
            "select turns.*, turns.rowid as logged,"
            f" b.verb, b.mode, b.excerpt, b.start, b.end from turns {join}"
        )
        yield from self.db.query(f"{query} where turns.id {IN}", [json_list(ids)])

    def _load_prompts(self, nodes: dict[str, Node]) -> None:
        "Read the text of the last message in each prompt"
        # Prompts that quote are read whole: their question comes last
        quotes = " or ".join(f"{_TEXT} glob '{start}*'" for start in QUOTING)
        for id, text in self._texts("parent_message_hash", nodes, quotes):
            nodes[id].prompt += text
        for node in checked(nodes.values()):
            node.prompt = question(node.prompt)

    def load_answers(self, root: Node) -> None:
        "Read the start of each answer in a tree"
        nodes = {node.id: node for node in root.walk()}
        for id, text in self._texts("tip_message_hash", nodes):
            nodes[id].answer += text

    def _texts(
        self, column: str, ids: Iterable[str], whole: str = "0"
    ) -> Iterator[tuple[str, str]]:
        """(id, text) of each part of the message in a column of turns.

        Texts are cut, but for those that the condition ``whole`` is true of.
        """
        most = -1 if self.n_characters is None else self.n_characters
        text = (
            f"case when ?1 < 0 or {whole} then {_TEXT} else substr({_TEXT}, 1, ?1) end"
        )
        for row in self.db.query(
            f"select turns.id, parts.type, parts.tool_name, {text} text from turns"
            f" join parts on parts.message_hash = turns.{column}"
            " where turns.id in (select value from json_each(?2))"
            " order by parts.position",
            [most, json_list(ids)],
        ):
            if row["type"] == "text":
                yield row["id"], as_text(row["text"])
            elif row["type"] in ("tool_call", "tool_result"):
                arrow = "→" if row["type"] == "tool_call" else "←"
                yield row["id"], f"{arrow} {row['tool_name'] or 'tool'} "


def _node(row: dict[str, Any]) -> Node:
    return Node(
        id=row["id"],
        rowid=row["logged"],
        thread_id=row["thread_id"] and as_text(row["thread_id"]),
        model=as_text(row["model"]),
        prompt="",
        input_tokens=as_number(row["input_tokens"]),
        output_tokens=as_number(row["output_tokens"]),
        verb=as_text(row["verb"]) or None,
        mode=as_text(row["mode"]) or None,
        excerpt=as_text(row["excerpt"]) or None,
        start=as_number(row["start"]),
        end=as_number(row["end"]),
        created=as_text(row["datetime_utc"]) or None,
        duration_ms=as_number(row["duration_ms"]),
    )
