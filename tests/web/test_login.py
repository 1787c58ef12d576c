"""Logging in and staying logged in: sessions, the login page, and how they end.

Runs on datasette 0.65 and on 1.0, whichever is installed. test_browser_login.py does
the same with a real browser.
"""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
from urllib.parse import urlencode

import pytest

from llm_kvbranch.errors import SettingError
from llm_kvbranch.web.door import (
    LOGIN,
    Door,
    Sessions,
    close_door,
    door,
    door_of,
    guard,
    kept_token,
    new_session,
    new_token,
    session_secret,
    sessions,
)
from llm_kvbranch.web.page.login import log_in
from llm_kvbranch.web.serving import launch

from ..support.asgi import BEARER, HOST, JSON, TOKEN, cookie, scope_of, send_to

PAGE = ("accept", "text/html,*/*")
FORM = ("content-type", "application/x-www-form-urlencoded")
ROOT = new_session({})


def sent_back(header):
    "What a browser sends after a Set-Cookie header"
    return ("cookie", header.partition(";")[0])


def form(**fields):
    return (urlencode(fields).encode(),)


@pytest.fixture
def no_delay(monkeypatch):
    "Wrong keys are answered at once"
    monkeypatch.setattr(door, "_DELAY", 0)


class TestCookie:
    "Fails if a session is taken for another, or lost where it should be kept"

    def test_named_by_the_port(self):
        for port in (8177, 8178):
            header = Sessions("secret", TOKEN, port).header(new_session({}))
            assert header.startswith(f"kvbranch_{port}=")
            assert "; Path=/; Max-Age=259" in header  # 30 days less a moment
            assert header.endswith("; HttpOnly; SameSite=lax")

    @pytest.mark.parametrize(
        "other", [("other", TOKEN, 8177), ("secret", "x", 8177), ("secret", TOKEN, 1)]
    )
    def test_of_one_secret_one_token_one_port(self, other):
        ours, theirs = Sessions("secret", TOKEN, 8177), Sessions(*other)
        _, value = sent_back(theirs.header(ROOT))
        forged = f"{ours.cookie}={value.partition('=')[2]}"
        assert theirs.find(value) is not None
        assert ours.find(value) is None
        assert ours.find(forged) is None

    @pytest.mark.parametrize(
        "more",
        [
            "kvbranch_8177=x; {}",
            "{}; kvbranch_8177=x",
            "{}; kvbranch_8177=",
            'a=b c; {}; d="; e f',
            "@;=;{}",
            "{0}; ds_actor=x",
        ],
    )
    def test_whatever_other_programs_set(self, more):
        "All programs of 127.0.0.1 share its cookies"
        ours = Sessions("secret", TOKEN, 8177)
        _, value = sent_back(ours.header(ROOT))
        assert ours.find(more.format(value)) is not None
        assert ours.find(more.format("a=b")) is None

    def test_it_ends(self):
        ours = Sessions("secret", TOKEN, 8177)
        soon = sessions.Session({"id": "root"}, time.time() + 0.2)
        _, value = sent_back(ours.header(soon))
        assert ours.find(value) is not None
        time.sleep(0.25)
        assert ours.find(value) is None

    def test_the_secret_is_kept_for_us_alone(self, user_path):
        secret, path = session_secret(), user_path / "kvbranch" / "session-secret"
        assert len(secret) > 40
        assert session_secret() == secret
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        assert session_secret() != secret


@pytest.fixture
def at_8177(served):
    "The app of a served datasette, and its sessions"
    ours = Sessions("secret", TOKEN, 8177)
    close_door(served, Door(TOKEN, sessions=ours))
    return served.app(), ours


