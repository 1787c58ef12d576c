"""Conversations with the ten most used model families.

The idea: ``templates/`` holds templates that render like each family's own: its control
tokens, their order, and what is trimmed, dated, folded, dropped or refused. What a
prompt must be is stated twice more here: by another rendering of the template
(``shown``) and, for what follows an answer, by hand (``Family``).

The invariant: a follow-up begins with the very tokens of the turn before and continues
with what the template puts after an answer, or it is the template's whole rendering and
says why.
"""

from __future__ import annotations

import datetime
import json
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gguf
import jinja2
import llm
import pytest
from llm.parts import ReasoningPart, ToolCallPart, ToolResultPart

from llm_kvbranch.chat import template as chat_module
from llm_kvbranch.chat.template import Chat
from llm_kvbranch.engine import Load
from llm_kvbranch.engine.weights import Weights
from llm_kvbranch.errors import ChatError
from llm_kvbranch.inference.assembly import DROPPED
from llm_kvbranch.inference.planning import Planner
from llm_kvbranch.inference.session import Session
from llm_kvbranch.store.store import Store

from ..support import synth
from ..support.fake import EOG, FakeEngine, FakeVocab, oracle
from ..support.life import Answer

TEMPLATES = Path(__file__).parents[1] / "support" / "templates"
DAY = datetime.datetime(2026, 3, 1, 23, 59)
NEXT_DAY = datetime.datetime(2026, 3, 2, 0, 1)

CONTROL = re.compile(
    r"<\|[^|]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<bos>|</?s>|\[/?[A-Z_]+\]"
)
ALWAYS_READ = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>")  # by llama.cpp
THINK = "<think>\n{thought}\n</think>\n\n{said}"


@dataclass(frozen=True)
class Family:
    """What surrounds a question and an answer, and how the model writes one.

    ``stop`` is the token that ends the generation, if not the one in ``ends``.
    ``drops``: its template drops the thinking of earlier answers. ``moves``: it
    shows the system prompt with the last question. ``strict``: it raises unless
    user and assistant alternate.
    """

    asks: str
    asked: str
    answers: str
    ends: str
    writes: str = "{said}"
    bos: str = ""
    stop: str = ""
    more: str = ""
    dated: bool = False
    drops: bool = False
    moves: bool = False
    strict: bool = False

    @property
    def controls(self) -> list[str]:
        "The one that ends a generation first"
        texts = (self.stop or self.ends, *vars(self).values())
        found = [
            c for text in texts if isinstance(text, str) for c in CONTROL.findall(text)
        ]
        plain = "[INST]" if self.asks.startswith(" ") else None
        return [c for c in dict.fromkeys(found) if c.replace("/", "") != plain]

    def raw(self, thought: str, said: str | None) -> str:
        "An answer as the model writes it; without ``said``, cut while it thinks"
        if not thought:
            return said or ""
        text = self.writes.format(thought=thought, said="\0" if said is None else said)
        return re.split("\n</think>|<\\|end\\|>", text)[0] if said is None else text


def chatml(**facts) -> Family:
    return Family(
        "<|im_start|>user\n",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        **facts,
    )


def granite(**facts) -> Family:
    return Family(
        "<|start_of_role|>user<|end_of_role|>",
        "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
        **facts,
    )


