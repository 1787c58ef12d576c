"""How texts differ, word by word."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kvbranch.log import diff


class TestCompare:
    "Fails if the differences are not those of the texts"

    @given(st.lists(st.text("ab \n", max_size=60), min_size=1, max_size=4))
    @settings(max_examples=300)
    def test_the_pieces_are_the_texts(self, texts):
        columns = diff.columns(texts)
        assert ["".join(text for _, text in column) for column in columns] == texts
        if len(set(texts)) == 1:
            assert all(sign == " " for column in columns for sign, _ in column)

    @given(st.text("ab ", max_size=80), st.text("ab ", max_size=80))
    @settings(max_examples=300)
    def test_what_is_gone_and_new(self, left, right):
        found = diff.changes(left, right)
        assert "".join(text for sign, text in found if sign != "+") == left
        assert "".join(text for sign, text in found if sign != "-") == right

    def test_columns(self):
        assert diff.columns(["a b c d", "a x c d", "a b c e"]) == [
            [(" ", "a "), ("+", "b "), (" ", "c "), ("+", "d")],
            [(" ", "a "), ("+", "x "), (" ", "c d")],
            [(" ", "a b c "), ("+", "e")],
        ]

    def test_no_text_takes_long(self):
        import time

        chance, started = random.Random(1), time.monotonic()
        long = [" ".join(chance.choices("abcdefgh", k=50_000)) for _ in range(2)]
        same = ["a " * 50_000 + "x", "y " + "a " * 50_000]
        for texts in (long, same, ["x" * 100_000, "y " * 50_000]):
            columns = diff.columns(texts)
            assert ["".join(t for _, t in column) for column in columns] == texts
        assert time.monotonic() - started < 30
