"""One style for all plots, which can be read on light pages and on dark ones.

The background is transparent. Every colour has a contrast of 3 or more on GitHub's
white and on its dark theme (a test computes it), so one file does for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGES = {"light": "#ffffff", "dark": "#0d1117"}
INK = "#757d86"  # text and axes
GRID = "#757d8640"
OURS = "#3b82f6"
FLOOR = "#8a8f98"
# Contenders keep their colour through all plots
COLORS = {
    "kvllama": OURS,
    "kvllama, first turn": "#2a9d6f",
    "kvllama, no store": "#9a6ee0",
    "kvllama, few spins": "#2492a8",
    "floor": FLOOR,
    "floor, import llm": "#757d86",
    "llm-gguf": "#d2691e",
    "LlamaDiskCache": "#b8860b",
    "llama-server": "#e0483e",
    "llama-server, slots": "#c2478f",
    "server.py": "#b8860b",
    "llama-bench": "#e0483e",
    "Llama": "#d2691e",
}
OTHERS = ("#3b82f6", "#e0483e", "#2a9d6f", "#b8860b", "#9a6ee0", "#c2478f", "#2492a8")


def color(name: str, i: int = 0) -> str:
    return COLORS.get(name) or OTHERS[i % len(OTHERS)]


def figure(
    title: str, n_panels: int = 1, width: float = 4.8, height: float = 3.6
) -> Any:
    "A figure and its panels, or None where there is no matplotlib"
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "llm-kvbranch",  # the same file for the same values
            "svg.fonttype": "path",
            "font.size": 9.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
        }
    )
    import matplotlib.pyplot as plt

    sheet, panels = plt.subplots(
        1,
        n_panels,
        figsize=(width * n_panels, height),
        squeeze=False,
        layout="constrained",
    )
    sheet.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    return sheet, list(panels[0])


def save(sheet: Any, out: Path, name: str, footnote: str = "") -> Path:
    import matplotlib.pyplot as plt

    if footnote:
        sheet.supxlabel(footnote, x=0.01, ha="left", fontsize=7.5, color=INK)
    path = out / f"{name}.svg"
    sheet.savefig(path, metadata={"Date": None})
    plt.close(sheet)
    return path


def lines(
    panel: Any,
    title: str,
    series: dict[str, list[tuple[float, float]]],
    xlabel: str,
    logx: bool = True,
    logy: bool = True,
) -> None:
    "A line for each name; points are (x, y)"
    ticks: set[float] = set()
    for i, (name, points) in enumerate(series.items()):
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        ticks |= set(xs)
        panel.plot(
            xs,
            ys,
            "o--" if name == "floor" else "o-",
            color=color(name, i),
            label=name,
            linewidth=1.7,
            markersize=4,
        )
    if logx:
        panel.set_xscale("log")
    if logy:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.set_xticks(sorted(ticks), [f"{x:,g}" for x in sorted(ticks)])
    panel.minorticks_off()
    panel.set_title(title)
    panel.set_xlabel(xlabel)
    panel.grid(True, axis="y")
    panel.legend(fontsize=8.5)


def bars(
    panel: Any,
    title: str,
    values: dict[str, float | None],
    form: str = "{:,.2f}",
    dashes: str = "–",
) -> None:
    "Horizontal bars with their values; a dash where there is none"
    names = list(values)
    panel.set_xlim(0, 1.25 * max((v for v in values.values() if v), default=1.0))
    for i, name in enumerate(names):
        value = values[name]
        if value:
            panel.barh(i, value, height=0.62, color=color(name, i))
        text = dashes if value is None else form.format(value)
        panel.annotate(
            text,
            (value or 0, i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_title(title)
    panel.grid(True, axis="x")


def stacked(
    panel: Any, title: str, parts: Sequence[str], values: dict[str, list[float]]
) -> None:
    "Horizontal bars made of parts, in the order of ``parts``"
    for i, numbers in enumerate(values.values()):
        left = 0.0
        for j, (part, number) in enumerate(zip(parts, numbers, strict=True)):
            panel.barh(
                i,
                number,
                left=left,
                height=0.62,
                color=OTHERS[j % len(OTHERS)],
                label=part if i == 0 else None,
            )
            left += number
    panel.set_yticks(range(len(values)), list(values))
    panel.invert_yaxis()
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_title(title)
    panel.grid(True, axis="x")
    panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def contrast(one: str, other: str) -> float:
    "WCAG's contrast ratio of two colours, from 1 to 21"
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(hexadecimal: str) -> float:
    values = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
