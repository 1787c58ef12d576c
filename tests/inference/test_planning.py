"""What is known about a prompt, and why something is not reused."""

from __future__ import annotations

from array import array

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_kvbranch.chat import Part
from llm_kvbranch.chat import template as template_module
from llm_kvbranch.inference.answer import AnswerStream
from llm_kvbranch.inference.planning import min_tokens
from llm_kvbranch.inference.readback import covered
from llm_kvbranch.inference.turns import answer_hash, chain_hashes

from ..support import scripted
from ..support.fake import BYTE, FakeVocab, fake_session
from ..support.life import Answer, user

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


class TestMinTokens:
    "Fails if a prompt is refused that would fit"

    @given(texts=st.lists(st.text("ab \n€", max_size=200), max_size=3))
    def test_a_prompt_has_no_fewer_tokens(self, texts):
        messages = [llm.user(text) for text in texts]
        tokens = [FakeVocab().tokenize(text, special=False) for text in texts]
        least = min_tokens(messages, 1, lambda: FakeVocab.longest_piece)
        assert least <= sum(map(len, tokens))

    def test_megabytes_are_counted_without_a_tokenizer(self):
        assert min_tokens([llm.user("word " * 10**6)], 1000, lambda: 10) == 400_000

    def test_answers_and_white_space_may_come_to_nothing(self):
        messages = [llm.user(" " * 10**6), llm.assistant("a" * 10**6)]
        assert min_tokens(messages, 1000, lambda: 10) == 0

    def test_what_is_not_long_is_not_looked_at(self):
        assert min_tokens([llm.user("word " * 1000)], 1000, lambda: 1 // 0) == 0


class TestHashes:
    "Fails if our hashes are not llm's"

    def test_as_llm_folds_them(self):
        from llm.logs import message_hash

        messages = [llm.system("s"), llm.user("u"), llm.assistant("a")]
        folded = None
        for message, ours in zip(messages, chain_hashes(messages), strict=True):
            folded = message_hash(message, folded)
            assert folded == ours
        assert answer_hash([Part("text", "a")], chain_hashes(messages)[1]) == folded
        assert answer_hash([], "input") == "input"


class TestReasons:
    "Fails if something is prefilled again silently, or a reason is given for nothing"

    def test_a_branch_cut_inside_the_first_token_misses_nothing(self, tmp_path):
        parents = (
            Answer(fake_session(tmp_path), [user(f"Tell me {n}")]) for n in range(99)
        )
        parent = next(p for p in parents if len(piece(p.answer_tokens[0])) == 2)
        cut = llm.assistant(parent.text[:1])
        branch = Answer(fake_session(tmp_path), [*parent.messages, cut, user("Why?")])
        branch.check()
        assert branch.facts["restored_tokens"] == parent.generation.n_prompt
        assert branch.facts["miss_reason"] is None

    def test_a_prompt_that_is_asked_again_is_known(self, tmp_path):
        "It is too short to have a snapshot at its end"
        first = Answer(fake_session(tmp_path, recurrent=True), [user("Hi")])
        again = Answer(fake_session(tmp_path, recurrent=True), first.messages).check()
        assert again.facts["restored_tokens"] == 0
        assert "snapshot" in again.facts["miss_reason"]

    def test_another_models_answer_is_known_the_second_time(self, tmp_path):
        history = [user("Hi"), llm.assistant("I am no model of yours"), user("Why?")]
        first = Answer(fake_session(tmp_path), history).check()
        assert first.facts["miss_reason"] == "no state of the last answer is stored"
        again = Answer(fake_session(tmp_path), history).check()
        assert again.facts["prefilled_tokens"] == 1
        assert again.facts["miss_reason"] is None

    def test_why_the_state_of_the_same_prompt_is_gone(self, tmp_path):
        first = Answer(fake_session(tmp_path, recurrent=True), [user("Hi" * 99)])
        session = fake_session(tmp_path, recurrent=True)
        session.store.lost(session.store.get(first.id), "it was eaten")
        again = Answer(session, first.messages).check()
        assert again.facts["restored_tokens"] == 0
        assert again.facts["miss_reason"] == "it was eaten"


class TestWork:
    "Fails if planning renders a long conversation, or reads its answers, repeatedly"

    @pytest.mark.parametrize(
        ("name", "n_renders"), [("smollm2", 3), ("llama3", 3), ("qwen3", 4)]
    )
    def test_a_follow_up(self, tmp_path, monkeypatch, name, n_renders):
        template = scripted.template(name).read_text()
        session = fake_session(tmp_path, template=template)
        messages = [user("Hi")]
        for _ in range(3):
            answer = Answer(session, messages)
            messages = [*answer.chain, user("And then?")]
        session.planner.plan(messages)  # learns how the template writes thinking
        rendered, read = [], []
        render, feed = template_module.render, AnswerStream.feed
        monkeypatch.setattr(
            template_module,
            "render",
            lambda *args, **values: rendered.append(1) or render(*args, **values),
        )
        monkeypatch.setattr(
            AnswerStream,
            "feed",
            lambda stream, token: read.append(token) or feed(stream, token),
        )
        plan = session.planner.plan(messages)
        assert plan.n_known == len(answer.generation.tokens)
        assert len(rendered) == n_renders
        assert len(read) <= len(answer.answer_tokens)
