"""The page's addresses on a real server: who may change what."""

from __future__ import annotations

import json
import re
import threading

import pytest

from ..support.homes import Homes
from ..support.servers import ENDLESS, Server, until, user

pytestmark = pytest.mark.model

MARK, PRUNE = "/-/kvbranch/mark", "/-/kvbranch/prune"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("home"), "--slots", "3") as server:
        yield server
        server.end()


@pytest.fixture(scope="module")
def cookie(server):
    "The response to the printed link"
    path = server.login.removeprefix(server.url)
    status, headers, _ = server.ask("GET", path, token=False)
    assert status == 302
    assert headers["Location"] == "/-/kvbranch"
    return headers["set-cookie"].partition(";")[0]


@pytest.fixture
def talk(server):
    "A conversation of its own: the first response, and a way to continue it"
    number = server.count()
    first = server.chat(f"Name the number {number}.", max_tokens=8).id

    def go_on(verb, id, **more):
        body = {"max_tokens": 6, "temperature": 0}
        return server.post(verb, {**body, "message_id": id, **more}).id

    return first, go_on


def page(server, path, cookie):
    status, headers, text = server.ask("GET", path, token=False, cookie=cookie)
    assert status == 200
    config = re.search(r'<script id="config"[^>]*>(.*?)</script>', text).group(1)
    return json.loads(config), headers, text


def tree(server, id):
    nodes = server.get(f"/-/kvbranch/tree.json?id={id}").json["nodes"]
    return {node["id"]: node for node in nodes}


class TestPage:
    "Fails if a logged-in user cannot use what the page offers"

    def test_its_settings(self, server, cookie, talk):
        first, _ = talk
        config, headers, _ = page(server, f"/-/kvbranch/{first}", cookie)
        assert (config["live"], config["may_write"]) == (True, True)
        assert "SmolLM2" in config["model"]
        assert config["model_id"] == "kvllama"
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "no-store" in headers["cache-control"]

    def test_what_it_sends_is_taken(self, server, cookie, talk):
        "A POST with the cookie, and the CSRF token that datasette 0.65 wants"
        first, _ = talk
        config, headers, _ = page(server, f"/-/kvbranch/{first}", cookie)
        cookies = [cookie]
        if "set-cookie" in headers:
            cookies.append(headers["set-cookie"].partition(";")[0])
        sent = {
            "cookie": "; ".join(cookies),
            "x_csrftoken": config["csrf"] or "",
            "sec_fetch_site": "same-origin",
            "origin": server.url,
        }
        body = {"id": first, "starred": True}
        status, _, text = server.ask(
            "POST", config["urls"]["mark"], body, token=False, **sent
        )
        assert (status, json.loads(text)["starred"]) == (200, True)
        for more in ({"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}):
            status, _, _ = server.ask(
                "POST", config["urls"]["mark"], body, token=False, **{**sent, **more}
            )
            assert status == 403

    def test_nobody_else(self, server):
        for path in (
            "/-/kvbranch",
            "/-/kvbranch/last",
            "/-/kvbranch/tree.json?id=last",
        ):
            assert server.ask("GET", path, token=False)[0] == 401
        for path in (MARK, PRUNE):
            assert server.ask("POST", path, {"id": "last"}, token=False)[0] == 401

    def test_static_files(self, server, cookie, talk):
        _, _, text = page(server, f"/-/kvbranch/{talk[0]}", cookie)
        named = set(re.findall(r'(?:src|href)="(/-/kvbranch/static/[^"]*)"', text))
        assert named
        for path in named:
            assert server.ask("GET", path, token=False, cookie=cookie)[0] == 200, path

    def test_state_is_told(self, server, talk):
        first, go_on = talk
        second = go_on("/continue", first, prompt="And the next?")
        nodes = tree(server, first)
        assert nodes[second]["state"] == nodes[first]["state"] == "hot"
        assert nodes[second]["slot"] == nodes[first]["slot"] is not None
        assert nodes[second]["nbytes"] > 1000
        turns = server.get(f"/-/kvbranch/path.json?id={second}").json["turns"]
        assert [turn["state"] for turn in turns] == ["hot", "hot"]
        assert turns[1]["facts"]["restored_tokens"] > 0
        for i in range(3):  # other conversations take the slots
            server.chat(f"Something else {i} {first}", max_tokens=4)
        assert {node["state"] for node in tree(server, first).values()} == {"disk"}


class TestMark:
    "Fails if a star or a note is lost or wrong"

    def test_what_is_left_out_stays(self, server, talk):
        first, _ = talk
        for body, starred, note in (
            ({"starred": True}, True, None),
            ({"note": "good\n<b>"}, True, "good\n<b>"),
            ({"starred": False}, False, "good\n<b>"),
            ({}, False, "good\n<b>"),
            ({"note": None, "starred": True}, True, None),
            ({"note": "  "}, True, None),
        ):
            told = server.post(MARK, {"id": first[:16], **body}).json
            assert told == {"id": first, "starred": starred, "note": note}
            node = tree(server, first)[first]
            assert (node["starred"], node["note"]) == (starred, note)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"id": "nix"}, 404),
            ({"id": ""}, 404),
            ({}, 400),
            ({"id": "last", "starred": "perhaps"}, 400),
            ({"id": "last", "note": "x" * 2001}, 400),
            ({"id": "last", "note": 5}, 400),
            ([], 400),
            (b'{"id": "last", "note": "\\ud800"}', 400),
        ],
    )
    def test_what_makes_no_sense(self, server, talk, body, status):
        reply = server.post(MARK, body)
        assert (reply.status, bool(reply.error["message"])) == (status, True)

    def test_in_the_terminal(self, server, talk, monkeypatch):
        first, _ = talk
        llm = Homes(server.home.parent)
        llm("llm", "kvbranch", "star", first)
        llm("llm", "kvbranch", "note", first, "from the terminal")
        node = tree(server, first)[first]
        assert (node["starred"], node["note"]) == (True, "from the terminal")
        server.post(MARK, {"id": first, "note": "from the page"})
        assert llm("llm", "kvbranch", "note", first) == "from the page\n"
        assert "★" in llm("llm", "kvbranch", "tree", first)
        assert "from the page" in llm("llm", "kvbranch", "tree", first)
        llm("llm", "kvbranch", "star", first, "--remove")
        llm("llm", "kvbranch", "note", first, "--remove")
        assert llm("llm", "kvbranch", "note", first) == f"{first} has no note\n"
        node = tree(server, first)[first]
        assert (node["starred"], node["note"]) == (False, None)


