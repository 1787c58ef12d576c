"""Long conversations with models that think, as their own templates write them.

The idea: a scripted model thinks and answers, turn after turn, byte by byte. What each
prompt must be is stated by another rendering of the template, with a character in place
of each answer, and the answer's own token ids in place of that character.

The templates come with llama.cpp, and are read from llama-cpp-python's source
distribution.
"""

from __future__ import annotations

import json
import re
import threading
import time
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
import llm
import pytest
from llm.parts import ReasoningPart, ToolResultPart

from llm_kvbranch.chat import Chat
from llm_kvbranch.engine import Feed, Load
from llm_kvbranch.inference.assembly import DROPPED
from llm_kvbranch.inference.planning import Planner
from llm_kvbranch.inference.request import Request
from llm_kvbranch.inference.scheduler import Scheduler
from llm_kvbranch.inference.session import Session
from llm_kvbranch.inference.turns import answer_message, chain_hashes
from llm_kvbranch.store.store import Store

from ..chat import llamacpp
from ..support.fake import EOG, FakeEngine, FakeSettings, FakeVocab

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_fsync")]

CONTROL = re.compile(r"<\|[^|<>]+\|>|<｜[^｜<>]+｜>|\[gMASK\]|<sop>")
N_TURNS = 10


@dataclass(frozen=True)
class Family:
    "How a model writes its answers, and what its template is given"

    template: str
    writes: str
    ends: str
    values: dict[str, object] = field(default_factory=dict)
    calls: str = ""  # how it calls a tool
    writes_call: str = ""  # the whole of such an answer, if not like any other

    def raw(self, thought: str, said: str) -> str:
        form = self.writes_call if said == self.calls else ""
        return (form or self.writes).format(thought=thought, said=said)


