"""The tree that a log's responses form, and its outline.

The idea: every response stands below the one that it goes on from. llm's messages
already form a tree; walking it from the first response down finds a whole tree
without looking at the rest of the log, in a few queries for each verb's branches.

This module knows the log's tables, neither state nor the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..errors import HistoryError
from .ancestry import IN, Ancestry, listed
from .branching import QUOTING, question
from .history import History
from .marks import read_marks

# The text of a part; where it borrows a fragment, what was typed beside that
_TEXT = """coalesce(parts.text, (
  select group_concat(json_extract(piece.value, '$.literal'), '')
  from json_each(parts.payload, '$.text_ref') piece))"""
_BELOW = f"""
with recursive below(hash) as (
  select tip_message_hash from turns where id {IN}
  union select m.hash from messages m join below on m.parent_hash = below.hash)
select id from turns where parent_message_hash in (select hash from below)
"""


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
        "Tokens of prompt and answer, None where the model did not count them"
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def way(self) -> list[Node]:
        "The nodes from the first of the tree to this one"
        nodes = [self]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        return nodes[::-1]

    def walk(self) -> Iterator[Node]:
        "This node and all below it, parents first, oldest child first"
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)


class Forest:
    """The trees of one log.

    ``shown`` is how many characters of a text are read, None for all of them.
    """

    def __init__(self, history: History, shown: int | None = None):
        self.history = history
        self.db = history.db
        self.shown = shown
        self.ancestry = Ancestry(self.db)
        self._branches = self.db["kvbranch_branches"].exists()

    def tree(self, response_id: str) -> Node:
        "The root of the tree that a response is in"
        return self.below(self.ancestry.root(response_id))

    def recent(self, n: int) -> list[Node]:
        "The roots of the n trees that were gone on with last, newest first"
        roots: dict[str, None] = {}
        newest = self.db.query("select id from turns order by id desc")
        while len(roots) < n and (ids := [row["id"] for row in islice(newest, 20 * n)]):
            self.ancestry.learn(ids)
            roots |= dict.fromkeys(map(self.ancestry.root, ids))
        return self.grown(list(roots)[:n])

    def current(self) -> str | None:
        "The response that llm -c goes on from"
        for row in self.db.query(
            "select id from turns where thread_id = (select max(id) from threads)"
            " order by id desc limit 1"
        ):
            return str(row["id"])
        return None

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
        return self.grown([root])[0]

    def grown(self, roots: list[str]) -> list[Node]:
        "Some responses of different trees, each with everything below it"
        nodes = {row["id"]: _node(row) for row in self._rows(self._ids_below(roots))}
        for mark in read_marks(self.db, nodes):
            nodes[mark.response_id].starred = mark.starred
            nodes[mark.response_id].note = mark.note
        self._say_prompts(nodes)
        self.ancestry.learn(nodes)
        for node in sorted(nodes.values(), key=lambda node: node.id):
            parent = None if node.id in roots else self.ancestry.parent(node.id)
            if parent in nodes:
                node.parent = nodes[parent]
                node.parent.children.append(node)
        return [nodes[root] for root in roots]

    def _ids_below(self, roots: list[str]) -> set[str]:
        "Whatever may stand below some responses, and these"
        known, new = set(roots), roots
        while new:  # of which it is not known what goes on from them
            found = {row["id"] for row in self.db.query(_BELOW, [listed(new)])}
            branched = self._branched([*new, *(found - known)])
            known |= found
            new = list(branched - known)
            known |= branched
        return known

    def _branched(self, ids: Iterable[str]) -> set[str]:
        "What a command of ours branched from some responses"
        if not self._branches:
            return set()
        query = (
            "select response_id from kvbranch_branches join turns on id = response_id"
            f" where from_response {IN}"
        )
        return {row["response_id"] for row in self.db.query(query, [listed(ids)])}

    def _rows(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        "Turns, with how they were reached"
        join = (
            "left join kvbranch_branches b on b.response_id = turns.id"
            if self._branches
            else "left join (select null verb, null mode, null excerpt,"
            " null start, null end) b on 0"
        )
        query = (
            "select turns.*, b.verb, b.mode, b.excerpt, b.start, b.end"
            f" from turns {join}"
        )
        yield from self.db.query(f"{query} where turns.id {IN}", [listed(ids)])

    def _say_prompts(self, nodes: dict[str, Node]) -> None:
        "The words of each prompt's last message"
        # All of one that quotes: what it asks stands at its end
        quotes = " or ".join(f"{_TEXT} glob '{start}*'" for start in QUOTING)
        for id, text in self._texts("parent_message_hash", nodes, quotes):
            nodes[id].prompt += text
        for node in nodes.values():
            node.prompt = question(node.prompt)

    def say_answers(self, root: Node) -> None:
        "Add the beginning of each answer"
        nodes = {node.id: node for node in root.walk()}
        for id, text in self._texts("tip_message_hash", nodes):
            nodes[id].answer += text

    def _texts(
        self, column: str, ids: Iterable[str], whole: str = "0"
    ) -> Iterator[tuple[str, str]]:
        "(id, text) of each part of the message that a column of turns names"
        shown = -1 if self.shown is None else self.shown
        said = (
            f"case when ?1 < 0 or {whole} then {_TEXT} else substr({_TEXT}, 1, ?1) end"
        )
        for row in self.db.query(
            f"select turns.id, parts.type, parts.tool_name, {said} text from turns"
            f" join parts on parts.message_hash = turns.{column}"
            " where turns.id in (select value from json_each(?2))"
            " order by parts.position",
            [shown, listed(ids)],
        ):
            if row["type"] == "text":
                yield row["id"], row["text"] or ""
            elif row["type"] in ("tool_call", "tool_result"):
                arrow = "→" if row["type"] == "tool_call" else "←"
                yield row["id"], f"{arrow} {row['tool_name'] or 'tool'} "


def at_message(history: History, message: str) -> str:
    """The newest response that answers with a message, was sent it, or goes on from it.

    Raises HistoryError for a message that the log does not have.
    """
    query = (
        "with recursive below(hash) as ("
        " select hash from messages where hash = ?1"
        " union select m.hash from messages m join below on m.parent_hash = below.hash)"
        " select id from turns where tip_message_hash in (select hash from below)"
        " order by tip_message_hash = ?1 desc, parent_message_hash = ?1 desc, id desc"
    )
    for row in history.db.query(f"{query} limit 1", [message]):
        return str(row["id"])
    raise HistoryError(f"No response with message {message!r} in the log")


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
        start=row["start"],
        end=row["end"],
        created=row["datetime_utc"],
        duration_ms=row["duration_ms"],
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
