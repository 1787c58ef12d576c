"""What commands and pages do with a large log that is damaged and hostile.

    python -m benchmarks.hostile_log             100,000 responses, one thread of 5,000
    python -m benchmarks.hostile_log --size 2000 a smaller one, for a quick look

The log has a cycle of messages, a circle of branches, parents and threads that do not
exist, and for each column conversations with escape sequences and markup, a lone
surrogate, a huge text and values of other types in it. The commands are real ones in
processes of their own, the addresses those of a datasette in this process. For each:
processor seconds, exit code or status, and the first line of what it says. It fails if
any takes over two seconds, ends with a traceback or a 500, or prints raw controls.

The newest conversations are the hostile ones, so that lists and trees show them; of the
commands, only every fifth of them gets one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlite_utils

from . import log_cost

LIMIT = 2.0  # seconds
SURROGATE = b"\xed\xa0\x80"  # a lone one; stored as text
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TEXT = (
    "\x1b[2J\x1b]0;owned\x07\x9b31m<script>alert(1)</script>\0 after a NUL\r\x08"
    "\u202eevil\u2028{{ 7 * 7 }} ' \" `"
)
VALUES: dict[str, Any] = {
    "hostile text": TEXT,
    "a lone surrogate": SURROGATE,
    "a huge text": "x" * 5_000_000,
    "an integer": 7,
    "an infinity": float("inf"),
    "bytes": b"\xff\0",
    "null": None,
}
# Table -> the column that finds a conversation's rows, and those that get the values
COLUMNS = {
    "turns": (
        "id",
        "model resolved_model input_tokens output_tokens token_details duration_ms"
        " datetime_utc response_json options_json thread_id schema_id",
    ),
    "threads": ("id", "name model forked_from"),
    "messages": ("hash", "role provider_metadata parent_hash"),
    "parts": ("message_hash", "type text payload tool_name tool_call_id position"),
    "turn_search": ("turn_id", "prompt response"),
    "kvbranch_branches": (
        "response_id",
        "thread_id from_response verb mode excerpt start end created",
    ),
    "kvbranch_marks": ("response_id", "starred note updated"),
}


# -- the log -------------------------------------------------------------


def write(path: Path, size: int) -> dict[str, str]:
    "A log; returns responses by what is odd about them"
    ids = {"deep": log_cost.write_large(path, size, size // 20)}
    writer = log_cost.Writer(path)
    last = writer.db.execute("select count(*) from turns").fetchone()[0] * 2
    for _ in range(last):  # ids after those in the log
        next(writer.numbers)
    for name in ("cycle", "circle", "dangling", "orphan"):
        ids[name] = writer.conversation(3)
    odd = {
        f"{value} in {table}.{column}": (table, column, value, writer.conversation(2))
        for table, (_, columns) in COLUMNS.items()
        for column in columns.split()
        for value in VALUES
    }
    writer.close()
    db = sqlite_utils.Database(path)
    db.execute("pragma foreign_keys = off")
    with db.atomic():
        _damage(db, ids)
        for name, (table, column, value, id) in odd.items():
            if _spoil(db, table, column, VALUES[value], id):
                ids[name] = id
        name, renamed = ids.popitem()
        db.execute("update turns set id = ? where id = ?", [TEXT + name, renamed])
    db.close()
    return ids


def _damage(db: sqlite_utils.Database, ids: dict[str, str]) -> None:
    "A cycle of messages and one of branches, and what refers to nothing"
    tip = db.execute(
        "select tip_message_hash from turns where id = ?", [ids["cycle"]]
    ).fetchone()[0]
    parent = "update messages set parent_hash = ? where hash = ?"
    for each in ("cycle", "dangling"):
        root = db.execute(
            "with recursive up(hash, parent) as (select hash, parent_hash from messages"
            " join turns on hash = tip_message_hash where id = ? union select m.hash,"
            " m.parent_hash from messages m join up on m.hash = up.parent)"
            " select hash from up where parent is null",
            [ids[each]],
        ).fetchone()[0]
        db.execute(parent, [tip if each == "cycle" else "b2:nowhere", root])
    thread = "select id from turns where thread_id = (select thread_id from turns"
    circle = [row[0] for row in db.execute(f"{thread} where id = ?)", [ids["circle"]])]
    for id, origin in zip(circle, circle[1:] + circle[:1], strict=True):
        row = {"response_id": id, "from_response": origin, "verb": "branch"}
        db.table("kvbranch_branches").insert(row)
    row = {"response_id": ids["orphan"], "from_response": "nobody", "verb": "retry"}
    db.table("kvbranch_branches").insert(row)
    db.execute("update turns set thread_id = 'none' where id = ?", [ids["orphan"]])


def _spoil(
    db: sqlite_utils.Database, table: str, column: str, value: Any, id: str
) -> bool:
    "Put a value into a column of a response's row; False if the schema forbids it"
    if column not in db[table].columns_dict:
        return False
    turn = next(db.query("select * from turns where id = ?", [id]))
    keys = {"id": turn["id"], "hash": turn["tip_message_hash"]}
    key = COLUMNS[table][0]
    row = keys["hash" if "hash" in key else "id"]
    if table == "threads":
        row = turn["thread_id"]
    if table.startswith("kvbranch"):
        db.table(table).insert(
            {"response_id": row, "starred": 1}
            if "marks" in table
            else {"response_id": row, "verb": "branch"}
        )
    put = "cast(? as text)" if value == SURROGATE else "?"
    try:
        db.execute(
            f"update {table} set [{column}] = {put} where {key} = ?", [value, row]
        )
    except sqlite3.IntegrityError:
        return False
    return True


# -- what is asked of it -------------------------------------------------


def commands(ids: dict[str, str], folder: Path) -> Iterator[list[str]]:
    "Arguments of llm kvbranch; those that change the log come last"
    yield ["tree"]
    yield ["show", "last"]
    named = ["deep", "cycle", "circle", "dangling", "orphan"]
    for id in [ids[name] for name in named]:
        for command in ("tree", "show", "diff", "export"):
            more = {"diff": [ids["deep"]], "export": [str(folder / "x.kvbranch")]}
            yield [command, id, *more.get(command, [])]
    hostile = [id for name, id in ids.items() if " in " in name]
    for number, id in enumerate(hostile[::5]):
        yield [
            ("tree", "show", "export")[number % 3],
            id,
            *([str(folder / "y.kvbranch")] if number % 3 == 2 else []),
        ]
    yield ["store", "status"]
    for name in named:
        yield ["prune", ids[name], "--log", "-y"]
    yield ["prune", hostile[0], "--log", "-y"]


def addresses(ids: dict[str, str]) -> Iterator[str]:
    yield from ("", "?q=scattered", "?starred=1", "?model=parrot", "/last")
    yield "/search.json?q=scattered+light"
    for id in ids.values():
        at = quote(id, safe="")
        yield f"/{at}"
        for name in ("tree", "path"):
            yield f"/{name}.json?id={at}"
    for name in ("deep", "cycle", "dangling", "orphan"):
        yield f"/export?id={ids[name]}"
        yield f"/compare.json?id={ids[name]}&id={ids['deep']}"
        yield f"/search.json?q=scattered&id={ids[name]}"


def run(arguments: list[str], folder: Path) -> tuple[float, int, bytes]:
    "Processor seconds, exit code and output of a command"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "llm"), "kvbranch", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=300,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, done.returncode, done.stdout


def faults(seconds: float, status: int, output: bytes, is_page: bool) -> list[str]:
    text = output.decode(errors="surrogateescape")
    found = {
        "SLOW": seconds > LIMIT,
        "TRACEBACK": "Traceback (most recent" in text,
        "500": status == 500,  # 503 says that it takes too long
        "RAW": not is_page and RAW.search(text),
        "EXIT": not is_page and status not in (0, 1),
    }
    return [name for name, is_found in found.items() if is_found]


def report(what: str, seconds: float, status: int, output: bytes, is_page: bool) -> int:
    "Print a row; returns the number of faults"
    bad = faults(seconds, status, output, is_page)
    lines = output.decode(errors="replace").strip().splitlines() or [""]
    said = RAW.sub("?", lines[0])[:60]
    print(f"{seconds:6.2f} {status:3} {what[:44]:<44} {' '.join(bad):<8} {said}")
    return len(bad)


async def pages(path: Path, ids: dict[str, str]) -> int:
    from datasette.app import Datasette

    datasette = Datasette([str(path)])
    await datasette.invoke_startup()
    n_faults = 0
    for address in addresses(ids):
        start = time.process_time()
        answer = await datasette.client.get(f"/-/kvbranch{address}")
        seconds = time.process_time() - start
        n_faults += report(
            address or "/", seconds, answer.status_code, answer.content, True
        )
    return n_faults


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile_log",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=log_cost.LARGE, help="responses")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = write(folder / "logs.db", arguments.size)
        n_faults = asyncio.run(pages(folder / "logs.db", ids))
        for words in commands(ids, folder):
            n_faults += report(" ".join(words), *run(words, folder), False)
    print(f"{n_faults} faults")
    sys.exit(n_faults > 0)


if __name__ == "__main__":
    main()
