"""What goes into a batch, and how long batches are predicted to take.

The machine is a function of rows and positions; no model is loaded.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest

from llm_kvbranch.engine import Classes, Feed
from llm_kvbranch.inference.batching import (
    Kernel,
    Limits,
    choose,
    shape_of,
    takes_long,
)
from llm_kvbranch.inference.costs import Costs, Shape
from llm_kvbranch.inference.interrupts import interruptible
from llm_kvbranch.store.tokens import tokens_of

TILES = Kernel(512, tile=64, classes=Classes(2, 64))
ROWS = Kernel(512, classes=Classes(2, 2))
N_BATCH = 512


@dataclass(eq=False)
class Reader:
    "A generation that reads a prompt, then answers"

    seq: int
    n_left: int
    start: int = 0
    is_answering: bool = False

    @property
    def feed(self):
        n = min(max(self.n_left, 1), N_BATCH)
        return Feed(self.seq, self.start, tokens_of([1] * n))

    def advance(self, feed):
        n = len(feed.tokens)
        self.start += n
        self.n_left = max(0, self.n_left - n)
        self.is_answering = not self.n_left


def answering(seq, start=300):
    return Reader(seq, 0, start, is_answering=True)


def tiled(shape):
    "Seconds of a batch on two cores of a CPU, with flash attention (135M parameters)"
    each = 0.0032 + (1.0e-6 if shape.rows >= 64 else 2.6e-6) * shape.depth
    return shape.rows * each


def by_rows(shape):
    "The same without tiles"
    return shape.rows * (0.0034 + 1.1e-6 * shape.depth)


class Machine:
    "Decodes batches in scripted time, and notes each"

    def __init__(self, kernel, seconds, limits=None):
        self.kernel, self.seconds = kernel, seconds
        self.limits = limits or Limits()
        self.costs = Costs(kernel.tile)
        self.batches = []  # of (reader, rows), and how long each took
        self.stops = []

    def step(self, readers, eldest_first=False):
        chosen = choose(readers, self.kernel, self.limits, self.costs, eldest_first)
        shape = shape_of([feed for _, feed in chosen])
        assert shape.rows <= self.kernel.n_batch
        took = self.seconds(shape)
        if any(len(feed.tokens) > 1 for _, feed in chosen):
            self.costs.measured(shape, took)
        self.batches.append([(r, len(feed.tokens)) for r, feed in chosen])
        self.stops.append(took)
        for reader, feed in chosen:
            if not reader.is_answering:
                reader.advance(feed)
        return chosen

    def read(self, readers, prompt):
        "Until a prompt is read; the pieces that it was read in"
        pieces = []
        while prompt.n_left:
            for reader, feed in self.step(readers):
                if reader is prompt:
                    pieces.append(len(feed.tokens))
        return pieces


class TestBesideAnswers:
    "Fails if answers stand still too long, or a prompt is read in expensive pieces"

    def test_whole_tiles(self):
        machine, prompt = Machine(TILES, tiled), Reader(9, 3000)
        readers = [*map(answering, range(4)), prompt]
        pieces = machine.read(readers, prompt)
        assert sum(pieces) == 3000
        rows = [n + 4 for n in pieces]
        assert sum(n % 64 != 0 for n in rows) <= 2  # what tiles do not divide
        assert max(machine.stops) < 0.5
        alone = sum(
            tiled(Shape().and_rows(at, min(512, 3000 - at)))
            for at in range(0, 3000, 512)
        )
        assert sum(machine.stops) < 1.15 * alone

    def test_as_many_tiles_as_fit_the_limit(self):
        machine, prompt = Machine(TILES, tiled, Limits(1.0)), Reader(9, 3000)
        pieces = machine.read([*map(answering, range(4)), prompt], prompt)
        assert max(pieces[1:-2]) >= 4 * 64 - 4
        assert pieces[3] > pieces[-3]  # deeper rows cost more
        assert max(machine.stops) < 1.0 * 1.5

    def test_a_slow_machine_reads_one_tile(self):
        machine, prompt = Machine(TILES, lambda s: 10 * tiled(s)), Reader(9, 640)
        pieces = machine.read([answering(0), prompt], prompt)
        assert pieces[:5] == [63] * 5

    def test_rows_are_not_rounded_without_tiles(self):
        machine, prompt = Machine(ROWS, by_rows), Reader(9, 3000)
        machine.read([*map(answering, range(4)), prompt], prompt)
        stops = machine.stops[2:-1]
        assert max(stops) < 0.31
        assert min(stops) > 0.2

    def test_the_limit_is_a_setting(self):
        longest = []
        for seconds in (0.1, 0.3, 1.0):
            machine = Machine(ROWS, by_rows, Limits(seconds))
            prompt = Reader(9, 3000)
            machine.read([answering(0), prompt], prompt)
            longest.append(max(machine.stops))
        assert longest[0] < 0.11
        assert 0.2 < longest[1] < 0.31
        assert 0.8 < longest[2] < 1.05

    @pytest.mark.parametrize("kernel", [TILES, ROWS, Kernel(512)])
    @pytest.mark.parametrize("seed", range(30))
    def test_no_piece_is_too_small(self, kernel, seed):
        "While answers come and go; the last piece is computed together"
        draw = random.Random(seed)
        n = draw.randint(kernel.classes.many, 2000)
        machine, prompt = Machine(kernel, tiled), Reader(9, n, draw.randint(0, 3000))
        answers = [answering(i) for i in range(7)]
        while prompt.n_left:
            left, some = prompt.n_left, draw.sample(answers, draw.randint(0, 7))
            ((_, feed),) = [
                (r, f) for r, f in machine.step([*some, prompt]) if r is prompt
            ]
            assert prompt.n_left == 0 or prompt.n_left >= kernel.classes.many
            assert len(feed.tokens) + len(some) >= min(left, kernel.classes.many)
        assert len(feed.tokens) >= kernel.classes.many


class TestAlone:
    "Fails if a prompt that nobody else waits for is read in many pieces"

    def test_without_a_limit(self):
        machine, prompt = Machine(TILES, tiled), Reader(9, 3000)
        assert machine.read([prompt], prompt) == [512] * 5 + [440]

    def test_with_a_limit(self):
        "A piece that cannot be stopped is short"
        limits = Limits(alone=0.5)
        machine, prompt = Machine(TILES, tiled, limits), Reader(9, 3000)
        pieces = machine.read([prompt], prompt)
        assert pieces[0] == 64  # nothing is known yet
        assert max(pieces) == 128
        assert max(machine.stops) <= 0.75

    def test_the_last_piece_of_several_is_computed_together(self):
        machine, prompt = Machine(TILES, tiled), Reader(9, 520)
        assert machine.read([prompt], prompt) == [456, 64]


class TestSeveralPrompts:
    "Fails if prompts are read side by side, so that all of them are answered late"

    @staticmethod
    def order(readers, machine=None, eldest_every=4):
        machine, ends = machine or Machine(TILES, tiled), []
        for i in itertools.count(1):
            if len(ends) == len(readers):
                break
            machine.step(readers, i % eldest_every == 0)
            ends += [r.seq for r in readers if not r.n_left and r.seq not in ends]
        return ends

    def test_the_shortest_first(self):
        assert self.order([Reader(0, 2900), Reader(1, 700), Reader(2, 1500)]) == [
            1,
            2,
            0,
        ]

    def test_equal_ones_in_turn(self):
        machine = Machine(TILES, tiled)
        readers = [Reader(seq, 2000) for seq in range(4)]
        assert self.order(readers, machine) == [0, 1, 2, 3]
        for batch in machine.batches:  # the rest of one, then the next
            assert len([n for _, n in batch if n > 1]) <= 2

    def test_what_is_left_of_a_batch_goes_to_the_next(self):
        machine = Machine(TILES, tiled)
        machine.step([Reader(0, 1000), Reader(1, 100)])
        assert [n for _, n in machine.batches[0]] == [100, 412]

    def test_none_waits_for_ever(self):
        "Though shorter prompts come all the time"
        machine, long = Machine(TILES, tiled), Reader(0, 4000)
        short = Reader(1, 512)
        for i in range(100):
            machine.step([long, short], (i + 1) % 4 == 0)
            if not short.n_left:
                short = Reader(1, 512)
            if not long.n_left:
                break
        assert not long.n_left
        assert i < 40


class TestCosts:
    "Fails if the prediction is not that of the machine"

    def test_rows_and_depths_are_learned(self):
        costs, draw = Costs(64), random.Random(1)
        for _ in range(60):
            shape = Shape().and_rows(draw.randrange(3000), 64 * draw.randint(1, 4))
            costs.measured(shape, tiled(shape))
        for start in (0, 1000, 2500):
            shape = Shape(4, 1200).and_rows(start, 124)
            assert costs.seconds(shape) == pytest.approx(tiled(shape), rel=0.1)

    def test_noise_does_not_lead_it_astray(self):
        costs, draw = Costs(64), random.Random(2)
        for i in range(40):
            shape = Shape().and_rows(64 * i, 64)
            costs.measured(shape, tiled(shape) * draw.uniform(0.9, 1.1))
            following = Shape().and_rows(64 * (i + 1), 128)
            predicted = costs.seconds(following)
            assert predicted == pytest.approx(tiled(following), rel=0.25)

    def test_another_pace_is_noticed_at_once(self):
        "Another program takes half of the processors, or gives them back"
        costs = Costs(64)
        for factor in (1, 2, 1):
            for i in range(12):
                shape = Shape().and_rows(100 * i, 64)
                costs.measured(shape, factor * tiled(shape))
                if i > 3:
                    predicted = costs.seconds(shape)
                    assert predicted == pytest.approx(factor * tiled(shape), rel=0.2)

    def test_small_batches_have_costs_of_their_own(self):
        costs = Costs(64)
        costs.measured(Shape().and_rows(1000, 63), 1.0)
        assert costs.seconds(Shape().and_rows(1000, 64)) is None
        costs.measured(Shape().and_rows(1000, 64), 0.4)
        assert costs.seconds(Shape().and_rows(1000, 64)) == pytest.approx(0.4)
        assert costs.seconds(Shape().and_rows(1000, 63)) == pytest.approx(1.0)

    def test_what_is_much_deeper_is_not_known(self):
        costs = Costs()
        costs.measured(Shape().and_rows(0, 64), 0.2)
        assert costs.seconds(Shape().and_rows(300, 64)) is not None
        assert costs.seconds(Shape().and_rows(3000, 64)) is None

    def test_an_unknown_depth_is_tried_with_one_tile(self):
        machine = Machine(TILES, lambda shape: tiled(shape) / 10)
        machine.read([answering(0), first := Reader(8, 600)], first)
        second = Reader(9, 3000, start=5000)
        pieces = machine.read([answering(0), second], second)
        assert pieces[0] == 63
        assert max(pieces) > 250

    def test_when_a_batch_counts_as_endless(self):
        costs = Costs(64)
        shape = Shape(1, 50)
        assert costs.seconds_at_most(shape) is None
        costs.measured(Shape().and_rows(0, 100), 1.0)
        assert costs.seconds_at_most(shape) == pytest.approx(60.5)

    def test_a_short_batch_has_no_stop_function(self):
        "Fails if each token of an answer costs some hundred calls of Python"
        costs = Costs()
        feed = Feed(0, 0, tokens_of([1] * 60))
        assert not takes_long([Feed(0, 70, tokens_of([1]))], costs)  # answers alone
        assert takes_long([feed], costs)  # nobody knows yet
        costs.measured(Shape().and_rows(0, 400), 1.0)
        assert not takes_long([feed], costs)
        assert takes_long([Feed(0, 0, tokens_of([1] * 400))], costs)
        with interruptible(lambda: True, False) as stop:
            assert stop is None
        with interruptible(lambda: True, True) as stop:
            assert stop()
