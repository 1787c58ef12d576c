"""A measurement, and what it is given to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .bars import Bar
from .result import Result
from .turns import Progress

Who = TypeVar("Who")


@dataclass
class Tools:
    """What there is to measure with; ``missing`` says why something is not there.

    ``llama`` is the folder of llama-server and llama-bench, ``peers`` the Python of
    the peers' own environment, ``server_py`` llama-cpp-python's example server.
    """

    model: Path
    n_threads: int
    llama: Path | None = None
    peers: Path | None = None
    server_py: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    "One measurement under way: ``work`` is a folder of its own that is removed after"

    result: Result
    tools: Tools
    work: Path
    progress: Progress
    quick: bool = False
    options: Any = None  # of the command line, for what only one measurement takes

    def choose(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def begin(self, n_turns: int) -> None:
        "Told how many turns there will be"
        self.progress.begin(self.result.name, n_turns)

    def rounds(
        self, contenders: Sequence[Who], n: int, what: str = ""
    ) -> Iterator[tuple[int, Who]]:
        return self.progress.rounds(contenders, n, what)


@dataclass(frozen=True)
class Measurement:
    """One of the things that are measured.

    ``measure`` fills a run's result. All else is computed from a result: ``plot``
    gives a figure to save, or None.
    """

    name: str
    title: str
    minutes: float  # that it takes on two cores
    measure: Callable[[Run], None]
    bars: Callable[[Result], list[Bar]]
    table: Callable[[Result], str]
    plot: Callable[[Result], Any]
    peers: bool = True  # whether it measures anything but this package
