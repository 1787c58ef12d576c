"""The pages as datasette serves them: permissions, finding logs, escaping.

Runs on datasette 0.65 and on 1.0, whichever is installed.
"""

from __future__ import annotations

import html
import json
import os
import re
import sqlite3
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from datasette.app import Datasette

from llm_kvbranch.log.marks import mark
from llm_kvbranch.web.door import Door, close_door
from llm_kvbranch.web.page.static_files import digest, files, modules
from llm_kvbranch.web.serving import launch

from ..support.asgi import TOKEN, Client, started
from ..support.logged import HOSTILE, Log, datasette_on

# What the login page needs
PUBLIC = ("/early.js", "/icon.svg", "/login.css", "/css/base.css")

READING = (
    "/-/kvbranch",
    "/-/kvbranch/",
    "/-/kvbranch/last",
    "/-/kvbranch/tree.json?id=last",
    "/-/kvbranch/path.json?id=last",
    "/-/kvbranch/search.json?q=sky",
    "/-/kvbranch/compare.json?id=last&id=last",
    "/-/kvbranch/export?id=last",
)
SERVED_READING = (*READING, "/branch/tree", "/openapi.json")
ACTING = (
    ("/-/kvbranch/mark", {"id": "last", "starred": True}),
    ("/-/kvbranch/prune", {"id": "last", "what": "log"}),
    ("/generate", {"prompt": "Hi"}),
    ("/retry", {"message_id": "last"}),
)
ACTORS = {
    "anonymous": None,
    "bob": {"id": "bob"},
    "root": {"id": "root"},
    "token": TOKEN,
}


@pytest.fixture
def log(user_path):
    log = Log(user_path / "logs.db")
    log.one = log.begin("Why is the sky blue?", "Because of Rayleigh scattering.")
    log.two = log.branch(log.one, 0, 7, "Of what?", "Of light.")
    yield log
    log.close()


async def served_on(path):
    "datasette as serve starts it, without a model"
    datasette, _ = launch.build(path)
    close_door(datasette, Door(TOKEN))
    return await started(datasette)


# datasette 1.0 allows its root what nothing denies, 0.65 gives the id no rights
ROOT = {"root"} if hasattr(Datasette, "allowed") else set()


def private(**more):
    return {"databases": {"logs": {"allow": {"id": "bob"}, **more}}}


class TestWhoMayRead:
    "Fails if a conversation is shown to an actor to whom datasette would not show it"

    @pytest.mark.parametrize("path", READING)
    @pytest.mark.parametrize(
        ("config", "allowed"),
        [
            ({}, {"anonymous", "bob", "root", "token"}),
            (private(), {"bob"}),
            ({"allow": {"id": "bob"}}, {"bob"}),
            (
                {
                    "databases": {
                        "logs": {"tables": {"turns": {"allow": {"id": "bob"}}}}
                    }
                },
                {"bob"},
            ),
            (
                {"databases": {"logs": {"tables": {"parts": {"allow": False}}}}},
                set(),
            ),
        ],
        ids=["public", "database", "instance", "table", "another table"],
    )
    async def test_in_a_plain_datasette(self, log, path, config, allowed):
        datasette = await started(datasette_on(log.path, config=config))
        for name, actor in ACTORS.items():
            answer = await Client(datasette, actor).get(path)
            if name in allowed:
                assert answer.status_code in (200, 302), (name, answer.text)
            else:
                assert answer.status_code == 403, (name, answer.text)
                assert log.one not in answer.text
                assert "sky" not in answer.text.replace("q=sky", "")

    @pytest.mark.parametrize("path", SERVED_READING)
    async def test_under_serve(self, log, path):
        datasette = await served_on(log.path)
        for name, actor in ACTORS.items():
            answer = await Client(datasette, actor).get(path)
            if name in ("root", "token"):
                assert answer.status_code in (200, 302), (name, answer.text)
            else:
                assert answer.status_code == 401, (name, answer.text)

    @pytest.mark.parametrize(("path", "body"), ACTING)
    async def test_nobody_acts_without_a_model(self, log, path, body):
        before = log.path.read_bytes()
        plain = await started(datasette_on(log.path))
        served = await served_on(log.path)
        for datasette in (plain, served):
            for name, actor in ACTORS.items():
                answer = await Client(datasette, actor).post(path, body)
                wanted = 403 if datasette is plain else 401
                known = {"root", "token"} if datasette is served else ROOT
                if name in known:
                    wanted = 503
                if datasette is plain and not path.startswith("/-/kvbranch"):
                    assert answer.status_code in (404, 405)  # no address of ours
                    continue
                assert answer.status_code in (wanted, 401 if wanted == 403 else wanted)
        assert log.path.read_bytes() == before

    async def test_a_menu_leads_to_it_only_for_who_may(self, log):
        datasette = await started(datasette_on(log.path, config=private()))
        for name, actor in ACTORS.items():
            answer = await Client(datasette, actor).get("/")
            shown = 'href="/-/kvbranch"' in answer.text
            assert shown == (name == "bob")

    async def test_only_by_get(self, log):
        datasette = await started(datasette_on(log.path))
        for path in READING:
            answer = await Client(datasette, {"id": "root"}).post(path, {})
            assert answer.status_code == 405
            head = await Client(datasette).get(path, "HEAD")
            assert head.status_code in (200, 302)


