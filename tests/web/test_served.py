"""A server and commands side by side: the same log, and answers by the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys

import llm
import pytest
import sqlite_utils

from llm_kvbranch import client
from llm_kvbranch import model as model_module
from llm_kvbranch.log.history import History
from llm_kvbranch.log.text import message_text

from ..support.homes import SHORT, Homes
from ..support.servers import (
    AHEAD,
    ENDLESS,
    SKY,
    Server,
    assistant,
    one_thread,
    user,
)
from ..support.serving import environment
from ..support.shell import document

pytestmark = pytest.mark.model

FRUIT = "Name a fruit."


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    "Start with no model loaded in this process"
    monkeypatch.setattr(model_module, "_sessions", {})


class Commands:
    "llm in this process, in the home of a server or in one of its own"

    def __init__(self, home):
        self.home = home
        self._homes = Homes(home.parent)
        one_thread(home / "kvbranch")

    def __call__(self, *arguments, **more):
        return self._homes(self.home.name, *arguments, **more)

    def prompt(self, *arguments, **more):
        return self(*SHORT, *arguments, **more)

    def show(self, response_id="last"):
        return json.loads(self("kvbranch", "show", response_id, "--json"))

    def facts(self):
        "The KV facts that the last response logged"
        (row,) = self.rows("select response_json from turns order by id desc limit 1")
        return json.loads(row["response_json"])["kvbranch"]

    def rows(self, sql, *values):
        with contextlib.closing(sqlite3.connect(self.home / "logs.db")) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(sql, values)]

    def states(self):
        "The responses that have a state"
        return {p.stem for p in (self.home / "kvbranch/states").glob("*/*.safetensors")}

    def messages(self, thread_id):
        with contextlib.closing(sqlite3.connect(self.home / "logs.db")) as db:
            store = History(sqlite_utils.Database(db)).store
            return [
                (message.role, message_text(message))
                for message in store.thread_messages(thread_id)
            ]


@pytest.fixture
def run(server):
    return Commands(server.home)


class TestLog:
    "Fails if the server logs anything else than llm would"

    def test_a_chat_is_one_thread_and_another_way_a_fork(self, server, run):
        first = server.chat(FRUIT)
        thread = first.choice["thread_id"]
        history = [user(FRUIT), assistant(first.text)]
        second = server.chat([*history, user("Another one.")])
        third = server.chat(
            [*history, user("Another one."), assistant(second.text), user("And now?")]
        )
        assert {second.choice["thread_id"], third.choice["thread_id"]} == {thread}
        assert run.messages(thread) == [
            ("user", FRUIT),
            ("assistant", first.text),
            ("user", "Another one."),
            ("assistant", second.text),
            ("user", "And now?"),
            ("assistant", third.text),
        ]
        other = server.chat([*history, user("Which colour has it?")])
        (row,) = run.rows(
            "select * from threads where id = ?", other.choice["thread_id"]
        )
        assert row["forked_from"] == thread
        assert run.messages(row["id"])[:3] == [
            ("user", FRUIT),
            ("assistant", first.text),
            ("user", "Which colour has it?"),
        ]
        # A history that was not answered here starts a thread of its own
        made_up = [user(FRUIT), assistant("A pear, of course."), user("Why?")]
        (row,) = run.rows(
            "select * from threads where id = ?",
            server.chat(made_up).choice["thread_id"],
        )
        assert row["forked_from"] is None
        assert run.messages(row["id"])[:3] == [
            ("user", FRUIT),
            ("assistant", "A pear, of course."),
            ("user", "Why?"),
        ]

    def test_the_same_said_twice(self, server, run):
        "Two equal threads are continued one after the other, not forked"
        first, again = server.chat("Say hi."), server.chat("Say hi.")
        threads = [first.choice["thread_id"], again.choice["thread_id"]]
        assert first.text == again.text
        assert threads[0] != threads[1]
        history = [user("Say hi."), assistant(first.text)]
        replies = [server.chat([*history, user(t)]) for t in ("Why?", "How?", "Who?")]
        used = [reply.choice["thread_id"] for reply in replies]
        assert sorted(used[:2]) == sorted(threads)
        (row,) = run.rows("select * from threads where id = ?", used[2])
        assert row["forked_from"] in threads

    def test_llm_s_commands_work_on_it(self, server, run):
        reply = server.chat("Say hello to the log.")
        entry = json.loads(run("logs", "-n", "1", "--json"))[0]
        assert entry["id"] == reply.id
        assert entry["response"] == reply.text
        assert entry["prompt"] == "Say hello to the log."
        assert entry["model"] == "kvllama"
        assert entry["options_json"] == {"temperature": 0.0, "max_tokens": 16}
        usage = reply.json["usage"]
        assert entry["input_tokens"] == usage["prompt_tokens"]
        assert entry["output_tokens"] == usage["completion_tokens"]
        assert reply.text in run("logs", "-n", "1")
        assert "Say hello to the log." in run("kvbranch", "tree", "last")
        facts = run.show()
        assert facts["response_id"] == reply.id
        assert facts["state_file"]
        assert "no problem" in run("kvbranch", "verify")

    def test_llm_goes_on_with_it(self, server, run):
        reply = server.chat(document(60, 3))
        run("-c", "-o", "temperature", "0", "-o", "max_tokens", "4", "And the last?")
        facts = run.show()
        assert facts["parent_response_id"] == reply.id
        assert facts["restored_tokens"] >= reply.json["usage"]["total_tokens"]
        assert facts["thread_id"] == reply.choice["thread_id"]

    def test_an_empty_answer(self, server, run):
        reply = server.chat(FRUIT, grammar='root ::= ""')
        assert (reply.text, reply.choice["finish_reason"]) == ("", "stop")
        history = [user(FRUIT), assistant(""), user("Say it.")]
        assert server.chat(history).text
        assert server.chat([user(FRUIT), user("Say it.")]).text
        assert reply.id in run("logs", "-n", "5", "--json")
        assert "no problem" in run("kvbranch", "verify")

    def test_without_a_log_nothing_is_left(self, tmp_path):
        with Server(tmp_path, "--no-log") as server:
            reply = server.chat(SKY)
            assert reply.choice["thread_id"] is None
            history = [user(SKY), assistant(reply.text), user("Why?")]
            # It is in memory all the same
            assert server.chat(history).cached >= reply.json["usage"]["total_tokens"]
            with server.streaming(SKY) as stream:
                assert len(list(stream)) > 5
            assert server.count() == server.count("threads") == 0
            server.end()
        assert not Commands(server.home).states()


class TestOpenAIModel:
    "Fails if llm itself cannot use the server as it uses OpenAI's"

    @pytest.fixture
    def llm_home(self, tmp_path, server):
        home = tmp_path / "other"
        home.mkdir()
        (home / "extra-openai-models.yaml").write_text(
            "- model_id: served\n"
            "  model_name: kvllama\n"
            f"  api_base: {server.url}/v1\n"
            "  api_key_name: served\n"
        )
        (home / "keys.json").write_text(json.dumps({"served": server.token}))
        return home

    def test_prompt_and_follow_up(self, server, run, llm_home):
        env = {**environment(llm_home), "LLM_USER_PATH": str(llm_home)}

        def ask(*arguments):
            done = subprocess.run(
                [sys.executable, "-m", "llm", *arguments, "-u"],
                capture_output=True,
                text=True,
                env=env,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.removesuffix("\n"), done.stderr

        options = ("-o", "temperature", "0", "-o", "max_tokens", "12")
        text = document(80, 5)
        first, _ = ask("-m", "served", *options, text)
        before = run.facts()
        second, usage = ask("-c", *options, "And the last word?")
        facts = run.facts()
        assert 0 <= facts["restored_tokens"] - before["state_end"] <= AHEAD
        assert f'"cached_tokens": {facts["restored_tokens"]}' in usage
        (row,) = run.rows("select * from turns order by id desc limit 1")
        assert run.messages(row["thread_id"]) == [
            ("user", text),
            ("assistant", first),
            ("user", "And the last word?"),
            ("assistant", second),
        ]


def anonymous(rows):
    "Rows without their ids and times"
    names = ("id", "created", "hash", "duration", "datetime", "response", "thread")
    return [
        {
            key: value
            for key, value in row.items()
            if not any(name in key for name in names)
        }
        for row in rows
    ]


# Short answers to questions that the model can answer: where it hesitates between
# two tokens, the rounding of another batch decides
BRIEFLY = ("-o", "temperature", "0", "-o", "max_tokens", "8")
STEPS = (
    ("-m", "kvllama", *BRIEFLY, SKY),
    ("-c", *BRIEFLY, "What colour is it at sunset?"),
    (
        *("kvbranch", "last", "--excerpt", "{1}", "--occurrence", "1"),
        *(*BRIEFLY, "What is the capital of France?"),
    ),
    ("kvbranch", "branch", "last", "-n", "3", *BRIEFLY, "And of Italy?"),
    ("kvbranch", "focus", "last", "--range", "0:6", *BRIEFLY, "What is that?"),
    ("kvbranch", "continue", "last", "--system", "Be brief.", *BRIEFLY, "And then?"),
    ("kvbranch", "retry", "last", *BRIEFLY),
    (
        *("kvbranch", "last", "--mode", "fresh", "--context-window", "4"),
        *(*BRIEFLY, "What is it?"),
    ),
)


class TestCommands:
    "Fails if a command gets another answer because a server gives it"

    def test_the_same_is_said_and_logged(self, tmp_path):
        with Server(tmp_path) as server:
            run, alone = Commands(server.home), Commands(tmp_path / "alone")
            self._compare(run, alone)
            server.end()

    def _compare(self, run, alone):
        seen = {}
        for who in (alone, run):
            outputs, excerpt = [], ""
            for step in STEPS:
                parts = [excerpt if part == "{1}" else part for part in step]
                outputs.append(who(*parts))
                excerpt = " ".join(outputs[-1].split()[:2])
            turns = who.rows("select * from turns order by id")
            ids = [turn["id"] for turn in turns]
            branches = who.rows("select * from kvbranch_branches order by response_id")
            threads = list(dict.fromkeys(turn["thread_id"] for turn in turns))
            seen[who] = {
                "outputs": outputs,
                "turns": anonymous(turns),
                "threads": [threads.index(turn["thread_id"]) for turn in turns],
                "messages": [who.messages(thread) for thread in threads],
                "from": [ids.index(branch["from_response"]) for branch in branches],
                "branches": anonymous(branches),
                "facts": [
                    {
                        key: json.loads(turn["response_json"])["kvbranch"][key]
                        for key in ("prompt_tokens", "generated_tokens", "state_end")
                    }
                    for turn in turns
                ],
            }
            assert set(ids) == who.states()
            assert "no problem" in who("kvbranch", "verify")
            served = [
                json.loads(turn["response_json"])["kvbranch"].get("served")
                for turn in turns
            ]
            assert served == [True if who is run else None] * (len(STEPS) + 2)
            assert bool(model_module._sessions) == (who is alone)
            model_module._sessions.clear()
        for name, found in seen[run].items():
            assert found == seen[alone][name], name

    def test_nothing_is_read_again(self, server, run):
        "Neither what the server has in memory, nor what it stored"
        run.prompt(document(150, 8))
        before = run.show()
        assert before["restored_tokens"] < 40
        run("-c", *SHORT, "Why?")
        assert run.facts()["resident_tokens"] >= before["state_end"]

    @pytest.mark.parametrize("how", ["option", "flag"])
    def test_not_if_it_is_not_wanted(self, run, how):
        if how == "option":
            run.prompt("-o", "server", "false", FRUIT)
        else:
            run.prompt(FRUIT)
            run("kvbranch", "retry", "last", "--no-server", *SHORT[2:])
        assert "served" not in run.facts()
        assert model_module._sessions

    @pytest.mark.parametrize("other", ["kv_type", "model", "budget"])
    def test_not_if_it_is_another(self, run, monkeypatch, tmp_path, other):
        more = ()
        if other == "kv_type":
            more = ("-o", "kv_type", "q8_0")
        elif other == "budget":
            monkeypatch.setenv("LLM_KVBRANCH_BUDGET", "0")
        else:
            from llm_kvbranch.models.catalog import embedded_model

            path = tmp_path / "other.gguf"
            path.write_bytes(embedded_model().read_bytes())
            monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(path))
        before = run.states()
        run.prompt(*more, FRUIT)
        assert "served" not in run.facts()
        assert len(run.states() - before) == (other != "budget")

    def test_what_is_not_logged_leaves_no_state(self, server, run):
        before = run.states(), server.count()
        assert run.prompt("-n", FRUIT)
        assert (run.states(), server.count()) == before
        assert not model_module._sessions

    def test_errors_are_one_line(self, run):
        said = run("-m", "kvllama", "word " * 9000, fails=True)
        assert said.startswith("Error: The prompt is 9,")
        said = run("-m", "kvllama", "-o", "grammar", "root ::= (", FRUIT, fails=True)
        assert said.startswith("Error: The grammar cannot be used: ")
        assert not model_module._sessions

    def test_a_schema(self, run):
        said = run.prompt("--schema", "name, age int", "A person.")
        assert set(json.loads(said)) == {"name", "age"}
        assert run.facts()["served"]

    def test_the_async_model(self, server, run, monkeypatch):
        monkeypatch.setenv("LLM_USER_PATH", str(run.home))
        model = llm.get_async_model("kvllama")
        before = run.states()

        async def ask(question):
            response = model.prompt(question, temperature=0, max_tokens=8)
            pieces = [piece async for piece in response]
            db = sqlite_utils.Database(run.home / "logs.db")
            (await response.to_sync_response()).log_to_db(db)
            db.close()
            return response.id, pieces

        async def all_of_them():
            return await asyncio.gather(*map(ask, (FRUIT, SKY, "Say hello.")))

        answers = asyncio.run(all_of_them())
        assert all(len(pieces) > 1 for _, pieces in answers)
        assert run.states() - before == {response_id for response_id, _ in answers}
        assert not model_module._sessions


class TestGone:
    "Fails if a server that is gone costs more than loading the model"

    def test_killed(self, tmp_path):
        "Its server.json is left behind, but nobody trusts it with a prompt"
        with Server(tmp_path) as server:
            run = Commands(server.home)
            about = server.home / "kvbranch" / "server.json"
            run.prompt(FRUIT)
            said, end = run.prompt("-c", "Another."), run.facts()["state_end"]
            server.kill()
        assert about.exists()
        for pid in (None, os.getpid()):
            if pid is not None:
                about.write_text(
                    json.dumps({**json.loads(about.read_text()), "pid": pid})
                )
            with _listening(server.port) as heard:
                assert run("kvbranch", "retry", "last", *SHORT[2:]) == said
                assert "served" not in run.facts()
                assert run.facts()["state_end"] == end
                assert heard == []
        assert "no problem" in run("kvbranch", "verify")

    @pytest.mark.parametrize(
        "word", ["", "{", "[]", "5", '{"protocol": 1}', '{"protocol": 1, "key": {}}']
    )
    def test_words_that_mean_nothing(self, tmp_path, word):
        run = Commands(tmp_path / "llm")
        (run.home / "kvbranch" / "server.json").write_text(word)
        assert run.prompt(FRUIT)

    def test_killed_in_the_middle(self, tmp_path):
        with Server(tmp_path) as server:
            run = Commands(server.home)
            run.prompt(FRUIT)
            before = run.states(), server.count()
            with _asking(server) as process:
                assert process.stdout.read(1)
                server.kill()
                _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            (line,) = err.splitlines()
            assert line.startswith("Error: llm kvbranch serve ")
            assert "without it" in line
        assert (run.states(), server.count()) == before
        assert "no problem" in run("kvbranch", "verify")
        with contextlib.closing(sqlite3.connect(run.home / "logs.db")) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)

    def test_one_that_hangs(self, server, run, monkeypatch):
        "A stopped process still accepts connections"
        monkeypatch.setattr(client, "_SILENT_SECONDS", 1.0)
        server.process.send_signal(signal.SIGSTOP)
        try:
            said = run.prompt(FRUIT, fails=True)
        finally:
            server.process.send_signal(signal.SIGCONT)
        told = "Error: The connection to llm kvbranch serve failed (timed out)"
        assert said.startswith(told)
        assert "--no-server" in said
        server.until_idle(60)

    def test_stopped_in_the_middle(self, tmp_path):
        "A client of the API gets an error, and the text so far is logged"
        with Server(tmp_path) as server:
            with (
                _asking(server) as process,
                server.streaming(ENDLESS, max_tokens=3000) as stream,
            ):
                assert process.stdout.read(1)
                got = [next(stream) for _ in range(3)]
                server.end()
                *_, last = stream
                _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            (line,) = err.splitlines()
            assert "shutting down" in line
            assert last["error"]["type"] == "server_error"
            assert "shutting down" in last["error"]["message"]
        assert not (server.home / "kvbranch" / "server.json").exists()
        run = Commands(server.home)
        (row,) = run.rows("select * from turns")
        assert row["id"] == got[0]["id"]
        assert run.states() == {row["id"]}
        assert run.facts()["finish_reason"] == "cancelled"
        assert "no problem" in run("kvbranch", "verify")

    def test_ctrl_c_frees_the_slot(self, server, run):
        before = server.count()
        with _asking(server) as process:
            assert process.stdout.read(1)
            assert server.busy()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in err
        assert server.until_idle(20) < 20
        assert server.count() == before

    def test_full(self, tmp_path):
        with Server(tmp_path, "--slots", "1", "--queue", "0") as server:
            with server.streaming(ENDLESS, max_tokens=3000) as stream:
                next(stream)
                said = Commands(server.home).prompt(FRUIT, fails=True)
            assert said.startswith("Error: ")
            assert "try again later" in said
            server.end()


@contextlib.contextmanager
def _listening(port):
    "A stranger on a server's port, who records what they receive"
    heard = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.setblocking(False)
        yield heard
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(1)
                with contextlib.suppress(TimeoutError):
                    heard.append(connection.recv(100))


@contextlib.contextmanager
def _asking(server):
    "llm in a process of its own, with an answer that does not end"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llm", "-m", "kvllama"),
            *("-o", "temperature", "0", "-o", "max_tokens", "3000", ENDLESS),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(server.home.parent, PYTHONUNBUFFERED="1"),
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
