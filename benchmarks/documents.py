"""What contenders are asked: documents that nobody has read before, and questions."""

from __future__ import annotations

# Without one, SmolLM2's template puts in its own, and llm-gguf's none
SYSTEM = "You are a helpful assistant."
WORDS = "The quick brown fox number {} jumps over the lazy dog {} times. "
CHARACTERS = 2.96  # for each token of it
QUESTIONS = (
    "What is the report about?",
    "Which animal is named first there?",
    "How many numbers are in the report?",
    "What does the dog do all the time?",
    "Who would want to read this report?",
    "Is there anything in it about a cat?",
    "What is the first sentence of it?",
    "What would be a good title for it?",
)
# An answer to this goes on for as long as it may
ENDLESS = "Count from one to ten thousand, and write every number in words."
# No two begin with the same token
NAMES = """
Anna Ben Clara David Emma Grace Henry Jack Leo Mary Paul
Quinn Sam Tom Victor Wendy Xavier Yara Zoe Adam Bella Carl Diana Eric
George Helen Julia Laura Mark Peter Simon Tina Vera
"""
HEROES = ("fox", "dog", "king", "sailor", "robot", "baker", "witch", "child")


def document(n_tokens: int, salt: int) -> str:
    "About n_tokens of text that begins like no other"
    number = 1_000_000 + salt  # of seven digits, each of which is a token
    text = f"Report {number}. "
    i = 0
    while len(text) < n_tokens * CHARACTERS:
        text += WORDS.format(i, i * i + number)
        i += 1
    return text


def question(i: int) -> str:
    """One that was not asked before, and begins like no other.

    Who has been asked the same already has its beginning read.
    """
    names = NAMES.split()
    return f"{names[i % len(names)]} {100 + i}: {QUESTIONS[i % len(QUESTIONS)]}"


def story(salt: int, n: int) -> str:
    "A prompt that a long answer is given to"
    return f"Write a very long story about {salt} days in the life of a {HEROES[n]}."
