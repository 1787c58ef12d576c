"""Links from datasette's own pages to the tree, and its tables of a log.

Runs on datasette 0.65 and on 1.0, whichever is installed.
"""

from __future__ import annotations

import re
import sqlite3

import pytest
import sqlite_utils

from llm_kvbranch.log.edits import delete_responses
from llm_kvbranch.log.marks import mark
from llm_kvbranch.log.tables import VIEWS, migrations
from llm_kvbranch.log.tree import Forest
from llm_kvbranch.web.datasette_ui import QUERIES, SETTINGS

from ..support.asgi import Client, started
from ..support.logged import Log, datasette_on


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    log.model.facts = {"restored_tokens": 3, "prefilled_tokens": 1, "ttft_ms": 5.0}
    log.one = log.begin("Why is the sky blue?", "Because of Rayleigh scattering.")
    log.two = log.branch(log.one, 0, 7, "Of what?", "Of light.")
    mark(log.history, log.two, starred=True, note="the best")
    yield log
    log.close()


@pytest.fixture
async def client(log):
    return Client(await started(datasette_on(log.path)))


def links(page):
    return set(re.findall(r'href="(/-/kvbranch[^"]*)"', page))


class TestLinks:
    "Fails if a row of the log does not link to its tree"

    @pytest.mark.parametrize(
        "path", ["/logs/turns", "/logs/kvbranch_branches", "/logs/kvbranch_marks"]
    )
    async def test_from_rows_to_their_trees(self, log, client, path):
        page = (await client.get(path)).text
        assert f"/-/kvbranch/{log.two}" in links(page)
        if path.endswith("branches"):
            assert f"/-/kvbranch/{log.one}" in links(page)
        for link in links(page):
            assert (await client.get(link)).status_code in (200, 302)

    @pytest.mark.parametrize("view", VIEWS)
    async def test_from_our_views(self, log, client, view):
        assert f"/-/kvbranch/{log.two}" in links(
            (await client.get(f"/logs/{view}")).text
        )

    async def test_from_threads_and_messages(self, log, client):
        turn = log.history.turn(log.one)
        page = (await client.get("/logs/threads")).text
        assert f"/-/kvbranch/{turn['thread_id']}" in links(page)
        page = (await client.get("/logs/message_tree")).text
        assert f"/-/kvbranch/{turn['tip_message_hash']}" in links(page)
        for link in links(page):
            assert (await client.get(link)).status_code in (200, 302)

    async def test_from_queries(self, log, client):
        sql = "select+turn_id,+prompt+from+turn_search"
        for path in (f"/logs?sql={sql}", f"/logs/-/query?sql={sql}"):
            page = await client.get(path)
            if page.status_code == 200:
                assert f"/-/kvbranch/{log.two}" in links(page.text)

    @pytest.mark.parametrize("table", ["turns", "threads", "messages"])
    async def test_from_one_row(self, log, client, table):
        turn = log.history.turn(log.two)
        key = {"turns": "id", "threads": "thread_id", "messages": "tip_message_hash"}
        id = turn[key[table]].replace(":", "~3A")
        page = (await client.get(f"/logs/{table}/{id}")).text
        found = links(page) - {"/-/kvbranch"}
        if table == "messages" and not hasattr(client.app, "row_actions"):
            found = found or {f"/-/kvbranch/{log.two}"}  # 0.65: no row menu
        led = set()
        for link in found:
            answer = await client.get(link)
            led.add(answer.headers.get("location", link))
        assert f"/-/kvbranch/{log.two}" in led

    async def test_a_link_to_the_row_stays(self, log, client):
        page = (await client.get("/logs/kvbranch_branches")).text
        assert f'href="/logs/turns/{log.one}"' in page
        assert (await client.get(f"/logs/turns/{log.one}")).status_code == 200
        page = (await client.get("/logs/turns")).text
        (row, *_) = re.findall(r'href="(/logs/messages/[^"]*)"', page)
        assert (await client.get(row)).status_code == 200

    @pytest.mark.parametrize("path", ["/logs", "/logs/turns", "/logs/parts", "/"])
    async def test_from_menus(self, client, path):
        assert "/-/kvbranch" in links((await client.get(path)).text)

    async def test_other_databases_are_left_alone(self, log, tmp_path):
        path = tmp_path / "other.db"
        other = sqlite_utils.Database(path)
        other["t"].insert({"response_id": log.one, "turn_id": log.two})
        other["turns"].insert({"id": log.one, "tip_message_hash": "b2:" + "0" * 32})
        other.close()
        client = Client(await started(datasette_on(path, log.path)))
        for page in ("/other", "/other/t", "/other/turns"):
            assert links((await client.get(page)).text) <= {"/-/kvbranch"}
        page = (await client.get("/logs/turns")).text
        assert f"/-/kvbranch/{log.two}?db=logs" in links(page)

    async def test_nothing_that_was_typed_is_a_link(self, log):
        for value in ('x"><script>', "x" * 26 + '"', "b2:<b>", "A" * 26, ""):
            row = {"response_id": value, "verb": "branch", "from_response": value}
            log.db["kvbranch_branches"].insert(row, replace=True)
        client = Client(await started(datasette_on(log.path)))
        page = (await client.get("/logs/kvbranch_branches")).text
        assert not [link for link in links(page) if "script" in link or "b>" in link]
        assert 'x"><script>' not in page