class TestWhichLog:
    "Fails if a log is not found, or reading changes it"

    async def test_no_model_is_needed(self, log):
        "Reading neither loads llama.cpp nor creates a store"
        code = (
            "import asyncio, sys\n"
            "from tests.support.logged import datasette_on\n"
            "async def main():\n"
            "    datasette = datasette_on(sys.argv[1])\n"
            "    await datasette.invoke_startup()\n"
            "    for path in sys.argv[2:]:\n"
            "        answer = await datasette.client.get(path)\n"
            "        assert answer.status_code in (200, 302), path\n"
            "asyncio.run(main())\n"
            "print([m for m in ('llama_cpp', 'numpy', 'uvicorn') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(log.path), *READING],
            env={**os.environ, "LLM_LOAD_PLUGINS": "", "DATASETTE_LOAD_PLUGINS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        loaded = done.stdout.strip()
        assert "llama_cpp" not in loaded
        assert "uvicorn" not in loaded
        assert sorted(path.name for path in log.path.parent.iterdir()) == ["logs.db"]

    @pytest.mark.parametrize("how", ["mutable", "immutable", "read-only file"])
    async def test_it_stays_as_it_is(self, log, how):
        log.close()
        before = log.path.read_bytes()
        if how == "read-only file":
            log.path.chmod(0o400)
        if how == "immutable":
            datasette = datasette_on(immutables=[str(log.path)])
        else:
            datasette = datasette_on(log.path)
        client = Client(await started(datasette))
        for path in READING:
            assert (await client.get(path)).status_code in (200, 302)
        assert log.path.read_bytes() == before

    async def test_a_log_without_our_tables(self, user_path):
        log = Log(user_path / "logs.db", ours=False)
        log.begin("Why is the sky blue?", "Because.")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        for path in (*READING, "/-/kvbranch?starred=1", "/-/kvbranch?q=sky", "/logs"):
            assert (await client.get(path)).status_code in (200, 302)
        tables = sqlite3.connect(log.path).execute("select name from sqlite_master")
        assert not [name for (name,) in tables if name.startswith("kvbranch")]

    async def test_a_log_that_a_newer_llm_would_have_to_change(self, log):
        "An older log is read without migrating it"
        with log.db.conn as connection:
            connection.execute("delete from _llm_migrations where name like '%tool%'")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        for path in READING:
            assert (await client.get(path)).status_code in (200, 302)

    async def test_a_log_that_cannot_be_read(self, log):
        with log.db.conn as connection:
            connection.execute("alter table parts rename column text to words")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get("/-/kvbranch/tree.json?id=last")
        assert answer.status_code == 503
        assert "llm logs" in answer.json()["error"]["message"]
        answer = await client.get("/-/kvbranch")
        assert answer.status_code == 503
        assert "llm logs" in answer.text

    async def test_a_log_of_llm_before_its_trees(self, user_path):
        path = user_path / "logs.db"
        with sqlite3.connect(path) as db:
            db.execute("create table responses (id text primary key, prompt text)")
        client = Client(await started(datasette_on(path)))
        for path in READING:
            answer = await client.get(path)
            assert answer.status_code == 404
            assert "0.32" in answer.text
        assert "/-/kvbranch" not in (await client.get("/")).text

    async def test_conversations_that_were_not_brought_over(self, log):
        log.db["conversations"].insert_all({"id": str(i)} for i in range(3))
        client = Client(await started(datasette_on(log.path)))
        assert (
            "3 conversations from before llm 0.32"
            in (await client.get("/-/kvbranch")).text
        )

    async def test_several_databases(self, log, tmp_path):
        other = Log(tmp_path / "other log.db")
        there = other.begin("How far is the moon?", "Very.")
        other.close()
        nothing = tmp_path / "nothing.db"
        sqlite3.connect(nothing).execute("create table turns (id)")
        paths = (nothing, log.path, other.path)
        datasette = await started(datasette_on(*paths))
        client = Client(datasette)
        page = (await client.get("/-/kvbranch")).text
        assert "sky" in page
        assert "moon" not in page
        assert "?db=other%20log" in page
        page = (await client.get("/-/kvbranch?db=other+log")).text
        assert "moon" in page
        assert "sky" not in page
        assert f"/-/kvbranch/{there}?db=other%20log" in page
        answer = await client.get(f"/-/kvbranch/{there[:12]}?db=other+log")
        assert answer.headers["location"] == f"/-/kvbranch/{there}?db=other+log"
        assert (await client.get(f"/-/kvbranch/{there}")).status_code == 404
        for name in ("nothing", "nix", ""):
            assert (await client.get(f"/-/kvbranch?db={name}")).status_code == 404

    async def test_a_log_among_others_that_one_may_see(self, log, tmp_path):
        other = Log(tmp_path / "other.db")
        other.begin("How far is the moon?", "Very.")
        other.close()
        config = {"databases": {"logs": {"allow": {"id": "bob"}}}}
        datasette = await started(datasette_on(log.path, other.path, config=config))
        page = (await Client(datasette).get("/-/kvbranch")).text
        assert "moon" in page
        assert "?db=logs" not in page
        assert (await Client(datasette).get("/-/kvbranch?db=logs")).status_code == 403
        page = (await Client(datasette, {"id": "bob"}).get("/-/kvbranch")).text
        assert "sky" in page
        assert "?db=other" in page

    async def test_below_another_address(self, log):
        datasette = datasette_on(log.path, settings={"base_url": "/prefix/"})
        client = Client(await started(datasette))
        page = (await client.get(f"/prefix/-/kvbranch/{log.two}")).text
        config = config_in(page)
        assert all(url.startswith("/prefix/") for url in config["urls"].values())
        assert config["database_url"] == "/prefix/logs"
        answer = await client.get("/prefix/-/kvbranch/last")
        assert answer.headers["location"] == f"/prefix/-/kvbranch/{log.two}"
        assert 'href="/prefix/-/kvbranch/static/' in page
        page = (await client.get("/prefix/-/kvbranch")).text
        assert f'href="/prefix/-/kvbranch/{log.two}"' in page
        assert not re.search(r'(href|src|action)="/(?!prefix/)', page)


UNKNOWN = "/-/kvbranch/unknown"


class Markup(HTMLParser):
    "The elements of a page with their attributes, but without texts and addresses"

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(name for name, _ in attributes)))
        for name, value in attributes:
            if name in ("href", "src", "action"):
                assert value.startswith("/"), value

    def handle_data(self, data):
        self.text += data


