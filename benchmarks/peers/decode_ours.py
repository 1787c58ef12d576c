"""A worker that generates with our session: one answer, or several at once.

python -m benchmarks.peers.decode_ours MODEL N_THREADS N_SEQ
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from llm_kvbranch.engine import Load, Sampling, Settings
from llm_kvbranch.inference.session import Request, Session, open_session

from .worker import serve


class Decoder:
    "A session whose time in llama.cpp is taken"

    def __init__(self, session: Session):
        self.session = session
        self.in_llama = 0.0
        decode = session.engine.decode

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return decode(*arguments)
            finally:
                self.in_llama += time.perf_counter() - began

        session.engine.decode = timed  # type: ignore

    def __call__(self, what: dict[str, Any]) -> dict[str, Any]:
        """Generate ``n`` answers of ``n_tokens``: their rate, once all are begun.

        ``seconds`` and ``in_llama`` are of the tokens after the first of each. They are
        forgotten in the end: attention takes longer beside what others have said.
        """
        import llm

        messages = [
            getattr(llm, each["role"])(each["content"]) for each in what["messages"]
        ]
        request = Request(messages, Sampling(temperature=0), what["n_tokens"])
        generations = [self.session.generate(request) for _ in range(what["n"])]
        for generation in generations:
            generation.start()
        texts = [""] * len(generations)

        def step() -> None:
            self.session.step()
            for i, generation in enumerate(generations):
                while generation.pieces:
                    texts[i] += generation.pieces.popleft().text

        while not all(g.is_answering for g in generations):
            step()
        before = sum(g.n_generated for g in generations)
        began, self.in_llama = time.perf_counter(), 0.0
        while not all(g.ended for g in generations):
            step()
        seconds = time.perf_counter() - began
        n_generated = sum(g.n_generated for g in generations) - before
        for generation in generations:
            if generation.slot is not None:
                self.session.slots.truncate(generation.slot, generation.n_prompt)
        return {
            "tokens": n_generated,
            "seconds": seconds,
            "in_llama": self.in_llama,
            "texts": texts,
        }


def main(model: str, n_threads: str, n_seq: str) -> None:
    settings = Settings(n_threads=int(n_threads), n_seq=int(n_seq))
    session = open_session(Load(Path(model)), settings, None, print)
    serve(Decoder(session))


if __name__ == "__main__":
    main(*sys.argv[1:])
