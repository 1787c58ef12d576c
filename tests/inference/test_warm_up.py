"""Warming up happens before the first request, and leaves nothing behind."""

from __future__ import annotations

import llm

from llm_kvbranch.errors import ChatError
from llm_kvbranch.inference.scheduler import Scheduler

from ..support.fake import fake_session
from ..support.life import Answer, user


def test_a_token_is_decoded_and_forgotten(tmp_path):
    session = fake_session(tmp_path)
    session.engine.reserve(64)
    session.warm_up()
    assert len(session.engine.decoded) == 1
    assert session.engine.length(0) == 0
    assert session.slots.n_used() == 0
    Answer(session, [user("Tell me")]).check()


def test_rows_that_are_there_stay(tmp_path):
    session = fake_session(tmp_path)
    first = Answer(session, [user("Tell me")])
    n = len(session.engine.decoded)
    session.warm_up()
    assert len(session.engine.decoded) == n
    more = Answer(session, [*first.messages, llm.assistant(first.text), user("More")])
    more.check()
    assert more.facts["resident_tokens"]


def test_a_template_that_rejects_the_message_does_not_prevent_the_start(
    tmp_path, monkeypatch
):
    session = fake_session(tmp_path)

    def refuse(*_):
        raise ChatError("Conversations begin with a system prompt")

    monkeypatch.setattr(session.planner.chat, "encode", refuse)
    scheduler = Scheduler(session)
    try:
        assert scheduler.call(session.warm_up).result(10) is None
    finally:
        scheduler.stop()
