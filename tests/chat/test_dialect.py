"""Templates show how their models think and call tools."""

from __future__ import annotations

import string

import pytest

from llm_kvbranch.chat import Reader
from llm_kvbranch.chat.dialect import Dialect, Thinking, learn
from llm_kvbranch.chat.formats import ANY, KEY, NAME, Bare, Json, Object, Python, Tagged
from llm_kvbranch.chat.history import Arguments
from llm_kvbranch.chat.jinja import render

# A template of our own: how it writes thinking and calls is filled in
TEMPLATE = """
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|bot|>' }}
{%- if message.reasoning_content %}THINKING{% endif %}
{{- message.content }}
{%- if message.tool_calls %}CALLS{% endif %}{{ '<|eot|>' }}
{%- else %}{{ '<|' + message.role + '|>' + message.content + '<|eot|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|bot|>' }}PROMPT{% endif %}
"""
EACH = "{%- for call in message.tool_calls %}{%- set f = call.function %}"
COMMA = "{{ ', ' if not loop.last }}{% endfor %}"
PAIRS = "{%- for key, value in f.arguments.items() %}"
TEXT = "(value if value is string else value | tojson)"


def template(thinking: str = "", calls: str = "", prompt: str = "") -> str:
    filled = TEMPLATE.replace("THINKING", thinking).replace("CALLS", calls)
    return filled.replace("PROMPT", prompt)


def dialect_of(source: str) -> Dialect:
    def shown(messages, **values):
        return render(source, messages=messages, **values)

    return learn(source, shown)


THINKING = {
    "tags": ("{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}", ""),
    "control tokens": ("{{ '<|hm|>' + message.reasoning_content + '<|/hm|>' }}", ""),
    "a tag with a word": (
        "{{ '<|part>thought\n' + message.reasoning_content + '<part|>' }}",
        "",
    ),
    "words between two tags": (
        "{{ '<|open|>think<|sep|>' + message.reasoning_content"
        " + '<|close|>think<|sep|>' }}",
        "",
    ),
    "the prompt has begun it": (
        "{{ '<think>' + message.reasoning_content + '</think>' }}",
        "{{ '<think>' }}",
    ),
}
FORMS = {
    "JSON between tags": EACH
    + "{{ '<tool_call>\n' + (f | tojson) + '\n</tool_call>' }}{% endfor %}",
    "JSON with other keys in a list": "{{ '<do>[' }}"
    + EACH
    + "{{ {'tool': f.name, 'with': f.arguments} | tojson }}"
    + COMMA
    + "{{ ']</do>' }}",
    "the name is the key": "{{ '<do>[' }}"
    + EACH
    + "{{ {f.name: f.arguments} | tojson }}"
    + COMMA
    + "{{ ']</do>' }}",
    "a name and JSON": EACH
    + "{{ '[CALL]' + f.name + '[WITH]' + (f.arguments | tojson) }}{% endfor %}",
    "a section of names and JSON": "{{ '<|calls|>' }}"
    + EACH
    + "{{ '<|call|>' + f.name + '<|with|>' + (f.arguments | tojson) + '<|/call|>' }}"
    + "{% endfor %}{{ '<|/calls|>' }}",
    "tags": EACH
    + "{{ '<call=' + f.name + '>\n' }}"
    + PAIRS
    + "{{ '<arg=' + key + '>\n' + "
    + TEXT
    + " + '\n</arg>\n' }}{% endfor %}{{ '</call>' }}{% endfor %}",
    "tags that have the type": "{{ '<all>\n' }}"
    + EACH
    + "{{ '<one n=\"' + f.name + '\">\n' }}"
    + PAIRS
    + "{{ '<p n=\"' + key + '\" text=\"' + (value is string) | tojson + '\">' + "
    + TEXT
    + " + '</p>\n' }}{% endfor %}{{ '</one>\n' }}{% endfor %}{{ '</all>' }}",
    "Python": "{{ '<|py|>[' }}"
    + EACH
    + "{{ f.name + '(' }}"
    + PAIRS
    + "{{ key + '=' }}{{ value | tojson }}"
    + COMMA
    + "{{ ')' }}"
    + COMMA
    + "{{ ']<|/py|>' }}",
    "no quotes around keys": EACH
    + "{{ '<|do>call:' + f.name + '{' }}"
    + PAIRS
    + """{{ key + ':' }}{% if value is string %}{{ "<|'|>" + value + "<|'|>" }}"""
    + "{% else %}{{ value | tojson }}{% endif %}{{ ',' if not loop.last }}{% endfor %}"
    + "{{ '}<do|>' }}{% endfor %}",
}
TOOL = {
    "name": "roll",
    "parameters": {
        "type": "object",
        "properties": {"dice": {"type": "string"}, "times": {"type": "integer"}},
    },
}
TOOLS = [
    {"type": "function", "function": TOOL},
    {"type": "function", "function": {**TOOL, "name": "sum_up"}},
]


