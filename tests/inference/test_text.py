"""Text from bytes: the same text, however the bytes are cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.inference.text import TextStream


def run(data: bytes, cuts: list[int], stop: tuple[str, ...] = ()):
    "Feed data in pieces; returns (what was shown, the stream)"
    stream, shown = TextStream(stop), ""
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    for a, b in itertools.pairwise(edges):
        shown += stream.feed(data[a:b])
        if stream.stopped:
            break
    return shown + stream.release(), stream


class TestWholeCharacters:
    "Fails if half a character is shown, or one is lost"

    @given(st.text(), st.lists(st.integers(0, 1000)))
    def test_any_pieces(self, text, cuts):
        shown, stream = run(text.encode("utf-8", "replace"), cuts)
        assert shown == stream.text == text.encode("utf-8", "replace").decode()

    def test_half_a_character_at_the_end_is_not_shown(self):
        assert run("né".encode()[:-1], [])[0] == "n"


class TestStopStrings:
    "Fails if a stop string or a part of it is shown"

    @given(
        st.text("ab\u20ac", max_size=40),
        st.lists(st.text("ab\u20ac", min_size=1, max_size=4), min_size=1, max_size=3),
        st.lists(st.integers(0, 1000)),
    )
    def test_any_pieces(self, text, stops, cuts):
        shown, stream = run(text.encode(), cuts, tuple(stops))
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert stream.stopped == any(stop in text for stop in stops)
        if not stream.stopped:
            assert shown == text

    def test_the_beginning_of_a_stop_string_is_held_back(self):
        stream = TextStream(("STOP",))
        assert stream.feed(b"one ST") == "one "
        assert stream.feed(b"EP") == "STEP"
        assert stream.feed(b" ST") == " "
        assert stream.feed(b"OP two") == ""
        assert stream.stopped
        assert stream.text == "one STEP "