FAMILIES = {
    "llama3": Family(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        dated=True,
    ),
    "qwen2.5": chatml(),
    "qwen3": chatml(writes=THINK, drops=True),
    "gemma3": Family(
        "<start_of_turn>user\n",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<end_of_turn>\n",
        bos="<bos>",
        strict=True,
    ),
    "mistral-v1": Family(" [INST] ", " [/INST]", "", "</s>", bos="<s>", strict=True),
    "mistral-v3": Family(
        "[INST]", "[/INST]", "", "</s>", bos="<s>", strict=True, moves=True
    ),
    "mistral-v7": Family(
        "[INST]",
        "[/INST]",
        "",
        "</s>",
        bos="<s>",
        more="[SYSTEM_PROMPT][/SYSTEM_PROMPT]",
        strict=True,
        dated=True,
    ),
    "phi4": Family(
        "<|im_start|>user<|im_sep|>",
        "<|im_end|>",
        "<|im_start|>assistant<|im_sep|>",
        "<|im_end|>",
    ),
    "phi4-mini": Family(
        "<|user|>", "<|end|>", "<|assistant|>", "<|end|>", more="<|system|>"
    ),
    "smollm2": chatml(),
    "smollm3": chatml(writes=THINK, dated=True, drops=True),
    "deepseek-r1": Family(
        "<｜User｜>",
        "",
        "<｜Assistant｜><think>\n",
        "<｜end▁of▁sentence｜>",
        writes="{thought}\n</think>\n\n{said}",
        bos="<｜begin▁of▁sentence｜>",
        drops=True,
    ),
    "gpt-oss": Family(
        "<|start|>user<|message|>",
        "<|end|>",
        "<|start|>assistant",
        "<|end|>",
        writes="<|channel|>analysis<|message|>{thought}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>{said}",
        stop="<|return|>",
        dated=True,
        drops=True,
    ),
    "granite3": granite(dated=True),
    "granite4": granite(),
    "lfm2": chatml(writes=THINK, bos="<|startoftext|>", drops=True),
}
THINKING = [name for name, family in FAMILIES.items() if "{thought}" in family.writes]
DATED = [name for name, family in FAMILIES.items() if family.dated]
STRICT = [name for name, family in FAMILIES.items() if family.strict]


class Vocab(FakeVocab):
    "A family's control tokens over bytes; some are read in any text"

    def __init__(self, family: Family):
        super().__init__()
        self.ids = {text: EOG + n for n, text in enumerate(family.controls)}
        always = ALWAYS_READ if "<|channel|>" in self.ids else ()
        self.texts = {self.ids[text]: text.encode() for text in always}
        self.control_texts = tuple(c for c in self.ids if c not in always)
        self.bos_text = family.bos
        self.eos_text = family.controls[0]

    def tokenize(self, text, special, bos=False):
        tokens = array("i", [self.ids[self.bos_text]] if bos and self.bos_text else [])
        begin = 0
        for found in CONTROL.finditer(text):
            token = self.ids.get(found[0])
            if token is not None and (special or token in self.texts):
                tokens += super().tokenize(text[begin : found.start()], special=False)
                tokens.append(token)
                begin = found.end()
        return tokens + super().tokenize(text[begin:], special=False)

    def piece(self, token):
        return self.texts.get(token) or super().piece(token)

    def control_text(self, token):
        names = {number: text for text, number in self.ids.items()}
        return "" if self.piece(token) else names.get(token, "")


def source(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def chat_of(name: str) -> Chat:
    return Chat(Vocab(FAMILIES[name]), source(name))


def messages_of(name: str, turns) -> list[llm.Message]:
    "The turns as llm logs them: all that the model wrote is text"
    make = {"system": llm.system, "user": llm.user, "assistant": llm.assistant}
    return [
        make[role](FAMILIES[name].raw(*text) if role == "assistant" else text[0])
        for role, *text in turns
    ]


def shown(name: str, turns, today: datetime.datetime = DAY, apart: bool = False) -> str:
    """The template's rendering of the turns, control tokens in double brackets.

    Thinking is text of the answer, or ``apart`` from it, as llm logs it.
    """
    family = FAMILIES[name]
    hidden = {text: chr(0xF0000 + n) for n, text in enumerate(family.controls)}

    def hide(text: str) -> str:
        return CONTROL.sub(lambda found: hidden.get(found[0], found[0]), text)

    def reject(why: str) -> None:
        raise ValueError(why)

    chats = []
    for role, *text in turns:
        chat = {"role": role, "content": hide(text[0])}
        if role == "assistant":
            thought, said = text
            if name == "gpt-oss" or apart:
                chat = {"role": role, "content": hide(said or ""), "thinking": thought}
                chat["reasoning_content"] = thought
            else:
                chat["content"] = hide(family.raw(thought, said))
        chats.append(chat)
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = json.dumps
    without_marks = re.sub(r"{%- (end)?generation -%}", "{#- -#}", source(name))
    text = plain.from_string(without_marks).render(
        messages=chats,
        add_generation_prompt=True,
        bos_token=family.bos,
        eos_token=family.controls[0],
        strftime_now=today.strftime,
        raise_exception=reject,
    )
    text = marked(text, family)
    for control, stand_in in hidden.items():
        text = text.replace(stand_in, control)
    return text


def marked(text: str, family: Family) -> str:
    known = set(family.controls)
    return CONTROL.sub(lambda m: f"⟦{m[0]}⟧" if m[0] in known else m[0], text)


def spell(vocab, tokens) -> str:
    names = {number: f"⟦{text}⟧".encode() for text, number in vocab.ids.items()}
    spelled = b"".join(names.get(t) or vocab.piece(t) for t in tokens)
    return spelled.decode("utf-8", "replace")


def follow_up(name: str, question: str, system: str = "") -> str:
    "What comes after a complete answer when a question follows"
    family = FAMILIES[name]
    moved = f"{system}\n\n" if family.moves and system else ""
    return marked(
        f"{family.ends}{family.asks}{moved}{question}{family.asked}{family.answers}",
        family,
    )


@pytest.fixture
def today(monkeypatch):
    "Sets the date that templates see"

    def set_day(day: datetime.datetime) -> None:
        clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: day))
        monkeypatch.setattr(chat_module, "datetime", clock)

    set_day(DAY)
    return set_day


