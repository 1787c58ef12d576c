"""Finding an excerpt: the exact text, then as people copy it."""

from __future__ import annotations

import difflib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.errors import AmbiguousExcerptError, HistoryError
from llm_kvbranch.log.excerpt import check_range, find

TEXT = "It’s a “long”  story.\nThe sea is wide, the sea is deep, the sea is blue."


class TestFind:
    "Fails if a branch would be cut anywhere but at the excerpt"

    # Without accents and joiners, which are not taken apart
    @given(
        st.text(st.characters(exclude_categories=["M", "Cf", "Cs"]), min_size=1),
        st.data(),
    )
    def test_a_part_is_found_where_it_is(self, text, data):
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        part = text[start:end]
        if not part.strip():
            with pytest.raises(HistoryError, match="empty"):
                find(text, part)
            return
        n = sum(text.startswith(part, i) for i in range(start + 1))
        assert find(text, part, n) == (start, end)

    @pytest.mark.parametrize(
        ("excerpt", "found"),
        [
            ("wide", "wide"),
            ("It's a", "It’s a"),
            ('"long" story', "“long”  story"),
            ("story. The", "story.\nThe"),
            ("  story.\n\n The ", "story.\nThe"),
        ],
    )
    def test_as_copied(self, excerpt, found):
        start, end = find(TEXT, excerpt)
        assert TEXT[start:end] == found

    @pytest.mark.parametrize(
        ("text", "excerpt", "found"),
        [
            ("Un cafe\u0301 noir", "caf\u00e9", "cafe\u0301"),
            ("Un caf\u00e9 noir", "cafe\u0301 noir", "caf\u00e9 noir"),
            ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\ud55c\uae00"),
            ("from 1 \u2013 2 \u2014 so", "1 - 2 - so", "1 \u2013 2 \u2014 so"),
            ("co\u00adop\u200berate now", "cooperate", "co\u00adop\u200berate"),
            ("cooperate now", "co\u00adoperate", "cooperate"),
            ("He said \u2039yes\u203a", "'yes'", "\u2039yes\u203a"),
            ("And so\u2026 it ends", "so... it", "so\u2026 it"),
            ("And so... it ends", "so\u2026 it", "so... it"),
            ("a \u201fword\u201d", '"word"', "\u201fword\u201d"),
        ],
    )
    def test_what_looks_the_same(self, text, excerpt, found):
        start, end = find(text, excerpt)
        assert text[start:end] == found

    @pytest.mark.parametrize(
        ("text", "excerpt", "found"),
        [
            ("It is **very bold** and _so_ it is", "very bold and so", ...),
            ("It is very bold.", "It is **very** bold", "It is very bold"),
            ("- one thing\n- **two** things", "one thing two things", ...),
            ("one thing\ntwo things", "- one thing\n- two", "one thing\ntwo"),
            ("> > quoted\n> > text", "quoted text", "quoted\n> > text"),
            ("so quoted\ntext here", "> quoted\n> text", "quoted\ntext"),
            ("1. foo\n2. bar", "foo bar", "foo\n2. bar"),
            ("## A title\nand text", "A title and text", "A title\nand text"),
            ("use `a*b` *now* and", "use a*b now", "use `a*b` *now"),
            ("the ~~old~~ “new” one", 'old "new"', "old~~ “new”"),
        ],
    )
    def test_as_a_page_shows_it(self, text, excerpt, found):
        if found is ...:  # from the first word to the last
            first, last = excerpt.split()[0], excerpt.split()[-1]
            found = text[text.index(first) : text.rindex(last) + len(last)]
        start, end = find(text, excerpt)
        assert text[start:end] == found

    @pytest.mark.parametrize(
        ("text", "excerpt"),
        [
            ("2*3*4 = 24", "234"),
            ("2 * 3 * 4", "2 3 4"),
            ("a snake_case_name", "snakecasename"),
            ("cat", "- a"),
            ("cat", "**a**"),
            ("1. foo\n2. bar", "2. foo"),
            ("```\n*a* b\n```", "a b"),
            ("`*a* b`", "a b"),
            (r"\*a\* b", "a b"),
            ("*a\n\nb* c", "a b c"),
        ],
    )
    def test_what_is_no_mark(self, text, excerpt):
        "It is text, and text that differs is another place"
        with pytest.raises(HistoryError, match="does not contain"):
            find(text, excerpt)

    @given(st.text("ab*_`~->#1. \n\\", min_size=1), st.data())
    def test_marks_never_lead_elsewhere(self, text, data):
        "Letters of an excerpt without marks are those of the place that is found"
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        letters = [c for c in text[start:end] if c in "ab"]
        excerpt = " ".join(re.findall("[ab]+", text[start:end]))
        try:
            found = find(text, excerpt)
        except HistoryError:
            return
        assert [c for c in text[slice(*found)] if c in "ab"] == letters

    @pytest.mark.parametrize(
        "text", ["cafe\u0301 and cafe", "\U0001f44d\U0001f3fd \U0001f44d"]
    )
    def test_a_character_is_not_taken_apart(self, text):
        "The one without an accent or a skin tone is meant"
        last = text.split()[-1]
        assert find(text, last) == (len(text) - len(last), len(text))

    def test_it_is_if_it_occurs_nowhere_else(self):
        assert find("cafe\u0301", "cafe") == (0, 4)

    @given(
        st.text("ae\u0301\u00e9 \u00ad-\u2013\u2026.\n\u200d", min_size=1), st.data()
    )
    def test_every_part_is_found(self, text, data):
        "Whatever is in it, and composed or not"
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        if text[start:end].strip(" \n"):
            place = find(text, text[start:end], 1)
            assert 0 <= place[0] < place[1] <= len(text)

    def test_the_original_comes_first(self):
        assert find("a b a\nb", "a\nb") == (4, 7)

    def test_one_of_several(self):
        assert [find(TEXT, "the sea", n)[0] for n in (1, 2)] == [39, 56]


