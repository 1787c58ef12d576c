"""What the log's commands cost in a large log and in a deep conversation.

    python -m benchmarks.log_cost              both tables
    python -m benchmarks.log_cost --only deep  one thread of 100 to 3,200 turns
    python -m benchmarks.log_cost --only large 100,000 responses, one thread of 5,000

The logs are written by SQL, since logging 100,000 answers takes an hour. They need no
model: every time is what the log's own code takes. The growth is the factor by which a
doubling multiplies the time (from the sizes where it can be told from noise).
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlite_utils

from llm_kvbranch.cli.report import describe_diff, describe_response, describe_tree
from llm_kvbranch.log import (
    Ancestry,
    Forest,
    History,
    branching,
    edits,
    open_log,
    search,
    transcript,
)
from llm_kvbranch.store import bundle
from llm_kvbranch.web.page.list_data import describe_list
from llm_kvbranch.web.page.page_data import describe_path
from llm_kvbranch.web.page.page_data import describe_tree as page_tree

DEPTHS = (100, 200, 400, 800, 1600, 3200)
LARGE, DEEP, USUAL = 100_000, 5_000, 10
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
WORDS = "the sky is blue because light of short waves is scattered by air"

Task = Callable[[History, str], Any]


# -- logs ----------------------------------------------------------------


def response_id(number: int) -> str:
    "An id like llm's: the time first, then what makes it unique"
    digits = ""
    for _ in range(8):
        number, digit = divmod(number, 32)
        digits = ALPHABET[digit] + digits
    return f"01j{digits}{'0' * 15}"


class Writer:
    "Writes conversations into a log, a table at a time"

    def __init__(self, path: Path):
        self.db = open_log(str(path), create=True)
        self.history = History(self.db)
        self.history.prepare()
        self.numbers = itertools.count(1)
        self.rows: dict[str, list[tuple[Any, ...]]] = {
            name: [] for name in ("threads", "messages", "parts", "turns", "search")
        }

    def conversation(self, n: int) -> str:
        "A thread of n turns; returns the id of the last one"
        thread = last = response_id(next(self.numbers))
        tip = None
        for turn in range(n):
            last = response_id(number := next(self.numbers))
            prompt = f"Question {number}: why is it so, the {turn} time?"
            answer = f"Answer {number}: {WORDS} {number}."
            asked = self._message(tip, "user", prompt, number)
            after = self._message(asked, "assistant", answer, number)
            facts = f'{{"kvbranch": {{"generated_tokens": 14, "n": {number}}}}}'
            when = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:00"
            self.rows["turns"].append(
                (last, thread, asked, after, "parrot", 14, 14, 100, when, facts)
            )
            self.rows["search"].append((last, prompt, answer))
            tip = after
        self.rows["threads"].append((thread, f"Thread {thread}", tip))
        return last

    def branch(self, parent: str) -> str:
        "A fork of one turn after a response"
        turn = next(t for t in self.rows["turns"] if t[0] == parent)
        last = response_id(number := next(self.numbers))
        asked = self._message(turn[3], "user", f"And {number}?", number)
        after = self._message(asked, "assistant", f"So {number}.", number)
        self.rows["threads"].append((last, "Fork", after))
        self.rows["turns"].append(
            (last, last, asked, after, "parrot", 14, 14, 100, None, None)
        )
        self.rows["search"].append((last, f"And {number}?", f"So {number}."))
        return last

    def _message(self, parent: str | None, role: str, text: str, number: int) -> str:
        hash = f"b2:{role[0]}{number:031x}"
        self.rows["messages"].append((hash, parent, role))
        self.rows["parts"].append((hash, text))
        return hash

    def close(self) -> None:
        statements = {
            "threads": "threads (id, name, tip_message_hash) values (?, ?, ?)",
            "messages": "messages (hash, parent_hash, role) values (?, ?, ?)",
            "parts": "parts (message_hash, position, type, text)"
            " values (?, 0, 'text', ?)",
            "turns": "turns (id, thread_id, parent_message_hash, tip_message_hash,"
            " model, input_tokens, output_tokens, duration_ms, datetime_utc,"
            " response_json) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            "search": "turn_search (turn_id, prompt, response) values (?, ?, ?)",
        }
        with self.db.atomic():
            for name, statement in statements.items():
                self.db.conn.executemany(f"insert into {statement}", self.rows[name])
        self.db.close()


def write_deep(path: Path, n: int) -> str:
    "A log of one thread; returns its last response"
    writer = Writer(path)
    last = writer.conversation(n)
    writer.close()
    return last


def write_large(path: Path, size: int = LARGE, deep: int = DEEP) -> str:
    "A log of usual conversations and a deep one; returns the last of that"
    writer = Writer(path)
    last = ""
    n_usual = (size - deep) // USUAL
    for number in range(n_usual):
        writer.conversation(USUAL)
        if number == n_usual - 20:  # on the first page, not the newest
            last = writer.conversation(deep)
    writer.close()
    return last


# -- tasks ---------------------------------------------------------------


def list_page(words: str = "") -> Task:
    return lambda history, last: describe_list(history, search.Filter(words=words), {})


def recent(history: History, last: str) -> None:
    for lines in describe_tree(history, None, 5):
        list(lines)


def tree(history: History, last: str) -> None:
    for lines in describe_tree(history, last, 5):
        list(lines)


def export_page(history: History, last: str) -> None:
    root = Forest(history).tree(last)
    node = next(node for node in root.walk() if node.id == last)
    transcript.path_text(history, node, "markdown")


def found(history: History, last: str) -> None:
    forest = Forest(history, 0)
    some = search.search_responses(history.db, "scattered light")
    forest.ancestry.load(each.id for each in some)
    for each in some:
        forest.ancestry.root(each.id)


def found_in_tree(history: History, last: str) -> None:
    top = Forest(history, 0).tree(last)
    among = [node.id for node in top.walk()]
    search.search_responses(history.db, "scattered light", among)


def prune_all(history: History, last: str) -> None:
    root = Ancestry(history.db).root(last)
    edits.prune(history, root, Ancestry(history.db).continuations(root))


TASKS: dict[str, Task] = {
    "tree (newest 5)": recent,
    "tree ID": tree,
    "show": describe_response,
    "diff": lambda history, last: describe_diff(history, last, last),
    "continue (plan)": lambda history, last: branching.continue_(history, last, "?"),
    "list page": list_page(),
    "list page, searched": list_page("scattered"),
    "tree page": lambda history, last: page_tree(history, last, {}),
    "conversation page": lambda history, last: describe_path(history, last, {}),
    "search": found,
    "search in tree": found_in_tree,
    "export (page)": export_page,
    "export (bundle)": bundle.conversation_of,
    "prune --log": prune_all,
}


def measure(path: Path, last: str, names: list[str]) -> Iterator[tuple[str, float]]:
    "Seconds that each task takes in a log; those that change it get a copy"
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            copy = path
            if name.startswith("prune"):
                copy = Path(shutil.copy(path, folder))
            db = sqlite_utils.Database(copy)
            history = History(db)
            start = time.process_time()
            TASKS[name](history, last)
            yield name, time.process_time() - start
            db.close()


def growth(seconds: list[float]) -> float:
    "The mean factor of a doubling, where times are more than noise"
    pairs = [(a, b) for a, b in itertools.pairwise(seconds) if b > 0.02]
    return statistics.geometric_mean(b / a for a, b in pairs) if pairs else 1.0


def deep(names: list[str], folder: Path) -> None:
    times: dict[str, list[float]] = {name: [] for name in names}
    for n in DEPTHS:
        path = folder / f"deep{n}.db"
        last = write_deep(path, n)
        for name, seconds in measure(path, last, names):
            times[name].append(seconds)
    head = " ".join(f"{n:>8,}" for n in DEPTHS)
    print(f"{'seconds, one thread of n turns':<32}{head}   growth")
    for name, row in times.items():
        cells = " ".join(f"{seconds:8.3f}" for seconds in row)
        print(f"{name:<32}{cells} {growth(row):8.2f}")


def large(names: list[str], folder: Path) -> None:
    path = folder / "large.db"
    last = write_large(path)
    print(f"{f'seconds, {LARGE:,} responses, {DEEP:,} deep':<40}")
    for name, seconds in measure(path, last, names):
        print(f"{name:<32}{seconds:8.3f}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.log_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=["deep", "large"])
    parser.add_argument("--task", choices=list(TASKS), nargs="+", default=list(TASKS))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "large":
            deep(arguments.task, Path(folder))
        if arguments.only != "deep":
            large(arguments.task, Path(folder))


if __name__ == "__main__":
    main()
