"""What we show of a log is never more than datasette shows of its tables.

Runs on datasette 0.65 and on 1.0, whichever is installed.
"""

from __future__ import annotations

import re
import sqlite3

import llm
import pytest

from llm_kvbranch.log.marks import mark
from llm_kvbranch.log.tables import READ_TABLES, VIEWS, tables_of
from llm_kvbranch.web.datasette_ui import QUERIES
from llm_kvbranch.web.door import LOGIN, Door, close_door
from llm_kvbranch.web.routes import routes_of
from llm_kvbranch.web.serving import launch

from ..support.asgi import TOKEN, Client, started
from ..support.logged import Log, datasette_on

# Every text in the log starts with this word
SECRET = "zyxsecret"
ARGUMENTS = {
    "/-/kvbranch/search.json": f"?q={SECRET}",
    "/-/kvbranch/compare.json": "?id=last&id=last",
    "/branch/tree": "?n=10",
}
PUBLIC = {"/openapi.json", "/-/kvbranch/static/0/0"}
READING = {
    *("/-/kvbranch", "/-/kvbranch/", "/-/kvbranch/last", "/branch/tree"),
    *(f"/-/kvbranch/{each}.json" for each in ("tree", "path", "search", "compare")),
    "/-/kvbranch/export",
}


def addresses(datasette):
    "Every address of ours that a datasette has, from the table of routes"
    for pattern, _ in routes_of(datasette):
        path = re.sub(r"\(.*?\)", "0", pattern.strip("^$").replace("\\", ""))
        if path != LOGIN:  # which takes its own secret
            yield "/-/kvbranch/last" if path == "/-/kvbranch/0" else path


ACTORS = {
    "anonymous": None,
    "reader": {"id": "reader"},
    "restricted token": {"id": "root", "_r": {"a": ["vi"]}},
    "restricted to tables": {"id": "reader", "_r": {"a": ["vi", "vd", "vt"]}},
    "id of the API": {"id": "kvbranch-api"},
    "API key": TOKEN,
    "root": {"id": "root"},
}


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    log.one = log.begin(f"{SECRET} Why?", f"{SECRET} Because.", f"{SECRET} Be brief.")
    log.two = log.branch(log.one, 0, 9, f"{SECRET} Of what?", f"{SECRET} Of light.")
    mark(log.history, log.two, starred=True, note=f"{SECRET} the best")
    log.model.say = f"{SECRET} answer"
    log.model.attachment_types = {"text/plain"}
    response = llm.Conversation(model=log.model).prompt(
        fragments=[f"{SECRET} a fragment"],
        attachments=[llm.Attachment(type="text/plain", url=f"http://x/{SECRET}")],
    )
    response.text()
    log.history.log_by_content(response, {"id": response.conversation.id})
    yield log
    log.close()


async def shown_of(client, path):
    "The status of an address, and whether it shows any of the log"
    answer = await client.get(path + ARGUMENTS.get(path, "?id=last"))
    text = answer.text.replace(f"q={SECRET}", "")
    return answer.status_code, SECRET in text


async def check(datasette):
    """Compare what we show to each actor with what datasette shows of the tables.

    Returns who sees the whole log.
    """
    seeing, reads = set(), set(READ_TABLES)
    for who, actor in ACTORS.items():
        client = Client(datasette, actor)
        visible = set()
        for table in READ_TABLES:
            if (await client.get(f"/logs/{table}.json")).status_code == 200:
                visible.add(table)
        may = visible == reads
        seeing |= {who} if may else set()
        for path in sorted(set(addresses(datasette))):
            status, leaks = await shown_of(client, path)
            case = (who, path, status, sorted(reads - visible))
            if path in READING:
                assert status in ((200, 302) if may else (401, 403)), case
            elif path not in PUBLIC:
                assert status in (401, 403, 405, 503), case
            assert may or not leaks, case
        for name, sql in [*VIEWS.items(), *((q, QUERIES[q]["sql"]) for q in QUERIES)]:
            status, leaks = await shown_of(client, f"/logs/{name}.json")
            needed = tables_of(sql) - set(VIEWS)
            case = (who, name, status, sorted(needed - visible))
            if not needed <= visible:
                assert status in (401, 403, 404), case
                assert not leaks, case
            elif name in VIEWS:
                assert status == 200, case
        answer = await client.get("/logs")
        assert answer.status_code in (200, 401, 403), who
        page = answer.text if actor is None else ""
        for name, sql in VIEWS.items():
            if not tables_of(sql) - set(VIEWS) <= visible:
                assert f"/logs/{name}" not in page, (who, name)
    return seeing


