"""Tables and plots of bytes on disk: see disk.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, megabytes, plain, ratio
from .peers.servers import OURS, PYTHON, SLOTS

CACHE = "LlamaDiskCache"
DOES = {
    OURS: "`llm kvbranch serve`, a state file for each response",
    SLOTS: "`llama-server`, its client saving the slot after every answer",
    PYTHON: "llama-cpp-python's `examples/server/server.py` with its disk cache, which "
    "keeps the whole state of every prompt, and not of what was said to it; what fifty "
    "of them take, by the size of two of its files",
    CACHE: "llama-cpp-python's `LlamaDiskCache`: it removes what it reads, so no tree "
    "stays; what fifty whole states would take, by the size of two of its files",
}
MOST_BYTES, LEAST_READ = 1.02, 0.6


def least_bytes(result: Result) -> float:
    "The rows of every token once"
    return float(result.facts["unique"] * result.facts["row"])


def kept(result: Result, name: str) -> float | None:
    "Bytes; by a line through two files where whole states are kept"
    files = result.facts.get(f"files/{name}", [])
    if len(files) == 2:
        (n, one), (m, other) = files
        each = (other - one) / (m - n)
        tokens = result.facts["prompts" if name == PYTHON else "tokens"]
        return float(result.settings["n_responses"] * (one - n * each) + each * tokens)
    return result.median("bytes", name)


def bars(result: Result) -> list[Bar]:
    mine = kept(result, OURS)
    value = None if mine is None else mine / least_bytes(result)
    n = result.settings["n_responses"]
    return [
        Bar(
            f"bytes of a tree of {n} responses, of the rows of its tokens once",
            value,
            most=MOST_BYTES,
        ),
        Bar(
            "restoring from the page cache, of the rate of copying memory",
            result.ratio(("rate", "read"), ("rate", "copy")),
            least=LEAST_READ,
        ),
    ]


def table(result: Result) -> str:
    facts, least = result.facts, least_bytes(result)
    rows = [
        [
            name,
            ratio(None if (nbytes := kept(result, name)) is None else nbytes / least),
            megabytes(kept(result, name)),
            plain(result.median("files", name)),
        ]
        for name in (OURS, SLOTS, PYTHON, CACHE)
        if name in result.contenders
    ]
    n = result.settings["n_responses"]
    header = [f"a tree of {n} responses", "of the rows of its tokens once"]
    parts = [
        markdown([*header, "bytes", "files"], rows),
        f"All contexts together are {facts['tokens']:,} tokens, of which "
        f"{facts['unique']:,} are different; {OURS} stored {facts['stored']:,}. A row "
        f"is {facts['row']:,} bytes.",
    ]
    rows = [
        [
            title,
            ratio(result.ratio(("rate", name), ("rate", other))),
            rate(result, name),
            rate(result, other),
        ]
        for title, name, other in (
            ("restore, against copying memory", "read", "copy"),
            (
                "restore, not in the page cache, against reading",
                "read cold",
                "disk read",
            ),
            ("store, against writing and flushing", "write", "disk write"),
        )
    ]
    size = f"{facts['rows']:,} tokens, {megabytes(facts['rows_bytes'])}"
    parts.append(markdown([size, "ratio", "rate", "the machine's own"], rows))
    return "\n\n".join(parts)


def rate(result: Result, name: str) -> str:
    value = result.median("rate", name)
    return DASH if value is None else f"{value / 1e9:.2f} GB/s"


def plot(result: Result) -> Any:
    figure = plots.figure("State on disk", 2, width=4.8, height=3.2)
    if figure is None:
        return None
    sheet, (tree, speeds) = figure
    values = {}
    for name in (OURS, SLOTS, PYTHON, CACHE):
        if name in result.contenders:
            nbytes = kept(result, name)
            values[name] = None if nbytes is None else nbytes / 1e6
    n = result.settings["n_responses"]
    plots.bars(tree, f"Megabytes of a tree of {n}", values, "{:,.0f}", DASH)
    names = ("read", "copy", "read cold", "disk read", "write", "disk write")
    rates = {name: (result.median("rate", name) or 0) / 1e9 for name in names}
    plots.bars(speeds, "Gigabytes a second", dict(rates), "{:.1f}", DASH)
    return sheet
