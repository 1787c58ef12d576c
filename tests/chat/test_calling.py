"""An answer that must be calls of tools is read back as calls of these tools.

Answers are random walks through the grammar of each dialect, over a vocabulary of bytes
and the template's own control tokens; jsonschema says whether the arguments are right.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_kvbranch.chat import Reader, call_grammar
from llm_kvbranch.chat.dialect import Dialect, learn
from llm_kvbranch.chat.jinja import render
from llm_kvbranch.chat.named import MUSE
from llm_kvbranch.engine.constraint import Vocabulary
from llm_kvbranch.errors import ChatError
from tests.support import walks

from . import llamacpp

TEMPLATES = Path(walks.__file__).parent / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
END = "<end of answer>"


def tool(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*required]}
    function = {"name": name, "description": "Does it", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get", {"city": {"type": "string"}}, "city"),
    tool("get_time", {}),
    tool(
        "set-all",
        {
            "unit": {"enum": ["C", "F"]},
            "n": {"type": "integer", "minimum": -9, "maximum": 9},
            "on": {"type": "boolean"},
            "names": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "place": {
                "type": "object",
                "properties": {"x": {"type": "number", "maximum": 5, "minimum": 0}},
                "required": ["x"],
            },
        },
        *("unit", "names"),
    ),
]
ALL = tuple(each["function"]["name"] for each in TOOLS)


class Bytes:
    "A vocabulary of all bytes and some control tokens"

    def __init__(self, controls: list[str]):
        self.names = [*controls, END]
        self.n_vocab = 256 + len(self.names)
        pieces = [bytes([i]) for i in range(256)] + [b""] * len(self.names)
        names = [f"byte {i}" for i in range(256)] + self.names
        self.vocabulary = Vocabulary(pieces, names, [self.n_vocab - 1])

    def is_eog(self, token: int) -> bool:
        return token == self.n_vocab - 1

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else self.names[token - 256].encode()

    def controls(self, text: str) -> list[tuple[str, int]]:
        pattern = "|".join(map(re.escape, sorted(self.names, key=len, reverse=True)))
        found = re.findall(pattern, text)
        return [(name, 256 + self.names.index(name)) for name in found]


def vocabulary_of(dialect: Dialect) -> Bytes:
    "With the tags of the form as control tokens"
    if dialect.messages is not None:
        return Bytes([*dialect.messages.markers])
    marks = dialect.forms[0].marks if dialect.forms else ""
    return Bytes(sorted(set(llamacpp.RULE.findall(marks))))


def check(
    dialect: Dialect, several: bool, names: tuple[str, ...], n_walks: int
) -> None:
    made = vocabulary_of(dialect)
    grammar = call_grammar(dialect, TOOLS, names, several, made.controls)
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
    n_ended, most = 0, 0
    for seed in range(3 * n_walks):
        said = walks.walk(made, grammar, seed)
        if said is None:
            continue
        n_ended += 1
        reader = Reader(dialect, TOOLS)
        spelled = "|".join(map(re.escape, made.names))
        for piece in re.split(f"({spelled})", said):
            reader.feed(piece, control=piece in made.names)
        reader.end(END)
        assert reader.calls, said
        assert not reader.text.strip(), (said, reader.text)
        most = max(most, len(reader.calls))
        for call in reader.calls:
            assert call.name in names, said
            errors = [
                error.message
                for error in Draft202012Validator(schemas[call.name]).iter_errors(
                    call.arguments
                )
            ]
            assert not errors, (said, errors)
        if n_ended == n_walks:
            break
    assert n_ended >= n_walks / 2
    assert several or most == 1


def own(name: str) -> Dialect:
    source = (TEMPLATES / f"{name}.jinja").read_text()

    def shown(messages, **values):
        return render(source, messages=messages, **values)

    return learn(source, shown)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("several", [True, False])
def test_answers_are_calls(name: str, several: bool) -> None:
    check(own(name), several, ALL, 10)


@pytest.mark.slow
@pytest.mark.parametrize("several", [True, False])
def test_with_the_templates_of_llama_cpp(several: bool) -> None:
    tried = 0
    for name in llamacpp.templates():
        dialect = llamacpp.dialect_of(name)
        if dialect.messages is None or dialect.messages.call is not None:
            check(dialect, several, ALL, 4)
            tried += 1
    assert tried >= 60


def test_a_named_function_is_called() -> None:
    check(own("qwen3"), False, ("get_time",), 5)


def test_one_call_at_most_is_read() -> None:
    call = '<tool_call>\n{"name": "get", "arguments": {"city": "a"}}\n</tool_call>'
    reader = Reader(own("qwen3"), TOOLS, several=False)
    reader.feed(f"{call}\n{call}")
    reader.end(END)
    assert len(reader.calls) == 1
    assert reader.text == call


def test_tagged_messages_are_refused() -> None:
    "The calls of muse-glimmer: a tool's name is in its message and in the header"
    with pytest.raises(ChatError, match="cannot be enforced for this model"):
        call_grammar(Dialect(messages=MUSE), TOOLS, ALL, True, lambda _: ())


def test_thinking_of_a_message_may_come_first() -> None:
    made = vocabulary_of(own("gpt-oss"))
    grammar = call_grammar(own("gpt-oss"), TOOLS, ALL, True, made.controls)
    told = [walks.walk(made, grammar, seed) or "" for seed in range(40)]
    thought = [said for said in told if said.startswith("<|channel|>analysis")]
    assert thought
    assert any(said.startswith("<|channel|>commentary to=") for said in told)
    for said in thought:
        reader = Reader(own("gpt-oss"), TOOLS, prompt="<|start|>assistant")
        spelled = "|".join(map(re.escape, made.names))
        for piece in re.split(f"({spelled})", said):
            reader.feed(piece, control=piece in made.names)
        reader.end(END)
        assert len(reader.calls) == 1
