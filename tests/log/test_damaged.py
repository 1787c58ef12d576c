"""Logs that llm would never write: damaged, forged, or by another program.

Each is the log of a small tree with something wrong in one table. Whatever that is,
every command ends at once, with what it can show or with one line.
"""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from llm_kvbranch.cli import kvbranch
from llm_kvbranch.log import Forest, History, search, transcript
from llm_kvbranch.web.page.list_data import describe_list
from llm_kvbranch.web.page.page_data import (
    describe_columns,
    describe_path,
    describe_tree,
)
from llm_kvbranch.web.page.pages import _resolve


@contextmanager
def within(seconds):
    "Fails instead of hanging; SQLite is interrupted as well"

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def message_of(log, id, column="parent_message_hash"):
    return log.history.turn(id)[column]


def own_parent(log, ids):
    at = message_of(log, ids["one"])
    log.db.execute("update messages set parent_hash = hash where hash = ?", [at])


def circle_of_all(log, ids):
    first, last = (
        message_of(log, ids["one"]),
        message_of(log, ids["three"], "tip_message_hash"),
    )
    log.db.execute("update messages set parent_hash = ? where hash = ?", [last, first])


def circle_of_prompts(log, ids):
    log.db.execute("update messages set role = 'user'")
    circle_of_all(log, ids)


def message_gone(log, ids):
    log.db.execute("delete from messages where hash = ?", [message_of(log, ids["two"])])


def parent_unknown(log, ids):
    at = message_of(log, ids["one"])
    log.db.execute("update messages set parent_hash = 'b2:x' where hash = ?", [at])


def no_thread(log, ids):
    log.db.execute("update turns set thread_id = null where id = ?", [ids["three"]])
    log.db.execute("delete from threads")


def null_tips(log, ids):
    log.db.execute("update turns set tip_message_hash = null")


def null_prompts(log, ids):
    log.db.execute("update turns set parent_message_hash = null")


def circle_of_branches(log, ids):
    rows = [(ids["three"], ids["one"], "branch"), (ids["one"], ids["two"], "branch")]
    _record(log, rows)


def circle_of_retries(log, ids):
    rows = [(ids["three"], ids["two"], "retry"), (ids["two"], ids["three"], "retry")]
    _record(log, [*rows, (ids["one"], ids["three"], "retry")])


def parts_that_are_no_json(log, ids):
    log.db.execute("update parts set payload = '{', type = 'text', text = null")


def parts_of_an_unknown_type(log, ids):
    log.db.execute("update parts set type = 'x', payload = '[1]'")


def parts_gone(log, ids):
    log.db.execute("delete from parts")


def numbers_and_bytes(log, ids):
    log.db.execute("update parts set text = x'ff00'")
    log.db.execute("update threads set name = 7")
    log.db.execute("update turn_search set prompt = 7, response = x'ff'")
    log.db.execute(
        "update turns set model = 7, resolved_model = x'ff', datetime_utc = 1.5,"
        " input_tokens = 'many', output_tokens = x'ff', duration_ms = 'x',"
        " response_json = '[1]'"
    )
    _record(log, [(ids["two"], ids["one"], 7)])
    log.db.execute("update kvbranch_branches set excerpt = 3, start = 'x', mode = 1.5")


def bytes_everywhere(log, ids):
    "In every column that names nothing"
    log.db.execute("pragma foreign_keys = off")
    _record(log, [(ids["two"], ids["one"], "branch")])
    log.db["kvbranch_marks"].insert({"response_id": ids["one"], "starred": 1})
    columns = {
        "threads": "name model",
        "turns": "model resolved_model datetime_utc input_tokens output_tokens"
        " duration_ms token_details response_json options_json thread_id",
        "parts": "text payload tool_name tool_call_id",
        "kvbranch_branches": "thread_id verb mode excerpt start end created",
        "kvbranch_marks": "starred note updated",
    }
    for table, names in columns.items():
        for name in set(names.split()) & set(log.db[table].columns_dict):
            log.db.execute(f"update {table} set [{name}] = x'ff00'")
    log.db.execute("update turn_search set prompt = x'676f6573ff', response = 7")
    log.db.execute("insert into turn_search_fts(turn_search_fts) values ('rebuild')")


