"""Classes of batches, as numbers and as llama.cpp computes them."""

from __future__ import annotations

import random
from array import array

import pytest

from llm_kvbranch.engine import FEW, MANY, ONE, Classes, Engine, Feed, Settings
from llm_kvbranch.engine.classes import classes_of
from tests.support.toys import architectures

N = 160  # tokens; with more than 512 cells single rows are another matter


def test_classes_of_sizes():
    tiled = Classes(2, 64)
    assert [tiled.of(n) for n in (1, 2, 63, 64, 500)] == [ONE, FEW, FEW, MANY, MANY]
    assert [tiled.least(n) for n in (1, 2, 63, 64, 500)] == [1, 2, 2, 64, 64]
    plain = Classes(2, 2)
    assert [plain.of(n) for n in (1, 2, 64)] == [ONE, MANY, MANY]
    assert [plain.least(n) for n in (1, 2, 64)] == [1, 2, 2]
    assert Classes().least(7) == 1, "nothing is known of a GPU"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), Classes(2, 64, 512)),
        (Settings(flash_attn="off"), Classes(2, 2, 128)),
        (Settings(type_k="q8_0", type_v="q8_0"), Classes(2, 2, 512)),
        (Settings(type_k="f16", type_v="q8_0"), Classes(2, 2, 512)),
        (Settings(n_batch=32), Classes(2, 2, 32)),
    ],
)
def test_classes_of_settings(settings, expected):
    assert classes_of(settings, True) == expected
    assert classes_of(settings, False) == Classes(), "nothing is known of a GPU"


@pytest.mark.parametrize("classes", [Classes(2, 64, 512), Classes(2, 2, 128)])
@pytest.mark.parametrize("room", [128, 512])
def test_no_piece_of_a_prompt_is_of_a_smaller_class(classes, room):
    for n in range(1, 1200):
        left, computed = n, []
        while left:
            piece = classes.piece(left, room)
            assert 0 < piece <= room
            at_once = min(piece, classes.most)
            computed += [at_once] * (piece // at_once) + [piece % at_once or at_once]
            left -= piece
        assert {classes.of(size) for size in computed} == {classes.of(n)}


def rows(toy, settings: Settings, sizes: list[int]) -> bytes:
    "The rows of the same tokens, decoded in batches of some sizes"
    draw = random.Random(1)
    tokens = array("i", [draw.randrange(20, 40_000) for _ in range(N)])
    engine = Engine(toy.weights, settings)
    engine.reserve(256)
    for n in sizes:
        begin = engine.length(0)
        engine.decode([Feed(0, begin, tokens[begin : begin + n])])
    assert engine.length(0) == N
    found = bytes(engine.capture(0, 0, N))
    engine.close()
    return found


@architectures("llama")
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("flash_attn", ["auto", "off"])
def test_rows_of_a_class_are_the_same_bits(toy, flash_attn, kv_type):
    if flash_attn == "off" and kv_type == "q8_0":
        pytest.skip("llama.cpp quantises values with flash attention only")
    settings = Settings(
        type_k=kv_type, type_v=kv_type, flash_attn=flash_attn, n_threads=1, n_seq=2
    )
    classes = Engine(toy.weights, settings).classes
    whole = rows(toy, settings, [N])
    assert rows(toy, settings, [N - classes.many, classes.many]) == whole
    assert rows(toy, settings, [N - classes.many - 1, classes.many + 1]) == whole
    if classes.many > classes.few:
        assert rows(toy, settings, [N - classes.few, classes.few]) != whole
        few = rows(toy, settings, [N - 40, 40])
        assert rows(toy, settings, [N - 40, 38, classes.few]) == few