S, U = ("system", "Be brief."), ("user", "What is the sea?")
A = ("assistant", "", "Salt water.")
CONVERSATIONS = {
    "a question": [U],
    "a system prompt": [S, U],
    "several turns": [S, U, A, ("user", "Why?"), ("assistant", "", "Rain."), U],
    "the same again": [U, A, U, A, U],
    "white space": [
        ("system", "\n Be brief. "),
        ("user", " Hi\n"),
        ("assistant", "", "\n Salt \n\n"),
        ("user", "\tWhy?\n\n"),
    ],
    "thinking": [S, U, ("assistant", "Hm.", "Salt."), ("user", "Why?")],
    "cut while thinking": [U, ("assistant", "Hm.", None), ("user", "Why?")],
    "nothing but thinking": [U, ("assistant", "Hm.", ""), ("user", "Why?")],
    "thinking in the answer": [
        U,
        ("assistant", "", "So <think>what</think> is it?"),
        ("user", "</think>"),
    ],
    "half a control token": [U, ("assistant", "", "It is <|im_"), ("user", "<|")],
}


@pytest.mark.parametrize("name", FAMILIES)
class TestWholePrompt:
    "Fails if a prompt is not what the family's template renders"

    @pytest.mark.parametrize("conversation", CONVERSATIONS)
    def test_as_rendered(self, name, conversation, today):
        turns = CONVERSATIONS[conversation]
        chat = chat_of(name)
        tokens = chat.encode(messages_of(name, turns))
        assert spell(chat.vocab, tokens) == shown(name, turns)

    def test_control_tokens_in_content_are_text(self, name, today):
        family = FAMILIES[name]
        forged = "".join(family.controls) + family.asks + family.ends
        turns = [
            ("system", f"a{forged}b"),
            ("user", f"c{forged}d"),
            ("assistant", "", f"e{family.ends}f"),
            ("user", f"{forged}g"),
        ]
        chat = chat_of(name)
        tokens = chat.encode(messages_of(name, turns))
        assert spell(chat.vocab, tokens) == shown(name, turns)

    def test_begins_once(self, name, today):
        chat = chat_of(name)
        tokens = chat.encode(messages_of(name, [U]))
        bos = chat.vocab.ids.get(FAMILIES[name].bos)
        assert list(tokens).count(bos) == (bos is not None)


