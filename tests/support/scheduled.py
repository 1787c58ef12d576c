"""A scheduler on the fake engine, and requests that record what they receive."""

from __future__ import annotations

import contextlib
import threading
import time

from llm_kvbranch.inference.scheduler import Scheduler
from llm_kvbranch.inference.session import Request

from .fake import FakeSettings, fake_session, oracle
from .life import user

LONG = "Tell me about the sea, its tides and its storms. " * 20


@contextlib.contextmanager
def scheduled(root=None, n_seq=2, n_waiting=64, pause=0.0, **kind):
    session = fake_session(root, settings=FakeSettings(n_batch=16, n_seq=n_seq), **kind)
    if pause:
        decode = session.engine.decode

        def slow(feeds, stop=None):
            time.sleep(pause)
            return decode(feeds, stop)

        session.engine.decode = slow
    scheduler = Scheduler(session, n_waiting)
    try:
        yield scheduler
    finally:
        scheduler.stop()


class Asked:
    "A request, and what its listener received"

    def __init__(self, scheduler, text, client="", max_tokens=20, before=()):
        self.pieces, self.ends, self.order = [], 0, []
        self.done = threading.Event()
        request = Request(messages=[*before, user(text)], max_tokens=max_tokens)
        self.ticket = scheduler.submit(request, self.listen, client)

    def listen(self, ticket, events):
        assert not self.ends, "told something after the end"
        self.pieces += [event.text for event in events]
        if ticket.ended:
            self.ends += 1
            self.done.set()

    @property
    def text(self):
        return "".join(self.pieces)

    def wait(self):
        assert self.done.wait(20), "it did not end"
        return self

    def check(self):
        generation = self.wait().ticket.generation
        assert self.ticket.error is None
        kind = generation.model.engine.memory_kind
        answer = list(generation.tokens[generation.n_prompt :])
        n = len(answer)
        assert answer == oracle(generation.plan.tokens, n + 64, **kind)[:n]
        return self
