"""Finding an excerpt: the exact text, then as people copy it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.errors import HistoryError
from llm_kvbranch.log.excerpt import check_range, find

TEXT = "It’s a “long”  story.\nThe sea is wide, the sea is deep, the sea is blue."


class TestFind:
    "Fails if a branch would be cut anywhere but at the excerpt"

    @given(st.text(min_size=1), st.data())
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

    def test_no_such_occurrence(self):
        with pytest.raises(HistoryError, match="once, there is no occurrence 2"):
            find(TEXT, "wide", 2)

    def test_the_nearest_is_shown(self):
        with pytest.raises(
            HistoryError, match=r"nearest text is: .*deep, \[the sea is blue\.\]"
        ):
            find(TEXT, "the sea is blau")

    def test_nothing_near(self):
        with pytest.raises(HistoryError) as caught:
            find(TEXT, "Ω≈ç√")
        assert "nearest" not in str(caught.value)

    @pytest.mark.parametrize("span", [(0, 0), (3, 2), (0, 1000), (-1, 3)])
    def test_ranges(self, span):
        with pytest.raises(HistoryError, match="characters 0:"):
            check_range(TEXT, *span)
        assert check_range(TEXT, 0, len(TEXT)) == (0, len(TEXT))