def markup_of(page):
    return set(Markup(page).elements)


def config_in(page):
    "The settings that a page has for its scripts"
    found = re.search(
        r'<script id="config" type="application/json">(.*?)</script>', page
    )
    return json.loads(found.group(1))


class TestPages:
    "Fails if a page links to the wrong address"

    async def test_the_tree_s(self, log):
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(f"/-/kvbranch/{log.two}")
        config = config_in(answer.text)
        assert config["id"] == log.two
        assert config["db"] == "logs"
        assert (config["live"], config["may_write"]) == (False, False)
        assert (config["model"], config["csrf"]) == (None, None)
        assert "<title>Because" in answer.text

    @pytest.mark.parametrize("what", ["last", "prefix", "thread", "message"])
    async def test_other_names_of_a_response(self, log, what):
        turn = log.history.turn(log.two)
        name = {
            "last": "last",
            "prefix": log.two[:-1],
            "thread": turn["thread_id"],
            "message": turn["tip_message_hash"],
        }[what]
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(f"/-/kvbranch/{name}?db=logs")
        assert answer.status_code == 302
        assert answer.headers["location"] == f"/-/kvbranch/{log.two}?db=logs"

    @pytest.mark.parametrize(
        "name", ["nix", "b2:nix", "0", "%00", "%ff", "a%2fb", "%22%3E"]
    )
    async def test_unknown_ones(self, log, name):
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(f"/-/kvbranch/{name}")
        assert answer.status_code == 404
        if name == "nix":
            assert "No response with id &#39;nix&#39;" in answer.text
        assert markup_of(answer.text) == markup_of((await client.get(UNKNOWN)).text)

    async def test_several_that_begin_alike(self, log):
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(f"/-/kvbranch/{log.one[:2]}")
        assert answer.status_code == 404
        assert log.one in answer.text

    async def test_the_list(self, log):
        mark(log.history, log.two, starred=True, note="the best")
        other = log.begin("Name a bird", "A blue jay.")
        client = Client(await started(datasette_on(log.path)))
        page = (await client.get("/-/kvbranch")).text
        assert page.index("Name a bird") < page.index("Why is the sky blue?")
        for text in ("2 responses", "★ 1", "the best", "<q>Because</q>", "parrot"):
            assert text in page
        assert f'href="/-/kvbranch/{other}"' in page
        page = (await client.get("/-/kvbranch?q=light")).text
        assert "Name a bird" not in page
        assert f'class="tree-link" href="/-/kvbranch/{log.two}"' in page
        assert "<mark>light</mark>" in page
        page = (await client.get("/-/kvbranch?q=nothing")).text
        assert "No matching conversations" in page
        page = (await client.get("/-/kvbranch?starred=1&model=parrot")).text
        assert "Name a bird" not in page
        assert "sky" in page

    async def test_an_empty_log(self, user_path):
        log = Log(user_path / "logs.db")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        assert "No conversations yet" in (await client.get("/-/kvbranch")).text
        assert (await client.get("/-/kvbranch/last")).status_code == 404
        found = await client.get("/-/kvbranch/search.json?q=x")
        assert found.json() == {"results": []}

    async def test_page_by_page(self, user_path):
        log = Log(user_path / "logs.db")
        asked = [f"Question {i:03d}?" for i in range(60)]
        for each in asked:
            log.begin(each, "Yes.")
        client = Client(await started(datasette_on(log.path)))
        path, seen = "/-/kvbranch?q=yes", []
        while path:
            page = (await client.get(path)).text
            seen += re.findall(r'class="title">(.*?)<', page)
            found = re.search(r'rel="next" href="(.*?)"', page)
            path = html.unescape(found.group(1)) if found else None
        assert seen == asked[::-1]

    async def test_the_data_comes_while_the_scripts_do(self, log):
        client = Client(await started(datasette_on(log.path)))
        page = (await client.get(f"/-/kvbranch/{log.two}")).text
        named = re.findall(r'as="fetch" crossorigin href="(.*?)"', page)
        assert [html.unescape(each) for each in named] == [
            f"/-/kvbranch/{name}.json?db=logs&id={log.two}" for name in ("tree", "path")
        ]
        for each in named:
            answer = await client.get(html.unescape(each))
            assert answer.status_code == 200

    @pytest.mark.parametrize(
        "path", ["/-/kvbranch", "/-/kvbranch/last", "/-/kvbranch/nix"]
    )
    async def test_nothing_runs_that_is_no_file_of_ours(self, log, path):
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(path)
        if answer.status_code == 302:
            answer = await client.get(answer.headers["location"])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self';" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        for tag in re.findall(r"<script\b[^>]*>", answer.text):
            assert " src=" in tag or 'type="application/json"' in tag
        assert not re.search(r"<[^>]*\s(on\w+|style)=", answer.text)
        assert "<style" not in answer.text


