"""datasette's time limit holds for every address of ours, queries and loops alike.

Runs on datasette 0.65 and on 1.0, whichever is installed.
"""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from llm_kvbranch.errors import TimeLimitError
from llm_kvbranch.log import deadline
from llm_kvbranch.log.search import MAX_WORDS
from llm_kvbranch.web import datasette_ui
from llm_kvbranch.web.door import Door, close_door
from llm_kvbranch.web.routes import routes_of
from llm_kvbranch.web.serving import launch
from llm_kvbranch.web.serving.log import known_logs

from ..support.asgi import HOST, TOKEN, Client, scope_of, started
from ..support.logged import Log, datasette_on

HOME = "/-/kvbranch"
ENDLESS = (
    "with recursive n(i) as (select 1 union all select i + 1 from n)"
    " select max(i) from n"
)
READING = {
    HOME: "?q=sky",
    f"{HOME}/last": "?",
    f"{HOME}/tree.json": "?id=last",
    f"{HOME}/path.json": "?id=last",
    f"{HOME}/search.json": "?q=sky&root=last",
    f"{HOME}/compare.json": "?id=last&id=last",
    f"{HOME}/export": "?id=last&what=tree&as=json",
}
PAGES = {HOME, f"{HOME}/last"}


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    one = log.begin("Why is the sky blue?", "Because of the light of the sky.")
    log.branch(one, 0, 7, "Of what?", "Of short waves.")
    yield log
    log.close()


async def datasette_of(log, milliseconds=1000):
    settings = {"sql_time_limit_ms": milliseconds}
    return await started(datasette_on(log.path, settings=settings))


async def interrupted(database, *arguments, **more):
    "A method of a datasette's database whose query takes too long"
    from datasette.database import QueryInterrupted

    raise QueryInterrupted(Exception("interrupted"), "select 1", [])


def check_refused(path, answer, limit="1,000 ms"):
    "The time limit as this address says it: in words on a page, else as an error"
    assert answer.status_code == 400, path
    assert limit in answer.text, path
    assert "sql_time_limit_ms" in answer.text, path
    if path in PAGES:
        assert answer.headers["content-type"].startswith("text/html"), path
        assert "{" not in answer.text.partition("<body")[2]
    else:
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("time_limit", "invalid_request_error")
        assert "content-disposition" not in answer.headers, path


class Watch:
    "Says in which loop or query, of all that ask the deadline, the time is up"

    def __init__(self, monkeypatch, last):
        self.asked = 0

        def is_over(which):
            self.asked += 1
            which.has_ended_work |= self.asked > last
            return which.has_ended_work

        monkeypatch.setattr(deadline.Deadline, "is_over", is_over)
        monkeypatch.setattr(deadline, "_STEPS", 20)


class TestAddresses:
    "Fails if an address goes on after the limit, or takes a part for the whole"

    def test_all_addresses_that_read_the_log_are_here(self, log):
        patterns = [
            pattern.strip("^$") for pattern, _ in routes_of(datasette_on(log.path))
        ]
        rest = {path.replace("\\", "") for path in patterns if "(" not in path}
        others = {"/run", "/commit", "/tail", "/slots", "/mark", "/prune", "/login"}
        mine = set(READING) - {f"{HOME}/last"}
        assert rest - {HOME + each for each in others} - {f"{HOME}/"} == mine

    @pytest.mark.parametrize("path", READING)
    async def test_the_limit_may_end_anything(self, log, path, monkeypatch):
        "Whichever check finds the time up, the answer is the same error"
        client = Client(await datasette_of(log))
        last = 0
        while True:
            watch = Watch(monkeypatch, last)
            answer = await client.get(path + READING[path])
            if watch.asked <= last:  # the time was never up
                break
            check_refused(path, answer)
            last += 1 + last // 10
        assert answer.status_code in (200, 302)
        assert last >= 2

    @pytest.mark.parametrize("path", READING)
    async def test_a_loop_without_end_is_ended(self, log, path, monkeypatch):
        "As in a log with a fault that nobody thought of"
        client = Client(await datasette_of(log, 100))

        def forever(history, *arguments, **more):
            return list(history.db.query(ENDLESS))

        name = "models" if path == HOME else "resolve"
        monkeypatch.setattr(launch.History, name, forever)
        began = time.monotonic()
        answer = await asyncio.wait_for(client.get(path + READING[path]), 20)
        assert time.monotonic() - began < 5
        check_refused(path, answer, "100 ms")
        monkeypatch.undo()
        # datasette's connection is as it was
        assert (await client.get("/logs/turns.json")).status_code == 200

    @pytest.mark.parametrize("path", READING)
    @pytest.mark.parametrize("helper", ["table_names", "view_names", "execute"])
    async def test_datasettes_own_limit(self, log, path, helper, monkeypatch):
        "Its helpers read the list of tables before we know that this is a log"
        from datasette.database import Database

        datasette = await datasette_of(log)
        client = Client(datasette)
        known_logs(datasette).clear()

        monkeypatch.setattr(Database, helper, interrupted)
        answer = await client.get(path + READING[path])
        if answer.status_code not in (200, 302) or helper == "table_names":
            check_refused(path, answer)

    async def test_serve_gives_its_owner_more(self, log):
        datasette, _ = launch.build(log.path)
        close_door(datasette, Door(TOKEN))
        await started(datasette)
        assert datasette.setting("sql_time_limit_ms") == 10_000