class TestTables:
    "Fails if datasette's tables of a log lack our labels, facets or queries"

    async def test_all_of_them_can_be_shown(self, log, client):
        names = sqlite3.connect(log.path).execute(
            "select name from sqlite_master where type in ('table', 'view')"
        )
        for (name,) in names.fetchall():
            if not re.search(r"_fts_|^sqlite_", name):
                assert (await client.get(f"/logs/{name}")).status_code == 200, name

    async def test_suggestions(self, client):
        page = (await client.get("/logs/turns")).text
        assert "sorted by id descending" in page
        assert "facet-model" in page
        page = (await client.get("/logs/kvbranch_responses")).text
        assert "facet-verb" in page

    async def test_what_was_set_goes_first(self, log):
        tables = {"turns": {"facets": ["thread_id"], "sort": "id"}}
        config = {"databases": {"logs": {"tables": tables}}}
        client = Client(await started(datasette_on(log.path, config=config)))
        page = (await client.get("/logs/turns")).text
        assert "facet-thread_id" in page
        assert "facet-model" not in page

    @pytest.mark.parametrize("name", QUERIES)
    async def test_queries(self, log, client, name):
        assert f"/logs/{name}" in (await client.get("/logs")).text
        answer = await client.get(f"/logs/{name}.json?_shape=array")
        assert answer.status_code == 200
        if name != "kvbranch_misses":
            assert answer.json()

    async def test_none_for_a_log_without_our_views(self, user_path):
        log = Log(user_path / "logs.db", ours=False)
        log.begin("Why?", "Because.")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        page = await client.get("/logs")
        assert page.status_code == 200
        assert "kvbranch_starred" not in page.text
        assert (await client.get("/logs/turns")).status_code == 200

    def test_suggestions_are_of_columns_that_there_are(self, log):
        for table, settings in SETTINGS.items():
            columns = {column.name for column in log.db[table].columns}
            named = {settings.get(k) for k in ("sort", "sort_desc", "label_column")}
            assert {*(named - {None}), *settings.get("facets", ())} <= columns


class TestViews:
    "Fails if a view disagrees with the log, or gets in llm's way"

    def test_responses(self, log):
        rows = {row["response_id"]: row for row in log.db["kvbranch_responses"].rows}
        assert set(rows) == {log.one, log.two}
        two = rows[log.two]
        assert two["prompt"] == "Of what?"
        assert two["response"] == "Of light."
        assert (two["verb"], two["excerpt"]) == ("branch", "Because")
        assert two["from_response"] == log.one
        assert (two["starred"], two["note"]) == (1, "the best")
        assert (two["restored_tokens"], two["prefilled_tokens"]) == (3, 1)
        assert rows[log.one]["verb"] is None

    def test_branch_points(self, log):
        (row,) = log.db["kvbranch_branch_points"].rows
        assert (row["from_response"], row["response_id"]) == (log.one, log.two)
        assert row["from_answer"] == "Because of Rayleigh scattering."
        assert (row["start"], row["end"]) == (0, 7)

    def test_llm_can_still_change_its_tables(self, log):
        "A view that breaks a migration would stop llm altogether"
        for table in ("turns", "threads", "turn_search"):
            log.db[table].transform(types={"id": str})
            log.db[table].add_column("new", str)
            log.db[table].transform(drop={"new"})
        log.db.execute("alter table turns add column more text")
        assert log.db["kvbranch_responses"].count == 2
        log.begin("And now?", "Still.")
        assert log.db["kvbranch_responses"].count == 3

    def test_made_once_and_by_whoever_comes_first(self, log):
        migrations.apply(log.db)
        migrations.apply(log.db)
        assert set(VIEWS) <= set(log.db.view_names())


class TestForgetting:
    "Fails if what is forgotten takes something with it, or leaves something behind"

    def parents(self, log):
        nodes = [n for root in Forest(log.history).recent(99) for n in root.walk()]
        return {node.id: node.parent and node.parent.id for node in nodes}

    @pytest.mark.parametrize("verb", ["branch", "focus", "fresh"])
    def test_who_asked_the_same_again_stays_where_it_was(self, log, verb):
        first = getattr(log, verb)(log.one, 0, 7, "Of what?", "Of air.")
        again = log.retry(first, "Of dust.")
        once_more = log.retry(again, "Of water.")
        below = log.go_on(once_more, "And?", "So.")
        before = self.parents(log)
        assert before[once_more] == log.one
        for id in (first, again):
            delete_responses(log.history, [id])
            del before[id]
            assert self.parents(log) == before
        row = log.history.branch(once_more)
        assert (row["from_response"], row["verb"]) == (
            log.one,
            "focus" if verb == "focus" else "branch",
        )
        assert below in before

    def test_of_a_plain_turn(self, log):
        first = log.go_on(log.one, "And?", "So.")
        again = log.retry(first, "No.")
        before = self.parents(log)
        delete_responses(log.history, [first])
        del before[first]
        assert self.parents(log) == before
        assert before[again] == log.one

    def test_marks_go_with_it(self, log):
        delete_responses(log.history, [log.two])
        assert log.db["kvbranch_marks"].count == 0