def texts_that_are_not_utf_8(log, ids):
    for table, column in [
        *(("parts", "text"), ("threads", "name"), ("turn_search", "prompt")),
        *(("turns", "model"), ("turns", "response_json"), ("messages", "role")),
    ]:
        log.db.execute(f"update {table} set {column} = cast(x'eda080' as text)")
    log.db.execute("insert into turn_search_fts(turn_search_fts) values ('rebuild')")


def an_id_with_a_nul(log, ids):
    log.db["turns"].insert({"id": "a\0b", "thread_id": None, "model": "parrot"})


def names_of_bytes(log, ids):
    log.db.execute("update threads set name = x'ff00'")


def facts_that_are_no_json(log, ids):
    log.db.execute('update turns set response_json = \'{"kvbranch": {"$": "x"}}\'')


def _record(log, rows):
    for id, origin, verb in rows:
        row = {"response_id": id, "from_response": origin, "verb": verb}
        log.db["kvbranch_branches"].insert(row, replace=True)


DAMAGES = [
    own_parent,
    circle_of_all,
    circle_of_prompts,
    message_gone,
    parent_unknown,
    no_thread,
    null_tips,
    null_prompts,
    circle_of_branches,
    circle_of_retries,
    parts_that_are_no_json,
    parts_of_an_unknown_type,
    parts_gone,
    numbers_and_bytes,
    bytes_everywhere,
    names_of_bytes,
    an_id_with_a_nul,
    texts_that_are_not_utf_8,
    facts_that_are_no_json,
]


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request, log):
    "A log with a tree of four responses and a damage, and their ids"
    ids = {"one": log.begin("Why is it so?", "Because of Rayleigh.")}
    ids["two"] = log.as_llm(ids["one"], "And then?", "So it goes on.")
    ids["three"] = log.as_llm(ids["two"], "And?", "It ends.")
    ids["again"] = log.retry(ids["three"], "It never ends.")
    request.param(log, ids)
    log.db.conn.commit()
    return log, ids


@pytest.fixture(autouse=True)
def parrot(log, monkeypatch):
    "The model of every response is installed"
    monkeypatch.setattr("llm_kvbranch.cli.ask._model", lambda *_: log.model)


# Those that change the log come last
COMMANDS = [
    ["tree"],
    ["tree", "three"],
    ["show", "three"],
    ["show", "three", "--json"],
    ["diff", "three", "again"],
    ["export", "three", "x.kvbranch"],
    ["status"],
    ["star", "three"],
    ["note", "two", "So."],
    ["continue", "three", "More?"],
    ["branch", "two", "--excerpt", "goes", "More?"],
    ["retry", "three"],
    ["prune", "two"],
    ["prune", "two", "--log", "-y"],
    ["tree"],
]


class TestCommands:
    "Fails if a command hangs, or ends with a traceback"

    def test_end(self, damaged, tmp_path, monkeypatch):
        _, ids = damaged
        monkeypatch.chdir(tmp_path)
        for command in COMMANDS:
            words = [ids.get(word, word) for word in command]
            with within(20):
                result = CliRunner().invoke(kvbranch, words)
            if result.exit_code:
                error = result.exception
                assert isinstance(error, SystemExit), (command, error)
                (line,) = result.stderr.splitlines()
                assert line.startswith("Error: ")


class TestPages:
    "Fails if one request of a hostile log stops the server"

    def test_every_page_ends(self, damaged):
        log, ids = damaged
        history = History(log.db, readable=True)

        def all_pages():
            for format in transcript.FORMATS:
                root = Forest(history).tree(ids["three"])
                nodes = {node.id: node for node in root.walk()}
                yield transcript.tree_text(history, root, format)
                yield transcript.path_text(history, nodes[ids["three"]], format)
            for id in ids.values():
                yield describe_tree(history, id, {})
                yield describe_path(history, id, {})
            yield [_resolve(history, id) for id in ids.values()]
            yield describe_list(history, search.Filter(), {})
            yield describe_list(history, search.Filter("goes"), {})
            yield describe_columns(history, [ids["three"], ids["again"]])
            yield search.search_responses(log.db, "goes")

        with within(20):
            for each in all_pages():
                json.dumps(each, default=vars)