FAMILIES = {
    "Qwen3": Family(
        "Qwen-Qwen3-0.6B",
        "<think>\n{thought}\n</think>\n\n{said}",
        "<|im_end|>",
        calls='<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    ),
    "Qwen3.5": Family(
        "Qwen3.5-4B",
        "{thought}\n</think>\n\n{said}",
        "<|im_end|>",
        calls="<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n"
        "</function>\n</tool_call>",
    ),
    "DeepSeek V3.1": Family(
        "deepseek-ai-DeepSeek-V3.1",
        "{thought}</think>{said}",
        "<｜end▁of▁sentence｜>",
        {"thinking": True},
    ),
    "GLM 4.6": Family(
        "GLM-4.6",
        "\n<think>{thought}</think>\n{said}",
        "<|user|>",
        calls="<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n"
        "</tool_call>",
    ),
    "gpt-oss": Family(
        "openai-gpt-oss-120b",
        "<|channel|>analysis<|message|>{thought}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>{said}",
        "<|return|>",
        calls=' to=functions.f<|channel|>commentary json<|message|>{"x": 1}',
        writes_call="<|channel|>analysis<|message|>{thought}<|end|>"
        "<|start|>assistant{said}<|call|>",
    ),
    "LFM2.5": Family(
        "LFM2.5-8B-A1B",
        "<think>{thought}</think>{said}",
        "<|im_end|>",
        calls="<|tool_call_start|>[f(x=1)]<|tool_call_end|>",
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


class Vocab(FakeVocab):
    "Bytes, pairs of bytes, and what looks like a control token in a template"

    def __init__(self, family: Family):
        super().__init__()
        self.chat_template = llamacpp.templates()[family.template]
        found = [family.ends, *CONTROL.findall(self.chat_template), "<|constrain|>"]
        self.ids = {text: EOG + n for n, text in enumerate(dict.fromkeys(found))}
        self.names = {number: text for text, number in self.ids.items()}
        self.control_texts, self.eos_text = tuple(self.ids), family.ends

    def tokenize(self, text, special, bos=False):
        tokens = array("i")
        parts = re.split(f"({CONTROL.pattern})", text) if special else [text]
        for part in parts:
            if special and part in self.ids:
                tokens.append(self.ids[part])
            else:
                tokens += super().tokenize(part, special=False)
        return tokens

    def control_text(self, token):
        return self.names.get(token, "")

    def is_eog(self, token):
        return token in (EOG, self.ids.get("<|call|>"))

    def by_bytes(self, text) -> array[int]:
        "How a model writes a text, which is not how this vocabulary would read it"
        tokens = array("i")
        for part in re.split(f"({CONTROL.pattern})", text):
            for piece in [part] if part in self.ids else part:
                tokens += self.tokenize(piece, special=True)
        return tokens


class Scripted(FakeEngine):
    "Generates given tokens, and then ends"

    def __init__(self, vocab: Vocab, **options):
        super().__init__(**options)
        self.weights = vocab
        self.script: list[int] = []

    def sample(self, sampler, index):
        return self.script.pop(0) if self.script else EOG


class Conversation:
    "What was said so far; each turn may be another process"

    def __init__(self, family: Family, root: Path, **options):
        self.family, self.root, self.options = family, root, options
        self.vocab = Vocab(family)
        self.messages: list[llm.Message] = []
        self.ideal: list[dict[str, object]] = []
        self.own: list[array[int]] = []  # the tokens of each answer's text
        self.before = array("i")  # of the last prompt and answer

    def session(self, n_seq: int = 3, **kind) -> Session:
        engine = Scripted(self.vocab, settings=FakeSettings(n_seq=n_seq), **kind)
        planner = Planner(
            Chat(engine.weights),
            Store(self.root),
            "fake",
            engine.cuts_anywhere,
            engine.window,
        )
        return Session(engine, planner, print, Load(Path("fake.gguf")))

    def ask(self, session: Session, question: str, thought: str, said: str):
        "The generation that answers a question"
        generation = session.generate(self.request(session, question, thought, said))
        list(generation)
        generation.commit(f"r{len(self.messages)}")
        return generation

    def request(self, session, question: str, thought: str, said: str) -> Request:
        raw = self.family.writes.format(thought=thought, said=said)
        session.engine.script = list(self.vocab.by_bytes(raw))
        self.messages.append(llm.user(question))
        self.ideal.append({"role": "user", "content": question})
        return Request(
            messages=list(self.messages),
            max_tokens=500,
            values=self.family.values,
            **self.options,
        )

    def answered(self, generation, thought: str, said: str) -> None:
        kinds = [(part.kind, part.text) for part in generation.parts]
        assert kinds == [("reasoning", thought), ("text", said)][not thought :]
        self.messages.append(answer_message(generation.parts))
        self.ideal.append(
            {
                "role": "assistant",
                "content": chr(0xF0000 + len(self.own)),
                **(
                    {"reasoning_content": thought, "thinking": thought}
                    if thought
                    else {}
                ),
            }
        )
        self.own.append(self.vocab.by_bytes(said))
        self.before = generation.tokens

    def expected(self) -> array[int]:
        "The template's rendering of the ideal history, with the answers' own tokens"
        tokens = array("i")
        for part in re.split("([\U000f0000-\U000f00ff])", self.rendered()):
            if part[:1] >= "\U000f0000":
                tokens += self.own[ord(part) - 0xF0000]
            else:
                tokens += self.vocab.tokenize(part, special=True)
        return tokens

    def rendered(self, **more) -> str:
        "The same by text, with a character for each answer that has one"
        environment = jinja2.Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = json.dumps
        source = re.sub(
            r"{%- (end)?generation -%}", "{#- -#}", self.vocab.chat_template
        )
        return environment.from_string(source).render(
            messages=self.ideal,
            add_generation_prompt=True,
            bos_token="",
            eos_token=self.vocab.eos_text,
            strftime_now=lambda form: "2026-03-01",
            raise_exception=pytest.fail,
            **self.family.values,
            **more,
        )


def turns():
    for n in range(N_TURNS):
        yield (
            f"Question {n}?",
            f"Hm, {n * n} perhaps.",
            f"It is {n}, no doubt. " + f"{n} it is, I say. " * 4 + "So.",
        )


class TestTenTurns:
    "Fails if a prompt is not what the template writes, or an answer is tokenised again"

    def test_in_a_process_each(self, family, tmp_path):
        talk = Conversation(family, tmp_path, date="2026-03-01")
        for question, thought, said in turns():
            generation = talk.ask(talk.session(), question, thought, said)
            plan, facts = generation.plan, generation.facts
            assert plan.tokens == talk.expected()
            if talk.own:
                assert facts["miss_reason"] == DROPPED
                # The answer's words, and what the template writes before them
                words = len(talk.own[-1])
                assert words <= facts["reread_tokens"] <= words + 12
            talk.answered(generation, thought, said)

    @pytest.mark.parametrize("kind", [{"recurrent": True}, {"window": 8}])
    def test_where_a_sequence_cannot_go_back(self, family, tmp_path, kind):
        "It continues from before the answer, not from before the question"
        talk = Conversation(family, tmp_path, date="2026-03-01")
        more = "Tell me all about it, in as many words as you like, please. " * 4
        for question, thought, said in turns():
            session = talk.session(**kind)
            generation = talk.ask(session, question + more, thought, said)
            assert generation.plan.tokens == talk.expected()
            if talk.own:
                new = len(talk.own[-1]) + len(question + more) / 2
                assert generation.facts["prefilled_tokens"] < new + 48
            talk.answered(generation, thought, said)

    def test_keep_thinking(self, family, tmp_path):
        talk = Conversation(family, tmp_path, keep_thinking=True, date="2026-03-01")
        for question, thought, said in turns():
            generation = talk.ask(talk.session(), question, thought, said)
            known = talk.before
            assert generation.plan.tokens[: len(known)] == known
            assert generation.facts["restored_tokens"] == len(known)
            assert generation.facts["miss_reason"] is None
            talk.answered(generation, thought, said)

    def test_the_same_as_without_a_store(self, family, tmp_path):
        talk = Conversation(family, tmp_path, date="2026-03-01")
        for question, thought, said in turns():
            generation = talk.ask(talk.session(), question, thought, said)
            talk.answered(generation, thought, said)
            rows = generation.session.engine.rows[generation.slot.seq]
            assert rows == decoded(generation.tokens)


class TestWithoutThinking:
    "Fails if what a template writes in place of thinking stays where it drops that"

    @pytest.mark.parametrize("name", ["Qwen3", "Qwen3.5", "DeepSeek V3.1"])
    def test_switched_off(self, name, tmp_path):
        off = "thinking" if name == "DeepSeek V3.1" else "enable_thinking"
        family = replace(FAMILIES[name], writes="{said}", values={off: False})
        talk = Conversation(family, tmp_path, date="2026-03-01")
        for question, _, said in turns():
            generation = talk.ask(talk.session(), question, "", said)
            assert generation.plan.tokens == talk.expected()
            talk.answered(generation, "", said)

    def test_a_model_that_thinks_nothing(self, tmp_path):
        "It is as if it had not begun to think"
        talk = Conversation(FAMILIES["Qwen3"], tmp_path, date="2026-03-01")
        for question, _, said in turns():
            generation = talk.ask(talk.session(), question, "", said)
            assert generation.plan.tokens == talk.expected()
            talk.answered(generation, "", said)


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "description": "X"}},
        },
    },
}


