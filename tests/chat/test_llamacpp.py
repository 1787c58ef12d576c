"""A Reader reads llama.cpp's own test cases.

The idea: ``llamacpp.py`` reads them from llama-cpp-python's source distribution, and
``python -m tests.chat.llamacpp`` prints the figures that are asserted here.

The invariant: a call is never wrong, never invented, and never returned before it is
complete.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from . import llamacpp
from .cplusplus import Program, Unreadable, tokens_of
from .llamacpp import FEEDS, Case, answer_of, ending, read

# The cases that must be understood, of those in llama-cpp-python 0.3.36
CALLS = 267  # of 268
THINKING = 171  # of 174


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    try:
        return llamacpp.cases()
    except OSError as error:
        pytest.skip(str(error))


@functools.cache
def total(feed: str) -> Counter[str]:
    return sum(llamacpp.table(feed).values(), Counter())


class TestTheFile:
    "What is read of test-chat.cpp itself"

    def test_the_forms_of_strings(self):
        source = r"""
            static const char * a = "x\ty\"" "z" R"(raw "\n)" R"#(with )" in it)#";
        """
        values = [t.text for t in tokens_of(source) if t.kind == "string"]
        assert values == ['x\ty"', "z", 'raw "\\n', 'with )" in it']

    def test_bytes_of_a_string_are_utf8(self):
        assert tokens_of(r'"\xe2\x80\x94\x1b"')[0].text == "\u2014\x1b"

    def test_functions_loops_and_names(self):
        program = Program(
            """
            static thing named{ "one", { 2, true } };
            static thing make(const std::string & a, const std::string & b = "y") {
                return thing_of(a + b);
            }
            static void run_all(bool debug) {
                for (const char * name : { "p", "q" }) {
                    auto tst = tester(name);
                    if (debug) { unknown(); }
                    tst.test("in" /* comment */ "put")
                        .expect(make("x")).use(named).run();
                }
                unknown(1);
            }
            """,
            {"tester": str.upper, "thing_of": lambda text: text * 2},
        )
        first, second = program.run("run_all", False)
        assert (first.base, second.base) == ("P", "Q")
        assert first.calls[:2] == [("test", ["input"]), ("expect", ["xyxy"])]
        assert first.calls[2][1][0].values == ["one", [2, True]]

    def test_no_case_is_lost(self):
        program = Program('static void f() { tst.test(unknown("x")).run(); }', {})
        with pytest.raises(Unreadable, match="line 1"):
            program.run("f")


@pytest.mark.slow
class TestCases:
    def test_all_cases_are_read(self, cases):
        assert len(cases) >= 463
        assert sum(bool(case.complete_calls) for case in cases) >= 268
        assert sum(bool(case.expected.reasoning) for case in cases) >= 174

    @pytest.mark.parametrize("feed", FEEDS)
    def test_calls_are_understood_and_none_is_wrong(self, cases, feed):
        assert total(feed)["calls"] >= CALLS
        assert total(feed)["wrong"] == 0

    @pytest.mark.parametrize("feed", FEEDS)
    def test_no_call_where_none_is_expected(self, cases, feed):
        assert total(feed)["invented"] == 0

    @pytest.mark.parametrize("feed", FEEDS)
    def test_thinking_is_told_from_the_answer(self, cases, feed):
        assert total(feed)["thinking"] >= THINKING

    @pytest.mark.parametrize("feed", FEEDS)
    def test_no_beginning_has_a_call_that_is_not_complete(self, cases, feed):
        "Whether it was cut off there, or the model ended it there"
        for case in cases:
            whole = read(case, feed, None, ending(case)).calls
            complete = [[(call.name, call.arguments) for call in whole]]
            for count in range(len(answer_of(case, feed))):
                for ended_by in (None, ending(case)):
                    reader = read(case, feed, count, ended_by)
                    found = [(call.name, call.arguments) for call in reader.calls]
                    # Without what follows, a call may be one that llama.cpp sees
                    known = [*complete, case.complete_calls] if ended_by else complete
                    where = case.name, count, ended_by
                    assert any(found == each[: len(found)] for each in known), where
