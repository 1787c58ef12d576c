"""A chat template of a bad model file neither hangs nor takes all memory."""

from __future__ import annotations

import time

import pytest

from llm_kvbranch.chat import limits
from llm_kvbranch.chat.template import render
from llm_kvbranch.errors import ChatError

NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROW = "{% for i in range(60) %}{% set ns.x = ns.x OP ns.x %}{% endfor %}"
BIG = "{% set x = 'a' * 10000000 %}"
ENDLESS = {
    "loops": NEST,
    "a recursive loop": "{% for x in range(99999) recursive %}"
    "{% if loop.depth < 5 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}"
    "{% endmacro %}{{ m(40) }}",
}
HUGE = {
    "a product": "{{ 'a' * 10**9 }}",
    "a product of lists": "{{ [0] * 10**9 }}",
    "a product of long lists": BIG + "{{ ([x] * 100000)|string }}",
    "a product of bytes": "{{ 'a'.encode() * 10**9 }}",
    "bytes": "{{ 'a'.encode().ljust(1000000000) }}",
    "a power": "{{ (9**9)**(9**9) }}",
    "sums": "{% set ns = namespace(x='a') %}" + GROW.replace("OP", "+"),
    "concatenations": "{% set ns = namespace(x='a') %}" + GROW.replace("OP", "~"),
    "sums of lists": "{% set ns = namespace(x=[1]) %}" + GROW.replace("OP", "+"),
    "macros in macros": "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{{ "
    + "d(" * 40
    + "'a'"
    + ")" * 40
    + " }}",
    "one expression": BIG + "{{ " + " ~ ".join(["x"] * 200) + " }}",
    "center": "{{ 'x'|center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ '1'.zfill(1000000000) }}",
    "tabs": "{{ 'a\tb'.expandtabs(1000000000) }}",
    "a width": "{{ '%999999999d' % 1 }}",
    "a width of its own": "{{ '%*d'|format(999999999, 1) }}",
    "a format": "{{ '{:999999999}'.format(1) }}",
    "a nested format": "{{ '{:{}}'.format(1, 999999999) }}",
    "replace": "{% set x = 'a' * 100000 %}{{ x|replace('a', x) }}",
    "replace, a method": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "translate": BIG + "{{ 'aaa'.translate({97: x}) }}",
    "join": BIG + "{{ range(99999)|join(x) }}",
    "join, a method": BIG + "{{ x.join(['a'] * 1000) }}",
    "by its name": "{{ ('x'|attr('ljust'))(1000000000) }}",
    "by a key": "{{ 'x'['ljust'](1000000000) }}",
    "a mapped format": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "indent": "{{ 'a'|indent(1000000000, true) }}",
    "tojson": "{{ [1, 2]|tojson(indent=1000000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'a')|list }}",
    "the output": "{% for a in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "a block": "{% set y %}" + BIG + "{{ x }}{{ x }}{% endset %}",
    "a filter block": "{% filter upper %}" + BIG + "{{ x }}{{ x }}{% endfilter %}",
    "many texts": "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}"
    "{% set ns.x = ns.x + ['a' * 100000] %}{% endfor %}",
}


@pytest.fixture
def memory():
    "Fails the test at 6 GB instead of taking the machine's memory"
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", HUGE)
def test_what_grows_is_ended(kind, memory):
    with pytest.raises(ChatError, match="chat template failed: it ") as caught:
        render(HUGE[kind])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_runs_without_end_is_ended(kind, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(ChatError, match=r"5,000,000 steps|longer than 1 sec"):
        render(ENDLESS[kind])
    assert time.monotonic() - began < 20


def test_the_next_rendering_has_its_own_limits():
    for _ in range(3):
        assert len(
            render("{% for i in range(90000) %}{{ 'ab' * 50 }}{% endfor %}")
        ) == (9_000_000)
        with pytest.raises(ChatError):
            render(HUGE["the output"])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' * 3 + 'b' ~ 1 }}", "aaab1"),
        ("{{ 2**10 }} {{ 7 % 4 }} {{ 6 * 7 }}", "1024 3 42"),
        ("{{ '%s is %d' % ('now', 1700000000) }}", "now is 1700000000"),
        ("{{ '123456: {} {:>3}'.format(1700000000, 1) }}", "123456: 1700000000   1"),
        ("{{ '{a}'.format_map({'a': 'b'}) }} {{ 'a'|attr('upper')() }}", "b A"),
        ("{{ '%s'|format(1700000000) }}", "1700000000"),
        ("{{ 1700000000|string }} {{ 1700000000|tojson }}", "1700000000 1700000000"),
        ("{{ {'a': [1700000000]}|tojson }}", '{"a": [1700000000]}'),
        ("{{ 'a,b'|replace(',', '+') }} {{ 'ab'.replace('b', 'c', 1) }}", "a+b ac"),
        ("{{ [{'n': 1}, {'n': 2}]|join('-', attribute='n') }}", "1-2"),
        ("{{ ', '.join(['a']) }} {{ ['a', 'b']|map('upper')|join(' ') }}", "a A B"),
        ("{{ 'x'|center(3) }}|{{ 'a\nb'|indent(2) }}", " x |a\n  b"),
        ("{% for x in [1, 2] %}{{ loop.last }}{{ loop.length }}{% endfor %}",
         "False2True2"),
        ("{% for x in [] %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{% macro m(a) %}[{{ a }}{{ caller() if caller }}]{% endmacro %}"
         "{{ m(1) }}{% call m(2) %}in{% endcall %}", "[1][2in]"),
        ("{% set l = [1] + [2] %}{{ l[-1] + l|length }}", "4"),
    ],
)  # fmt: skip
def test_the_rest_renders_as_ever(source, text):
    assert render(source) == text
