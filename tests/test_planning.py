"""What is known of a prompt: where tokens and text can be cut together."""

from __future__ import annotations

from array import array

import llm
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.planning import answer_hash, chain_hashes, covered

from .fake import BYTE, FakeVocab

piece = FakeVocab().piece
TEXT = st.text("aé€😀 ", max_size=12)


def tokens_of_bytes(data: bytes) -> array:
    return array("i", [BYTE + b for b in data])


class TestCovered:
    "Fails if a cut falls inside a character, or tokens spell another text"

    @given(said=TEXT, asked=TEXT, trailing=st.binary(max_size=3))
    def test_tokens_and_text_are_cut_together(self, said, asked, trailing):
        tokens = tokens_of_bytes(said.encode() + trailing)
        n, n_text = covered(tokens, piece, asked)
        spelled = b"".join(map(piece, tokens[:n])).decode("utf-8", "replace")
        assert spelled == asked[:n_text]

    @given(said=TEXT, cut=st.integers(0, 12))
    def test_a_beginning_is_covered_whole(self, said, cut):
        tokens = tokens_of_bytes(said.encode())
        assert covered(tokens, piece, said[:cut])[1] == len(said[:cut])

    def test_a_token_across_the_end_is_left_out(self):
        pair = FakeVocab().tokenize("abcd", special=False)
        assert covered(pair, piece, "abc") == (1, 2)


class TestHashes:
    "Fails if we would look for a response under another name than llm's"

    def test_as_llm_folds_them(self):
        from llm.logs import message_hash

        messages = [llm.system("s"), llm.user("u"), llm.assistant("a")]
        folded = None
        for message, ours in zip(messages, chain_hashes(messages), strict=True):
            folded = message_hash(message, folded)
            assert folded == ours
        assert answer_hash("a", chain_hashes(messages)[1]) == folded
        assert answer_hash("", "input") == "input"