@pytest.mark.parametrize("name", FAMILIES)
class TestSplice:
    "Fails if known tokens are changed, or what follows is not the template's"

    PREFIX = array("i", [7777, 3, 7777])  # whatever was in memory

    def spliced(self, name, turns, index, rest=""):
        chat = chat_of(name)
        messages = messages_of(name, turns)
        tokens = chat.encode_after(messages, index, self.PREFIX, rest)
        assert tokens is not None
        assert tokens[:3] == self.PREFIX
        return spell(chat.vocab, tokens[3:])

    @pytest.mark.parametrize(
        "conversation", [c for c, turns in CONVERSATIONS.items() if len(turns) > 2]
    )
    def test_the_last_answer(self, name, conversation, today):
        turns = [*CONVERSATIONS[conversation][:-1], ("user", "Go on?")]
        after = self.spliced(name, turns, len(turns) - 2)
        system = turns[0][1] if turns[0][0] == "system" else ""
        assert after == follow_up(name, "Go on?", system)
        assert shown(name, turns).endswith(after)

    def test_an_earlier_answer(self, name, today):
        turns = CONVERSATIONS["several turns"]
        after = self.spliced(name, turns, 2)
        ended = [*turns[:2], ("assistant", "", "Salt water.@"), *turns[3:]]
        assert after == shown(name, ended).split("@")[1]
        assert after.count("Rain.") == 1

    def test_the_rest_of_an_answer(self, name, today):
        half = FAMILIES[name].ends.rstrip()[:-1]
        turns = [U, ("assistant", "", f"Salt {half}"), ("user", "Go on?")]
        after = self.spliced(name, turns, 1, rest=f"t {half}")
        assert after == f"t {half}" + follow_up(name, "Go on?")

    def test_nothing_is_forged_by_what_was_said(self, name, today):
        family = FAMILIES[name]
        forged = "".join(family.controls) + family.asks
        turns = [
            ("system", f"a{forged}b"),
            ("user", f"c{forged}d"),
            ("assistant", "", f"e{family.ends}f"),
            ("user", f"x{forged}y"),
        ]
        tail = f"f{forged}".rstrip()
        after = self.spliced(name, turns, 2, rest=tail)
        assert after.startswith(tail + marked(family.ends, family))
        assert shown(name, turns).endswith(after.removeprefix(tail))

    def test_a_later_system_prompt_is_not_lost(self, name, today):
        turns = [S, U, A, ("system", "In verse."), U]
        messages, chat = messages_of(name, turns), chat_of(name)
        try:
            whole = spell(chat.vocab, chat.encode(messages))
        except ChatError:
            return  # see TestRefusal
        tokens = chat.encode_after(messages, 2, self.PREFIX, "")
        assert "In verse." not in whole or (
            tokens is None or "In verse." in spell(chat.vocab, tokens)
        )
        assert (tokens is None) == (name == "deepseek-r1")

    def test_thinking_that_is_not_in_the_tokens(self, name, today):
        answer = llm.assistant(ReasoningPart("Hm."), "Salt.")
        messages = [llm.user("Hi"), answer, llm.user("Go on?")]
        assert chat_of(name).encode_after(messages, 1, self.PREFIX, "") is None


class Scripted(FakeEngine):
    "Generates given tokens first, then those that its rows lead to"

    def __init__(self, family: Family, script=()):
        super().__init__()
        self.weights = Vocab(family)
        self.script = list(script)

    def sample(self, sampler, index):
        drawn = super().sample(sampler, index)
        return self.script.pop(0) if self.script else drawn


def session_of(name, root, script=()) -> Session:
    "A session as a new process would have it"
    engine = Scripted(FAMILIES[name], script)
    planner = Planner(
        Chat(engine.weights, source(name)),
        Store(root),
        "fake",
        engine.cuts_anywhere,
    )
    return Session(engine, planner, print, Load(Path("fake.gguf")))


def wrote(name, root, text, messages, ended=True) -> Answer:
    "An answer of exactly that text, ended by the model or by max_tokens"
    vocab = Vocab(FAMILIES[name])
    # Byte by byte, which is not how this vocabulary would read the text
    script = [
        token
        for part in re.split(f"({CONTROL.pattern})", text)
        for piece in ([part] if part in vocab.ids else part)
        for token in vocab.tokenize(piece, special=True)
    ]
    script += [EOG] if ended else []
    session = session_of(name, root, script)
    answer = Answer(session, messages, max_tokens=len(script))
    assert list(answer.answer_tokens) == [t for t in script if t != EOG]
    assert answer.facts["finish_reason"] == ("stop" if ended else "length")
    return answer


