"""What serve.py measured, as figures, ratios with their bars, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

Times = dict[str, list[float]]

# Title, and the names of its figures: ours, and what it is held against
ROWS: dict[str, tuple[str, str, str, str]] = {
    "hot": ("Follow-up, in memory", "ms", "hot ours", "hot theirs"),
    "branch": (
        "Branch inside the last answer, in memory; llama-server: follow-up",
        "ms",
        "branch ours",
        "hot theirs",
    ),
    "cut": (
        "The same; llama-server: the history sent again, cut",
        "ms",
        "branch ours",
        "branch theirs",
    ),
    "cached": ("Follow-up after a restart", "ms", "cached ours", "cached theirs"),
    "evicted": (
        "The same, files not in the page cache",
        "ms",
        "evicted ours",
        "evicted theirs",
    ),
    "nothing": ("First turn: all is read", "ms", "nothing ours", "nothing theirs"),
    "one": ("Tokens a second, one answer", "", "1 ours", "1 theirs"),
    "eight": ("Tokens a second, eight answers at once", "", "8 ours", "8 theirs"),
    "stall": (
        "Longest stop of four answers while 3,000 tokens are read",
        "ms",
        "stall ours",
        "stall theirs",
    ),
    "long": (
        "Time to first token of those 3,000",
        "ms",
        "stall ours ttft",
        "stall theirs ttft",
    ),
}
# What must hold: the figure, what it is divided by, and the most (or least) it may be
BARS: dict[str, tuple[str, str, float]] = {
    "follow-up in memory, against llama-server's": ("hot ours", "hot theirs", 1.0),
    "branch in memory, against llama-server's follow-up": (
        "branch ours",
        "hot theirs",
        1.0,
    ),
    "follow-up after a restart, against llama-server's slot restore": (
        "cached ours",
        "cached theirs",
        1.1,
    ),
    "the same, files not in the page cache": ("evicted ours", "evicted theirs", 1.1),
}
MOST_BEYOND = 0.15  # seconds


def figures(times: Times) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "n": len(values),
        }
        for name, values in times.items()
    }


def ratio(times: Times, one: str, other: str) -> float | None:
    "That of the medians, None if one was not measured"
    if not (times.get(one) and times.get(other)):
        return None
    return statistics.median(times[one]) / statistics.median(times[other])


def bars(times: Times) -> list[dict[str, Any]]:
    "What must hold: what it is, how it is, and what it may be at the most"
    found = [
        {"what": what, "is": value, "most": most}
        for what, (one, other, most) in BARS.items()
        if (value := ratio(times, one, other)) is not None
    ]
    if beyond := times.get("command beyond"):
        what = "seconds of `llm` beyond `llm --version` and the server's own"
        value = statistics.median(beyond)
        found.append({"what": what, "is": value, "most": MOST_BEYOND})
    return found


def missed(found: list[dict[str, Any]]) -> Iterator[str]:
    for bar in found:
        if bar["is"] > bar["most"]:
            yield f"MISSED  {bar['what']}: {bar['is']:.3f}, more than {bar['most']}"


def table(result: dict[str, Any]) -> str:
    "Markdown: ratios first"
    shown, times = result["figures"], result["raw"]
    rows = [
        ["", "ratio", "`llm kvbranch serve`", "`llama-server`"],
        ["---", "---:", "---:", "---:"],
    ]
    for title, unit, ours, theirs in ROWS.values():
        value = ratio(times, ours, theirs)
        if value is not None:
            cells = [cell(shown[name], unit) for name in (ours, theirs)]
            rows.append([title, f"{value:.2f}", *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "Medians (least to most).", "", *notes(result), ""]
    lines += ["| must hold | is | at the most |", "| --- | ---: | ---: |"]
    lines += [
        f"| {bar['what']} | {bar['is']:.3f} | {bar['most']} |" for bar in result["bars"]
    ]
    return "\n".join([*lines, "", machine_line(result), ""])


def cell(figure: dict[str, float], unit: str) -> str:
    scale = 1000 if unit == "ms" else 1
    median, least, most = (scale * figure[each] for each in ("median", "least", "most"))
    return f"{median:,.0f} ({least:,.0f}-{most:,.0f}) {unit}".rstrip()


def notes(result: dict[str, Any]) -> Iterator[str]:
    "What the table has no place for"
    shown, facts = result["figures"], result["facts"]

    def ms(name: str) -> str:
        return f"{1000 * shown[name]['median']:,.0f} ms"

    def median(name: str) -> float:
        return float(shown[name]["median"])

    if "hot ours own" in shown:
        yield (
            f"- In memory, by the servers' own clocks: {ms('hot ours own')} and "
            f"{ms('hot theirs own')} for {median('hot ours read'):.0f} and "
            f"{median('hot theirs read'):.0f} tokens read; our branch "
            f"{ms('branch ours own')} for {median('branch ours read'):.0f}."
        )
    for where, words in (
        ("cached", "After a restart"),
        ("evicted", "From files that are not in the page cache"),
    ):
        if f"{where} theirs slot" in shown:
            yield (
                f"- {words}, llama-server restores its slot in "
                f"{ms(f'{where} theirs slot')} and answers in "
                f"{ms(f'{where} theirs request')}; ours by its own clock "
                f"{ms(f'{where} ours own')}, theirs {ms(f'{where} theirs own')}."
            )
    if "slot file" in facts and "state bytes" in shown:
        ours, theirs = median("state bytes"), facts["slot file"]
        yield (
            f"- On disk, a follow-up's state is {ours / 1e6:.1f} MB, llama-server's "
            f"slot file {theirs / 1e6:.1f} MB: {ours / theirs:.3f}."
        )
    for name, who in (("ours", "llm kvbranch serve"), ("theirs", "llama-server")):
        if f"8 {name}" in shown:
            times = median(f"8 {name}") / median(f"1 {name}")
            yield f"- Eight answers at once are {times:.2f} times one with {who}."
    if "command beyond" in shown:
        yield (
            "- `llm -m kvllama` in a new process, the server running: first byte "
            f"after {ms('command first byte')}; `llm --version` takes "
            f"{ms('command version')}, the server {ms('command own')}, the rest "
            f"{ms('command beyond')}."
        )


def machine_line(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    return (
        f"SmolLM2-135M, {settings['n_ctx']:,} tokens of context, {settings['slots']} "
        f"slots; {machine['cores']} cores ({machine['architecture']}, "
        f"{machine['system']}), Python {machine['python']}"
    )