def denying(*tables, allow=False):
    denied = {table: {"allow": allow} for table in tables}
    return {"databases": {"logs": {"allow_sql": False, "tables": denied}}}


class TestMatrix:
    "Fails if an address of ours shows what datasette would not"

    @pytest.mark.parametrize("table", READ_TABLES)
    async def test_a_table_is_denied(self, log, table):
        config = denying(table, allow={"id": "reader"})
        datasette = await started(datasette_on(log.path, config=config))
        seeing = await check(datasette)
        assert "anonymous" not in seeing
        assert "reader" in seeing

    async def test_nothing_is_denied(self, log):
        datasette = await started(datasette_on(log.path))
        seeing = await check(datasette)
        assert {"anonymous", "reader", "root"} <= seeing

    @pytest.mark.parametrize("where", ["instance", "database"])
    async def test_more_than_a_table_is_denied(self, log, where):
        config = {"allow": {"id": "reader"}}
        if where == "database":
            config = {"databases": {"logs": config}}
        datasette = await started(datasette_on(log.path, config=config))
        seeing = await check(datasette)
        assert "reader" in seeing
        assert "anonymous" not in seeing

    @pytest.mark.parametrize("view", VIEWS)
    async def test_a_view_is_denied(self, log, view):
        "So are the queries that read it"
        config = denying(view)
        datasette = await started(datasette_on(log.path, config=config))
        client = Client(datasette)
        assert (await shown_of(client, f"/logs/{view}.json"))[0] == 403
        for name, query in QUERIES.items():
            if view in query["sql"]:
                status, leaks = await shown_of(client, f"/logs/{name}.json")
                assert status in (403, 404), name
                assert not leaks, name

    async def test_under_serve(self, log):
        "The door's two actors see everything, and nobody else anything"
        datasette, _ = launch.build(log.path)
        close_door(datasette, Door(TOKEN))
        await started(datasette)
        seeing = await check(datasette)
        assert seeing == {"API key", "root", "id of the API"}


class TestTables:
    "Fails if something that we read is not a table that permissions are asked about"

    async def test_whatever_an_address_reads_is_in_the_list(self, log, monkeypatch):
        read = set()

        def authorize(action, table, *_):
            if action == sqlite3.SQLITE_READ:
                read.add(table)
            return sqlite3.SQLITE_OK

        from llm_kvbranch.web.serving.log import History

        class Watched(History):
            def __init__(self, db, **more):
                db.conn.set_authorizer(authorize)
                super().__init__(db, **more)

        monkeypatch.setattr("llm_kvbranch.web.serving.log.History", Watched)
        client = Client(await started(datasette_on(log.path)))
        for path in READING - {"/branch/tree"}:
            for arguments in (ARGUMENTS.get(path, "?id=last"), "?id=nix"):
                await client.get(path + arguments)
        for query in (f"?q={SECRET}", "?model=parrot", "?starred=1"):
            await client.get("/-/kvbranch" + query)
        await client.get(f"/-/kvbranch/export?id={log.two}&what=tree&as=json")
        content = {each for each in read if not re.search(r"_fts_|^sqlite_", each)}
        content -= {"json_each", "piece", "value"}
        assert {"turns", "fragments", "attachments", "kvbranch_marks"} <= content
        assert content <= set(READ_TABLES)

    @pytest.mark.parametrize("view", VIEWS)
    def test_whatever_a_view_reads_is_known(self, log, view):
        read = set()

        def authorize(action, table, *_):
            if action == sqlite3.SQLITE_READ:
                read.add(table)
            return sqlite3.SQLITE_OK

        db = sqlite3.connect(log.path)
        db.set_authorizer(authorize)
        db.execute(f"select * from {view}").fetchall()
        assert read - {view} == tables_of(VIEWS[view])