def goes_on(name, root, answer, question="Go on?") -> Answer:
    """The follow-up in a later process: exact, and only the new turn is prefilled.

    Thinking that the template drops is kept.
    """
    after = Answer(
        session_of(name, root),
        [*answer.chain, llm.user(question)],
        keep_thinking=FAMILIES[name].drops,
    )
    tokens, known = after.generation.plan.tokens, answer.generation.tokens
    assert tokens[: len(known)] == known
    assert after.facts["miss_reason"] is None
    assert after.facts["restored_tokens"] == len(known)
    assert list(after.answer_tokens) == oracle(tokens, 99)[: len(after.answer_tokens)]
    return after


def told(answer, known=None) -> str:
    "What a plan's tokens spell after the known answer"
    begin = len(known.generation.tokens) if known else 0
    vocab = answer.session.engine.weights
    return spell(vocab, answer.generation.plan.tokens[begin:])


QUESTION = [llm.system("Be brief."), llm.user("What is the sea?")]
QUESTION_TURNS = [S, U]


def spelled_apart(vocab, text) -> array[int]:
    "The tokens that ``wrote`` generates for a text: byte by byte"
    return array("i", [t for byte in text for t in vocab.tokenize(byte, special=True)])


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("name", FAMILIES)
class TestFollowUp:
    "Fails if a turn is ended twice or never, or its thinking is lost from memory"

    def test_after_an_answer_that_ended(self, name, tmp_path, today):
        first = wrote(name, tmp_path, FAMILIES[name].raw("Hm.", " Salt.\n"), QUESTION)
        second = goes_on(name, tmp_path, first)
        assert told(second, first) == follow_up(name, "Go on?", "Be brief.")
        third = goes_on(name, tmp_path, second, "And?")
        assert told(third, second) == follow_up(name, "And?", "Be brief.")

    @pytest.mark.parametrize("said", [None, "Sal"], ids=["thinking", "talking"])
    def test_after_an_answer_cut_by_the_limit(self, name, said, tmp_path, today):
        text = FAMILIES[name].raw("Hm. It is", said)
        first = wrote(name, tmp_path, text or "Sal", QUESTION, ended=False)
        second = goes_on(name, tmp_path, first)
        assert told(second, first) == follow_up(name, "Go on?", "Be brief.")

    def test_after_an_excerpt(self, name, tmp_path, today):
        text = FAMILIES[name].raw("Hm. It is", "Salt water.")
        first = wrote(name, tmp_path, text, QUESTION)
        for n in (len(text) - 3, text.find("It is") + 1 or 1):
            messages = [*QUESTION, llm.assistant(text[:n]), llm.user("Go on?")]
            cut = Answer(session_of(name, tmp_path), messages)
            known = cut.generation.plan.n_known
            assert cut.facts["miss_reason"] is None
            assert cut.facts["restored_tokens"] == known > first.generation.n_prompt
            tokens = cut.generation.plan.tokens
            assert tokens[:known] == first.generation.tokens[:known]
            after = spell(cut.session.engine.weights, tokens[known:])
            assert after == follow_up(name, "Go on?", "Be brief.")

    def test_without_the_state(self, name, tmp_path, today):
        "Then it is rendered anew, and the user is told"
        family = FAMILIES[name]
        first = wrote(name, tmp_path / "a", family.raw("Hm.", "Salt."), QUESTION)
        messages = [*first.chain, llm.user("Go on?")]
        second = Answer(session_of(name, tmp_path / "b"), messages)
        assert second.facts["miss_reason"] == "no state of the last answer is stored"
        turns = [S, U, ("assistant", "Hm.", "Salt."), ("user", "Go on?")]
        assert told(second) == shown(name, turns, apart=True)
        if name in THINKING:
            assert ("Hm." in told(second)) != family.drops

    def test_on_another_day(self, name, tmp_path, today):
        question = QUESTION[1:]
        first = wrote(name, tmp_path, FAMILIES[name].raw("Hm.", "Salt."), question)
        today(NEXT_DAY)
        second = goes_on(name, tmp_path, first)
        assert told(second, first) == follow_up(name, "Go on?")
        dates = shown(name, [U]), shown(name, [U], NEXT_DAY)
        assert told(second).startswith(dates[0])
        assert (dates[0] != dates[1]) == (name in DATED)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("name", THINKING)
