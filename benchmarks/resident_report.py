"""Tables and plots of servers: see resident.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, megabytes, ratio, spread
from .peers.servers import LLAMA, OURS, PYTHON, SLOTS

PEERS = (LLAMA, SLOTS, PYTHON)
AT_ONCE, IN_TURN = "at once", "in turn"
LONG = "long tree"
# Title, and the beginning of its figures' names
ROWS: dict[str, tuple[str, ...]] = {
    "Follow-up, in memory": ("hot", "follow-up"),
    "Branch in the last answer, in memory": ("hot", "branch"),
    "Follow-up after a restart": ("restart", "cached", "follow-up"),
    "The same, files not in the page cache": ("restart", "evicted", "follow-up"),
    "Branch after a restart": ("restart", "cached", "branch"),
    "The same, files not in the page cache ": ("restart", "evicted", "branch"),
    "Tree of {n} branches asked at once, in memory": ("tree", "hot", AT_ONCE),
    "The same, one asked after the other": ("tree", "hot", IN_TURN),
    "Tree of {n} branches asked at once, after a restart": ("tree", "restart", AT_ONCE),
    "Tree of {n} branches of a long conversation, in memory": (LONG, "hot", AT_ONCE),
    "The same, after a restart": (LONG, "restart", AT_ONCE),
    "First turn: everything is read": ("first turn",),
    "Starting the server": ("start",),
}
AHEAD = 3.0


def bars(result: Result) -> list[Bar]:
    found = []
    for what in ("follow-up", "branch"):
        text = f"{what} in memory, of llama-server's time to first token"
        value = result.ratio(("hot", what, OURS), ("hot", what, LLAMA))
        found.append(bar(result, text, value, LLAMA, most=1.0))
    for where, words in (("cached", ""), ("evicted", ", files not in the page cache")):
        for what in ("follow-up", "branch"):
            names = ("restart", where, what)
            value = result.ratio((*names, OURS), (*names, SLOTS))
            text = f"{what} after a restart, of llama-server's slot restore{words}"
            found.append(bar(result, text, value, SLOTS, most=1.1))
    n = result.settings["n_branches"]
    for kind, when, names in (
        ("tree", "hot", (LLAMA, PYTHON)),
        ("tree", "restart", PEERS),
        (LONG, "hot", (PYTHON,)),
        (LONG, "restart", (SLOTS, PYTHON)),
    ):
        for peer in names:
            value = result.ratio(
                (kind, when, AT_ONCE, peer), (kind, when, AT_ONCE, OURS)
            )
            words = "in memory" if when == "hot" else "after a restart"
            text = f"{kind} of {n} branches at once, {words}: {peer}'s time, of ours"
            found.append(bar(result, text, value, peer, least=AHEAD))
    return found


def bar(
    result: Result, what: str, value: float | None, peer: str, **limit: float
) -> Bar:
    return Bar(
        what, value, why="" if value is not None else result.why_not(peer), **limit
    )


def table(result: Result) -> str:
    peers = [name for name in PEERS if name in result.contenders]
    header = ["", *(f"{OURS} / {peer}" for peer in peers), OURS, *peers]
    rows = []
    for title, names in ROWS.items():
        rows.append(
            [
                title.strip().format(n=result.settings["n_branches"]),
                *(ratio(result.ratio((*names, OURS), (*names, p))) for p in peers),
                *(spread(result, *names, name) for name in (OURS, *peers)),
            ]
        )
    parts = [markdown(header, rows), "Medians (lowest to highest)."]
    return "\n\n".join([*parts, own(result), read(result)]).strip()


def own(result: Result) -> str:
    "By the servers' own clocks"
    lines = []
    for what in ("follow-up", "branch"):
        said = [
            f"{name} {1000 * seconds:.0f} ms for {tokens:.0f} tokens read"
            for name in (OURS, LLAMA)
            if (seconds := result.median("own", "hot", what, name)) is not None
            and (tokens := result.median("read", "hot", what, name)) is not None
        ]
        lines.append(
            f"- {what} in memory, by the servers' own clocks: {', '.join(said)}"
        )
    return "\n".join(lines)


def read(result: Result) -> str:
    lines = []
    said = [
        f"{name} {tokens:,.0f}"
        for name in (OURS, LLAMA, SLOTS)
        if (tokens := result.median("tree", "restart read", name)) is not None
    ]
    if said:
        lines.append(f"- Tokens read for the tree after a restart: {', '.join(said)}")
    if "slot file" in result.facts:
        nbytes = megabytes(result.facts["slot file"])
        lines.append(f"- llama-server's slot file is {nbytes}")
    return "\n".join(lines)


def plot(result: Result) -> Any:
    figure = plots.figure("The model in memory: seconds", 3, width=4.4, height=3.4)
    if figure is None:
        return None
    sheet, panels = figure
    chosen = {
        "Follow-up, in memory, to first token": ("hot", "follow-up"),
        "Follow-up after a restart": ("restart", "cached", "follow-up"),
        "Tree of branches after a restart": ("tree", "restart", AT_ONCE),
    }
    for panel, (title, names) in zip(panels, chosen.items(), strict=True):
        values = {name: result.median(*names, name) for name in result.contenders}
        plots.bars(panel, title, values, "{:.2f} s", DASH)
    return sheet