def said(source: str, **message) -> str:
    "What a model has to write for a message, as its template has it"
    messages = [{"role": "user", "content": "Q"}]
    answer = {"role": "assistant", "content": "", **message}
    before = render(source, messages=messages, add_generation_prompt=True)
    for call in answer.get("tool_calls", ()):
        call["function"]["arguments"] = Arguments(call["function"]["arguments"])
    text = render(source, messages=[*messages, answer], add_generation_prompt=False)
    assert text.startswith(before)
    return text.removeprefix(before).removesuffix("<|eot|>")


def call(name: str, arguments: dict) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


class TestRoundTrip:
    "Fails if what a template writes is not read back"

    @pytest.mark.parametrize("size", [1, 1000])
    @pytest.mark.parametrize("thinking", THINKING)
    @pytest.mark.parametrize("form", FORMS)
    def test_thinking_text_and_calls(self, thinking, form, size):
        source = template(THINKING[thinking][0], FORMS[form], THINKING[thinking][1])
        wanted = [
            ("roll", {"dice": '2d6 "plus" <b>\n3', "times": 12}),
            ("sum_up", {"dice": "1", "times": -3}),
        ]
        text = said(
            source,
            content="I roll.",
            reasoning_content="Let me think.",
            tool_calls=[call(*each) for each in wanted],
        )
        dialect = dialect_of(source)
        assert dialect.forms
        reader = Reader(dialect, TOOLS, THINKING[thinking][1] and "<|bot|><think>")
        for i in range(0, len(text), size):
            reader.feed(text[i : i + size])
        reader.end("<|eot|>")
        assert [(c.name, c.arguments) for c in reader.calls] == wanted
        assert (reader.reasoning, reader.text) == ("Let me think.", "I roll.")


