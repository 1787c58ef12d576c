"""A log with one large tree, for whoever measures what is shown of it.

    python -m benchmarks.grow_tree --nodes 2000 --log /tmp/tree.db

Every response is logged as the commands log theirs, by the code they use; only the
model is made up. The same seed gives the same shape and the same words.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import llm

from llm_kvbranch.log import branching
from llm_kvbranch.log.branching import Place
from llm_kvbranch.log.history import History, open_log
from llm_kvbranch.log.marks import mark
from llm_kvbranch.log.tables import migrations

WORDS = [
    "the",
    "light",
    "of",
    "a",
    "star",
    "is",
    "bent",
    "where",
    "mass",
    "is",
    "near",
    "and",
    "waves",
    "of",
    "every",
    "length",
    "are",
    "scattered",
    "by",
    "small",
    "things",
    "in",
    "air",
    "so",
    "that",
    "blue",
    "arrives",
    "from",
    "all",
    "sides",
    "while",
    "red",
    "goes",
    "straight",
    "on",
    "until",
    "evening",
    "when",
    "its",
    "way",
    "is",
    "long",
]
# How often a verb is used, of a hundred
VERBS = {"continue": 62, "branch": 16, "focus": 8, "retry": 10, "fresh": 4}


class Chatter(llm.Model):
    "Says words by chance, with a sentence about as long as small models make them"

    model_id = "chatter"

    def __init__(self, chance: random.Random):
        self.chance = chance

    def execute(self, prompt, stream, response, conversation=None):
        text = sentences(self.chance, self.chance.randint(1, 6))
        read = self.chance.randint(20, 900)
        made = len(text.split())
        response.set_usage(input=read, output=made)
        response.response_json = {
            "kvbranch": {
                "prompt_tokens": read,
                "restored_tokens": read - read // 8,
                "prefilled_tokens": read // 8,
                "generated_tokens": made,
                "ttft_ms": round(self.chance.uniform(20, 300), 1),
                "decode_tps": round(self.chance.uniform(20, 80), 1),
                "finish_reason": "stop",
            }
        }
        yield text


def sentences(chance: random.Random, n: int) -> str:
    "Some sentences, in paragraphs and now and then in a list"
    said = [
        " ".join(chance.choices(WORDS, k=chance.randint(5, 16))).capitalize() + "."
        for _ in range(n)
    ]
    if n > 4 and chance.random() < 0.3:
        return "\n".join(f"- {each}" for each in said)
    return (" " if n < 4 else "\n\n").join(said)


def plan(history: History, verb: str, parent: str, chance: random.Random):
    "A branch from a response, by a verb"
    asked = sentences(chance, 1)
    if verb == "continue":
        return branching.continue_(history, parent, asked)
    if verb == "retry":
        return branching.retry(history, parent)
    text = history.response(parent).text
    start = chance.randrange(max(1, len(text) - 12))
    place = Place(range=(start, min(len(text), start + chance.randint(8, 60))))
    if verb == "focus":
        return branching.focus(history, parent, asked, place)
    if verb == "fresh":
        return branching.fresh(history, parent, asked, place)
    return branching.branch(history, parent, asked, place)


def grow(path: Path, nodes: int, seed: int = 1) -> list[str]:
    "Log a tree of so many responses; their ids, the root first"
    chance = random.Random(seed)
    db = open_log(str(path), create=True)
    migrations.apply(db)
    history, model = History(db), Chatter(chance)
    with history.writing():
        first = llm.Conversation(model=model).prompt(sentences(chance, 1))
        first.text()
        thread = {"id": first.conversation.id, "name": "a large tree"}
        history.log_by_content(first, thread)
        ids = [first.id]
        while len(ids) < nodes:
            (verb,) = chance.choices(list(VERBS), VERBS.values())
            # People go on with what they did last, and come back to all the rest
            newest = ids[-3:] if chance.random() < 0.6 else ids
            branch = plan(history, verb, chance.choice(newest), chance)
            response = branching.ask(branch, model)
            response.text()
            branching.log_only(history, branch, response)
            ids.append(response.id)
            if len(ids) % 50 == 0:
                mark(history, response.id, True, "worth reading again")
    db.close()
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    started = time.monotonic()
    ids = grow(wanted.log, wanted.nodes, wanted.seed)
    print(f"{len(ids):,} responses in {time.monotonic() - started:.1f} s: {ids[0]}")
