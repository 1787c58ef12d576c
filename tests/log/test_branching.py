"""The verbs on a real log: what they send, what they log, what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import llm
import pytest
import sqlite_utils
from click.testing import CliRunner
from llm import cli as llm_cli
from llm.logs import LogStore
from llm.parts import ReasoningPart, StreamEvent, TextPart

from llm_kvbranch import model as model_module
from llm_kvbranch.log import branching
from llm_kvbranch.log.history import History

GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "12")


class Parrot(llm.Model):
    "A model that keeps no state"

    model_id = "parrot"
    can_stream = True

    def execute(self, prompt, stream, response, conversation):
        said = [f"{m.role}: {m.parts[0].text}" for m in prompt.messages if m.parts]
        if "fail" in said[-1]:
            raise ValueError("the parrot is dead")
        yield "I heard " + " / ".join(said)


@pytest.fixture
def run(user_path, monkeypatch):
    "llm in this process, with the parrot; (exit code, output)"
    monkeypatch.setattr(model_module, "_sessions", {})
    get_model = llm.get_model
    parrot = Parrot()

    def with_parrot(name=None, **options):
        return parrot if name == "parrot" else get_model(name, **options)

    monkeypatch.setattr(llm, "get_model", with_parrot)
    monkeypatch.setattr(llm_cli, "get_model", with_parrot)

    def run(*arguments, stdin=""):
        result = CliRunner().invoke(llm_cli.cli, [*arguments], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def ok(run):
    def ok(*arguments, **options):
        result = run(*arguments, **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    return ok


@pytest.fixture
def log(user_path):
    return Log(user_path / "logs.db")


class Log:
    "The turns, threads and messages in llm's log"

    def __init__(self, path):
        self.path = path

    @property
    def db(self):
        return sqlite_utils.Database(self.path)

    def turns(self):
        return list(self.db["turns"].rows_where(order_by="id"))

    def threads(self):
        return {row["id"]: row for row in self.db["threads"].rows}

    def chain(self, turn):
        "(role, text) of everything up to a turn's answer"
        messages = LogStore(self.db).load_chain(turn["tip_message_hash"])
        return [(m.role, "".join(p.text for p in m.parts)) for m in messages]


@pytest.fixture
def parent(ok, log):
    "A logged answer of the parrot: its turn and its text"
    ok("-m", "parrot", "What is the sea?")
    turn = log.turns()[-1]
    return turn, log.chain(turn)[-1][1]


class TestBranch:
    "Fails if a branch keeps text after its cut, or changes its parent"

    def test_at_an_excerpt(self, ok, log, parent):
        turn, text = parent
        threads = log.threads()
        ok("kvbranch", turn["id"], "--excerpt", "user: What", "Why?")
        branch = log.turns()[-1]
        assert log.chain(branch)[:3] == [
            ("user", "What is the sea?"),
            ("assistant", text[: text.index("What") + 4]),
            ("user", "Why?"),
        ]
        assert log.threads()[branch["thread_id"]]["forked_from"] == turn["thread_id"]
        assert log.threads()[turn["thread_id"]] == threads[turn["thread_id"]]

    def test_at_a_range(self, ok, log, parent):
        turn, text = parent
        ok("kvbranch", "branch", turn["id"], "--range", "2:7", "Why?")
        assert log.chain(log.turns()[-1])[1] == ("assistant", text[:7])

    def test_after_the_whole_answer(self, ok, log, parent):
        turn, text = parent
        ok("kvbranch", turn["id"], "Why?")
        branch = log.turns()[-1]
        assert log.chain(branch)[1] == ("assistant", text)
        assert branch["thread_id"] != turn["thread_id"]

    def test_llm_continues_the_branch(self, ok, log, parent):
        turn, _ = parent
        ok("kvbranch", turn["id"], "--excerpt", "I heard", "Why?")
        branch = log.turns()[-1]
        ok("-c", "More")
        after = log.turns()[-1]
        assert after["thread_id"] == branch["thread_id"]
        assert log.chain(after)[1] == ("assistant", "I heard")

    def test_show_says_how_it_was_reached(self, ok, log, parent):
        turn, _ = parent
        ok("kvbranch", turn["id"], "--excerpt", "I heard", "Why?")
        facts = json.loads(ok("kvbranch", "show", "last", "--json"))
        assert facts["parent_response_id"] == turn["id"]
        assert facts["verb"] == "branch"
        assert facts["mode"] == "reuse_kv"
        assert facts["excerpt"] == "I heard"
        assert facts["state_file"] is None

    def test_json(self, ok, log, parent):
        facts = json.loads(ok("kvbranch", "last", "Why?", "--json"))
        assert facts["text"].startswith("I heard")
        assert facts["response_id"] == log.turns()[-1]["id"]

    def test_piped_prompt(self, ok, log, parent):
        ok("kvbranch", "last", "in one word", stdin="Why?")
        assert log.chain(log.turns()[-1])[-2] == ("user", "Why? in one word")

    def test_extract(self, ok, log, parent):
        output = ok("kvbranch", "last", "Write:\n```\ncode\n```", "-x")
        assert output == "code\n\n"

    def test_system(self, ok, log, parent):
        ok("kvbranch", "last", "Why?", "-s", "Be brief")
        chain = log.chain(log.turns()[-1])
        assert chain[:2] == [("system", "Be brief"), ("user", "What is the sea?")]


class Thinker(llm.Model):
    "Thinks before it answers"

    model_id = "thinker"
    can_stream = True
    thought, said = "Salt or sweet? Salt, I think.", "It is salt water."

    def execute(self, prompt, stream, response, conversation):
        yield StreamEvent("reasoning", self.thought)
        yield StreamEvent("text", self.said)


class TestThinking:
    "Fails if one cannot branch inside a thought, or a branch forgets what was thought"

    @pytest.fixture(autouse=True)
    def thinker(self, run, ok, monkeypatch):
        get_model = llm.get_model

        def with_thinker(name=None, **options):
            return Thinker() if name == "thinker" else get_model(name, **options)

        monkeypatch.setattr(llm, "get_model", with_thinker)
        monkeypatch.setattr(llm_cli, "get_model", with_thinker)
        ok("-m", "thinker", "What is the sea?")

    def cut(self, log):
        "The parts of the answer that the last response continues"
        tip = log.turns()[-1]["tip_message_hash"]
        answer = LogStore(log.db).load_chain(tip)[-3]
        assert answer.role == "assistant"
        return [(type(part), part.text) for part in answer.parts]

    def test_words_of_a_thought(self, ok, log):
        ok("kvbranch", "last", "--excerpt", "or sweet", "Why?")
        assert self.cut(log) == [(ReasoningPart, "Salt or sweet")]
        branch = log.db["kvbranch_branches"].get(log.turns()[-1]["id"])
        assert branch["excerpt"] == "or sweet"
        assert (branch["start"], branch["end"]) == (None, None)

    def test_the_answer_comes_first(self, ok, log):
        ok("kvbranch", "last", "--excerpt", "salt", "Why?")
        thought = (ReasoningPart, Thinker.thought)
        assert self.cut(log) == [thought, (TextPart, "It is salt")]

    def test_a_focus_quotes_it(self, ok, log):
        ok("kvbranch", "focus", "last", "--excerpt", "I think", "Sure?")
        prompt = log.chain(log.turns()[-1])[-2][1]
        assert prompt == "About this part of your answer:\n\n> I think\n\nSure?"

    def test_a_fresh_start_quotes_it(self, ok, log):
        asked = ("--excerpt", "or sweet", "--mode", "fresh", "Why?")
        ok("kvbranch", "last", *asked)
        assert log.chain(log.turns()[-1])[0][1].startswith(
            "About this text:\n\n> or sweet"
        )

    def test_a_range_is_of_the_answer(self, ok, log):
        ok("kvbranch", "branch", "last", "--range", "0:2", "Why?")
        assert self.cut(log)[-1] == (TextPart, "It")

    def test_words_that_occur_several_times(self, run, ok, log):
        said = run("kvbranch", "last", "--excerpt", "Salt", "Why?").output
        assert "Error: The thinking contains that excerpt 2 times" in said
        ok("kvbranch", "last", "--excerpt", "Salt", "--occurrence", "2", "Why?")
        assert self.cut(log) == [(ReasoningPart, "Salt or sweet? Salt")]

    def test_words_that_are_in_neither(self, run):
        said = run("kvbranch", "last", "--excerpt", "pepper", "Why?").output
        assert "Error: The answer does not contain that excerpt" in said


class TestFresh:
    "Fails if a fresh context has more in it than the quoted part"

    @pytest.mark.parametrize(
        ("window", "quoted"), [("0", "What is"), ("3", "user: What is"), ("1", "is")]
    )
    def test_only_the_part(self, ok, log, parent, window, quoted):
        turn, _ = parent
        arguments = ["--excerpt", "What is", "--mode", "fresh"]
        ok("kvbranch", turn["id"], *arguments, "--context-window", window, "Why?")
        fresh = log.turns()[-1]
        sent = log.chain(fresh)[:-1]
        assert sent == [("user", f"About this text:\n\n> {quoted}\n\nWhy?")]
        facts = json.loads(ok("kvbranch", "show", "last", "--json"))
        assert facts["mode"] == "fresh"
        assert facts["excerpt"] == quoted
        assert facts["parent_response_id"] == turn["id"]
        assert log.threads()[fresh["thread_id"]]["forked_from"] == turn["thread_id"]
        assert f"fresh “{quoted}” Why?" in ok("kvbranch", "tree")

    def test_the_whole_answer(self, ok, log, parent):
        _, text = parent
        ok("kvbranch", "last", "--mode", "fresh", "Why?")
        assert f"> {text}" in log.chain(log.turns()[-1])[0][1]

    @pytest.mark.model
    def test_tokens_of_the_model(self, user_path, monkeypatch):
        monkeypatch.setattr(model_module, "_sessions", {})
        kvllama = model_module.KVLlama()
        text = "The harbour lantern glowed – café, naïve 😀 end"
        assert kvllama.tail(text, 1) == " end"
        assert text.endswith(kvllama.tail(text, 4))
        assert kvllama.tail(text, 1000) == text


class TestFocus:
    "Fails if the answer is cut, or the excerpt is not quoted"

    def test_quotes_the_part(self, ok, log, parent):
        turn, text = parent
        ok("kvbranch", "focus", turn["id"], "--excerpt", "the sea", "How deep?")
        branch = log.turns()[-1]
        _, answer, question, _ = log.chain(branch)
        assert answer == ("assistant", text)
        assert question == (
            "user",
            "About this part of your answer:\n\n> the sea\n\nHow deep?",
        )
        assert branch["thread_id"] != turn["thread_id"]


class TestContinue:
    "Fails if a turn lands in the wrong thread"

    def test_in_the_thread_at_its_tip_and_in_a_fork_elsewhere(self, ok, log, parent):
        turn, _ = parent
        ok("kvbranch", "continue", turn["id"], "One")
        second = log.turns()[-1]
        assert second["thread_id"] == turn["thread_id"]
        ok("kvbranch", "continue", turn["id"], "Other")
        third = log.turns()[-1]
        assert third["thread_id"] != turn["thread_id"]
        assert log.threads()[third["thread_id"]]["forked_from"] == turn["thread_id"]
        tip = log.threads()[turn["thread_id"]]["tip_message_hash"]
        assert tip == second["tip_message_hash"]

    def test_in_a_fork_if_the_thread_went_on_meanwhile(self, ok, log, parent):
        "Planned at the tip, logged after somebody else continued the thread"
        history = History(log.db)
        planned = branching.continue_(history, "last", "Late?")
        assert planned.thread_id == parent[0]["thread_id"]
        ok("-c", "-m", "parrot", "Early!")
        response = branching.ask(planned, Parrot())
        response.text()
        thread_id = branching.log(history, planned, response)
        assert thread_id != planned.thread_id
        assert log.threads()[thread_id]["forked_from"] == planned.thread_id
        early, late = log.turns()[-2:]
        assert log.chain(late)[:2] == log.chain(early)[:2]
        tip = log.threads()[planned.thread_id]["tip_message_hash"]
        assert tip == early["tip_message_hash"]


class TestRetry:
    "Fails if a retry is not a sibling"

    def test_same_prompt(self, ok, log, parent):
        turn, _ = parent
        ok("kvbranch", "retry", turn["id"])
        sibling = log.turns()[-1]
        assert sibling["parent_message_hash"] == turn["parent_message_hash"]
        assert log.chain(sibling) == log.chain(turn)
        assert sibling["thread_id"] != turn["thread_id"]


class TestSeveral:
    "Fails if siblings are mixed up or share a response"

    def test_each_is_shown_and_logged(self, ok, log, parent):
        turn, text = parent
        output = ok("kvbranch", "retry", turn["id"], "-n", "3")
        assert output == "\n".join(f"{i} of 3\n{text}\n" for i in (1, 2, 3))
        siblings = log.turns()[1:]
        assert len(siblings) == 3
        assert len({s["thread_id"] for s in siblings} | {turn["thread_id"]}) == 4
        for sibling in siblings:
            assert sibling["parent_message_hash"] == turn["parent_message_hash"]
        lines = ok("kvbranch", "tree").splitlines()
        assert all(
            len(line.split()[0 if i == 0 else 1]) < 13 for i, line in enumerate(lines)
        )

    def test_json(self, ok, parent):
        facts = json.loads(ok("kvbranch", "last", "Why?", "-n", "2", "--json"))
        assert len({one["response_id"] for one in facts}) == 2
        assert all(one["text"].startswith("I heard") for one in facts)

    @pytest.mark.model
    def test_one_prefill(self, ok, log):
        options = ("-o", "max_tokens", "12", "-o", "temperature", "1.5")
        ok("-m", "kvllama", "Tell me about the sea.", *options)
        arguments = ["-n", "4", "-o", "seed", "7", *options, "--json"]
        facts = json.loads(ok("kvbranch", "last", "Invent a name.", *arguments))
        assert facts[0]["prefilled_tokens"] > 1
        # Two are computed together, as the first time: one alone rounds differently
        assert [one["prefilled_tokens"] for one in facts[1:]] == [2, 2, 2]
        assert len({one["text"] for one in facts}) > 1
        assert all(one["state_file"] for one in facts)
        assert "no problem" in ok("kvbranch", "verify")

    @pytest.mark.model
    def test_too_many_at_once(self, run, ok, log):
        ok("-m", "kvllama", "Hi", *GREEDY)
        before = len(log.turns())
        result = run("kvbranch", "retry", "last", "-n", "20", *GREEDY)
        assert result.exit_code == 1
        assert "8 generations are running" in result.stderr
        assert len(log.turns()) == before


ERRORS = {
    "unknown id": (["zzz", "Why?"], "No response with id 'zzz'"),
    "not found": (["last", "--excerpt", "the whale", "Why?"], "nearest text is"),
    "several": (
        ["last", "--excerpt", "e", "Why?"],
        "choose one with --occurrence: 1: ",
    ),
    "no such occurrence": (
        ["last", "--excerpt", "I heard", "--occurrence", "2", "Why?"],
        "no occurrence 2",
    ),
    "range out of bounds": (["last", "--range", "5:9999", "Why?"], "5:9999 is not in"),
    "range is no range": (["last", "--range", "5", "Why?"], "is not START:END"),
    "empty excerpt": (["last", "--excerpt", " ", "Why?"], "excerpt is empty"),
    "empty prompt": (["last", " "], "prompt is empty"),
    "focus on nothing": (["focus", "last", "Why?"], "focus needs an excerpt"),
    "no such model": (["last", "Why?", "-m", "nope"], "Unknown model: nope"),
    "bad option": (["last", "Why?", "-o", "wings", "2"], "wings"),
    "model fails": (["last", "fail"], "the parrot is dead"),
}


USAGE = {
    "occurrence of nothing": (["last", "--occurrence", "2", "Why?"], "needs an"),
    "both": (["last", "--range", "0:2", "--excerpt", "I", "Why?"], "not both"),
}


class TestErrors:
    "Fails if bad input is logged, or gives more or less than one clear message"

    @pytest.mark.parametrize("name", ERRORS)
    def test_nothing_is_logged(self, run, log, parent, name):
        arguments, words = ERRORS[name]
        before = log.turns(), log.threads()
        result = run("kvbranch", *arguments)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.startswith("Error: ")
        assert (log.turns(), log.threads()) == before

    @pytest.mark.parametrize("name", USAGE)
    def test_options_that_do_not_apply(self, run, log, parent, name):
        arguments, words = USAGE[name]
        before = log.turns(), log.threads()
        result = run("kvbranch", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert (log.turns(), log.threads()) == before

    def test_ambiguous_prefix(self, run, ok, log, parent):
        ok("kvbranch", "retry", "last")
        ids = [turn["id"] for turn in log.turns()]
        result = run("kvbranch", ids[0][:4], "Why?")
        assert result.exit_code == 1
        assert all(one in result.stderr for one in ids)

    def test_a_model_that_is_gone(self, run, ok, log, parent):
        turn, _ = parent
        log.db["turns"].update(turn["id"], {"model": "gone"})
        result = run("kvbranch", turn["id"], "Why?")
        assert result.exit_code == 1
        assert "made by the model gone, which is not installed" in result.stderr
        ok("kvbranch", turn["id"], "Why?", "-m", "parrot")

    def test_before_llm_032(self, run, log, parent):
        log.db["responses"].insert({"id": "old1", "conversation_id": "c1"})
        result = run("kvbranch", "old", "Why?")
        assert result.exit_code == 1
        assert "llm --cid c1" in result.stderr

    def test_no_log(self, run):
        result = run("kvbranch", "last", "Why?")
        assert result.exit_code == 1
        assert "There is no log" in result.stderr


@pytest.mark.model
class TestState:
    "Fails if a branch with kvllama prefills tokens that its parent has"

    def facts(self, ok, response_id="last"):
        return json.loads(ok("kvbranch", "show", response_id, "--json"))

    def test_inside_an_answer(self, ok, log):
        prompt = "Count from one to thirty in words."
        ok("-m", "kvllama", *GREEDY[:3], "-o", "max_tokens", "60", prompt)
        turn = log.turns()[-1]
        parent = self.facts(ok)
        text = log.chain(turn)[-1][1]
        before = Path(parent["state_file"]).read_bytes()
        cut = len(text) // 2
        ok("kvbranch", turn["id"], "--range", f"0:{cut}", "Why?", *GREEDY)
        branch = self.facts(ok)
        assert log.chain(log.turns()[-1])[1] == ("assistant", text[:cut])
        assert branch["miss_reason"] is None
        assert branch["restored_tokens"] > parent["prompt_tokens"]
        assert branch["prefilled_tokens"] <= 14
        assert Path(parent["state_file"]).read_bytes() == before

    @pytest.mark.parametrize(
        "verb",
        [
            ("branch", "--range", "0:31", "Why?"),
            ("branch", "Why?"),
            ("focus", "--range", "4:20", "Why?"),
            ("continue", "Why?"),
            ("retry",),
            ("branch", "--mode", "fresh", "--range", "0:31", "Why?"),
        ],
        ids=" ".join,
    )
    def test_restored_says_what_live_says(self, ok, log, monkeypatch, verb):
        "In the process that computed the parent, and in one that has only its state"
        command, *arguments = verb
        options = (*GREEDY[:3], "-o", "max_tokens", "30")
        ok("-m", "kvllama", *options, "Tell me about the sea.")
        parent = log.turns()[-1]["id"]
        texts, facts = [], []
        for sessions in (model_module._sessions, {}):
            monkeypatch.setattr(model_module, "_sessions", sessions)
            ok("kvbranch", command, parent, *arguments, *options)
            texts.append(log.chain(log.turns()[-1])[-1])
            facts.append(self.facts(ok))
            for store in (log.path.parent / "kvbranch" / "states").glob("*"):
                (store / f"{facts[-1]['response_id']}.safetensors").unlink()
        assert texts[0] == texts[1]
        assert facts[1]["resident_tokens"] == 0
        assert facts[0]["prompt_tokens"] == facts[1]["prompt_tokens"]

    def test_siblings_share_one_prefill(self, ok):
        ok("-m", "kvllama", *GREEDY, "Name a colour.")
        first = self.facts(ok)
        ok("kvbranch", "retry", first["response_id"], *GREEDY)
        second = self.facts(ok)
        assert second["prefilled_tokens"] == 2
        assert second["verb"] == "retry"

    def test_from_another_model_and_to_one(self, ok, log):
        ok("-m", "parrot", "What is the sea?")
        ok("kvbranch", "last", "Why?", "-m", "kvllama", *GREEDY)
        facts = self.facts(ok)
        assert facts["miss_reason"] == "no state of the last answer is stored"
        assert facts["state_file"]
        ok("kvbranch", "last", "And?", "-m", "parrot")
        assert "assistant: I heard" in log.chain(log.turns()[-1])[-1][1]


class TestTree:
    "Fails if a branch has the wrong parent, or a tree contains other trees"

    def lines(self, ok, *arguments):
        return ok("kvbranch", "tree", *arguments).splitlines()

    def test_shape(self, ok, log, parent):
        root = parent[0]["id"]
        ok("kvbranch", root, "--excerpt", "I heard", "Branch?")
        ok("kvbranch", "focus", root, "--excerpt", "the sea", "Focus?")
        ok("kvbranch", "retry", "last")
        ok("-c", "More?")
        ok("-m", "parrot", "Another tree")
        first, *rest = self.lines(ok, root)
        assert "What is the sea?" in first
        assert [line[:3] for line in rest] == ["├─ ", "├─ ", "└─ ", "   "]
        for line, words in zip(
            rest,
            ["at “I heard” Branch?", "on “the sea” ", "retry ", "More?"],
            strict=True,
        ):
            assert words in line
        assert "About this part" not in "".join(rest)
        assert "Another tree" not in "".join(rest)

    def test_ids_can_be_used(self, ok, log, parent):
        for i in range(12):
            ok("-c", f"Turn {i}")
        for line in self.lines(ok):
            short = line.split()[0].rstrip("*")
            facts = json.loads(ok("kvbranch", "show", short, "--json"))
            assert facts["response_id"].startswith(short)

    def test_the_newest_trees_and_the_current_response(self, ok, log, parent):
        for i in range(6):
            ok("-m", "parrot", f"Tree {i}")
        output = ok("kvbranch", "tree")
        assert [f"Tree {i}" in output for i in range(6)] == [False] + [True] * 5
        assert output.count("* ") == 1
        assert "* Tree 5" in output
        assert "What is the sea?" in ok("kvbranch", "tree", "-n", "7")

    def test_a_thread(self, ok, log, parent):
        ok("-c", "More")
        output = ok("kvbranch", "tree", parent[0]["thread_id"])
        assert "What is the sea?" in output
        assert "More" in output

    def test_a_shared_system_prompt_joins_nothing(self, ok, log):
        for i in range(2):
            ok("-m", "parrot", "-s", "Be brief", f"Question {i}")
        assert "Question 0" not in ok("kvbranch", "tree", "last")

    def test_a_long_conversation(self, ok, log, parent):
        store = LogStore(log.db)
        tip, thread = parent[0]["tip_message_hash"], parent[0]["thread_id"]
        for i in range(400):
            asked = store.ensure_chain([llm.user(f"Q{i}")], parent=tip)
            tip = store.ensure_chain([llm.assistant(f"A{i}")], parent=asked)
            log.db["turns"].insert(
                {
                    **parent[0],
                    "id": f"{parent[0]['id']}{i:03}",  # after its parent's
                    "thread_id": thread,
                    "parent_message_hash": asked,
                    "tip_message_hash": tip,
                }
            )
        lines = self.lines(ok, "last")
        assert len(lines) == 401
        assert not any(line.startswith((" ", "│", "├", "└")) for line in lines)


class TestDiff:
    "Fails if the comparison of two branches starts at the wrong message"

    def test_where_they_part_and_how(self, ok, log, parent):
        root = parent[0]["id"]
        ok("kvbranch", "continue", root, "How deep is it?")
        one = log.turns()[-1]["id"]
        ok("kvbranch", "continue", root, "How wide is it?")
        other = log.turns()[-1]["id"]
        output = ok("kvbranch", "diff", one, other)
        assert "2 messages in common, the last: I heard" in output
        assert "user\nHow [-deep -]{+wide +}is it?" in output
        facts = json.loads(ok("kvbranch", "diff", one, other, "--json"))
        assert [m["role"] for m in facts["messages"]] == ["user", "assistant"]
        for i, sign in enumerate("-+"):
            text = "".join(
                t for s, t in facts["messages"][0]["changes"] if s in " " + sign
            )
            assert text == ["How deep is it?", "How wide is it?"][i]

    def test_the_same(self, ok, parent):
        ok("kvbranch", "retry", "last")
        assert "The answers are identical" in ok(
            "kvbranch", "diff", "last", parent[0]["id"]
        )

    def test_one_goes_on(self, ok, log, parent):
        ok("-c", "More")
        output = ok("kvbranch", "diff", parent[0]["id"], "last")
        assert "user\n{+More+}" in output