class TestThinking:
    "Fails if thinking that the template drops is in a prompt, or tokens are new ones"

    def test_after_each_answer(self, name, tmp_path, today):
        "The answer's own tokens stay, and what is read again is said"
        family, turns, chain = FAMILIES[name], [*QUESTION_TURNS], QUESTION
        for said in ("Salt.", "Rain.", "Sun."):
            answer = wrote(name, tmp_path, family.raw("Hm.", said), chain)
            turns += [("assistant", "Hm.", said), ("user", "Go on?")]
            after = Answer(
                session_of(name, tmp_path), [*answer.chain, llm.user("Go on?")]
            )
            chain = after.messages
            assert told(after) == shown(name, turns, apart=True)
            tokens = after.generation.plan.tokens
            own = spelled_apart(answer.session.engine.weights, said)
            assert own.tobytes() in tokens.tobytes()
            if family.drops:
                assert after.facts["miss_reason"] == DROPPED
                assert 0 < after.facts["reread_tokens"] < 16
            else:
                assert after.facts["miss_reason"] is None
                assert after.facts["reread_tokens"] is None


class TestChannels:
    "Fails if gpt-oss's channels are refused, mixed up, or ended twice"

    def test_cut_right_after_its_end_token(self, tmp_path, today):
        text = "<|channel|>analysis<|message|>Hm.<|end|>"
        first = wrote("gpt-oss", tmp_path, text, QUESTION, ended=False)
        second = goes_on("gpt-oss", tmp_path, first)
        assert told(second, first) == follow_up("gpt-oss", "Go on?").removeprefix(
            "⟦<|end|>⟧"
        )
        assert "Hm.⟦<|end|>⟧⟦<|start|>⟧user" in told(second)

    def test_parts_of_other_channels(self, today):
        text = (
            "<|channel|>analysis<|message|>One.<|end|>"
            "<|start|>assistant<|channel|>commentary to=f<|message|>Two.<|end|>"
            "<|start|>assistant<|channel|>analysis<|message|>Three.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Four.<|end|>"
        )
        chat = chat_of("gpt-oss")
        messages = [llm.user("Hi"), llm.assistant(text), llm.user("Go on?")]
        spelled = spell(chat.vocab, chat.encode(messages))
        turns = [("user", "Hi"), ("assistant", "", "Four."), ("user", "Go on?")]
        assert spelled == shown("gpt-oss", turns)

    def test_other_families_keep_such_text(self, today):
        chat = chat_of("qwen2.5")
        text = "<|channel|>final<|message|>x"
        messages = [llm.user("Hi"), llm.assistant(text), llm.user("Go on?")]
        assert text in spell(chat.vocab, chat.encode(messages))


class TestRefusal:
    "Fails if a template's reason is lost, or takes more than a line"

    @pytest.mark.parametrize("name", STRICT)
    @pytest.mark.parametrize(
        "turns", [[U, U], [U, A, ("system", "In verse."), U], [S, U, A, A]]
    )
    def test_roles_that_do_not_alternate(self, name, turns, today):
        with pytest.raises(ChatError) as caught:
            chat_of(name).encode(messages_of(name, turns))
        message = str(caught.value)
        assert "rejects these messages: " in message
        assert "user and assistant must alternate" in message
        assert "\n" not in message

    @pytest.mark.parametrize("name", [n for n in FAMILIES if n not in STRICT])
    def test_others_take_any_order(self, name, today):
        turns = [U, U, ("system", "In verse."), U]
        chat = chat_of(name)
        tokens = chat.encode(messages_of(name, turns))
        assert spell(chat.vocab, tokens) == shown(name, turns)


CALL = ToolCallPart("f", {"x": [1, "é"]}, "abcdefghi")
FORMS = {
    "llama3": '"parameters": {"x": [1, "é"]}}',
    "qwen3": '"arguments": {"x": [1, "é"]}}\n</tool_call>',
    "mistral-v3": '"arguments": {"x": [1, "é"]}, "id": "abcdefghi"}]',
    "deepseek-r1": '\n```json\n{"x": [1, "é"]}\n```',
    "granite4": '"arguments": {"x": [1, "é"]}}\n</tool_call>',
    "lfm2": "f(x=[1, 'é'])",
}


