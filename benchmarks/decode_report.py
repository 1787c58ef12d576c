"""Tables and plots of tokens a second: see decode.py."""

from __future__ import annotations

from typing import Any

from .harness import plots
from .harness.bars import Bar
from .harness.result import Result
from .harness.table import DASH, markdown, plain, ratio, seconds

OURS, LLAMA, BENCH = "kvllama", "Llama", "llama-bench"
POLITE = "kvllama, few spins"
COUNTS = (1, 2, 4, 8, 16)
OF_BENCH = 0.97
SIBLINGS, GAIN = 8, 1.5


def bars(result: Result) -> list[Bar]:
    why = "" if result.values("rate", BENCH) else result.why_not(BENCH)
    rate = result.paired(("rate", OURS), ("rate", BENCH))
    gain = result.ratio(("siblings", SIBLINGS), ("siblings", 1))
    return [
        Bar(
            "tokens a second, of llama-bench's (median of the rounds' ratios)",
            rate,
            least=OF_BENCH,
            why=why,
        ),
        Bar(
            f"{SIBLINGS} siblings together, of one's tokens a second", gain, least=GAIN
        ),
    ]


def table(result: Result) -> str:
    rows = [
        [
            name,
            ratio(result.paired(("rate", name), ("rate", BENCH))),
            plain(result.median("rate", name), 1),
            seconds(result.median("in llama.cpp", name)),
            seconds(result.median("beside", name)),
        ]
        for name in result.contenders
    ]
    header = ["one answer", f"of {BENCH}'s rate", "tokens / s"]
    one = markdown([*header, "a token in llama.cpp", "a token outside of it"], rows)
    rows = [
        [
            f"{n}",
            ratio(result.ratio(("siblings", n), ("siblings", 1))),
            plain(result.median("siblings", n), 1),
        ]
        for n in COUNTS
    ]
    many = markdown(["siblings", "of one's rate", "tokens / s together"], rows)
    depth = result.settings["depth"]
    return f"Behind {depth:,} tokens; medians.\n\n{one}\n\n{many}"


def plot(result: Result) -> Any:
    figure = plots.figure("Tokens a second", 2, width=4.6, height=3.4)
    if figure is None:
        return None
    sheet, (one, many) = figure
    rates = {name: result.median("rate", name) for name in result.contenders}
    plots.bars(one, "One answer", rates, "{:.0f}", DASH)
    one.set_xlabel("tokens a second")
    together = [
        (float(n), rate)
        for n in COUNTS
        if (rate := result.median("siblings", n)) is not None
    ]
    plots.lines(many, "Siblings together", {OURS: together}, "siblings", logy=False)
    many.set_ylim(0)
    if rate := result.median("siblings", 1):
        many.axhline(rate, color=plots.INK, linewidth=0.9, linestyle=":")
    return sheet