@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n].calls])
class TestToolRounds:
    "Fails if thinking between calls is lost, or stays when the next question comes"

    def test_two_rounds_and_two_questions(self, name, tmp_path):
        family = FAMILIES[name]
        talk = Conversation(family, tmp_path, date="2026-03-01", tools=(TOOL,))
        for number in range(3):
            calls = [f"First {number}.", f"Second {number}."]
            self.asked(talk, llm.user(f"Question {number}?"))
            if family.writes_call:  # its template takes such calls apart, later on
                self.rewritten = max(0, len(talk.own) - 1)
            for n, thought in enumerate(calls):
                generation = self.check(talk, thought, family.calls)
                (call,) = generation.calls
                assert (call.name, call.arguments) == ("f", {"x": 1})
                result = ToolResultPart("f", f"Result {n}", call.id)
                self.asked(talk, llm.tool_message(result))
            self.check(talk, f"Third {number}.", f"It is {number}.")

    def asked(self, talk, message) -> None:
        talk.messages.append(message)
        (part,) = message.parts
        chat = {"role": message.role, "content": getattr(part, "output", "")}
        if message.role == "tool":
            chat["tool_call_id"] = part.tool_call_id
        else:
            chat["content"] = part.text
        talk.ideal.append(chat)

    def check(self, talk, thought: str, said: str):
        "The next answer; its prompt is the template's, of the answers' own tokens"
        session, family = talk.session(), talk.family
        raw = family.raw(thought, said)
        session.engine.script = list(talk.vocab.by_bytes(raw))
        generation = session.generate(
            Request(messages=list(talk.messages), max_tokens=500, **talk.options)
        )
        list(generation)
        generation.commit(f"r{len(talk.messages)}")
        plan, chat = generation.plan, Chat(talk.vocab)
        assert chat.spell(plan.tokens) == talk.rendered(tools=[TOOL])
        data = plan.tokens.tobytes()
        for own in talk.own[self.rewritten :]:
            assert own.tobytes() in data
        for own in self.thoughts:
            is_shown = chat.spell(own) in chat.spell(plan.tokens)
            assert (own.tobytes() in data) == is_shown
        if talk.messages[-1].role == "tool":  # all that came before is kept
            assert generation.facts["restored_tokens"] == len(talk.before)
            assert plan.tokens[: len(talk.before)] == talk.before
            assert generation.facts["miss_reason"] is None
        elif talk.own:
            assert generation.facts["miss_reason"] == DROPPED
        chats = {"role": "assistant", "content": said}
        if said == family.calls:
            function = {"name": "f", "arguments": {"x": 1}}
            chats = {"role": "assistant", "content": ""}
            chats["tool_calls"] = [{"type": "function", "function": function}]
        chats["reasoning_content"] = chats["thinking"] = thought
        talk.ideal.append(chats)
        talk.own.append(talk.vocab.by_bytes(said))
        self.thoughts.append(talk.vocab.by_bytes(thought))
        talk.messages.append(answer_message(generation.parts))
        talk.before = generation.tokens
        return generation

    @pytest.fixture(autouse=True)
    def no_thoughts(self):
        self.thoughts: list[array[int]] = []
        self.rewritten = 0  # answers of which the template rewrites what was called


