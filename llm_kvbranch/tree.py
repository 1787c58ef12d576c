"""The tree that a log's responses form, and its outline.

The idea: a response's parent is the one that a command of ours branched from,
else the one whose answer its prompt goes on from. llm's messages already form a
tree; walking it from the parents down finds a whole tree without looking at the
rest of the log.

This module knows the log's tables, neither state nor the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .branching import question
from .history import History

_CHUNK = 400


@dataclass
class Node:
    "A response in its tree"

    id: str
    thread_id: str
    model: str
    prompt: str
    input_tokens: int | None
    output_tokens: int | None
    verb: str | None = None
    mode: str | None = None
    excerpt: str | None = None
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def n_tokens(self) -> int | None:
        "Tokens of prompt and answer, None where the model did not count them"
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def walk(self) -> Iterator[Node]:
        "This node and all below it, parents first, oldest child first"
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)


class Forest:
    "The trees of one log"

    def __init__(self, history: History):
        self.history = history
        self.db = history.db
        self._branches = self.db["kvbranch_branches"].exists()

    def tree(self, response_id: str) -> Node:
        "The root of the tree that a response is in"
        root = response_id
        while (parent := self._parent(root)) is not None:
            root = parent
        return self.below(root)

    def recent(self, n: int) -> list[Node]:
        "The roots of the n trees that were gone on with last, newest first"
        roots: list[Node] = []
        seen: set[str] = set()
        for row in self.db.query("select id from turns order by id desc"):
            if len(roots) == n:
                break
            if row["id"] not in seen:
                root = self.tree(row["id"])
                seen.update(node.id for node in root.walk())
                roots.append(root)
        return roots

    def current(self) -> str | None:
        "The response that llm -c goes on from"
        for row in self.db.query(
            "select id from turns where thread_id = (select max(id) from threads)"
            " order by id desc limit 1"
        ):
            return str(row["id"])
        return None

    def _parent(self, response_id: str) -> str | None:
        branch = self.history.branch(response_id)
        parent = branch.get("from_response")
        if not parent or not self._rows("id", [parent]):
            return self.history.parent(self.history.turn(response_id))
        if branch["verb"] == "retry":  # a sibling, unless there is nothing above
            return self._parent(parent) or str(parent)
        return str(parent)

    def short(self, response_id: str) -> str:
        "As much of an id as tells it from all others in the log, 8 at least"
        row = next(
            self.db.query(
                "select (select max(id) from turns where id < :id) before,"
                " (select min(id) from turns where id > :id) after",
                {"id": response_id},
            )
        )
        n = 8
        for other in (row["before"] or "", row["after"] or ""):
            while len(response_id) > n and other[:n] == response_id[:n]:
                n += 1
        return response_id[:n]

    def below(self, root: str) -> Node:
        "A response, with everything below it"
        nodes: dict[str, Node] = {}
        level = self._rows("id", [root])
        while level:
            new = {row["id"]: row for row in level if row["id"] not in nodes}
            nodes.update((id, _node(row)) for id, row in new.items())
            level = [
                *self._rows("from_response", list(new)),
                *self._following([row["tip_message_hash"] for row in new.values()]),
            ]
        self._say_prompts(nodes)
        for node in sorted(nodes.values(), key=lambda node: node.id):
            parent = None if node.id == root else self._parent(node.id)
            if parent in nodes:
                node.parent = nodes[parent]
                node.parent.children.append(node)
        return nodes[root]

    def _rows(self, column: str, values: list[Any]) -> list[dict[str, Any]]:
        "Turns by id or by the response they were branched from"
        if column == "from_response" and not self._branches:
            return []
        join = (
            "left join kvbranch_branches b on b.response_id = turns.id"
            if self._branches
            else "left join (select null verb, null mode, null excerpt) b on 0"
        )
        found: list[dict[str, Any]] = []
        for begin in range(0, len(values), _CHUNK):
            chunk = values[begin : begin + _CHUNK]
            found += self.db.query(
                f"select turns.*, b.verb, b.mode, b.excerpt from turns {join}"
                f" where {'turns' if column == 'id' else 'b'}.{column}"
                f" in ({','.join('?' * len(chunk))})",
                chunk,
            )
        return found

    def _following(self, tips: list[str]) -> list[dict[str, Any]]:
        "Turns whose prompts go on from some answers, at any distance"
        ids: list[str] = []
        for begin in range(0, len(tips), _CHUNK):
            chunk = tips[begin : begin + _CHUNK]
            ids += [
                row["id"]
                for row in self.db.query(
                    "with recursive below(hash) as ("
                    " select hash from messages where parent_hash in"
                    f" ({','.join('?' * len(chunk))})"
                    " union select m.hash from messages m"
                    " join below on m.parent_hash = below.hash)"
                    " select turns.id from turns"
                    " join below on turns.parent_message_hash = below.hash",
                    chunk,
                )
            ]
        return self._rows("id", ids)

    def _say_prompts(self, nodes: dict[str, Node]) -> None:
        "The words of each prompt's last message"
        ids = list(nodes)
        for begin in range(0, len(ids), _CHUNK):
            chunk = ids[begin : begin + _CHUNK]
            for row in self.db.query(
                "select turns.id, parts.text from turns join parts"
                " on parts.message_hash = turns.parent_message_hash"
                " where parts.text is not null and turns.id in"
                f" ({','.join('?' * len(chunk))}) order by parts.position",
                chunk,
            ):
                nodes[row["id"]].prompt += row["text"]
        for node in nodes.values():
            node.prompt = question(node.prompt)


def _node(row: dict[str, Any]) -> Node:
    return Node(
        id=row["id"],
        thread_id=row["thread_id"],
        model=row["model"],
        prompt="",
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        verb=row["verb"],
        mode=row["mode"],
        excerpt=row["excerpt"],
    )


def outline(root: Node) -> Iterator[tuple[str, Node]]:
    """Each node with the lines that connect it to its parent.

    An only child stands below its parent, so that a conversation does not drift
    to the right; branches are indented.
    """
    waiting: list[tuple[str, str, Node]] = [("", "", root)]
    while waiting:
        lead, below, node = waiting.pop()
        yield lead, node
        if len(node.children) == 1:
            waiting.append((below, below, node.children[0]))
            continue
        last = len(node.children) - 1
        for i, child in reversed(list(enumerate(node.children))):
            elbow, line = ("└─ ", "   ") if i == last else ("├─ ", "│  ")
            waiting.append((below + elbow, below + line, child))