class TestForms:
    "Fails if a part of a form is taken for another"

    def form(self, name: str):
        return dialect_of(template("", FORMS[name])).forms[0]

    def test_objects(self):
        form = self.form("JSON between tags")
        assert (form.before, form.after) == ("<tool_call>\n", "\n</tool_call>")
        texts = '{"name": "', '", "arguments": ', "}"
        assert form.arguments == Object(texts=texts)
        form = self.form("JSON with other keys in a list")
        assert (form.begin, form.between, form.end) == ("<do>[", ", ", "]</do>")
        assert isinstance(form.arguments, Object)
        assert (form.arguments.name, form.arguments.arguments) == ("tool", "with")
        assert self.form("the name is the key").arguments.name == ""

    def test_names_and_json(self):
        form = self.form("a section of names and JSON")
        assert form.arguments == Json()
        assert (form.begin, form.before, form.middle) == (
            "<|calls|>",
            "<|call|>",
            "<|with|>",
        )
        assert (form.after, form.between, form.end) == ("<|/call|>", "", "<|/calls|>")

    def test_tags(self):
        form = self.form("tags that have the type")
        assert form.arguments == Tagged(
            '\n<p n="', '" text="true">', "</p>", ('" text="false">',)
        )
        assert self.form("tags").arguments == Tagged("\n<arg=", ">\n", "\n</arg>")

    def test_others(self):
        assert self.form("Python").arguments == Python()
        assert self.form("no quotes around keys").arguments == Bare("<|'|>")

    def test_lists_and_objects_written_with_tags(self):
        source = template(
            "",
            "{%- macro tags(key, value) %}{{ '~<' + key + '>' }}"
            "{%- if value is mapping %}"
            "{%- for k, v in value.items() %}{{ tags(k, v) }}{% endfor %}"
            "{%- elif value is iterable and value is not string %}"
            "{%- for v in value %}{{ tags('each', v) }}{% endfor %}"
            "{%- else %}{{ value }}{% endif %}{{ '~</' + key + '>' }}{% endmacro %}"
            + EACH
            + "{{ '~<call n=\"' + f.name + '\">' }}"
            + PAIRS
            + "{{ tags(key, value) }}{% endfor %}{{ '~</call>' }}{% endfor %}",
        )
        (form,) = dialect_of(source).forms
        assert form.arguments == Tagged("~<", ">", f"~</{KEY}>", item="each")

    def test_ids(self):
        by_id = EACH + "{{ '[C]' + f.name + '[I]' + call.id + '[A]{}' }}{% endfor %}"
        by_id = by_id.replace("{}'", "' + f.arguments | tojson")
        (form,) = dialect_of(template("", by_id)).forms
        assert (form.middle, form.id) == (f"[I]{ANY}[A]", ANY)
        counted = by_id.replace("'[I]' + call.id", "':' + loop.index0 | string")
        counted = counted.replace("[C]", "<|c|>tools.")
        (form,) = dialect_of(template("", counted)).forms
        assert form.id == f"tools.{NAME}:{ANY}"

    def test_a_tag_that_models_may_leave_out(self):
        calls = (
            FORMS["tags"]
            .replace("<call=", "<x>\n<call=")
            .replace("</call>", "</call>\n</x>")
        )
        full, short = dialect_of(template("", calls)).forms
        assert (full.before, full.after) == ("<x>\n<call=", "\n</call>\n</x>")
        assert (short.before, short.after) == ("<call=", "</call>")
        assert short.arguments == full.arguments

    def test_a_template_that_takes_one_call_at_a_time(self):
        calls = (
            "{%- if message.tool_calls | length > 1 %}"
            "{{ raise_exception('One at a time') }}{% endif %}"
            + FORMS["JSON between tags"]
        )
        (form,) = dialect_of(template("", calls)).forms
        assert (form.before, form.after) == ("<tool_call>\n", "\n</tool_call>")

    def test_a_token_that_ends_the_turn_is_no_part_of_calls(self):
        source = template("", FORMS["JSON between tags"] + "{{ '<|eom|>' }}")
        (form,) = dialect_of(source).forms
        assert (form.after, form.end) == ("\n</tool_call>", "")

    def test_calls_without_tags_are_all_of_an_answer(self):
        (form,) = dialect_of(template("", EACH + "{{ f | tojson }}{% endfor %}")).forms
        assert form.whole