class TestCut:
    "Fails if a branch inside an answer does not continue from its very tokens"

    THOUGHT, SAID = "Hm, salt or sweet? Salt.", "It is salt water, no doubt."

    def first(self, family, tmp_path) -> tuple[Conversation, object]:
        talk = Conversation(family, tmp_path, date="2026-03-01")
        generation = talk.ask(
            talk.session(), "What is the sea?", self.THOUGHT, self.SAID
        )
        return talk, generation

    def plan(self, talk, answer, question="Why?", **more):
        messages = [*talk.messages[:1], answer, llm.user(question)]
        request = Request(
            messages=messages, values=talk.family.values, date="2026-03-01", **more
        )
        return talk.session().planner.plan(
            request.messages, request.rendering, request.keep_thinking
        )

    @pytest.mark.parametrize("n", [1, 9, len(THOUGHT)])
    def test_inside_a_thought(self, family, tmp_path, n):
        "It goes on from the thought as it stands, and the turn is ended"
        talk, generation = self.first(family, tmp_path)
        plan = self.plan(talk, llm.assistant(ReasoningPart(self.THOUGHT[:n])))
        whole = family.writes.format(thought=self.THOUGHT, said=self.SAID)
        begin = whole.index(self.THOUGHT) + n
        known = generation.tokens[: generation.n_prompt]
        known += talk.vocab.by_bytes(whole[:begin])
        assert plan.tokens[: len(known)] == known
        assert plan.n_known == len(known)
        assert plan.miss_reason is None
        assert len(plan.chain.tokens) >= len(known)
        after = Chat(talk.vocab).spell(plan.tokens[len(known) :])
        assert "Why?" in after
        assert self.THOUGHT[n:] not in after or n == len(self.THOUGHT)

    def test_inside_the_text(self, family, tmp_path):
        talk, _ = self.first(family, tmp_path)
        for thought in ([ReasoningPart(self.THOUGHT)], []):
            plan = self.plan(talk, llm.assistant(*thought, self.SAID[:10]))
            talk.own = [talk.vocab.by_bytes(self.SAID[:10])]
            talk.ideal[1:] = [
                {
                    "role": "assistant",
                    "content": chr(0xF0000),
                    "reasoning_content": self.THOUGHT,
                    "thinking": self.THOUGHT,
                },
                {"role": "user", "content": "Why?"},
            ]
            assert plan.tokens == talk.expected()
            assert plan.miss_reason is None

    def test_inside_the_text_with_keep_thinking(self, family, tmp_path):
        talk, generation = self.first(family, tmp_path)
        n = len(generation.tokens) - len(self.SAID) + 10
        for thought in ([ReasoningPart(self.THOUGHT)], []):
            answer = llm.assistant(*thought, self.SAID[:10])
            plan = self.plan(talk, answer, keep_thinking=True)
            assert plan.tokens[:n] == generation.tokens[:n]
            assert plan.n_known == n

    def test_a_client_that_leaves_out_the_thinking(self, family, tmp_path):
        "The answer's text still is its own tokens"
        talk, generation = self.first(family, tmp_path)
        with_it = self.plan(talk, answer_message(generation.parts))
        without = self.plan(talk, llm.assistant(self.SAID))
        assert without.tokens == with_it.tokens
        assert without.miss_reason is None


