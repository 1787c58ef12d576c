"""The guard and the door: which requests get through, by header and by actor.

Runs on datasette 0.65 and on 1.0, whichever is installed. test_attacks.py tries the
same with a real browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_kvbranch.errors import SettingError
from llm_kvbranch.web import compat
from llm_kvbranch.web.door import (
    ACTIONS,
    LOGIN,
    actor_of_token,
    check_token,
    door_of,
    guard,
    kept_token,
)
from llm_kvbranch.web.page.login import log_in
from llm_kvbranch.web.routes import ROUTES, is_ours
from llm_kvbranch.web.serving import launch, listening

from ..support.asgi import (
    BEARER,
    HOST,
    JSON,
    TOKEN,
    Answer,
    cookie,
    plugged,
    scope_of,
    send_to,
)

RESTRICTED = {"id": "root", "_r": {"a": ["vi"]}}  # what a token of datasette 1.0 may be


class Behind:
    "An app that records the bodies it receives"

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"passed"})


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def guarded(behind):
    return guard.Guard(behind, lambda scope: scope["path"].startswith("/v1/"))


class TestHost:
    "Fails if a page can reach the server under its own host name (DNS rebinding)"

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:8177", "localhost", "LOCALHOST:1", "[::1]:8177", "[::1]"]
    )
    async def test_our_names_pass(self, guarded, behind, host):
        answer = await send_to(guarded, "GET", "/v1/models", ("host", host))
        assert answer.status == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("evil.test", "evil.test:8177", "127.0.0.1.evil.test", "localhost.evil"),
            *("evil.test:127.0.0.1", "127.0.0.1@evil.test", "127.0.0.1:80@evil.test"),
            *("", " ", "[::1", "[::1]evil.test", "127.0.0.1:123456", "0.0.0.0"),
            *("127.0.0.1,evil.test", "127.0.0.1/evil", "localhost.", "::1", "[::2]"),
        ],
    )
    async def test_all_others_are_refused(self, guarded, behind, host):
        for method, more in (("GET", ()), ("POST", (JSON,)), ("OPTIONS", ())):
            answer = await send_to(guarded, method, "/v1/x", ("host", host), *more)
            assert answer.status == 403
            assert answer.error["code"] == "host_not_allowed"
        assert not behind.bodies

    async def test_none_and_two_are_refused(self, guarded, behind):
        for headers in ((), (HOST, ("host", "evil.test")), (HOST, HOST)):
            assert (await send_to(guarded, "GET", "/v1/x", *headers)).status == 403
        assert not behind.bodies

    async def test_other_paths_are_left_alone_in_a_plain_datasette(self, guarded):
        answer = await send_to(guarded, "GET", "/logs", ("host", "my.example"))
        assert answer.status == 200
        assert "x-frame-options" not in answer.headers

    async def test_all_paths_under_serve(self, behind):
        whole = guard.Guard(behind, lambda scope: False, everything=True)
        for path in ("/logs", "/logs/turns.json", "/-/static/app.css", "/"):
            assert (await send_to(whole, "GET", path, ("host", "a.b"))).status == 403
            assert (await send_to(whole, "GET", path, HOST)).status == 200

    def test_names_are_read_as_people_write_them(self):
        names = ["Box.Example", "10.0.0.1", "fe80::1", "[::2]", "box:80"]
        wanted = {"box.example", "10.0.0.1", "[fe80::1]", "[::2]", "box"}
        assert guard.host_names(names) == wanted
        assert guard.host_names("box") == {"box"}
        with pytest.raises(SettingError, match="'a b' is not a host name"):
            guard.host_names(["a b"])


SITE, MODE, DEST = "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"


class TestSite:
    "Fails if a cross-site request passes, or one of our own page is refused"

    @pytest.mark.parametrize(
        "headers",
        [
            (),  # no browser
            ((SITE, "same-origin"),),
            ((SITE, "none"),),
            ((SITE, "same-origin"), ("origin", "http://127.0.0.1:8177")),
            (("origin", "http://127.0.0.1:8177"),),  # a browser from before 2023
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
    async def test_ours_pass(self, guarded, method, headers):
        answer = await send_to(guarded, method, "/v1/x", HOST, JSON, *headers)
        assert answer.status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            ((SITE, "cross-site"),),
            ((SITE, "same-site"),),  # another port of this machine
            ((SITE, "anything"),),
            ((SITE, ""),),
            ((SITE, "cross-site"), ("origin", "http://127.0.0.1:8177")),
            ((SITE, "cross-site"), (MODE, "navigate"), (DEST, "iframe")),
            ((SITE, "same-site"), (MODE, "navigate"), (DEST, "object")),
            ((SITE, "cross-site"), (MODE, "no-cors"), (DEST, "document")),
            (("origin", "http://127.0.0.1:9000"),),
            (("origin", "http://evil.test"),),
            (("origin", "null"),),
            (("origin", "http://[::1"),),
            (("origin", ""),),
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "get"])
    async def test_foreign_ones_are_refused(self, guarded, behind, method, headers):
        answer = await send_to(guarded, method, "/v1/x", HOST, JSON, *headers)
        assert answer.status == 403
        assert answer.error["code"] == "cross_site_request"
        assert not behind.bodies

    async def test_a_link_on_another_page_opens_ours(self, guarded):
        opened = ((SITE, "cross-site"), (MODE, "navigate"), (DEST, "document"))
        assert (await send_to(guarded, "GET", "/v1/x", HOST, *opened)).status == 200
        for method in ("POST", "PUT"):
            sent = await send_to(guarded, method, "/v1/x", HOST, JSON, *opened)
            assert sent.status == 403

    async def test_nobody_may_frame_or_embed_what_is_answered(self, guarded):
        for headers in ((HOST,), ()):
            answer = await send_to(guarded, "GET", "/v1/x", *headers)
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["cross-origin-opener-policy"] == "same-origin"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["x-content-type-options"] == "nosniff"


class TestContentType:
    "Fails if a body is accepted that a form can send, without a preflight"

    @pytest.mark.parametrize(
        "kind",
        [
            *("text/plain", "application/x-www-form-urlencoded", "", "json"),
            *("multipart/form-data; boundary=x", "text/plain;application/json"),
            *(
                "application/json+x",
                "application/jsonp",
                "text/plain, application/json",
            ),
        ],
    )
    async def test_only_json_is_read(self, guarded, behind, kind):
        answer = await send_to(
            guarded, "POST", "/v1/x", HOST, ("content-type", kind), body=(b"{}",)
        )
        assert answer.status == 415
        assert answer.error["code"] == "unsupported_media_type"
        assert not behind.bodies

    async def test_without_one_nothing_is_read(self, guarded, behind):
        assert (await send_to(guarded, "POST", "/v1/x", HOST)).status == 415
        assert not behind.bodies

    @pytest.mark.parametrize(
        "kind", ["application/json", "Application/JSON; charset=utf-8"]
    )
    async def test_json_is(self, guarded, kind):
        answer = await send_to(guarded, "POST", "/v1/x", HOST, ("content-type", kind))
        assert answer.status == 200

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    async def test_what_only_reads_needs_none(self, guarded, method):
        assert (await send_to(guarded, method, "/v1/x", HOST)).status == 200

    async def test_datasette_s_own_forms_are_left_to_it(self, behind):
        whole = guard.Guard(behind, lambda scope: False, everything=True)
        form = ("content-type", "application/x-www-form-urlencoded")
        answer = await send_to(whole, "POST", "/-/logout", HOST, form)
        assert answer.status == 200


class TestBody:
    "Fails if a body is accepted that is too long, or is changed"

    PIECE = b"x" * 2**20
    FULL = (PIECE,) * (guard.MAX_BODY // 2**20)

    async def test_it_is_whole_behind_the_guard(self, guarded, behind):
        for body in ((b"",), (b"{}",), (b"{", b"", b"}"), self.FULL):
            answer = await send_to(guarded, "POST", "/v1/x", HOST, JSON, body=body)
            assert answer.status == 200
            assert behind.bodies.pop() == b"".join(body)

    @pytest.mark.parametrize("promised", [None, "10", str(2**40), "-1", "nonsense"])
    async def test_too_long_whatever_was_promised(self, guarded, behind, promised):
        headers = () if promised is None else (("content-length", promised),)
        answer = await send_to(
            *(guarded, "POST", "/v1/x", HOST, JSON, *headers), body=(*self.FULL, b"x")
        )
        assert answer.status == 413
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["connection"] == "close"
        assert not behind.bodies

    async def test_an_endless_one_ends(self, guarded, behind):
        n_read = 0

        async def receive():
            nonlocal n_read
            n_read += 1
            return {"type": "http.request", "body": self.PIECE, "more_body": True}

        sent = []

        async def send(message):
            sent.append(message)

        await guarded(scope_of("POST", "/v1/x", (HOST, JSON)), receive, send)
        assert Answer(sent).status == 413
        assert n_read <= (guard.MAX_BODY + guard.DRAINED) / 2**20 + 2
        assert not behind.bodies

    async def test_one_that_is_never_sent_is_not_waited_for(self, guarded, monkeypatch):
        monkeypatch.setattr(guard, "PATIENCE", 0.05)
        sent = []

        async def send(message):
            sent.append(message)

        headers = (HOST, JSON, ("content-length", str(guard.MAX_BODY + 1)))
        scope = scope_of("POST", "/v1/x", headers)
        await asyncio.wait_for(guarded(scope, asyncio.Event().wait, send), 2)
        assert Answer(sent).status == 413

    async def test_a_client_that_asks_first_need_not_send_it(self, guarded):
        headers = (HOST, JSON, ("content-length", str(guard.MAX_BODY + 1)))
        scope = scope_of("POST", "/v1/x", (*headers, ("expect", "100-continue")))
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            raise AssertionError("read")

        await guarded(scope, receive, send)
        assert Answer(sent).status == 413

    async def test_who_leaves_while_sending_is_not_passed_on(self, guarded, behind):
        scope, sent = scope_of("POST", "/v1/x", (HOST, JSON)), []
        messages = [
            {"type": "http.disconnect"},
            {"type": "http.request", "body": b"{", "more_body": True},
        ]

        async def receive():
            return messages.pop()

        async def send(message):
            sent.append(message)

        await guarded(scope, receive, send)
        assert not behind.bodies

    async def test_who_stops_sending_is_told_so(self, guarded, behind, monkeypatch):
        monkeypatch.setattr(guard, "IDLE", 0.05)
        sent = []

        async def send(message):
            sent.append(message)

        scope = scope_of("POST", "/v1/x", (HOST, JSON))
        await asyncio.wait_for(guarded(scope, asyncio.Event().wait, send), 2)
        assert Answer(sent).status == 408
        assert not behind.bodies

    async def test_nobody_is_waited_for_when_the_server_stops(self, behind):
        closing, sent = asyncio.Event(), []
        guarded = guard.Guard(behind, lambda scope: True, closing=closing)

        async def send(message):
            sent.append(message)

        scope = scope_of("POST", "/v1/x", (HOST, JSON))
        request = asyncio.create_task(guarded(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0.05)
        assert not request.done()
        closing.set()
        await asyncio.wait_for(request, 2)
        assert Answer(sent).status == 503
        assert Answer(sent).error["code"] == "server_stopping"
        assert not behind.bodies

    async def test_leaving_is_heard_after_the_body(self):
        heard = []

        async def view(scope, receive, send):
            heard.extend([await receive(), await receive()])

        guarded = guard.Guard(view, lambda scope: True)
        body = (b"{", b"}")
        await send_to(guarded, "POST", "/v1/x", HOST, JSON, body=body, leaves=True)
        assert heard[0] == {"type": "http.request", "body": b"{}", "more_body": False}
        assert heard[1] == {"type": "http.disconnect"}

    async def test_nothing_is_read_of_what_is_refused(self, guarded):
        async def receive():
            raise AssertionError("read")

        async def send(message):
            pass

        for headers in ((), (HOST,), (HOST, JSON, (SITE, "cross-site"))):
            await guarded(scope_of("POST", "/v1/x", headers), receive, send)


# -- with datasette -------------------------------------------------------


def sample(pattern):
    "A path that a route's pattern matches"
    return re.sub(r"\(.*?\)", "x", pattern.strip("^$").replace("\\", ""))


PATHS = sorted({sample(pattern) for pattern, _ in ROUTES})
OWN = [path for path in PATHS if path.startswith("/-/kvbranch")]
AT_THE_ROOT = sorted(set(PATHS) - set(OWN))
# Readable by whoever may see the log, even without a model: see test_page.py
READING = {
    *("/openapi.json", "/branch/tree", "/-/kvbranch", "/-/kvbranch/", "/-/kvbranch/x"),
    *(f"/-/kvbranch/{name}.json" for name in ("tree", "path", "search", "compare")),
    "/-/kvbranch/export",
}
STATIC = "/-/kvbranch/static/x/x"  # public
# The status for allowed actors: these tests serve no model, so it is 503, or what a
# route says about the method or the body
ALLOWED = (200, 400, 404, 405, 503)


class TestOurPaths:
    "Fails if one of our routes can be reached around the guard"

    def test_every_route_is_guarded(self, plain, served):
        for path in (*PATHS, LOGIN, "/v1/", "/v1/nix", "/-/kvbranch/nix"):
            assert is_ours(served, scope_of("GET", path, ()))
        for path in (*OWN, LOGIN, "/-/kvbranch/nix"):
            assert is_ours(plain, scope_of("GET", path, ()))

    async def test_other_databases_keep_their_addresses(self, tmp_path):
        "Without a model, nothing outside of /-/kvbranch is ours"
        from datasette.app import Datasette

        plugged()
        names = {path.split("/")[1].partition(".")[0] for path in AT_THE_ROOT}
        assert names > {"v1", "metrics", "generate", "branch", "openapi"}
        files = [tmp_path / f"{name}.db" for name in sorted(names)]
        for file in files:
            with contextlib.closing(sqlite3.connect(file)) as db:
                db.execute("create table tree (chat)")
                db.commit()
        datasette = Datasette([str(file) for file in files])
        await datasette.invoke_startup()
        application = datasette.app()
        for name in names:
            for path in (f"/{name}", f"/{name}.json", f"/{name}/tree.json"):
                answer = await send_to(application, "GET", path, ("host", "my.example"))
                assert answer.status == 200, path
                assert "x-frame-options" not in answer.headers

    @pytest.mark.parametrize("path", ["/", "/logs", "/logs/turns", "/-/static/app.css"])
    def test_other_pages_are_not(self, plain, path):
        assert not is_ours(plain, scope_of("GET", path, ()))

    async def test_however_the_path_is_written(self, plain):
        "Every path that the router matches is guarded"
        application = plain.app()
        for base_url in ("/", "/prefix/", "/v1/"):
            plain._settings["base_url"] = base_url
            for path in OWN:
                for written in (
                    path,
                    base_url + path[1:],
                    path.replace("/", "%2F"),
                    path.replace("e", "%65"),
                    path + "?x=1",
                ):
                    answer = await send_to(
                        *(application, "POST", written, ("host", "evil.test"), JSON),
                        body=(b"{}",),
                    )
                    refused = answer.body.startswith(b'{"error": {"message": "Host not')
                    assert refused or answer.status in (302, 404), written

    async def test_names_that_a_plain_datasette_allows(self, log):
        from datasette.app import Datasette

        plugged()
        config = {"plugins": {"llm-kvbranch": {"allowed_hosts": ["Box.example"]}}}
        try:
            datasette = Datasette([str(log)], config=config)
        except TypeError:
            datasette = Datasette([str(log)], metadata=config)
        application = datasette.app()
        for host, status in (("box.example:80", 403), ("evil.test", 403)):
            path = "/-/kvbranch/slots"
            answer = await send_to(application, "GET", path, ("host", host))
            assert answer.status == status
            denied = json.loads(answer.body)["error"]["code"] == "host_not_allowed"
            assert denied == (host == "evil.test")


class TestPermissions:
    "Fails if an actor is allowed or denied the wrong action"

    def test_what_may_be_read_is_served(self):
        assert set(PATHS) > READING

    @pytest.mark.parametrize("path", sorted(set(OWN) - READING - {STATIC}))
    async def test_in_a_plain_datasette_its_own_root_alone(self, plain, path):
        application = plain.app()
        for method in ("GET", "POST"):
            for actor, is_allowed in (
                (None, False),
                ({"id": "bob"}, False),
                ({"id": "root"}, hasattr(plain, "allowed")),  # of 1.0
                ({"id": "kvbranch-api"}, False),
                ({}, False),
            ):
                headers = [HOST, JSON]
                if actor is not None:
                    headers.append(cookie(plain, actor))
                if method == "POST":
                    headers.append(BEARER)  # else datasette 0.65 wants a CSRF token
                answer = await send_to(
                    application, method, path, *headers, body=(b"{}",)
                )
                if is_allowed:
                    assert answer.status in ALLOWED
                else:
                    assert answer.status in (401, 403, 405)

    @pytest.mark.parametrize("action", ACTIONS)
    async def test_who_is_allowed_what(self, plain, served, action):
        "An id alone is trusted only behind the door"
        for actor, wanted, behind in (
            (None, False, False),
            ({"id": "bob"}, False, False),
            ({"id": None}, False, False),
            ({}, False, False),
            ({"id": "root"}, hasattr(plain, "allowed"), True),
            ({"id": "kvbranch-api"}, False, True),
        ):
            assert await compat.allowed(plain, actor, action) is wanted
            assert await compat.allowed(served, actor, action) is behind

    @pytest.mark.parametrize("action", ACTIONS)
    async def test_a_restriction_holds_for_our_actions(self, plain, action):
        none = [] if hasattr(plain, "allowed") else [None]  # 1.0 fails on it itself
        for restrictions in ({"a": ["vi"]}, {}, *none):
            actor = {"id": "root", "_r": restrictions}
            assert not await compat.allowed(plain, actor, action)

    async def test_a_token_of_somebody_known_is_not_called_unknown(self, plain):
        headers = (HOST, JSON, BEARER, cookie(plain, {"id": "bob"}))
        answer = await send_to(
            plain.app(), "POST", "/-/kvbranch/run", *headers, body=(b"{}",)
        )
        assert answer.status == 403

    async def test_no_token_opens_a_plain_datasette(self, plain):
        for token in ("", " ", "None", TOKEN):
            assert actor_of_token(plain, f"Bearer {token}") is None

    @pytest.mark.parametrize(
        ("sent", "fits"),
        [
            (f"Bearer {TOKEN}", True),
            (f"bearer  {TOKEN} ", True),
            (None, False),
            ("", False),
            ("Bearer", False),
            ("Bearer ", False),
            (TOKEN, False),
            (f"Basic {TOKEN}", False),
            (f"Bearer {TOKEN[:-1]}", False),
            (f"Bearer {TOKEN}x", False),
            (f"Bearer {TOKEN.upper()}", False),
            ("Bearer \xe4\xff", False),
        ],
    )
    def test_the_token(self, served, sent, fits):
        actor = actor_of_token(served, sent)
        assert actor == ({"id": "kvbranch-api"} if fits else None)


class TestDoor:
    "Fails if a stranger gets into a served log"

    EVERYWHERE = (
        *PATHS,
        *("/", "/logs", "/logs.json", "/logs/turns.json", "/logs.db", "/-/careless"),
        "/-/wrapped",
        *("/-/actor.json", "/-/patterns", "/-/auth-token?token=x", "/nowhere"),
        *("/logs.json?sql=select+1", "/-/static/app.css", "/-/plugins.json"),
    )

    NEVER = ("/logs.db", "/-/auth-token?token=x")  # datasette refuses these to all

    @pytest.fixture
    async def door(self, served):
        "A door, and behind it a plugin that checks no permissions"
        from datasette import Response, hookimpl
        from datasette.plugins import pm

        class Careless:
            __name__ = "careless"

            @hookimpl
            def asgi_wrapper(self):
                def wrap(application):
                    async def wrapped(scope, receive, send):
                        if scope["path"] != "/-/wrapped":
                            return await application(scope, receive, send)
                        return await Response.text("the diary").asgi_send(send)

                    return wrapped

                return wrap

            @hookimpl
            def register_routes(self):
                def careless():
                    return Response.text("the diary")

                return [("/-/careless$", careless)]

        from llm_kvbranch import web

        plugin = Careless()
        pm.register(plugin)
        pm.register(pm.unregister(web), name="llm_kvbranch")  # after it, the worst case
        yield served.app()
        pm.unregister(plugin)

    @pytest.mark.parametrize("path", EVERYWHERE)
    async def test_nobody_else(self, served, door, path):
        stranger = cookie(served, {"id": "bob"})
        forged = ("cookie", "ds_actor=" + served.sign({"a": {"id": "root"}}, "other"))
        for who in ((), (stranger,), (forged,), (("authorization", "Bearer x"),)):
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                answer = await send_to(door, method, path, HOST, JSON, *who)
                assert answer.status == 401
                assert b"diary" not in answer.body
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.error["code"] == "invalid_api_key"
                assert answer.error["type"] == "authentication_error"

    @pytest.mark.parametrize("path", EVERYWHERE)
    async def test_these_two_do(self, served, door, path):
        for who in (BEARER, cookie(served, {"id": "root"})):
            answer = await send_to(door, "GET", path, HOST, who)
            assert answer.status not in (401, 500)
            if path not in self.NEVER:
                assert answer.status != 403
        for careless in ("/-/careless", "/-/wrapped"):
            assert b"diary" in (await send_to(door, "GET", careless, HOST, who)).body

    @pytest.mark.parametrize("path", EVERYWHERE)
    async def test_a_restricted_token_is_not_its_owner(self, served, door, path):
        who = cookie(served, RESTRICTED)
        for method in ("GET", "POST"):
            answer = await send_to(door, method, path, HOST, JSON, who)
            assert answer.status == 401

    async def test_a_person_is_told_what_to_do(self, door):
        answer = await send_to(door, "GET", "/", HOST, ("accept", "text/html,*/*"))
        assert answer.status == 403
        assert b"Open the link that llm kvbranch serve printed" in answer.body

    async def test_guarded_before_anybody_is_asked_who_they_are(self, door):
        for who in (BEARER, ("cookie", "x=y")):
            host = ("host", "evil.test")
            answer = await send_to(door, "GET", "/logs/turns.json", host, who)
            assert answer.status == 403
            foreign = (SITE, "same-site")
            answer = await send_to(door, "POST", "/generate", HOST, JSON, who, foreign)
            assert answer.status == 403

    async def test_what_datasette_s_own_client_says_of_itself_holds(self, served, door):
        answer = await send_to(door, "GET", "/", HOST, actor={"id": "root"})
        assert answer.status == 200

    @pytest.mark.parametrize("plugins", [None, "", "llm-echo"])
    def test_there_whatever_plugins_datasette_loads(self, log, plugins):
        "DATASETTE_LOAD_PLUGINS may leave out our plugin"
        code = (
            "import sys; from pathlib import Path\n"
            "from llm_kvbranch.web.serving import launch\n"
            "launch.build(Path(sys.argv[1]))\n"
            "from datasette.plugins import pm; from llm_kvbranch import web\n"
            "print([p is web for p in pm.get_plugins()].count(True))"
        )
        more = {} if plugins is None else {"DATASETTE_LOAD_PLUGINS": plugins}
        done = subprocess.run(
            [sys.executable, "-c", code, str(log)],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "1\n"


class TestLogin:
    "Fails if a link can be guessed or used twice"

    async def test_once(self, served):
        application, door = served.app(), door_of(served)
        link = door.new_link()
        answer = await send_to(application, "GET", link, HOST)
        assert answer.status == 302
        assert answer.headers["location"] == "/-/kvbranch"
        assert "no-store" in answer.headers["cache-control"]
        given = answer.headers["set-cookie"]
        assert "HttpOnly" in given
        assert "SameSite=lax" in given
        who = ("cookie", given.partition(";")[0])
        assert (await send_to(application, "GET", "/logs", HOST, who)).status == 200
        again = await send_to(application, "GET", link, HOST)
        assert again.status == 403
        assert again.error["code"] == "login_refused"
        assert "set-cookie" not in again.headers

    async def test_looking_does_not_use_it_up(self, served):
        "Mail programs and terminals request links to preview them"
        application, link = served.app(), door_of(served).new_link()
        assert (await send_to(application, "HEAD", link, HOST)).status == 401
        wrong = await send_to(application, "GET", f"{LOGIN}?token=x", HOST)
        assert wrong.status == 403
        evil = await send_to(application, "GET", link, ("host", "evil.test"))
        assert evil.status == 403
        assert (await send_to(application, "GET", link, HOST)).status == 302

    @pytest.mark.parametrize("query", ["", "?token=", "?token=None", "?token=%ff"])
    async def test_nothing_fits_where_no_link_was_made(self, served, query):
        answer = await send_to(served.app(), "GET", LOGIN + query, HOST)
        assert answer.status == 403

    async def test_the_token_gives_another_link(self, served):
        application, door = served.app(), door_of(served)
        old = door.new_link()
        sent = ("POST", LOGIN, HOST, JSON)
        assert (await send_to(application, *sent)).status == 401
        answer = await send_to(application, *sent, BEARER)
        link = json.loads(answer.body)["path"]
        assert (await send_to(application, "GET", old, HOST)).status == 403
        assert (await send_to(application, "GET", link, HOST)).status == 302

    @pytest.mark.parametrize(
        "actor", [None, {"id": "bob"}, RESTRICTED, {"id": "kvbranch-api"}]
    )
    async def test_a_link_is_for_who_may_do_everything(self, served, actor):
        "Whoever asks, and whatever let them in"
        from datasette.utils.asgi import Request

        door = door_of(served)
        old = door.new_link()
        request = Request(scope_of("POST", LOGIN, (HOST, JSON), actor=actor), None)
        answer = await log_in(served, request)
        is_allowed = actor == {"id": "kvbranch-api"}
        assert answer.status == (200 if is_allowed else 403)
        assert bool(door.use_link(old.partition("=")[2])) is not is_allowed

    async def test_a_plain_datasette_has_no_login_of_ours(self, plain):
        application = plain.app()
        assert (await send_to(application, "GET", LOGIN, HOST)).status == 404


class TestSecret:
    "Fails if a session can be forged, or does not outlive a restart when it should"

    def test_another_one_at_every_start(self, log):
        signed = {launch.build(log)[0].sign("x") for _ in range(3)}
        assert len(signed) == 3

    def test_one_of_your_own_stays(self, log, monkeypatch):
        monkeypatch.setenv("DATASETTE_SECRET", "of my own")
        signed = {launch.build(log)[0].sign("x") for _ in range(3)}
        assert len(signed) == 1


class TestFailures:
    "Fails if an error reveals too much, or is not in OpenAI's form"

    async def test_unknown_paths_of_ours(self, served):
        answer = await send_to(served.app(), "GET", "/v1/nix", HOST, BEARER)
        assert answer.status == 404
        assert "nothing at this path" in answer.error["message"]

    async def test_an_exception_is_not_told(self, served):
        from datasette import hookimpl
        from datasette.plugins import pm

        class Failing:
            __name__ = "failing"

            @hookimpl
            def register_routes(self):
                def failing():
                    raise ValueError("the prompt was: secret")

                return [("/v1/failing$", failing)]

        plugin = Failing()
        pm.register(plugin)
        try:
            answer = await send_to(served.app(), "GET", "/v1/failing", HOST, BEARER)
        finally:
            pm.unregister(plugin)
        assert answer.status == 500
        assert answer.error["type"] == "server_error"
        assert b"secret" not in answer.body

    def test_local_variables_are_not_printed(self, served):
        "datasette prints local variables if rich is installed"
        from datasette import handle_exception

        assert handle_exception.rich is None


# -- secrets, names, ports ------------------------------------------------


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestToken:
    "Fails if the token can be read or guessed, or changes without reason"

    @pytest.fixture
    def file(self, user_path):
        return user_path / "kvbranch" / "token"

    def test_kept_for_us_alone(self, file):
        before = os.umask(0)
        try:
            token = kept_token()
        finally:
            os.umask(before)
        assert len(token) > 40
        assert kept_token() == token
        assert mode(file) == 0o600
        assert mode(file.parent) == 0o700
        assert os.listdir(file.parent) == ["token"]

    @pytest.mark.parametrize("damage", ["readable", "empty", "spaces", "binary"])
    def test_one_that_is_no_secret_or_no_token_is_replaced(self, file, damage):
        token = kept_token()
        if damage == "readable":
            file.chmod(0o640)
        else:
            text = {"empty": b"", "spaces": b"a b", "binary": b"\xff\x00"}
            file.write_bytes(text[damage])
        other = kept_token()
        assert len(other) > 40
        assert other != token
        assert kept_token() == other
        assert mode(file) == 0o600

    def test_made_once_by_many(self, file):
        with ThreadPoolExecutor(8) as pool:
            tokens = set(pool.map(lambda _: kept_token(), range(8)))
        assert kept_token() in tokens

    def test_nowhere_to_keep_it(self, user_path):
        (user_path / "kvbranch").write_text("")
        with pytest.raises(SettingError, match="Cannot keep the API token in"):
            kept_token()

    @pytest.mark.parametrize("token", ["", " ", "a b", "tok\n", "t\xf6ken", "\x7f"])
    def test_what_no_header_can_carry_is_refused(self, token):
        with pytest.raises(SettingError, match="without spaces"):
            check_token(token)

    def test_a_given_one_is_not_kept(self, file):
        assert launch._token(launch.ServeOptions(token="given")) == "given"
        assert not file.exists()

    def test_others_in_the_network_could_guess_a_short_one(self):
        wanted = {"host": "0.0.0.0", "allow_hosts": ("box",)}
        with pytest.raises(SettingError, match="at least 16 characters"):
            launch._token(launch.ServeOptions(token="short", **wanted))
        assert launch._token(launch.ServeOptions(token="x" * 16, **wanted))


class TestAddress:
    "Fails if other machines are let in by default, or a taken port is not explained"

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
    def test_loopback_needs_no_names(self, host):
        assert listening.allowed_names(host) == guard.LOOPBACK | {host}

    @pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
    def test_others_need_a_name(self, host):
        with pytest.raises(SettingError, match="--allow-host NAME") as caught:
            listening.allowed_names(host)
        assert "\n" not in str(caught.value)
        hosts = listening.allowed_names(host, ("Box",))
        assert {"box", "localhost"} <= hosts
        assert "0.0.0.0" not in hosts

    def test_no_address_of_this_machine(self):
        with pytest.raises(SettingError, match="not an address of this machine"):
            listening.allowed_names("nowhere.invalid")
        with pytest.raises(SettingError, match="Cannot listen on 192"):
            listening.listen("192.0.2.7", None)

    def test_a_port_in_use(self):
        with listening.listen("127.0.0.1", 0) as first:
            port = first.getsockname()[1]
            with pytest.raises(SettingError, match=f"Port {port} of 127.0.0.1 is not"):
                listening.listen("127.0.0.1", port)

    def test_without_a_port_any_will_do(self, monkeypatch):
        with listening.listen("127.0.0.1", 0) as first:
            monkeypatch.setattr(listening, "PORT", first.getsockname()[1])
            with listening.listen("127.0.0.1", None) as second:
                assert second.getsockname()[1] != first.getsockname()[1]

    @pytest.fixture
    def usual(self, monkeypatch):
        "The usual port, which another program has"
        with listening.listen("127.0.0.1", 0) as taken:
            monkeypatch.setattr(listening, "PORT", taken.getsockname()[1])
            yield taken.getsockname()[1]

    def test_the_usual_port_taken_by_another_user(self, usual, monkeypatch):
        "Clients of yesterday send prompts and the kept key there"
        token = kept_token()
        nobody = os.getuid() + 1
        monkeypatch.setattr(listening, "_listener", lambda port: nobody)
        other, said = launch._elsewhere(launch.ServeOptions(), 1, token)
        assert f"Port {usual} belongs to another user" in said
        assert "new key" in said
        assert other != token
        assert kept_token() == other
        given = launch.ServeOptions(token="given-by-the-user")
        other, said = launch._elsewhere(given, 1, given.token)
        assert other == given.token
        assert "choose another" in said
        assert "\n" not in said

    def test_the_usual_port_taken_by_a_program_of_ours(self, usual):
        "It could read the key anyway"
        token = kept_token()
        assert listening._listener(usual) in (os.getuid(), None)
        found = launch._elsewhere(launch.ServeOptions(), 1, token)
        assert found[0] == kept_token() == token
        assert f"Port {usual} is in use" in found[1]

    def test_a_port_that_was_asked_for_is_not_remarked_on(self, usual):
        token = kept_token()
        for options, port in (
            (launch.ServeOptions(), usual),
            (launch.ServeOptions(port=0), 1),
            (launch.ServeOptions(port=9), 9),
        ):
            assert launch._elsewhere(options, port, token) == (token, "")

    def test_a_client_that_comes_early_waits(self):
        with listening.listen("127.0.0.1", 0) as first:
            socket.create_connection(first.getsockname(), 1).close()

    @pytest.mark.parametrize(
        ("wanted", "local", "public"),
        [
            ({}, "127.0.0.1", "127.0.0.1"),
            ({"host": "::1"}, "[::1]", "[::1]"),
            ({"host": "0.0.0.0", "allow_hosts": ("box",)}, "127.0.0.1", "box"),
            ({"host": "::", "allow_hosts": ("fe80::1",)}, "[::1]", "[fe80::1]"),
            ({"host": "192.0.2.7", "allow_hosts": ("b",)}, "192.0.2.7", "b"),
        ],
    )
    def test_what_it_is_called(self, wanted, local, public):
        wanted = {"host": "127.0.0.1", **wanted}
        assert listening.local_name(wanted["host"]) == local
        assert listening.public_name(**wanted) == public


def test_datasette_commands_do_not_pay_for_it():
    "Every datasette command imports the plugin"
    code = (
        "import sys\n"
        "sys._called_from_test = True  # datasette then loads no installed plugin\n"
        "from datasette.app import Datasette; before = set(sys.modules)\n"
        "import llm_kvbranch.web\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['llm_kvbranch', 'llm_kvbranch.web']"