class TestDatasettesPages:
    "Fails if a slow database of somebody's fails on datasette's own pages through us"

    async def test_hooks_give_nothing(self, log, monkeypatch):
        from datasette.database import Database

        datasette = await datasette_of(log)
        known_logs(datasette).clear()

        monkeypatch.setattr(Database, "execute", interrupted)
        await datasette_ui.find_logs(datasette)
        row = {"id": "0" * 26}
        place = (datasette, None, "logs", "turns", row)
        assert await datasette_ui.menu(datasette, None) == []
        assert await datasette_ui.actions(datasette, None, "logs") == []
        assert await datasette_ui.row_actions(*place) == []
        assert await datasette_ui.queries(datasette, "logs") == {}
        cell = (datasette, "logs", "turns", "turn_id", "0" * 26, row)
        assert await datasette_ui.cell(*cell) is None


class TestSearch:
    "Fails if somebody may search for as many words as fit into an address"

    @pytest.mark.parametrize("path", [f"{HOME}/search.json", HOME])
    async def test_words_are_counted(self, log, path):
        client = Client(await datasette_of(log))
        words = [f"w{i}" for i in range(MAX_WORDS + 1)]
        for q, status in (
            ("+".join(words[1:]), 200),
            ("+".join(["common"] * 100), 200),
            ("+".join(["common", "Common", "COMMON"] * 30), 200),
            ("+".join(words), 400),
            ("%22" + "+".join(words) + "%22", 400),
            ("%22" + "+".join(["a"] * 30) + "%22", 400),
            ("-".join(words), 400),
        ):
            answer = await client.get(f"{path}?q={q}")
            assert answer.status_code == status, q
            assert status == 200 or "at most 20 different words" in answer.text


class TestLeaving:
    "Fails if a query goes on for a client that has left"

    async def test_the_query_ends(self, log, monkeypatch):
        began, ended = threading.Event(), threading.Event()

        def forever(history, *_, **__):
            began.set()
            try:
                list(history.db.query(ENDLESS))
            finally:
                ended.set()

        monkeypatch.setattr(launch.History, "resolve", forever)
        datasette = await datasette_of(log, 60_000)
        application = datasette.app()

        async def receive():
            while not began.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = scope_of("GET", f"{HOME}/tree.json?id=last", [HOST])
        await asyncio.wait_for(application(scope, receive, send), 20)
        assert ended.wait(5)


class TestDeadline:
    "Fails if work that was cut short is taken for a result"

    def test_an_error_that_is_caught_is_not_lost(self, log):
        until = deadline.Deadline(0.05)

        def work():
            try:
                return list(log.db.query(ENDLESS))
            except Exception:
                return []

        with pytest.raises(TimeLimitError), deadline.limited(until, log.db.conn):
            work()
        assert list(log.db.query("select 1"))

    def test_other_errors_are_kept(self, log):
        until = deadline.Deadline(60)
        with pytest.raises(KeyError), deadline.limited(until, log.db.conn):
            raise KeyError("x")

    def test_nothing_is_limited_without_one(self, log):
        deadline.check()
        with deadline.interrupting(log.db.conn):
            assert list(deadline.checked([1, 2])) == [1, 2]

    def test_cancelled_before_it_began(self, log):
        until = deadline.Deadline(60)
        until.cancel()
        with pytest.raises(TimeLimitError), deadline.limited(until, log.db.conn):
            raise AssertionError