class TestEarlierLogs:
    "Fails if answers that were logged with their thinking as text are not continued"

    def test_everything_is_kept(self, family, tmp_path):
        talk = Conversation(family, tmp_path, date="2026-03-01")
        session = talk.session()
        generation = talk.ask(session, "What is the sea?", "Hm.", "Salt.")
        text = b"".join(map(talk.vocab.piece, generation.tokens[generation.n_prompt :]))
        answer = llm.assistant(text.decode())
        state = session.store.get("r1").state
        tip = chain_hashes([*talk.messages, answer])[-1]
        rows = session.engine.capture(0, state.start, state.end)
        session.store.put(replace(state, tip_hash=tip), rows)
        again = talk.session()
        plan = again.planner.plan(
            [*talk.messages, answer, llm.user("Why?")],
            Request(messages=(), values=family.values, date="2026-03-01").rendering,
        )
        assert plan.tokens[: len(generation.tokens)] == generation.tokens
        assert plan.n_known == len(generation.tokens)
        assert plan.miss_reason is None


@pytest.mark.parametrize("n_seq", [3, 1])
class TestReadAhead:
    "Fails if idle time is wasted, or what is read ahead harms what follows"

    def test_a_follow_up_reads_its_question_only(self, family, tmp_path, n_seq):
        talk = Conversation(family, tmp_path, date="2026-03-01")
        session = talk.session(n_seq)
        scheduler = Scheduler(session)
        try:
            for question, thought, said in turns():
                request = talk.request(session, question, thought, said)
                ended = threading.Event()
                ticket = scheduler.submit(
                    request, lambda t, _, ended=ended: t.ended and ended.set()
                )
                assert ended.wait(10)
                assert ticket.error is None
                generation = ticket.generation
                assert generation.plan.tokens == talk.expected()
                scheduler.call(generation.commit, f"r{len(talk.own)}").result(5)
                if talk.own:
                    facts = generation.facts
                    assert facts["miss_reason"] is None
                    assert facts["reread_tokens"] == 0
                    # With what the template writes after any question
                    assert facts["prefilled_tokens"] < len(question) / 2 + 24
                    assert facts["prefilled_tokens"] < len(said)
                talk.answered(generation, thought, said)
                idle(session, generation)
                for slot in session.slots.all():
                    rows = session.engine.rows.get(slot.seq, [])
                    assert rows == (decoded(slot.tokens) if slot.tokens else [])
        finally:
            scheduler.stop()


def idle(session: Session, generation) -> None:
    "Wait until what the next turn begins with is in memory"
    request = generation.request
    with session.lock:
        tokens = session.planner.ahead(
            request.messages, generation.parts, request.rendering
        )
    deadline = time.monotonic() + 5
    while all(slot.tokens != tokens for slot in session.slots.all()):
        assert time.monotonic() < deadline, "it is not read ahead"
        time.sleep(0.005)


def decoded(tokens: array[int]) -> list[bytes]:
    "The rows of tokens that were decoded in one go"
    engine = FakeEngine(settings=FakeSettings(n_batch=1 << 30))
    engine.reserve(1 << 30)
    engine.decode([Feed(0, 0, tokens)])
    return engine.rows[0]