class TestSession:
    "Fails if somebody is logged out who should not be, or stays logged in"

    async def test_over_a_restart(self, log, at_8177):
        "The secret and the token stay, all else is new"
        who = sent_back(at_8177[1].header(ROOT))
        for token, secret, port, status in (
            (TOKEN, "secret", 8177, 200),
            ("a-new-one", "secret", 8177, 401),
            (TOKEN, "a-new-one", 8177, 401),
            (TOKEN, "secret", 8178, 401),
        ):
            datasette, _ = launch.build(log)
            close_door(datasette, Door(token, sessions=Sessions(secret, token, port)))
            await datasette.invoke_startup()
            application = datasette.app()
            answer = await send_to(application, "GET", "/logs.json", HOST, who)
            assert answer.status == status

    async def test_another_login_of_this_machine_does_not_hide_it(
        self, served, at_8177
    ):
        application, ours = at_8177
        _, value = sent_back(ours.header(ROOT))
        for other in ("ds_actor=x", cookie(served, {"id": "bob"})[1], "kvbranch_1=x"):
            for both in (f"{other}; {value}", f"{value}; {other}"):
                who = ("cookie", both)
                answer = await send_to(application, "GET", "/logs", HOST, who)
                assert answer.status == 200

    async def test_it_opens_no_other_datasette(self, plain, at_8177):
        who = sent_back(at_8177[1].header(ROOT))
        answer = await send_to(plain.app(), "GET", "/-/actor.json", HOST, who)
        assert json.loads(answer.body)["actor"] is None

    async def test_our_link_sets_no_cookie_of_datasette_s(self, served, at_8177):
        link = door_of(served).new_link()
        answer = await send_to(at_8177[0], "GET", link, HOST)
        assert answer.headers["set-cookie"].startswith("kvbranch_8177=")
        who = sent_back(answer.headers["set-cookie"])
        answer = await send_to(at_8177[0], "GET", "/-/actor.json", HOST, who)
        assert json.loads(answer.body)["actor"] == {"id": "root"}

    async def test_logging_out_ends_it(self, at_8177):
        "By datasette's own form, which its pages and ours show"
        application, ours = at_8177
        who = sent_back(ours.header(ROOT))
        for path in ("/", "/-/kvbranch"):
            page = await send_to(application, "GET", path, HOST, who, PAGE)
            assert b'action="/-/logout"' in page.body
            assert b"Log out</button>" in page.body
            fields = dict(
                re.findall(r'name="(csrftoken)" value="([^"]+)"', page.body.decode())
            )
            more = page.headers.get("set-cookie", "").partition(";")[0]
            both = ("cookie", f"{who[1]}; {more}")
            answer = await send_to(
                *(application, "POST", "/-/logout", HOST, both, FORM),
                body=form(**fields),
            )
            assert answer.status == 302
            ended = answer.headers["set-cookie"]  # the last one
            assert ended.startswith("kvbranch_8177=;")
            assert "Max-Age=0" in ended

    async def test_only_logging_out_ends_it(self, at_8177):
        application, ours = at_8177
        who = sent_back(ours.header(ROOT))
        for method, path, *more in (
            ("GET", "/-/logout"),
            ("GET", "/"),
            ("POST", "/-/logout", ("sec-fetch-site", "cross-site")),
        ):
            answer = await send_to(application, method, path, HOST, who, FORM, *more)
            assert "kvbranch_8177" not in answer.headers.get("set-cookie", "")

    async def test_the_key_shows_no_way_out(self, at_8177):
        page = await send_to(at_8177[0], "GET", "/-/kvbranch", HOST, BEARER, PAGE)
        assert page.status == 200
        assert b"Log out" not in page.body


class TestTokens:
    "Fails if a session outlives the token that began it, or prolongs itself"

    async def test_a_session_ends_with_its_token(self, served):
        if not hasattr(served, "create_token"):
            pytest.skip("datasette 0.65 has no tokens of its own")
        application = served.app()
        token = await served.create_token("root", expires_after=60)
        bearer = ("authorization", f"Bearer {token}")
        answer = await send_to(application, "POST", LOGIN, HOST, JSON, bearer)
        link = json.loads(answer.body)["path"]
        answer = await send_to(application, "GET", link, HOST)
        (seconds,) = re.findall(r"Max-Age=(\d+)", answer.headers["set-cookie"])
        assert int(seconds) <= 60
        who = sent_back(answer.headers["set-cookie"])
        session = door_of(served).sessions.find(who[1])
        assert session.ends <= time.time() + 60
        page = await send_to(application, "GET", "/-/create-token", HOST, who)
        assert page.status == 403

    @pytest.mark.parametrize(
        ("actor", "seconds"),
        [
            ({"id": "kvbranch-api"}, sessions.LIFETIME),
            ({"id": "root", "token": "dstok"}, sessions.LIFETIME),
            ({"id": "root", "token": "dstok", "token_expires": 100}, 100),
            ({"id": "root", "token": "dstok", "token_expires": 10**9}, None),
        ],
    )
    def test_how_long(self, actor, seconds):
        now = time.time()
        if seconds and "token_expires" in actor:
            actor = {**actor, "token_expires": now + actor["token_expires"]}
        elif "token_expires" in actor:
            actor = {**actor, "token_expires": now + 10**9}
        session = new_session(actor)
        assert session.ends == pytest.approx(now + (seconds or sessions.LIFETIME), 1e-6)
        assert session.actor.get("token") == actor.get("token")
        assert session.actor["id"] == "root"

    def test_a_link_ends_with_its_token_too(self, served):
        late = {"id": "root", "token": "dstok", "token_expires": time.time() - 1}
        link = door_of(served).new_link(new_session(late))
        assert door_of(served).use_link(link.partition("=")[2]) is None

    @pytest.mark.parametrize(
        ("actor", "status"),
        [
            ({"id": "root"}, 403),
            ({"id": "root", "token": "dstok"}, 200),
            ({"id": "bob", "token": "dstok"}, 403),
            ({"id": "root", "token": "dstok", "_r": {}}, 403),
        ],
    )
    async def test_a_session_cannot_prolong_itself(self, served, actor, status):
        from datasette.utils.asgi import Request

        request = Request(scope_of("POST", LOGIN, (HOST, JSON), actor=actor), None)
        assert (await log_in(served, request)).status == status

    def test_a_new_token_only_when_no_server_has_the_old_one(self, monkeypatch):
        old = kept_token()
        options = launch.ServeOptions(new_token=True)
        with monkeypatch.context() as patched:
            running = type("Remote", (), {"port": 8177})
            patched.setattr(launch, "find_any", lambda token: token == old and running)
            with pytest.raises(SettingError, match="8177 uses the old token: stop it"):
                launch._token(options)
        assert kept_token() == old
        new = launch._token(options)
        assert new != old
        assert kept_token() == new
        with pytest.raises(SettingError, match="leave out --token"):
            launch._token(launch.ServeOptions(token="given", new_token=True))

    def test_it_ends_sessions(self):
        old = Sessions(session_secret(), kept_token(), 8177)
        _, value = sent_back(old.header(ROOT))
        new_token()
        assert Sessions(session_secret(), kept_token(), 8177).find(value) is None


