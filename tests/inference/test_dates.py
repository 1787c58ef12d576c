"""Chat templates that write the date: a prompt of another day begins differently."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest

from llm_kvbranch.chat import template as chat_module
from llm_kvbranch.chat.template import CHATML

from ..support.fake import fake_session
from ..support.life import Answer, user

DATED = (
    "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}"
    "{% else %}a day{% endif %} " + CHATML
)
DOCUMENT = "It was a dark and stormy night. " * 30
NAMED = "the chat template writes the date, and {} was stored"


@pytest.fixture
def today(monkeypatch):
    def set_day(day: int) -> None:
        now = datetime.datetime(2026, 3, day, 12)
        clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: now))
        clock.datetime.fromisoformat = datetime.datetime.fromisoformat
        monkeypatch.setattr(chat_module, "datetime", clock)

    set_day(1)
    return set_day


def ask(root, question, template=DATED, **options) -> Answer:
    messages = [user(f"{DOCUMENT}{question}")]
    return Answer(fake_session(root, template=template), messages, **options)


class TestDates:
    "Fails if a document is read again and nobody says that the date is the cause"

    @pytest.mark.parametrize("day", [2, 8])
    def test_another_day_is_named(self, tmp_path, today, day):
        assert ask(tmp_path, "Why?").facts["miss_reason"] is None
        today(day)
        facts = ask(tmp_path, "How?").facts
        assert facts["miss_reason"] == NAMED.format("2026-03-01")
        assert facts["restored_tokens"] < 20

    def test_the_same_day(self, tmp_path, today):
        ask(tmp_path, "Why?")
        facts = ask(tmp_path, "How?").facts
        assert facts["miss_reason"] is None
        assert facts["restored_tokens"] > 400

    @pytest.mark.parametrize("date", ["none", "2026-01-31"])
    def test_a_fixed_date_is_the_same_tomorrow(self, tmp_path, today, date):
        ask(tmp_path, "Why?", date=date)
        today(2)
        facts = ask(tmp_path, "How?", date=date).facts
        assert facts["miss_reason"] is None
        assert facts["restored_tokens"] > 400

    def test_another_setting(self, tmp_path, today):
        ask(tmp_path, "Why?")
        facts = ask(tmp_path, "How?", date="none").facts
        assert facts["miss_reason"] == NAMED.format("2026-03-01")

    def test_another_document_is_no_miss(self, tmp_path, today):
        ask(tmp_path, "Why?")
        today(2)
        messages = [user("Another one. " * 50)]
        answer = Answer(fake_session(tmp_path, template=DATED), messages)
        assert answer.facts["miss_reason"] is None

    def test_a_conversation_goes_on_past_midnight(self, tmp_path, today):
        one = ask(tmp_path, "Why?")
        today(2)
        messages = [*one.chain, user("And then?")]
        facts = Answer(fake_session(tmp_path, template=DATED), messages).facts
        assert facts["miss_reason"] is None
        assert facts["restored_tokens"] == len(one.generation.tokens)


class TestSystemPrompt:
    "Fails if nobody says that the template takes no system prompt"

    def test_it_is_a_fact(self, tmp_path):
        import llm

        template = CHATML.replace("messages", "messages if message.role != 'system'")
        messages = [llm.system("Be brief."), user("Hi")]
        taken = Answer(fake_session(tmp_path / "one"), messages)
        folded = Answer(fake_session(tmp_path / "two", template=template), messages)
        assert taken.facts["system_prompt"] is None
        assert folded.facts["system_prompt"] == "in the first question"
