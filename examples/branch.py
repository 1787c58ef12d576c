"""Branch from inside an answer.

    python examples/branch.py 'Why is the sky blue?'

A branch is a conversation that ends earlier: its last message is the part of the answer
to continue from. What of it is known is found by content and not read again.
"""

import sys

import llm

question = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
model = llm.get_model("kvllama")

answer = model.prompt(question, max_tokens=60)
text = answer.text()
print(text)

# Up to the end of the first sentence, or all of it
start = text[: text.find(".") + 1] or text
branch = model.prompt(
    "Say that to a child.",
    messages=[llm.user(question), llm.assistant(start)],
    max_tokens=60,
)
print(f"\nAfter {start!r}:\n{branch.text()}")

facts = branch.response_json["kvbranch"]
print(f"\n{facts['restored_tokens']} tokens reused, {facts['prefilled_tokens']} read")