@pytest.mark.usefixtures("no_delay")
class TestForm:
    "Fails if the key does not log in, or something else does"

    async def test_a_stranger_gets_it(self, served):
        application = served.app()
        for path in ("/", "/-/kvbranch/last?x=1&y=%22", "/nowhere", "/v1/models"):
            page = await send_to(application, "GET", path, HOST, PAGE)
            assert page.status == 403
            text = page.body.decode()
            assert 'type="password" name="key"' in text
            assert path.replace("&", "&amp;") in text
            assert page.headers["cache-control"] == "no-store"
            assert "form-action 'self'" in page.headers["content-security-policy"]
            assert page.headers["x-frame-options"] == "DENY"

    async def test_what_it_needs_is_there_and_nothing_else(self, served):
        application = served.app()
        page = await send_to(application, "GET", "/", HOST, PAGE)
        files = re.findall(r'(?:href|src)="(/-/kvbranch/static/[^"]+)"', str(page.body))
        (style,) = {each for each in files if each.endswith("login.css")}
        for file in (*files, style.replace("login.css", "css/base.css")):
            assert (await send_to(application, "GET", file, HOST)).status == 200
        for other in ("tree.js", "core/api.js", "../../slots", "login.css/x", ""):
            path = style.replace("login.css", other)
            assert (await send_to(application, "GET", path, HOST)).status == 401
        assert (await send_to(application, "POST", style, HOST, JSON)).status == 401

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ("/-/kvbranch/last?x=1", "/-/kvbranch/last?x=1"),
            ("/", "/"),
            (None, "/-/kvbranch"),
            ("", "/-/kvbranch"),
            (LOGIN, "/-/kvbranch"),
            (f"{LOGIN}?token=x", "/-/kvbranch"),
            ("//evil.test", "/-/kvbranch"),
            ("/\\evil.test", "/-/kvbranch"),
            ("http://evil.test", "/-/kvbranch"),
            ("javascript:1", "/-/kvbranch"),
            ("/a\r\nset-cookie: x=y", "/-/kvbranch"),
            ("/" + "x" * 9000, "/-/kvbranch"),
        ],
    )
    async def test_the_key_logs_in(self, served, wanted, found):
        fields = {"key": TOKEN} if wanted is None else {"key": TOKEN, "next": wanted}
        answer = await send_to(
            served.app(), "POST", LOGIN, HOST, FORM, body=form(**fields)
        )
        assert answer.status == 303
        assert answer.headers["location"] == found
        assert "no-store" in answer.headers["cache-control"]
        who = sent_back(answer.headers["set-cookie"])
        assert (await send_to(served.app(), "GET", "/logs", HOST, who)).status == 200

    async def test_cookies_of_other_programs_do_not_matter(self, served):
        "datasette 0.65 wants a token of its own where there are any"
        other = ("cookie", "x=y; ds_csrftoken=z")
        answer = await send_to(
            *(served.app(), "POST", LOGIN, HOST, FORM, other), body=form(key=TOKEN)
        )
        assert answer.status == 303

    @pytest.mark.parametrize("key", ["", "x", TOKEN[:-1], TOKEN + "x", "\xfc"])
    async def test_a_wrong_one_is_told_so(self, served, key):
        given = form(key=key, next='/a"><b')
        answer = await send_to(served.app(), "POST", LOGIN, HOST, FORM, body=given)
        assert answer.status == 403
        assert "set-cookie" not in answer.headers
        assert "That is not the key of this server." in answer.body.decode()
        assert b"<b" not in answer.body.replace(b"<body", b"").replace(b"<butt", b"")

    @pytest.mark.parametrize(
        "headers",
        [
            (("sec-fetch-site", "cross-site"),),
            (("sec-fetch-site", "same-site"),),
            (("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")),
            (("origin", "http://evil.test"),),
            (("origin", "null"),),
        ],
    )
    async def test_another_site_cannot_send_it(self, served, headers):
        answer = await send_to(
            *(served.app(), "POST", LOGIN, HOST, FORM, *headers), body=form(key=TOKEN)
        )
        assert answer.status == 403
        assert answer.error["code"] == "cross_site_request"

    async def test_only_there_and_only_as_a_form(self, served):
        application, body = served.app(), form(key=TOKEN)
        for path, kind, status in (
            ("/generate", FORM[1], 415),
            ("/logs", FORM[1], 401),
            (LOGIN + "/", FORM[1], 415),
            (LOGIN.replace("login", "%6Cogin"), FORM[1], 415),
            (LOGIN, "text/plain", 415),
            (LOGIN, "multipart/form-data; boundary=x", 415),
            (LOGIN, JSON[1], 401),
        ):
            answer = await send_to(
                application, "POST", path, HOST, ("content-type", kind), body=body
            )
            assert answer.status == status, path
        for method in ("PUT", "HEAD", "DELETE"):
            answer = await send_to(application, method, LOGIN, HOST, FORM)
            assert answer.status in (401, 415)

    async def test_no_key_in_an_address(self, served):
        for name in ("key", "token"):
            path = f"{LOGIN}?{name}={TOKEN}"
            assert (await send_to(served.app(), "GET", path, HOST)).status == 403

    async def test_a_used_link_leads_who_is_logged_in_to_the_page(self, served):
        application, link = served.app(), door_of(served).new_link()
        first = await send_to(application, "GET", link, HOST)
        who = sent_back(first.headers["set-cookie"])
        again = await send_to(application, "GET", link, HOST, who)
        assert (again.status, again.headers["location"]) == (302, "/-/kvbranch")
        page = await send_to(application, "GET", link, HOST, PAGE)
        assert page.status == 403
        assert b"This link has been used" in page.body
        assert b'name="key"' in page.body

    async def test_a_plain_datasette_has_none(self, plain):
        answer = await send_to(plain.app(), "POST", LOGIN, HOST, JSON, body=(b"{}",))
        assert answer.status == 404
        answer = await send_to(
            plain.app(), "POST", LOGIN, HOST, FORM, body=form(key="x")
        )
        assert answer.status == 415


