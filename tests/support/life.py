"""Conversations on the fake engine, with each answer checked against an oracle.

``Life`` is a process that may end at any moment: it continues from random earlier
answers.
"""

from __future__ import annotations

import itertools
import random

import llm

from llm_kvbranch.inference.planning import answer_message
from llm_kvbranch.inference.session import Request

from .fake import CONTROLS, FakeVocab, fake_session, oracle

_ids = itertools.count(1)


class Answer:
    "One finished generation and the conversation it leaves"

    def __init__(self, session, messages, log=True, name=None, **options):
        options.setdefault("max_tokens", 24)
        self.id = name or f"r{next(_ids):05}"
        self.session = session
        self.messages = messages
        self.before = len(session.engine.decoded)
        self.generation = session.generate(Request(messages=messages, **options))
        events = list(self.generation)
        self.text = "".join(each.text for each in events if each.kind == "text")
        self.facts = self.generation.facts
        self.n_decoded = len(session.engine.decoded) - self.before
        answer = answer_message(self.generation.parts)
        self.chain = [*messages, *([answer] if answer.parts else [])]
        self.entry = self.log() if log else None

    def log(self):
        return self.generation.commit(self.id)

    @property
    def answer_tokens(self):
        return self.generation.tokens[self.generation.n_prompt :]

    def check(self):
        "Check that an engine that decoded the whole prompt gives the same answer"
        plan = self.generation.plan
        n = len(self.generation.tokens) + 64
        expected = oracle(plan.tokens, n, **self.session.engine.memory_kind)
        assert list(self.answer_tokens) == expected[: len(self.answer_tokens)]
        assert spell(plan.tokens) == chatml(self.messages)
        assert self.facts["prompt_tokens"] == len(plan.tokens)
        assert self.facts["restored_tokens"] + self.facts["prefilled_tokens"] == len(
            plan.tokens
        )
        return self


def spell(tokens) -> str:
    "Tokens as text, with control tokens spelled out"
    names = {number: name.encode() for name, number in CONTROLS.items()}
    data = b"".join(names.get(t) or FakeVocab().piece(t) for t in tokens)
    return data.decode("utf-8", "replace")


def chatml(messages) -> str:
    "The expected prompt, built without a template"
    turns = [f"{m.role}\n{''.join(p.text for p in m.parts)}" for m in messages]
    begun = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    return begun + "<|im_start|>assistant\n"


def user(text: str):
    return llm.user(text)


class Life:
    """A process: a new session on a store, and random prompts.

    ``known`` has the conversations it may continue, by response id.
    """

    def __init__(self, root, seed, known, budget=None):
        self.random = random.Random(seed)
        self.session = fake_session(root)
        self.session.store.limit = budget
        self.known = dict(known)
        self.name = f"{seed:04}"
        self.count = itertools.count()

    def step(self, before_commit=lambda name: None, check=True):
        "Answer one prompt and store it; returns its id and the conversation so far"
        name = f"r{self.name}-{next(self.count)}"
        answer = Answer(
            self.session,
            self.prompt(),
            log=False,
            name=name,
            max_tokens=self.random.randint(1, 30),
        )
        if check:
            answer.check()
        before_commit(name)
        answer.entry = answer.log()
        self.known[name] = answer.chain
        return name, answer

    def prompt(self):
        "Continue an answer, cut it, retry it, or start a new conversation"
        turn = user(
            "".join(self.random.choices("abc def", k=self.random.randint(1, 60)))
        )
        kind = self.random.choice(["go on", "go on", "cut", "retry", "new"])
        if kind == "new" or not self.known:
            return [user("The same document for all. " * 6), turn]
        chain = self.known[self.random.choice(list(self.known))]
        if kind == "retry" and chain[-1].role == "assistant":
            return chain[:-1]
        if kind == "cut" and chain[-1].role == "assistant":
            text = "".join(part.text for part in chain[-1].parts)
            kept = text[: self.random.randint(0, len(text))]
            return [*chain[:-1], *([llm.assistant(kept)] if kept else []), turn]
        return [*chain, turn]