_PRELOAD = ("rel", "as", "crossorigin", "href")
# Everything in the templates
OURS = {
    *((tag, ()) for tag in ("html", "head", "title", "header", "main", "h1", "p", "q")),
    *((tag, ()) for tag in ("button", "label", "li", "mark", "noscript", "code")),
    *((tag, ("class",)) for tag in ("body", "header", "p", "span", "ol", "label")),
    *(("a", names) for names in (("href",), ("class", "href"), ("rel", "href"))),
    *(("meta", names) for names in (("charset",), ("name", "content"))),
    *(("script", names) for names in (("src",), ("type", "src"), ("id", "type"))),
    *(("option", names) for names in (("value",), ("value", "selected"))),
    *(("input", ("type", "name", "value", *more)) for more in ((), ("checked",))),
    ("html", ("lang",)),
    *(("link", names) for names in (("rel", "href"), _PRELOAD)),
    ("div", ("id",)),
    ("form", ("class", "role", "action", "method")),
    (
        "input",
        (
            "type",
            "name",
            "value",
            "placeholder",
            "aria-label",
            "autocomplete",
            "maxlength",
        ),
    ),
    ("select", ("name", "aria-label")),
    ("nav", ("class", "aria-label")),
    ("li", ("class", "data-id")),
    ("span", ("class", "title")),
    ("span", ("class", "aria-hidden")),
    ("time", ("datetime",)),
}


