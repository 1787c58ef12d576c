"""What an answer says: the same when its engine ends, and the parts that llm logs."""

from __future__ import annotations

import contextlib

import llm
import pytest

from llm_kvbranch.chat import Part
from llm_kvbranch.engine import Sampling
from llm_kvbranch.inference import Request
from llm_kvbranch.inference.turns import answer_hash, answer_message
from llm_kvbranch.store import Store

from ..support import scripted
from .test_host import IDS, PATIENCE, hosted

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
_CALL = '<tool_call>\n{{"name": "look", "arguments": {{"at": "{}"}}}}\n</tool_call>'
ANSWER = (
    "<think>\nShall I look, or not?\n</think>\n\nI look at the sea.\n"
    f"{_CALL.format('sea')}\n{_CALL.format('sky')}"
)
# In place of scripted.draw: it ends the process once, at a token
_DEADLY = """
    import os
    def deadly(generation, index):
        if generation.n_generated == {n} and not os.path.exists({flag!r}):
            open({flag!r}, "w").close()
            os.abort()
        return scripted.draw(generation, index)
    Generation.draw = deadly
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return scripted.write(tmp_path_factory.mktemp("toy") / "scripted.gguf")


class TestRestarts:
    "Fails if an event comes twice or never, or a call gets another id"

    def ask(self, running, **more):
        events = []
        request = Request(
            [llm.user("Look")],
            sampling=Sampling(temperature=0),
            max_tokens=200,
            tools=(TOOL,),
            **more,
        )
        answer = running.host.submit(request, lambda _, new: events.extend(new))
        return answer, events

    def wait(self, running, answer):
        while not answer.ended:
            running.host.alive().result(PATIENCE)
        assert answer.error is None

    # In the thinking, at its end, in the text, in each call, and between them
    @pytest.mark.parametrize("n", [3, 8, 12, 17, 30, 38, 45, 60])
    def test_at_a_token(self, toy, root, tmp_path, monkeypatch, n):
        scripted.say(monkeypatch, {"Look": ANSWER})
        code = _DEADLY.format(n=n, flag=str(tmp_path / "flag"))
        scripted.in_processes(monkeypatch, tmp_path, code)
        template = scripted.template().read_text()
        with hosted(toy, root, template=template) as running:
            answer, events = self.ask(running)
            self.wait(running, answer)
            assert running.host.n_restarts == (n < len(answer.tokens) + 1)
            for kind, expected in (
                ("reasoning", "Shall I look, or not?"),
                ("text", "I look at the sea."),
            ):
                said = [event.text for event in events if event.kind == kind]
                assert "".join(said) == expected
            calls = [event.call for event in events if event.call is not None]
            assert [call.arguments for call in calls] == [{"at": "sea"}, {"at": "sky"}]
            assert calls == answer.calls
            assert answer.finish_reason == "tool_calls"
            assert running.host.commit(answer, IDS[0]).result(PATIENCE)
        with contextlib.closing(Store(root)) as store:
            (state,) = (entry.state for entry in store.entries())
        parts = [Part("reasoning", "Shall I look, or not?")]
        parts += [Part("text", "I look at the sea.")]
        parts += [Part("call", call=call) for call in calls]
        assert state.tip_hash == answer_hash(parts, state.input_hash)

    def test_after_its_end_and_twice(self, toy, root, tmp_path, monkeypatch):
        "Its rows are computed again, and it is stored under the same hash"
        scripted.say(monkeypatch, {"Look": ANSWER})
        scripted.in_processes(monkeypatch, tmp_path)
        template = scripted.template().read_text()
        with hosted(toy, root, template=template) as running:
            answer, _ = self.ask(running)
            self.wait(running, answer)
            calls = list(answer.calls)
            running.hit(9)
            assert running.host.commit(answer, IDS[0]).result(PATIENCE)
            assert answer.calls == calls
        with contextlib.closing(Store(root)) as store:
            (state,) = (entry.state for entry in store.entries())
        parts = [Part("reasoning", "Shall I look, or not?")]
        parts += [Part("text", "I look at the sea.")]
        parts += [Part("call", call=call) for call in calls]
        assert state.tip_hash == answer_hash(parts, state.input_hash)

    @pytest.mark.parametrize("n", [4, 5, 6, 7, 9])
    def test_where_a_budget_ends_the_thinking(
        self, toy, root, tmp_path, monkeypatch, n
    ):
        scripted.say(monkeypatch, {"Look": ANSWER})
        scripted.in_processes(monkeypatch, tmp_path)
        template = scripted.template().read_text()
        with hosted(toy, None, template=template) as running:
            whole, expected = self.ask(running, thinking_budget=4)
            self.wait(running, whole)
            assert whole.facts["thinking_cut"]
        code = _DEADLY.format(n=n, flag=str(tmp_path / "flag"))
        scripted.in_processes(monkeypatch, tmp_path, code)
        with hosted(toy, None, template=template) as running:
            answer, events = self.ask(running, thinking_budget=4)
            self.wait(running, answer)
        assert answer.tokens == whole.tokens
        assert [(e.kind, e.text) for e in events if e.call is None] == [
            (e.kind, e.text) for e in expected if e.call is None
        ]


class TestMessages:
    "Fails if parts are not what llm makes of the events"

    def test_what_follows_on_one_another_is_one(self):
        parts = [Part("text", "a"), Part("reasoning", ""), Part("text", "b")]
        assert answer_message(parts) == llm.assistant("ab")
        assert not answer_message([]).parts