class TestThinking:
    "Fails if thinking's beginning or end is not found"

    @pytest.mark.parametrize(
        ("name", "open", "close"),
        [
            ("tags", "<think>\n", "\n</think>\n\n"),
            ("control tokens", "<|hm|>", "<|/hm|>"),
            ("a tag with a word", "<|part>thought\n", "<part|>"),
            (
                "words between two tags",
                "<|open|>think<|sep|>",
                "<|close|>think<|sep|>",
            ),
            ("the prompt has begun it", "<think>", "</think>"),
        ],
    )
    def test_around_it(self, name, open, close):
        source = template(THINKING[name][0], prompt=THINKING[name][1])
        assert dialect_of(source).thinking == Thinking(open, close)

    def test_shown_only_when_asked_for(self):
        source = template(
            "{%- if enable_thinking %}" + THINKING["control tokens"][0] + "{% endif %}"
        )
        assert dialect_of(source).thinking == Thinking("<|hm|>", "<|/hm|>")

    def test_shown_only_in_parts_of_the_content(self):
        source = (
            "{%- for m in messages %}{{ '<|' + m.role + '|>' }}"
            "{%- if m.content is string %}{{ m.content }}{% else %}"
            "{%- for part in m.content %}"
            "{{ '[HM]' + part.thinking + '[/HM]' if part.thinking else part.text }}"
            "{%- endfor %}{% endif %}{% endfor %}"
        )
        assert dialect_of(source).thinking == Thinking("[HM]", "[/HM]")

    def test_never_shown_but_known(self):
        source = template() + "{# drops </think> #}"
        assert dialect_of(source).thinking == Thinking("<think>", "</think>")

    def test_only_the_prompt_begins_it(self):
        source = template(
            "{{ message.reasoning_content + '\n[FINAL]\n' }}",
            prompt="{{ 'My steps:\n' }}",
        )
        thinking = dialect_of(source).thinking
        assert thinking == Thinking("My steps:\n", "\n[FINAL]\n")
        assert thinking.is_spoken

    def test_is_told_from_what_is_around_the_text(self):
        source = template(
            "{{ '<|hm|>' + message.reasoning_content + '<|/hm|>' }}"
        ).replace(
            "{{- message.content }}",
            "{{- '<|say|>' + message.content + '<|said|>' if message.content }}",
        )
        dialect = dialect_of(source)
        assert dialect.thinking == Thinking("<|hm|>", "<|/hm|>")
        assert (dialect.heads, dialect.tails) == (("<|say|>",), ("<|said|>",))

    def test_the_end_of_a_prompt_says_whether_it_is_open(self):
        thinking = Thinking("<think>\n", "\n</think>\n")
        assert thinking.starts_open("<think>")
        assert not thinking.starts_open("<|bot|>")
        assert not thinking.starts_open("<think>\n\n</think>\n\n")
        assert thinking.is_over("<think>\n\n</think>\n\n")
        assert not thinking.is_over("<|bot|>")


class TestAnyTemplate:
    "Fails if a template makes it impossible to answer"

    @pytest.mark.parametrize(
        "source",
        [
            "",
            "{{",
            "{{ raise_exception('no') }}",
            "{{ messages[7].content.x.y }}",
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "{% for m in messages %}{{ m }}{% endfor %}",
            "{% for m in messages %}{{ m | tojson }}{% endfor %}",
            template(
                "{{ message.reasoning_content }}", EACH + "{{ f.name }}{% endfor %}"
            ),
        ],
    )
    def test_learning_does_not_raise(self, source):
        reader = Reader(dialect_of(source), TOOLS)
        reader.feed("It is <b>six</b>.")
        reader.end("<|eot|>")
        assert reader.text == "It is <b>six</b>."

    def test_a_failing_renderer(self):
        def fails(messages, **values):
            raise RuntimeError

        assert learn("a template that fails", fails) == Dialect()

    def test_it_is_learned_once(self):
        count = 0

        def counted(messages, **values):
            nonlocal count
            count += 1
            return "".join(message["content"] for message in messages)

        first = learn("learned once", counted)
        before = count
        assert learn("learned once", counted) is first
        assert count == before > 0

    def test_ids(self):
        nine = (
            EACH
            + "{%- if call.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}"
            "{{ '[CALL]' + (f | tojson) }}{% endfor %}"
        )
        id = dialect_of(template("", nine)).new_id()
        assert len(id) == 9
        assert set(id) <= set(string.ascii_letters + string.digits)
        assert Dialect().new_id() != Dialect().new_id()
        assert Dialect().new_id().startswith("call_")