class TestFiles:
    "Fails if a browser keeps an old script, or gets a file that is not ours"

    @pytest.fixture
    async def client(self, log):
        return Client(await started(datasette_on(log.path)))

    async def test_they_are_where_the_page_says(self, log):
        served = await served_on(log.path)
        for client in (
            Client(await started(datasette_on(log.path))),
            Client(served, {"id": "root"}),
        ):
            page = (await client.get(f"/-/kvbranch/{log.two}")).text
            named = re.findall(r'(?:src|href)="(/-/kvbranch/static/[^"]*)"', page)
            assert len(named) == len(modules()) + 4
            assert any(path.endswith("/tree.js") for path in named)
            for path in named:
                answer = await client.get(path)
                assert answer.status_code == 200, path
                assert "immutable" in answer.headers["cache-control"]
                assert "private" not in answer.headers["cache-control"]
                wanted = {"js": "javascript", "css": "css", "svg": "svg"}
                assert wanted[path.rpartition(".")[2]] in answer.headers["content-type"]
        for path in named:
            public = path.endswith(PUBLIC)
            status = (await Client(served).get(path)).status_code
            assert status == (200 if public else 401), path

    async def test_all_that_they_name_is_there(self, client):
        for name, path in files().items():
            answer = await client.get(f"/-/kvbranch/static/{digest()}/{name}")
            assert answer.content == path.read_bytes()
            text = path.read_text()
            named = re.findall(r"""(?:from|import)\s*\(?\s*["'](\.[^"']*)["']""", text)
            named += re.findall(r"""@import\s+(?:url\()?["']([^"']*)["']""", text)
            for other in named:
                assert (path.parent / other).resolve() in set(files().values()), other

    async def test_by_another_digest_they_are_not_kept(self, client):
        answer = await client.get("/-/kvbranch/static/0123456789abcdef/tree.js")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"

    async def test_it_changes_when_they_do(self, tmp_path, monkeypatch):
        import os

        from llm_kvbranch.web.page import static_files as module

        monkeypatch.setattr(module, "STATIC", tmp_path)
        (tmp_path / "a.js").write_text("1")
        seen = [digest()]
        (tmp_path / "a.js").write_text("2")
        os.utime(tmp_path / "a.js", ns=(1, 1))
        seen.append(digest())
        (tmp_path / "a.js").rename(tmp_path / "b.js")
        seen.append(digest())
        (tmp_path / "c.txt").write_text("no part of the page")
        assert digest() == seen[-1]
        assert len(set(seen)) == 3

    @pytest.mark.parametrize(
        "name",
        ["", "x.js", "../files.py", "..%2ffiles.py", "%2e%2e/files.py", "/etc/passwd",
         "core/../../files.py", "core", "tree.js/", "tree.js%00", "TREE.JS"],
    )  # fmt: skip
    async def test_nothing_else(self, client, name):
        answer = await client.get(f"/-/kvbranch/static/{digest()}/{name}")
        assert answer.status_code in (
            (302, 404) if name in ("", "tree.js/") else (404,)
        )


