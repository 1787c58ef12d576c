"""A turn written into the log of an llm that is not ours, as if a model had answered.

    python log_answer.py MODEL_ID < {"system", "prompt", "answer"}

llm-gguf keeps nothing but llm's log, so a conversation to go on with is made by
logging it, which takes no time.
"""

import json
import sys

import llm
import sqlite_utils
from llm.cli import logs_db_path
from llm.migrations import migrate


class Parrot(llm.Model):
    "Says what it is told to"

    can_stream = False

    def __init__(self, model_id, text):
        self.model_id = model_id
        self.text = text

    def execute(self, prompt, stream, response, conversation):
        yield self.text


def main(model_id):
    turn = json.load(sys.stdin)
    db = sqlite_utils.Database(logs_db_path())
    migrate(db)
    conversation = Parrot(model_id, turn["answer"]).conversation()
    response = conversation.prompt(turn["prompt"], system=turn["system"], stream=False)
    response.text()
    response.log_to_db(db)


if __name__ == "__main__":
    main(sys.argv[1])