class TestTools:
    "Fails if a call's arguments do not have the form that a template expects"

    @pytest.mark.parametrize("name", FORMS)
    def test_call_and_result(self, name, today):
        chat = chat_of(name)
        result = ToolResultPart("f", "<42>", "abcdefghi")
        messages = [llm.user("Hi"), llm.assistant(CALL), llm.tool_message(result)]
        spelled = spell(chat.vocab, chat.encode(messages))
        assert FORMS[name] in spelled
        assert "<42>" in spelled.partition(FORMS[name])[2]

    @pytest.mark.parametrize("name", FORMS)
    def test_a_call_is_not_spliced_into_nothing(self, name, today):
        "Templates put other white space before a call that follows no text"
        chat = chat_of(name)
        result = ToolResultPart("f", "42", "abcdefghi")
        messages = [llm.user("Hi"), llm.assistant(CALL), llm.tool_message(result)]
        whole = chat.encode(messages)
        prompt = chat.encode(messages[:1])
        spliced = chat.encode_after(messages, 1, prompt, "")
        assert spliced in (None, whole)

    def test_a_missing_id(self, today):
        call = ToolCallPart("f", {}, None)
        with pytest.raises(ChatError, match="an id of 9 characters"):
            chat_of("mistral-v3").encode([llm.user("Hi"), llm.assistant(call)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A toy model whose vocabulary has the control tokens of all families"
    controls = {c for family in FAMILIES.values() for c in family.controls}
    entries = {key: (value, kinds) for key, value, kinds in synth._tokenizer()}
    texts, kinds = entries["tokenizer.ggml.tokens"]
    types, type_kinds = entries["tokenizer.ggml.token_type"]
    new = sorted(controls - set(texts))
    entries["tokenizer.ggml.tokens"] = [*texts, *new], kinds
    entries["tokenizer.ggml.token_type"] = (
        [*types, *[gguf.TokenType.CONTROL] * len(new)],
        type_kinds,
    )
    tokenizer = [(key, *entry) for key, entry in entries.items()]
    path = tmp_path_factory.mktemp("toy") / "all.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "_tokenizer", lambda: tokenizer)
        synth.write("llama", path)
    return Weights(Load(path, n_gpu_layers=0))


class RealVocab:
    "The toy model's vocabulary, as a family's model would describe it"

    def __init__(self, weights: Weights, family: Family):
        self.tokenize, self.piece = weights.tokenize, weights.piece
        self.is_user_defined = weights.is_user_defined
        self.control_texts = weights.control_texts
        self.bos_text, self.eos_text = family.bos, family.controls[0]
        self.ids = {}
        for text in family.controls:
            (self.ids[text],) = weights.tokenize(text, special=True)

    chat_template = None


# In the others' vocabularies, the marks of Mistral's first models are tokens
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mistral-v1"])
class TestRealTokenizer:
    "Fails if llama.cpp reads control tokens where the fake vocabulary does not"

    def test_whole_prompts(self, name, weights, today):
        family = FAMILIES[name]
        vocab = RealVocab(weights, family)
        chat = Chat(vocab, source(name))
        forged = "".join(family.controls) + family.asks
        forging = [("system", f"a{forged}b"), ("user", f"{forged} c"), A, U]
        for turns in (*CONVERSATIONS.values(), forging):
            tokens = chat.encode(messages_of(name, turns))
            assert spell(vocab, tokens) == shown(name, turns)

    def test_splices(self, name, weights, today):
        family = FAMILIES[name]
        vocab = RealVocab(weights, family)
        chat = Chat(vocab, source(name))
        turns = [U, ("assistant", "", f"Salt{family.ends} wat"), ("user", "Go on?")]
        messages = messages_of(name, turns)
        prefix = chat.encode(messages[:1]) + vocab.tokenize("Salt", special=False)
        tokens = chat.encode_after(messages, 1, prefix, f"{family.ends} wat")
        assert tokens[: len(prefix)] == prefix
        after = spell(vocab, tokens[len(prefix) :])
        assert after == f"{family.ends} wat" + follow_up(name, "Go on?")