class TestHostile:
    "Fails if text of a user or a model becomes markup"

    @pytest.mark.parametrize("name", HOSTILE)
    async def test_on_every_page(self, user_path, name):
        text = HOSTILE[name]
        log = Log(user_path / "logs.db")
        log.model.model_id = text[:200].replace("\0", "")
        one = log.begin(text, text)
        two = log.go_on(one, text, text)
        if text[:50].strip():
            log.focus(one, 0, min(50, len(text)), text, text)
        mark(log.history, one, starred=True, note=text[:2000])
        log.close()
        client = Client(await started(datasette_on(log.path)))
        for path in (f"/-/kvbranch/{two}", "/-/kvbranch", "/-/kvbranch?starred=1"):
            answer = await client.get(path)
            assert answer.status_code == 200
            markup = Markup(answer.text)
            assert set(markup.elements) <= OURS
            shown = " ".join(text[:100].split())[:60]
            assert path == f"/-/kvbranch/{two}" or shown in markup.text
            config_in(answer.text)
            assert answer.text.count("<script") == answer.text.count("</script>")
            answer.content.decode("utf-8")
        for path in ("tree.json", "path.json", "compare.json"):
            answer = await client.get(f"/-/kvbranch/{path}?id={two}&id={one}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("application/json")
        for kind in ("markdown", "json"):
            for what in ("path", "tree"):
                query = f"id={two}&as={kind}&what={what}"
                answer = await client.get(f"/-/kvbranch/export?{query}")
                disposition = answer.headers["content-disposition"]
                assert re.fullmatch(r'attachment; filename="[\w.-]+"', disposition)
                assert answer.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize("name", HOSTILE)
    async def test_in_what_is_asked_for(self, log, name):
        from urllib.parse import urlencode

        client = Client(await started(datasette_on(log.path)))
        text = HOSTILE[name][:3000]
        for field in ("q", "model", "before", "db", "starred"):
            answer = await client.get("/-/kvbranch?" + urlencode({field: text}))
            assert answer.status_code in (200, 404)
            assert markup_of(answer.text) <= OURS
            if answer.status_code == 200:
                config_in(answer.text)
        for field in ("id", "db", "root", "q"):
            query = urlencode({"id": "last", field: text})
            for path in ("tree.json", "search.json"):
                answer = await client.get(f"/-/kvbranch/{path}?{query}")
                assert answer.status_code in (200, 400, 404)

    async def test_the_end_of_the_settings_for_scripts(self, tmp_path, user_path):
        "A database may have any name that a file can have"
        log = Log(tmp_path / "<script>&'\u2028.db")
        id = log.begin("Why?", "Because.")
        log.close()
        client = Client(await started(datasette_on(log.path)))
        page = (await client.get(f"/-/kvbranch/{id}")).text
        assert config_in(page)["db"] == "<script>&'\u2028"
        assert "<script>&" not in page

    async def test_half_characters(self, log):
        "Other programs may store bytes, and lone surrogates in JSON"
        with log.db.conn as connection:
            connection.execute("update parts set text = cast(x'6166ff66' as text)")
            connection.execute(
                "update turns set response_json = ?",
                [json.dumps({"kvbranch": {"miss_reason": "\ud800"}})],
            )
            connection.execute(
                "update kvbranch_branches set excerpt = cast(x'ff' as text)"
            )
        client = Client(await started(datasette_on(log.path)))
        for path in READING:
            answer = await client.get(path)
            assert answer.status_code in (200, 302), (path, answer.text)
        answer = await client.get("/-/kvbranch/path.json?id=last")
        assert "\ufffd" in answer.json()["turns"][0]["text"]
        answer = await client.get("/-/kvbranch/export?id=last&as=json")
        answer.content.decode("utf-8")

    async def test_json_that_is_none(self, log):
        with log.db.conn as connection:
            connection.execute(
                "update turns set response_json = '{', token_details = ']'"
            )
            connection.execute("update parts set payload = '[1]'")
        client = Client(await started(datasette_on(log.path)))
        for path in READING:
            assert (await client.get(path)).status_code in (200, 302)


class TestAnswers:
    "Fails if an error does not say what is wrong with the request"

    @pytest.mark.parametrize(
        ("path", "status", "says"),
        [
            ("tree.json", 400, "id: is missing"),
            ("tree.json?id=", 400, "id: is missing"),
            ("tree.json?id=nix", 404, "No response"),
            ("path.json?id=nix", 404, "No response"),
            ("search.json?q=x&root=nix", 404, "No response"),
            ("compare.json?id=last", 400, "2 to 4"),
            ("compare.json?" + "&".join(["id=last"] * 5), 400, "2 to 4"),
            ("compare.json?id=last&id=nix", 404, "No response"),
            ("export?id=last&what=all", 400, "path, tree"),
            ("export?id=last&as=pdf", 400, "markdown, json"),
            ("tree.json?id=last&db=nix", 404, "no such database"),
        ],
    )
    async def test_what_is_wrong(self, log, path, status, says):
        client = Client(await started(datasette_on(log.path)))
        answer = await client.get(f"/-/kvbranch/{path}")
        assert answer.status_code == status
        body = answer.json()
        assert set(body) == {"error"}
        assert says in body["error"]["message"]

    async def test_search(self, log):
        other = log.begin("Name a bird", "A blue jay.")
        client = Client(await started(datasette_on(log.path)))
        found = (await client.get("/-/kvbranch/search.json?q=blue")).json()["results"]
        assert {(each["id"], each["root"]) for each in found} == {
            (log.one, log.one),
            (other, other),
        }
        answer = await client.get(f"/-/kvbranch/search.json?q=blue&root={log.two}")
        assert [each["id"] for each in answer.json()["results"]] == [log.one]
        answer = await client.get("/-/kvbranch/search.json")
        assert answer.json() == {"results": []}
