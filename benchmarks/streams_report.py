"""Tables and plots of several answers at once: see streams.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, plain, ratio, spread
from .peers.servers import LLAMA, OURS

COUNTS = (1, 2, 4, 8)
MOST_BEYOND = 0.15  # seconds
MOST_STOP = 0.5  # seconds
MOST_SHARE = 1.3  # of llama-server's time to the first token of a long prompt


def bars(result: Result) -> list[Bar]:
    beyond = result.median("command", "beyond")
    what = "seconds of `llm` beyond `llm --version` and the server's own"
    share = result.ratio(("stall ttft", OURS), ("stall ttft", LLAMA))
    return [
        Bar(what, beyond, most=MOST_BEYOND),
        Bar(
            "seconds that an answer stops at most while 3,000 tokens are read",
            result.median("stall", OURS),
            most=MOST_STOP,
        ),
        Bar(
            "time to their first token, of llama-server's",
            share,
            most=MOST_SHARE,
            why="" if share is not None else result.why_not("stall ttft", LLAMA),
        ),
    ]


def table(result: Result) -> str:
    names = list(result.contenders)
    peers = names[1:]
    header = ["tokens / s together", *(f"{OURS} / {peer}" for peer in peers), *names]
    rows = [
        [
            f"{n} at once",
            *(
                ratio(result.ratio(("streams", n, OURS), ("streams", n, peer)))
                for peer in peers
            ),
            *(plain(result.median("streams", n, name), 1) for name in names),
        ]
        for n in COUNTS
    ]
    rates = markdown(header, rows)
    header = ["four answers running, 3,000 tokens read", *header[1:]]
    rows = []
    for title, name in (
        ("longest stop of an answer", "stall"),
        ("longest stop before", "stall usual"),
        ("the prompt's own first token", "stall ttft"),
    ):
        shares = [ratio(result.ratio((name, OURS), (name, peer))) for peer in peers]
        rows.append([title, *shares, *(spread(result, name, who) for who in names)])
    tokens = [plain(result.median("stall tokens", who)) for who in names]
    rows.append(
        ["tokens that each got in the meantime", *(DASH for _ in peers), *tokens]
    )
    return "\n\n".join([rates, markdown(header, rows), command(result)])


def command(result: Result) -> str:
    def ms(name: str) -> str:
        return f"{1000 * (result.median('command', name) or 0):,.0f} ms"

    return (
        f"`llm -m kvllama` in a new process, the server running: first byte after "
        f"{ms('first byte')}; `llm --version` takes {ms('version')}, the server "
        f"{ms('own')}, the rest {ms('beyond')}."
    )


def plot(result: Result) -> Any:
    figure = plots.figure("Several answers at once", 2, width=4.6, height=3.4)
    if figure is None:
        return None
    sheet, (rates, stops) = figure
    series = {
        name: [
            (float(n), rate)
            for n in COUNTS
            if (rate := result.median("streams", n, name)) is not None
        ]
        for name in result.contenders
    }
    plots.lines(rates, "Tokens a second together", series, "answers", logy=False)
    rates.set_ylim(0)
    values = {name: result.median("stall", name) for name in result.contenders}
    title = "Longest stop while 3,000 tokens are read"
    plots.bars(stops, title, values, "{:.2f} s", DASH)
    return sheet
