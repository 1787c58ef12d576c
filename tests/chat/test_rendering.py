"""What a template is told beside the messages: thinking, its variables, the date."""

from __future__ import annotations

import datetime

import llm
import pytest

from llm_kvbranch.chat import Chat, Rendering
from llm_kvbranch.chat.effort import Effort
from llm_kvbranch.errors import ChatError

from ..support.fake import FakeVocab

BODY = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% endfor %}"
DEFAULTS = "{% set enable_thinking = enable_thinking | default(true) %}" + BODY
TEMPLATES = {
    "plain": BODY,
    "switch, on unless told": BODY
    + "{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}",
    "switch, off unless told": BODY + "{% if thinking %}<think>{% endif %}",
    "switch with a default": DEFAULTS + "{{ '<think>' if enable_thinking else '' }}",
    "mode": BODY + "{{ '<t>' if thinking_mode == 'enabled' else '</t>' }}",
    "budget": BODY + "{% set thinking_budget = thinking_budget | default(-1) %}"
    "{{ '<t></t>' if thinking_budget == 0 else thinking_budget }}",
    "any effort": "Effort: {{ reasoning_effort | default('medium') }}" + BODY,
    "two efforts": "{% if reasoning_effort | default('high') not in ['low', 'high'] %}"
    "{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}" + BODY,
    "effort that may be none": BODY
    + "{% if reasoning_effort == 'high' %}<think>{% elif reasoning_effort == 'low' %}"
    "<think>short{% elif not reasoning_effort or reasoning_effort == 'no_think' %}"
    "<think></think>{% endif %}",
    "switch and effort": "{% if thinking and reasoning_effort == 'max' %}Max."
    "{% endif %}" + BODY + "{{ '<think>' if thinking else '' }}",
    "read, to no effect": "{% set x = enable_thinking %}" + BODY,
}
KNOWN = {
    "plain": {},
    "switch, on unless told": {"true": {}, "false": {"enable_thinking": False}},
    "switch, off unless told": {"true": {"thinking": True}, "false": {}},
    "switch with a default": {"true": {}, "false": {"enable_thinking": False}},
    "mode": {"true": {"thinking_mode": "enabled"}, "false": {}},
    "budget": {"true": {}, "false": {"thinking_budget": 0}},
    "any effort": {
        "true": {},
        **{level: {"reasoning_effort": level} for level in ("low", "medium", "high")},
    },
    "two efforts": {
        "true": {},
        "low": {"reasoning_effort": "low"},
        "high": {"reasoning_effort": "high"},
    },
    "effort that may be none": {
        "true": {"reasoning_effort": "high"},
        "false": {},
        "low": {"reasoning_effort": "low"},
        "high": {"reasoning_effort": "high"},
    },
    "switch and effort": {
        "true": {"thinking": True},
        "false": {},
        "max": {"thinking": True, "reasoning_effort": "max"},
    },
    "read, to no effect": {},
}


def chat(name: str) -> Chat:
    return Chat(FakeVocab(), TEMPLATES.get(name, name))


def shown(chat: Chat, **rendering: object) -> str:
    tokens = chat.encode([llm.user("Hi")], Rendering(**rendering))
    return b"".join(map(chat.vocab.piece, tokens)).decode()


class TestThink:
    "Fails if a template is told what it does not know, or not what it does"

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_what_a_template_knows(self, name):
        effort = Effort(TEMPLATES[name], chat(name)._show)
        assert {think: effort.values(think) for think in effort.known} == KNOWN[name]

    def test_it_reaches_the_template(self):
        assert shown(chat("switch, on unless told"), think="false").endswith("</think>")
        assert shown(chat("any effort"), think="high").startswith("Effort: high")
        assert shown(chat("budget"), thinking_budget=512).endswith("512")
        assert shown(chat("plain"), thinking_budget=512) == shown(chat("plain"))

    @pytest.mark.parametrize(
        ("name", "think", "words"),
        [
            ("plain", "true", "cannot turn thinking on or off: leave out think"),
            ("plain", "low", "cannot turn thinking on or off: leave out think"),
            ("mode", "low", "does not know think low. It knows true, false"),
            ("any effort", "false", "It knows true, low, medium, high"),
            ("two efforts", "medium", "It knows true, low, high"),
        ],
    )
    def test_what_it_does_not_know_is_refused(self, name, think, words):
        with pytest.raises(ChatError, match=words):
            chat(name).check(Rendering(think=think))

    def test_asking_for_the_default_changes_no_id(self):
        "States would not be found again"
        one = chat("switch, on unless told")
        assert one.render_id(Rendering(think="true")) == one.render_id()
        assert one.render_id(Rendering(think="false")) != one.render_id()
        assert one.render_id(Rendering(thinking_budget=5)) == one.render_id()