class TestTries:
    "Fails if keys can be tried fast, or a stranger's body is kept or waited for"

    async def test_a_wrong_key_takes_a_second_the_right_one_none(self, served):
        started = time.monotonic()
        assert not await door_of(served).is_key("x")
        assert time.monotonic() - started > 0.9
        started = time.monotonic()
        assert await door_of(served).is_key(TOKEN)
        assert time.monotonic() - started < 0.5

    async def test_only_some_at_once(self, served):
        application = served.app()
        await send_to(application, "GET", "/", HOST)

        async def attempt(key):
            sent = (application, "POST", LOGIN, HOST, FORM)
            return (await send_to(*sent, body=form(key=key))).status

        wrong = [asyncio.create_task(attempt("x")) for _ in range(15)]
        await asyncio.sleep(0.3)
        assert await attempt(TOKEN) == 429
        found = sorted(await asyncio.gather(*wrong))
        assert found == [403] * 10 + [429] * 5
        assert await attempt(TOKEN) == 303

    async def test_a_long_form_is_not_kept(self, served):
        body = (b"key=" + b"x" * guard.MAX_FORM,)
        answer = await send_to(served.app(), "POST", LOGIN, HOST, FORM, body=body)
        assert answer.status == 413

    async def test_a_slow_form_is_not_waited_for(self, served, monkeypatch):
        monkeypatch.setattr(guard, "FORM_SECONDS", 0.2)
        sent = []

        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = scope_of("POST", LOGIN, (HOST, FORM))
        await asyncio.wait_for(served.app()(scope, receive, send), 2)
        assert sent[0]["status"] == 408
