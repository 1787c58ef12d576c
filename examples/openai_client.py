"""An OpenAI client that branches.

    llm kvbranch serve         # in another terminal; copy what it prints
    export OPENAI_BASE_URL=... OPENAI_API_KEY=...
    python examples/openai_client.py

An answer's id is the id of its response in llm's log, so /v1/chat/branch can continue
from any point inside it, and so can ``llm kvbranch`` in a terminal.
"""

from openai import OpenAI

client = OpenAI()

answer = client.chat.completions.create(
    model="kvllama",
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    max_tokens=60,
)
text = answer.choices[0].message.content
print(text)

branch = client.post(
    "/chat/branch",
    cast_to=object,
    body={
        "parent_id": answer.id,
        "char_range": [0, text.find(".") + 1 or len(text)],
        "prompt": "Say that to a child.",
        "max_tokens": 60,
    },
)
print("\n" + branch["choices"][0]["message"]["content"])

cached = branch["usage"]["prompt_tokens_details"]["cached_tokens"]
print(f"\n{cached} of {branch['usage']['prompt_tokens']} tokens reused")