class TestEffort:
    "Fails if what clients of OpenAI's API send to any model is refused, or ignored"

    @pytest.mark.parametrize(
        ("name", "effort", "values"),
        [
            ("plain", "low", {}),
            ("plain", "none", {}),
            ("mode", "low", {"thinking_mode": "enabled"}),
            ("switch with a default", "none", {"enable_thinking": False}),
            ("switch with a default", "high", {}),
            ("any effort", "none", {}),
            ("any effort", "minimal", {"reasoning_effort": "low"}),
            ("any effort", "medium", {"reasoning_effort": "medium"}),
            ("any effort", "max", {"reasoning_effort": "high"}),
            ("two efforts", "xhigh", {"reasoning_effort": "high"}),
        ],
    )
    def test_the_nearest_counts(self, name, effort, values):
        found = Effort(TEMPLATES[name], chat(name)._show).nearest(effort)
        assert found == values

    def test_think_overrides_it(self):
        one = chat("any effort")
        text = shown(one, effort="high")
        assert text.startswith("Effort: high")
        assert shown(one, think="low", effort="high").startswith("Effort: low")


class TestValues:
    "Fails if a variable is ignored, or replaces what the messages decide"

    def test_they_reach_the_template(self):
        one = Chat(FakeVocab(), BODY + "{{ documents | tojson }} {{ flag }}")
        text = shown(one, values={"documents": [{"a": "<|im_end|>"}], "flag": True})
        assert text.endswith('[{"a": "<|im_end|>"}] True')

    @pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
    def test_what_they_may_not_set(self, name):
        with pytest.raises(ChatError, match=f"cannot set {name}"):
            Chat(FakeVocab()).check(Rendering(values={name: 1}))

    def test_what_a_template_does_not_read(self):
        misspelt = Rendering(values={"enable_thinkin": False})
        with pytest.raises(ChatError, match=r"enable_thinkin\. It reads enable_think"):
            chat("switch with a default").check(misspelt)
        with pytest.raises(ChatError, match=r"does not read x\. It reads nothing"):
            chat("plain").check(Rendering(values={"x": 1}))

    def test_they_override_think(self):
        values = {"enable_thinking": False}
        text = shown(chat("switch with a default"), values=values, think="true")
        assert not text.endswith("<think>")


class TestDate:
    "Fails if a prompt has another date than was asked for"

    TODAY = "{{ strftime_now('%d %b %Y') }}"
    OWN = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'a day' }}"
    LLAMA = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}"
        "{% endif %}{{ date_string }}"
    )

    @pytest.mark.parametrize(
        ("template", "date", "text"),
        [
            (TODAY, None, f"{datetime.date.today():%d %b %Y}"),
            (TODAY, "2026-01-31", "31 Jan 2026"),
            (OWN, "2026-01-31", "31 Jan 2026"),
            (OWN, "none", "a day"),
            (LLAMA, None, "26 Jul 2024"),
            (LLAMA, "2026-01-31", "31 Jan 2026"),
            (LLAMA, "none", "26 Jul 2024"),
        ],
    )
    def test_dates(self, template, date, text):
        assert shown(Chat(FakeVocab(), template), date=date) == text

    def test_a_template_without_a_date_of_its_own(self):
        with pytest.raises(ChatError, match="has no date of its own: set date to"):
            shown(Chat(FakeVocab(), self.TODAY), date="none")

    def test_another_reason_stays(self):
        with pytest.raises(ChatError, match=r"division by zero"):
            shown(Chat(FakeVocab(), "{{ 1 / 0 }}"), date="none")
