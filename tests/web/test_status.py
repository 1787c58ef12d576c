"""The status of a server while its engine is running."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from llm_kvbranch.inference.status import describe
from llm_kvbranch.web.api.status import metrics_text

from ..support.scheduled import LONG, Asked, scheduled


@pytest.fixture
def restless():
    "Switch threads as often as possible"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class TestLooking:
    "Fails if reading the status breaks an answer: an array in use cannot grow"

    def test_answers_go_on(self, restless):
        with scheduled(n_seq=4) as scheduler:
            host = SimpleNamespace(n_restarts=0)
            server = SimpleNamespace(host=host, started=0)
            seen = set()
            for i in range(10):
                asked = [
                    Asked(scheduler, f"{i} {j} {LONG}", max_tokens=200)
                    for j in range(6)
                ]
                while not all(each.done.is_set() for each in asked):
                    told = describe(scheduler)
                    seen |= {slot["state"] for slot in told["slots"]}
                    assert metrics_text(server, told)
                for each in asked:
                    each.check()
        assert {"reading", "answering"} <= seen