class TestRefused:
    "Fails if a match is guessed where there is none or there are several"

    def test_several_are_listed(self):
        with pytest.raises(HistoryError) as caught:
            find(TEXT, "sea is")
        message = str(caught.value)
        assert "3 times" in message
        assert "choose an occurrence: 1: " in message
        assert "2: …" in message
        assert "\n" not in message

    def test_several_with_marks_are_listed(self):
        text = "- the **sea** is\n- the _sea_ is\n- the sea"
        with pytest.raises(AmbiguousExcerptError, match="2 times"):
            find(text, "the sea is")
        start, end = find(text, "the sea is", 2)
        assert text[start:end] == "the _sea_ is"

    def test_no_such_occurrence(self):
        with pytest.raises(HistoryError, match="once, there is no occurrence 2"):
            find(TEXT, "wide", 2)

    def test_the_nearest_is_shown(self):
        with pytest.raises(
            HistoryError, match=r"nearest text is: .*deep, \[the sea is blue\.\]"
        ):
            find(TEXT, "the sea is blau")

    def test_the_time_for_the_nearest_is_bounded(self, monkeypatch):
        sizes = []

        class Matcher(difflib.SequenceMatcher):
            def find_longest_match(self, *ranges):
                sizes.append(len(self.a) * len(self.b))
                return difflib.Match(0, 0, 0)

        monkeypatch.setattr(difflib, "SequenceMatcher", Matcher)
        for n in (7_000, 14_000):
            with pytest.raises(HistoryError):
                find("the sea is deep " * n, "the sea is blau " * n)
        assert sizes[0] == sizes[1] <= 20_000_000

    def test_nothing_near(self):
        with pytest.raises(HistoryError) as caught:
            find(TEXT, "Ω≈ç√")
        assert "nearest" not in str(caught.value)

    @pytest.mark.parametrize("span", [(0, 0), (3, 2), (0, 1000), (-1, 3)])
    def test_ranges(self, span):
        with pytest.raises(HistoryError, match="characters 0:"):
            check_range(TEXT, *span)
        assert check_range(TEXT, 0, len(TEXT)) == (0, len(TEXT))
