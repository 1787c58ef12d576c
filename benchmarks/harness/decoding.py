"""Filling a slot by hand, with nothing else in the batch."""

from __future__ import annotations

from typing import TypeVar

from llm_kvbranch.engine import Engine
from llm_kvbranch.inference.filling import Decoded, Feeds

Result = TypeVar("Result")


def alone(work: Feeds[Result], engine: Engine) -> tuple[Result, int]:
    "What the work returns, and the index of the last logits in the last batch"
    done, index = None, -1
    while True:
        try:
            feed = next(work) if done is None else work.send(done)
        except StopIteration as end:
            return end.value, index
        assert feed is not None
        (index,) = engine.decode([feed])
        done = Decoded(len(feed.tokens))
