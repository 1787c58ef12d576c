"""How the benchmarks handle values, replies of peers, and targets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import (
    breakeven_report,
    decode,
    disk,
    disk_report,
    measurements,
    quotes,
    streams,
)
from benchmarks.cold import link_states
from benchmarks.conversations import Conversation
from benchmarks.documents import NAMES, QUESTIONS, document, question
from benchmarks.harness import plots, report
from benchmarks.harness.bars import Bar
from benchmarks.harness.measurement import Measurement
from benchmarks.harness.result import Result, read, write
from benchmarks.harness.table import markdown, ratio, seconds, spread
from benchmarks.harness.turns import Progress, rotated
from benchmarks.peers import client, commands, servers, tools
from benchmarks.peers.commands import Answered

MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "memory_bytes": 2**34,
    "architecture": "x86_64",
    "system": "Linux 6",
    "python": "3.11",
}


def result(**raw: list[float]) -> Result:
    "Values by name, with underscores for slashes"
    found = Result("it", "It", machine=MACHINE, versions={"llm": "1"})
    found.raw = {name.replace("_", "/"): values for name, values in raw.items()}
    return found


class TestResult:
    def test_medians_are_compared(self) -> None:
        found = result(hot_a=[2, 1, 9], hot_b=[4, 8, 1])
        assert found.median("hot", "a") == 2
        assert found.ratio(("hot", "a"), ("hot", "b")) == 0.5
        assert found.ratio(("hot", "a"), ("hot", "c")) is None
        assert found.ratio(("hot", "c"), ("hot", "a")) is None

    def test_rounds_are_compared_one_by_one(self) -> None:
        found = result(a=[1, 10, 100], b=[2, 20, 50])
        assert found.paired(("a",), ("b",)) == 0.5
        found.add(1, "a")  # rounds do not match, so medians are compared
        assert found.paired(("a",), ("b",)) == pytest.approx(5.5 / 20)

    def test_why_a_value_is_not_there(self) -> None:
        found = result()
        found.dashes = {"hot/peer": "it cannot", "other": "not installed"}
        assert found.why_not("hot", "peer", "branch") == "it cannot"
        assert found.why_not("hot", "other") == "not installed"
        assert found.why_not("hot", "third") == "not measured"

    def test_written_and_read(self, tmp_path: Path) -> None:
        found = result(a_1=[1.5, 2.5])
        found.checks = [{"contender": "a", "right": True}]
        path = write(found, [Bar("it", 1, most=2).to_json()], tmp_path)
        assert read(path) == found
        body = json.loads(path.read_text())
        assert body["medians"]["a/1"] == {
            "median": 2,
            "least": 1.5,
            "most": 2.5,
            "n": 2,
        }
        assert body["bars"][0]["met"] is True

    def test_what_is_not_there_or_of_another_time(self, tmp_path: Path) -> None:
        assert read(tmp_path / "none.json") is None
        (tmp_path / "old.json").write_text('{"machine": {}}')
        assert read(tmp_path / "old.json") is None


class TestBars:
    def test_limits_are_part_of_what_is_allowed(self) -> None:
        assert Bar("", 1.1, most=1.1).met
        assert not Bar("", 1.1001, most=1.1).met
        assert Bar("", 3.0, least=3).met
        assert not Bar("", 2.999, least=3).met

    def test_what_was_not_measured_is_told_and_not_missed(self) -> None:
        bar = Bar("speed", None, most=1, why="no peer")
        assert bar.met is None
        assert "not measured" in bar.line()
        assert "no peer" in bar.line()

    def test_a_miss_can_be_seen(self) -> None:
        assert Bar("speed", 1.23456, most=1).line().startswith("MISSED")
        assert "1.23, at most 1" in Bar("speed", 1.23456, most=1).line()


class TestTurns:
    def test_everybody_is_first_as_often_as_any_other(self) -> None:
        firsts = [rotated("abc", i)[0] for i in range(6)]
        assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]

    def test_nobody_always_follows_another(self) -> None:
        orders = ["".join(rotated("ab", i)) for i in range(2)]
        assert set(orders) == {"ab", "ba"}

    def test_every_round_has_everybody(self) -> None:
        seen = list(Progress(quiet=True).rounds("abc", 2))
        assert [i for i, _ in seen] == [0, 0, 0, 1, 1, 1]
        assert sorted(who for _, who in seen) == ["a", "a", "b", "b", "c", "c"]
        assert rotated([], 3) == []


class TestTables:
    def test_markdown(self) -> None:
        text = markdown(["a", "b"], [["x", "1"], ["y", "2"]])
        assert text == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 |"

    def test_values(self) -> None:
        assert [seconds(s) for s in (0.0123, 0.25, 3.14159, None)] == [
            "12.3 ms",
            "250 ms",
            "3.14 s",
            "–",
        ]
        assert [ratio(r) for r in (0.0421, 0.5, None)] == ["0.042", "0.50", "–"]
        assert spread(result(a=[0.2, 0.1, 0.3]), "a") == "200 ms (100 ms to 300 ms)"
        assert spread(result(a=[0.2]), "a") == "200 ms"


class TestPlots:
    @pytest.mark.parametrize("page", plots.PAGES.values(), ids=plots.PAGES.keys())
    def test_every_colour_can_be_seen_on_every_page(self, page: str) -> None:
        for color in (plots.INK, *plots.OTHERS, *plots.COLORS.values()):
            assert plots.contrast(color, page) >= 3, color

    def test_contrast_is_that_of_wcag(self) -> None:
        assert plots.contrast("#ffffff", "#000000") == pytest.approx(21)
        assert plots.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)

    def test_the_same_values_give_the_same_file(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        for name in ("1", "2"):
            sheet, (one, other, third) = plots.figure("A title", 3)
            plots.lines(one, "Lines", {"a": [(1, 2), (10, 3)], "b": []}, "x")
            plots.bars(other, "Bars", {"a": 0.5, "b": None})
            plots.stacked(third, "Parts", ["x", "y"], {"a": [1, 2]})
            (tmp_path / name).mkdir()
            plots.save(sheet, tmp_path / name, "it", "A footnote")
        one, two = (path.read_bytes() for path in tmp_path.glob("*/it.svg"))
        assert one == two
        assert b"#ffffff" not in one  # no background


def fake(found: Result) -> Measurement:
    return Measurement(
        "it",
        "It",
        1,
        measure=lambda run: None,
        bars=lambda _: [Bar("a ratio", 2.0, most=1.5), Bar("b", None, most=1)],
        table=lambda _: "| a table |",
        plot=lambda _: None,
    )


class TestReport:
    def test_a_page_says_it_all(self, tmp_path: Path) -> None:
        found = result(a=[1.0])
        found.contenders = {"kvllama": "`llm -c`"}
        found.dashes = {"peer": "there is no compiler"}
        found.checks = [
            {
                "contender": "peer",
                "what": "hot",
                "judged": 3,
                "of": 9,
                "gap": 7.5,
                "right": False,
            }
        ]
        report.publish(fake(found), found, tmp_path)
        text = (tmp_path / "it.md").read_text()
        for words in (
            "| a table |",
            "| a ratio | 2 | at most 1.5 | **missed** |",
            "**kvllama**: `llm -c`",
            "peer: there is no compiler",
            "| peer, hot | 3 of 9 | 7.50 | **no** |",
            "A CPU, 2 cores, 16 GiB",
        ):
            assert words in text
        report.summary([fake(found)], tmp_path)
        assert "**missed**" in (tmp_path / "README.md").read_text()

    def test_a_quick_run_says_so(self) -> None:
        found = result()
        found.quick = True
        assert "not to be quoted" in report.page(fake(found), found)


class TestProgram:
    def test_all_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert program.main(["list"]) == 0
        said = capsys.readouterr().out
        names = [one.name for one in measurements.ALL]
        assert all(f"\n{name}" in f"\n{said}" for name in names)
        assert len(set(names)) == len(names) == 10
        assert sum(one.minutes for one in measurements.ALL) < 45

    def test_what_is_missed_makes_the_exit_code(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        one = fake(result())
        monkeypatch.setattr(measurements, "ALL", [one])
        write(result(), [], tmp_path)
        assert program.main(["report", "--out", str(tmp_path)]) == 1
        assert "MISSED        a ratio: 2, at most 1.5" in capsys.readouterr().out

    def test_a_failure_is_told_and_the_others_go_on(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(_: Any) -> None:
            raise RuntimeError("no room")

        fails = Measurement(
            "fails", "Fails", 1, fail, lambda _: [], lambda _: "", lambda _: None
        )
        works = Measurement(
            "works",
            "Works",
            1,
            lambda run: run.result.add(1, "a"),
            lambda _: [],
            lambda found: f"{found.median('a')}",
            lambda _: None,
        )
        monkeypatch.setattr(measurements, "ALL", [fails, works])
        monkeypatch.setattr(
            program.peers, "find", lambda *_: tools.Tools(Path("model"), 1)
        )
        assert program.main(["--out", str(tmp_path)]) == 1
        said = capsys.readouterr().out
        assert "FAILED  fails: no room" in said
        assert read(tmp_path / "works.json") is not None

    def test_quick_results_do_not_go_where_others_are_quoted(self) -> None:
        assert program.parse([]).out == quotes.RESULTS
        assert program.parse(["--quick"]).out != quotes.RESULTS


class TestQuotes:
    "README's own figures are checked by the test of its generated parts"

    def test_nothing_is_quoted_from_a_quick_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quotes, "RESULTS", tmp_path)
        found = Result("scale", "", settings={"sizes": [10, 20, 30]})
        found.raw = {"op/open/10": [0.001], "op/open/30": [0.002]}
        found.quick = True
        write(found, [], tmp_path)
        assert quotes.store_scale() is None
        found.quick = False
        write(found, [], tmp_path)
        assert "| open the store | 1 ms | 2 ms | 2.00 |" in (quotes.store_scale() or "")

    def test_a_follow_up_beside_its_first_turn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quotes, "RESULTS", tmp_path)
        assert quotes.first_token() is None
        assert quotes.beside_others() is None
        found = Result("cold", "", machine=MACHINE)
        found.facts = {
            str(n): {"restored": n, "prefilled": 17} for n in (1200, 5000, 7900)
        }
        for n in (1200, 5000, 7900):
            found.add(n / 100, "first turn", n)
            found.add(1, "follow-up", "kvllama", n)
            found.add(n / 100, "follow-up", "llm-gguf", n)
        write(found, [], tmp_path)
        assert "| 5,000 tokens | 50.00 s | 1.00 s | 0.020 | 5,000 | 17 |" in (
            quotes.first_token() or ""
        )
        assert "| 0.020 | 1.00 s | 50.00 s | llm-gguf |" in (
            quotes.beside_others() or ""
        )


def event(**body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def delta(content: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}, **more}]}


async def received(*chunks: bytes, kind: str = "text/event-stream") -> client.Reply:
    "The reply parsed from an answer sent in these chunks"
    reader = asyncio.StreamReader()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked"
    reader.feed_data(head.encode() + b"\r\n\r\n")
    for chunk in (*chunks, b""):
        reader.feed_data(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    reader.feed_eof()
    reply = client.Reply(0)
    await client.read_reply(reader, reply)
    return reply


class TestReply:
    async def test_text_and_what_ends_it(self) -> None:
        reply = await received(
            event(**delta(None)),
            event(**delta("One")),
            event(**delta(" two")),
            event(**delta("", finish_reason="length", slot_id=3)),
            event(
                choices=[],
                usage={"prompt_tokens": 7, "completion_tokens": 2},
                timings={"prompt_ms": 1},
            ),
            b"data: [DONE]\n\n",
        )
        assert reply.status == 200
        assert [text for _, text in reply.texts] == ["One", " two"]
        assert reply.last["slot_id"] == 3
        assert reply.timings == {"prompt_ms": 1}
        assert reply.generated == 2

    async def test_events_in_pieces_and_together(self) -> None:
        sent = event(**delta("a\n\nb")) + event(**delta("ü"))
        reply = await received(sent[:9], sent[9:-3], sent[-3:] + b": ping\n\n")
        assert reply.text == "a\n\nbü"

    async def test_lines_may_end_as_in_mail(self) -> None:
        reply = await received(
            b'data: {"choices": [{"delta": {"content": "a"}}]}\r\n\r\n'
        )
        assert reply.text == "a"
        assert reply.generated == 1  # the pieces, where there is no usage

    async def test_an_error_in_the_stream_is_no_answer(self) -> None:
        with pytest.raises(RuntimeError, match="too long"):
            await received(event(**delta("a")), event(error={"message": "too long"}))

    async def test_a_whole_body(self) -> None:
        reply = await received(b'{"a"', b": 1}", kind="application/json")
        assert reply.json == {"a": 1}


class TestPeers:
    def test_instructions(self) -> None:
        line = "CPU : SSE3 = 1 | AVX2 = 1 | AMX = 0 | CPU : AVX2 = 1 | threads = 12"
        assert tools.features(line) == "AVX2 SSE3"

    def test_what_llama_bench_says(self) -> None:
        output = json.dumps([{"n_gen": 128, "samples_ns": [1_000_000_000]}])
        assert decode.rate_of(output) == 128

    def test_what_cannot_be_built_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(tools.Missing, match="there is no cmake"):
            tools.built(tmp_path)

    def test_a_failing_step_says_its_last_line(self) -> None:
        code = "print('one'); print('two'); exit(1)"
        with pytest.raises(tools.Missing, match="it could not be made: two"):
            tools.call([sys.executable, "-c", code], "it")

    def test_pages_are_forgotten_and_files_stay(self, tmp_path: Path) -> None:
        if not hasattr(os, "posix_fadvise"):
            pytest.skip("there is no posix_fadvise here")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_bytes(b"x" * 5000)
        assert servers.forget_pages(tmp_path) == 5000
        assert (tmp_path / "a" / "b").read_bytes() == b"x" * 5000

    def test_settings_of_who_runs_them_are_not_handed_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setenv("PYTHONPATH", "there")
        monkeypatch.setenv("LLM_KVBRANCH_DIR", "elsewhere")
        settings = servers.environment(tmp_path, LLM_KVBRANCH_MODEL="m.gguf")
        assert "PYTHONDONTWRITEBYTECODE" not in settings
        assert "LLM_KVBRANCH_DIR" not in settings
        assert settings["PYTHONPATH"] == "there"
        assert settings["LLM_KVBRANCH_MODEL"] == "m.gguf"

    def test_states_are_linked_and_all_else_copied(self, tmp_path: Path) -> None:
        for name in ("a.safetensors", "index.db"):
            (tmp_path / name).write_text("old")
            link_states(str(tmp_path / name), str(tmp_path / f"new-{name}"))
            (tmp_path / f"new-{name}").write_text("new")
        assert (tmp_path / "a.safetensors").read_text() == "new"
        assert (tmp_path / "index.db").read_text() == "old"


class TestParts:
    "Fails if the parts of a follow-up's time are attributed wrongly"

    CALLS = (
        ("load", 10.5, 10.6),
        ("context", 10.65, 10.66),
        ("restore", 10.70, 10.71),
        ("decode", 10.75, 10.85),
        ("decode", 10.85, 10.86),
        ("decode", 10.95, 10.96),  # of the second token
    )

    def test_they_make_up_the_whole(self) -> None:
        parts = Answered(0.9, "", 10.0, list(self.CALLS)).parts()
        assert parts == pytest.approx([0.5, 0.1, 0.01, 0.14, 0.11, 0.04])
        assert sum(parts) == pytest.approx(0.9)

    def test_of_what_nothing_was_noted(self) -> None:
        assert Answered(0.9, "", 10.0).parts() == [0.9, 0, 0, 0, 0, 0]

    def test_calls_are_read_from_their_file(self, tmp_path: Path) -> None:
        assert commands.calls_in(tmp_path / "none") == []
        (tmp_path / "trace").write_text("load 1.5 2.5\ndecode 3.0 4.0\n")
        assert commands.calls_in(tmp_path / "trace") == [
            ("load", 1.5, 2.5),
            ("decode", 3.0, 4.0),
        ]

    def test_a_process_is_traced_without_knowing(self, tmp_path: Path) -> None:
        package = tmp_path / "llama_cpp"
        package.mkdir()
        (package / "__init__.py").write_text("from .llama_cpp import *")
        (package / "llama_cpp.py").write_text("def llama_decode(a): return a + 1")
        code = "import llama_cpp; print(llama_cpp.llama_decode(41))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", code]
        answered = commands.answer(command, "", environment, tmp_path)
        assert answered.text == "42\n"
        ((kind, began, ended),) = answered.calls
        assert kind == "decode"
        assert answered.started < began < ended

    def test_a_process_without_an_answer_is_an_error(self, tmp_path: Path) -> None:
        code = "import sys; sys.exit('no model')"
        command = [sys.executable, "-c", code]
        with pytest.raises(RuntimeError, match="no model"):
            commands.answer(command, "", os.environ, tmp_path)

    def test_one_that_does_not_end_is_ended(self, tmp_path: Path) -> None:
        code = "while True: print('x' * 10, flush=True)"
        command = [sys.executable, "-c", code]
        answered = commands.answer(command, "", os.environ, tmp_path, enough=40)
        assert len(answered.text) >= 40


class TestAsking:
    def test_no_two_questions_begin_alike(self) -> None:
        assert len(set(NAMES.split())) == len(NAMES.split())
        asked = [question(i) for i in range(len(NAMES.split()))]
        assert len({each.split()[0] for each in asked}) == len(asked)
        assert question(5) != question(5 + len(NAMES.split()) * len(QUESTIONS))

    def test_documents_begin_differently_and_are_as_long_as_wanted(self) -> None:
        one, other = document(1000, 1), document(1000, 2)
        assert one[:20] != other[:20]
        assert abs(len(document(10_000, 1)) / len(one) - 10) < 0.5

    def test_a_branch_sends_a_part_of_the_last_answer(self) -> None:
        reply = client.Reply(0, texts=[(1, "An answer")])
        first = Conversation()
        conversation = first.after(first.with_prompt("Why?"), reply)
        assert conversation.answer == "An answer"
        messages = conversation.with_prompt("How?", 2)
        assert [m["content"] for m in messages[1:]] == ["Why?", "An", "How?"]
        messages = conversation.with_prompt("How?")
        assert [m["content"] for m in messages[1:]] == ["Why?", "An answer", "How?"]


def reply_at(*times: float) -> client.Reply:
    return client.Reply(0, texts=[(time, "x") for time in times])


def test_gaps_that_touch_a_span() -> None:
    one, other = reply_at(0, 1, 4, 5, 6), reply_at(0.5, 4.5)
    assert streams.gaps_within([one, other], 1.5, 4.2) == [3, 1, 4]
    assert streams.gaps_within([reply_at(), reply_at(2)], 0, 9) == []


class TestDisk:
    def test_what_two_contexts_share(self) -> None:
        assert disk.shared([1, 2, 3], [1, 2, 4]) == 2
        assert disk.shared([], [1]) == 0

    def test_whole_states_by_a_line_through_two_files(self) -> None:
        found = result()
        found.settings = {"n_responses": 10}
        found.facts = {"tokens": 5000, "prompts": 4000}
        found.facts["files/server.py"] = [[100, 1100], [200, 2100]]  # 100 + 10 each
        assert disk_report.kept(found, "server.py") == 10 * 100 + 10 * 4000
        found.add(77, "bytes", "kvllama")
        assert disk_report.kept(found, "kvllama") == 77
        assert disk_report.kept(found, "other") is None


class TestBreakEven:
    def found(self, planned: str) -> Result:
        found = result()
        found.settings = {"lengths": [4, 8, 16]}
        for n, prefill, restore in ((4, 1, 3), (8, 2, 3), (16, 4, 3)):
            found.add(prefill, "prefill", "m", n)
            found.add(restore, "restore", "m", n)
            found.facts[f"plan/m/{n}"] = planned
        return found

    def test_where_restoring_begins_to_be_sooner(self) -> None:
        found = self.found("restore")
        assert breakeven_report.break_even(found, "m") == "16"
        found.raw["restore/m/4"] = [0.5]  # not the first, 8: it is not earlier
        assert breakeven_report.break_even(found, "m") == "16"
        found.raw["restore/m/8"] = [0.5]
        assert breakeven_report.break_even(found, "m") == "4 or less"
        found.raw["restore/m/16"] = [99]
        assert breakeven_report.break_even(found, "m") == "more than 16"

    def test_what_a_wrong_plan_costs(self) -> None:
        assert breakeven_report.regret(self.found("restore"), "m") == 2
        assert breakeven_report.regret(self.found("prefill"), "m") == 1


def test_no_module_grows_out_of_hand() -> None:
    "The same size limits as the package, and a docstring in each module"
    import ast

    root = Path(program.__file__).parent
    for path in root.rglob("*.py"):
        source = path.read_text()
        tree = ast.parse(source)
        assert source.count("\n") <= 420, path
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_it_can_be_listed_without_anything_installed_for_it() -> None:
    code = "import sys; sys.modules['matplotlib'] = None\n"
    code += "from benchmarks.__main__ import main; main(['list'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(program.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cold" in done.stdout