class TestPrune:
    "Fails if pruning deletes more than it said, or what a running answer needs"

    def test_what_is_said_is_done(self, server, talk):
        first, go_on = talk
        second = go_on("/continue", first, prompt="And the next?")
        third = go_on("/continue", second, prompt="And then?")
        other = go_on("/retry", second)
        body = {"id": second, "what": "state", "dry_run": True}
        told = server.post(PRUNE, body).json
        assert told["responses"] == 2
        assert told["states"] + len(told["kept"]) >= 1
        before = tree(server, first)
        assert set(before) == {first, second, third, other}
        done = server.post(PRUNE, {**body, "dry_run": False}).json
        assert done == told
        after = tree(server, first)
        assert set(after) == set(before)
        freed = sum(before[id]["nbytes"] - (after[id]["nbytes"] or 0) for id in before)
        assert freed == told["nbytes"]
        server.post(
            "/continue", {"message_id": third, "prompt": "Go on", "max_tokens": 4}
        )

    def test_from_the_log(self, server, talk):
        first, go_on = talk
        second = go_on("/continue", first, prompt="And the next?")
        third = go_on("/continue", second, prompt="And then?")
        again = go_on("/retry", second)
        server.post(MARK, {"id": third, "starred": True})
        turns = server.count()
        told = server.post(PRUNE, {"id": second, "what": "log", "dry_run": True}).json
        assert (told["responses"], server.count()) == (2, turns)
        told = server.post(PRUNE, {"id": second, "what": "log"}).json
        assert told["responses"] == 2
        assert server.count() == turns - 2
        nodes = tree(server, first)
        assert set(nodes) == {first, again}
        assert nodes[again]["parent"] == first
        assert server.get(f"/-/kvbranch/tree.json?id={third}").status == 404
        assert server.post(PRUNE, {"id": third, "what": "log"}).status == 404
        assert go_on("/continue", again, prompt="And now?")

    @pytest.mark.parametrize("what", ["state", "log"])
    @pytest.mark.parametrize("verb", ["continue", "chat", "fresh"])
    def test_not_while_an_answer_goes_on_from_it(self, server, talk, what, verb):
        first, go_on = talk
        second = go_on("/continue", first, prompt="And the next?")
        said = server.get(f"/-/kvbranch/path.json?id={first}").json["turns"][0]
        path, body = {
            "continue": ("/continue", {"message_id": second, "prompt": ENDLESS}),
            "fresh": (
                "/v1/chat/branch",
                {"parent_id": second, "prompt": ENDLESS, "branch_mode": "fresh"},
            ),
            "chat": (
                "/v1/chat/completions",
                {
                    "messages": [
                        user(said["prompt"]),
                        {"role": "assistant", "content": said["text"]},
                        user(ENDLESS),
                    ]
                },
            ),
        }[verb]
        body |= {"stream": True, "max_tokens": 1500, "temperature": 0}
        with server.opened("POST", path, body) as response:
            response.readline()
            for dry_run in (True, False):
                asked = {"id": first, "what": what, "dry_run": dry_run}
                reply = server.post(PRUNE, asked)
                assert reply.status == 409, reply.body
                assert "running answer" in reply.error["message"]
        server.until_idle()
        until(
            lambda: server.post(PRUNE, {"id": first, "what": what}).status == 200,
            "pruned",
            20,
        )

    def test_many_at_once(self, server, talk):
        "Reading, marking and pruning, all at the same time"
        first, go_on = talk
        ids = [go_on("/continue", first, prompt=f"Number {i}?") for i in range(4)]
        statuses = []

        def ask(i):
            for _ in range(5):
                statuses.append(server.get(f"/-/kvbranch/tree.json?id={first}").status)
                body = {"id": ids[i], "starred": True}
                statuses.append(server.post(MARK, body).status)
            body = {"id": ids[i], "what": "log"}
            statuses.append(server.post(PRUNE, body).status)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert set(tree(server, first)) == {first}

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"id": "nix", "what": "log"}, 404),
            ({"id": "last"}, 400),
            ({"id": "last", "what": "everything"}, 400),
            ({"what": "log"}, 400),
            ({"id": "last", "what": "log", "dry_run": "perhaps"}, 400),
        ],
    )
    def test_what_makes_no_sense(self, server, talk, body, status):
        before = server.count()
        assert server.post(PRUNE, body).status == status
        assert server.count() == before


def test_without_a_store(tmp_path):
    "Nothing to delete, and no error"
    with Server(tmp_path, LLM_KVBRANCH_BUDGET="0") as server:
        id = server.chat("Hi", max_tokens=4).id
        told = server.post(PRUNE, {"id": id, "what": "state"}).json
        assert (told["responses"], told["states"], told["nbytes"]) == (1, 0, 0)
        assert tree(server, id)[id]["nbytes"] is None
        assert server.post(PRUNE, {"id": id, "what": "log"}).status == 200
        assert server.count() == 0
        server.end()
