"""The pages in a plain datasette, without a model: read only, in a real Chromium.

Nothing on them asks, marks or prunes. Whatever people typed or a model generated is
shown as text.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from llm_kvbranch.log.marks import mark

from ..support.browser import CHROMIUM, PHONE, Tab, accessible, overlaps
from ..support.logged import HOSTILE, Log
from ..support.serving import environment

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
LARGE = 2000


def write(path):
    "Write some conversations; the ids of their responses by name"
    log = Log(path)
    ids = {}
    ids["root"] = log.begin("Why is the sky blue?", "Light is **scattered** by air.")
    ids["next"] = log.go_on(ids["root"], "And at sunset?", "Then it is red.")
    ids["branch"] = log.branch(ids["root"], 9, 22, "By what law?", "By Rayleigh's law.")
    ids["focus"] = log.focus(ids["root"], 26, 29, "What is it?", "Mostly nitrogen.")
    ids["fresh"] = log.fresh(ids["root"], 9, 22, "What is that?", "A change of way.")
    ids["retry"] = log.retry(ids["next"], "Red, as the way is longer.")
    ids["end"] = log.go_on(ids["next"], "Why?", "The way is **longer** then.")
    mark(log.history, ids["next"], True, "worth a note")
    ids["other"] = log.begin("Another one", "About something else, such as whales.")
    ids["hostile"] = log.begin(*2 * [HOSTILE["script"]])
    for name, text in HOSTILE.items():
        n = min(20, len(text))
        first = log.go_on(ids["hostile"], text, text)
        ids[name] = log.focus(first, 0, n, text, text)
        log.branch(ids[name], 0, n, text, text)
        mark(log.history, ids[name], True, text[:2000].replace("\0", ""))
    log.close()
    return ids


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "logs.db"
    return path, write(path)


@pytest.fixture(scope="module")
def ids(log):
    return log[1]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(log, tmp_path_factory):
    "The address of a plain datasette that serves the log"
    home, port = tmp_path_factory.mktemp("home"), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", str(log[0]), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment(home), "DATASETTE_LOAD_PLUGINS": "llm-kvbranch"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/-/versions.json").close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def window(browser, url):
    tab = Tab(browser, url)
    yield tab
    tab.close()


def page_of(id):
    return f"/-/kvbranch/{id}"


# -- the tree page -----------------------------------------------------------


def test_a_conversation_is_read(tab, ids):
    tab.open(page_of(ids["end"]))
    questions = tab.page.locator(".turn .question").all_inner_texts()
    assert questions == ["Why is the sky blue?", "And at sunset?", "Why?"]
    assert tab.turn(ids["root"]).locator("strong").inner_text() == "scattered"
    assert tab.turn(ids["next"]).locator(".note").inner_text() == "worth a note"
    cards = tab.page.locator(".card .card-prompt").all_inner_texts()
    assert len(cards) == 7
    assert tab.page.locator(".card.is-selected .card-prompt").inner_text() == "Why?"


def test_excerpts_are_marked_and_lead_to_their_branches(tab, ids):
    tab.open(page_of(ids["root"]))
    turn = tab.turn(ids["root"])
    assert turn.locator("mark").all_inner_texts() == ["scattered", "air"]
    assert turn.locator(".leaf").count() == 3
    turn.locator(f'.leaf[data-select="{ids["focus"]}"]').click()
    tab.until("id => kvbranch.state.selected === id", ids["focus"])
    assert tab.page.url.endswith(ids["focus"])
    assert tab.turn(ids["focus"]).locator(".quoted").inner_text() == "air"


def test_what_a_branch_cut_off_is_pale(tab, ids):
    tab.open(page_of(ids["branch"]))
    root = tab.turn(ids["root"])
    assert root.locator(".is-cut").first.inner_text().strip() == "by"
    assert root.locator(".cut-note").is_visible()
    tab.open(page_of(ids["end"]))
    assert tab.turn(ids["root"]).locator(".cut-note").count() == 0


def test_a_fresh_branch_says_that_it_begins_anew(tab, ids):
    tab.open(page_of(ids["fresh"]))
    assert tab.turn(ids["fresh"]).locator(".anew").is_visible()
    assert tab.page.locator(".card.is-selected .reached").inner_text() == "fresh"


def test_nothing_is_live(tab, ids):
    tab.open(page_of(ids["root"]))
    assert tab.page.locator(".read-only").is_visible()
    live = ".composer, textarea, .selection-toolbar, .asking, .slots, .stop"
    assert tab.page.locator(live).count() == 0
    names = tab.page.locator("button").evaluate_all(
        "all => all.map(each => each.getAttribute('aria-label') ?? each.textContent)"
    )
    for word in ("Retry", "Edit", "Star", "note", "Prune", "Stop", "Send", "Branch"):
        assert [name for name in names if word.lower() in name.lower()] == [], names
    before = tab.js("document.querySelectorAll('*').length")
    for key in ("b", "f", "a", "r", "e", "s", "n", "x", "Enter", "i"):
        tab.keys(key)
    assert tab.js("document.querySelectorAll('*').length") == before
    tab.turn(ids["root"]).get_by_label("More").click()
    labels = tab.page.get_by_role("menuitem").all_inner_texts()
    assert not [label for label in labels if "Prune" in label or "Star" in label]
    tab.keys("Escape", "?")
    keys = tab.page.locator("dialog").inner_text()
    assert "Search" in keys
    assert "Retry" not in keys


def test_the_tree_is_walked_by_keys(tab, ids):
    tab.open(page_of(ids["root"]))

    def at(name):
        tab.until("id => kvbranch.state.selected === id", ids[name])
        focused = tab.js("document.activeElement.dataset.id")
        assert focused == ids[name]

    tab.keys("l")
    at("next")
    tab.keys("l")
    at("end")
    tab.keys("h", "j")
    at("branch")
    tab.keys("ArrowDown", "ArrowDown", "ArrowDown")
    at("retry")
    tab.keys("ArrowUp")
    at("fresh")
    tab.keys("k", "k", "k", "ArrowRight")
    at("end")
    tab.keys("ArrowLeft", "h")
    at("root")
    tab.keys("G")
    at("end")
    tab.keys("g")
    at("root")


def test_the_tree_says_what_it_is(tab, ids):
    tab.open(page_of(ids["next"]))
    card = tab.page.locator(".card.is-selected")
    names = ("role", "aria-level", "aria-expanded", "aria-selected", "aria-setsize")
    told = [card.get_attribute(name) for name in (*names, "aria-posinset", "tabindex")]
    assert told == ["treeitem", "2", "true", "true", "5", "1", "0"]
    assert tab.page.locator('.card[tabindex="0"]').count() == 1
    assert tab.page.get_by_role("tree").count() == 1


def test_back_forward_and_reload(tab, ids):
    tab.open(page_of(ids["root"]))
    tab.page.locator(f"#card-{ids['branch']}").click()
    tab.page.locator(f"#card-{ids['focus']}").click()
    assert tab.page.url.endswith(ids["focus"])
    tab.page.go_back()
    tab.until("id => kvbranch.state.selected === id", ids["branch"])
    tab.page.go_forward()
    tab.until("id => kvbranch.state.selected === id", ids["focus"])
    tab.page.reload()
    tab.ready()
    assert tab.selected == ids["focus"]
    assert tab.turn(ids["focus"]).is_visible()


def test_what_is_folded_stays_folded(tab, ids):
    tab.open(page_of(ids["next"]))
    tab.keys(" ")
    assert tab.page.locator(".card.is-selected .card-folded").inner_text() == "+1"
    assert tab.page.locator(f"#card-{ids['end']}").count() == 0
    tab.page.reload()
    tab.ready()
    assert tab.page.locator(f"#card-{ids['end']}").count() == 0
    tab.keys(" ")
    tab.page.locator(f"#card-{ids['end']}").wait_for(state="attached")
    tab.keys("Z")
    tab.page.locator(".card-folded").first.wait_for(state="detached")


def test_view_and_panes_are_kept(tab, ids):
    tab.open(page_of(ids["root"]))
    tab.js("kvbranch.graph.camera.set(-50, -20, 0.8)")
    tab.page.locator(".splitter").focus()
    tab.keys("ArrowRight", "ArrowRight")
    tab.keys("t")
    tab.page.wait_for_timeout(400)  # until the view is saved
    looks = """({...(({x, y, zoom}) => ({x, y, zoom}))(kvbranch.graph.camera),
        width: document.querySelector(".graph").clientWidth,
        theme: document.documentElement.dataset.theme})"""
    before = tab.js(looks)
    tab.page.reload()
    tab.ready()
    assert tab.js(looks) == before
    assert before["theme"] == "light"
    assert before["zoom"] == 0.8
    tab.keys("1")
    assert not tab.page.locator(".path").is_visible()
    tab.keys("3")
    assert not tab.page.locator(".graph").is_visible()
    tab.keys("2")
    assert tab.page.locator(".path").is_visible()


def test_pan_and_zoom(tab, ids):
    tab.open(page_of(ids["root"]))
    camera = "(({x, y, zoom}) => [x, y, zoom])(kvbranch.graph.camera)"
    box = tab.page.locator(".graph").bounding_box()
    x, y = box["x"] + 40, box["y"] + box["height"] - 120
    before = tab.js(camera)
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 60, y - 30, steps=4)
    tab.page.mouse.up()
    after = tab.js(camera)
    assert after[2] == before[2]
    assert round((before[0] - after[0]) * after[2]) == 60
    assert round((before[1] - after[1]) * after[2]) == -30
    tab.page.mouse.wheel(0, 50)
    tab.until("y => Math.abs(kvbranch.graph.camera.y - y) > 10", after[1])
    world = (
        "(x, y) => { const p = kvbranch.graph.camera.world(x, y); return [p.x, p.y] }"
    )
    here = (x + 60 - box["x"], y - 30 - box["y"])
    still = tab.js(world, *here)
    tab.page.keyboard.down("Control")
    tab.page.mouse.wheel(0, -80)
    tab.page.keyboard.up("Control")
    tab.until("z => kvbranch.graph.camera.zoom > z * 1.1", after[2])
    assert tab.js(world, *here) == pytest.approx(still, abs=0.01)
    tab.keys("0")
    tab.until("!kvbranch.graph.camera.moving")
    seen = tab.js("(({seen}) => [seen.x, seen.y])(kvbranch.graph.camera)")
    assert max(seen) <= 0


def test_search_here_and_everywhere(tab, ids):
    tab.open(page_of(ids["root"]))
    tab.keys("/")
    tab.type("longer")
    results = tab.page.locator(".results li")
    tab.until("document.querySelectorAll('.results li').length === 2")
    assert results.first.locator("mark").first.inner_text().lower() == "longer"
    hits = tab.js("[...document.querySelectorAll('.card.is-hit')].length")
    assert hits == 2
    chosen = [each.get_attribute("aria-selected") for each in results.all()]
    assert chosen == ["true", "false"]
    tab.keys("ArrowDown", "ArrowUp", "Enter")
    tab.until("!document.querySelector('dialog')")
    assert tab.selected in (ids["end"], ids["retry"])
    tab.keys("/")
    tab.type("whales")
    tab.page.locator(".search-says").get_by_text("Nothing found").wait_for()
    tab.keys("Tab")
    tab.page.locator(".results li").wait_for()
    tab.keys("Enter")
    tab.until("id => window.kvbranch?.state.selected === id", ids["other"])


def test_answers_are_compared(tab, ids):
    tab.open(page_of(ids["next"]))
    tab.keys("c", "C")
    columns = tab.page.locator(".compare article")
    columns.first.wait_for()  # a single one is compared with its sibling
    assert columns.count() == 2
    tab.keys("Escape")
    tab.page.locator(f"#card-{ids['retry']}").click(modifiers=["Shift"])
    tab.page.get_by_role("button", name="Compare 2").click()
    columns.first.wait_for()
    assert columns.locator(".compare-text").all_inner_texts() == [
        "Then it is red.",
        "Red, as the way is longer.",
    ]
    assert "longer." in " ".join(columns.nth(1).locator("ins").all_inner_texts())
    assert tab.page.locator(".compare-shared").inner_text().startswith("1 turn ")
    columns.nth(1).get_by_text("Open").click()
    assert tab.selected == ids["retry"]


def test_an_older_tree_that_comes_later_is_not_shown(tab, ids):
    tab.open(page_of(ids["root"]))
    asked = []

    def answer(route):
        asked.append(route)
        if len(asked) == 2:
            route.continue_()

    tab.page.route("**/tree.json*", answer)
    tab.js("() => { kvbranch.late = kvbranch.state.loadTree() }", 0)
    tab.js("() => kvbranch.state.loadTree()", 0)
    alone = {"root": ids["root"], "current": None, "nodes": []}
    asked[0].fulfill(json=alone)
    tab.js("() => kvbranch.late", 0)
    assert tab.js("kvbranch.state.tree.nodes.size") == 7


def test_exports_are_downloaded(tab, ids):
    tab.open(page_of(ids["end"]))
    tab.keys("o")
    for text in ("Markdown", "JSON"):
        with tab.page.expect_download() as download:
            tab.page.locator(".export a", has_text=text).first.click()
        content = download.value.path().read_text()
        assert "longer" in content
        assert download.value.suggested_filename.endswith((".md", ".json"))


def test_nothing_there(tab):
    tab.page.goto(f"{tab.url}/-/kvbranch/nosuchresponse")
    tab.expect("404")
    assert tab.page.locator("h1").inner_text()
    tab.page.get_by_role("link").click()
    assert tab.page.locator(".tree").first.is_visible()


def test_a_server_that_is_gone_is_said_to_be(tab, ids):
    tab.expect("ERR_FAILED|cannot be reached|Error")
    tab.page.route("**/tree.json*", lambda route: route.abort())
    tab.page.goto(tab.url + page_of(ids["root"]))
    alert = tab.page.locator(".broken")
    alert.wait_for()
    assert "cannot be reached" in alert.inner_text()


def test_hostile_content_is_text(tab, ids):
    tab.open(page_of(ids["hostile"]))
    for name, text in HOSTILE.items():
        tab.js("id => kvbranch.state.select(id)", ids[name])
        question = tab.turn(ids[name]).locator(".question")
        question.wait_for()
        words = re.sub(r"\s|[^ -~]", "", text)[:40]
        assert words in re.sub(r"\s|[^ -~]", "", question.text_content())
        inside = ".turns, .cards, .topbar h1"
        bad = ":is(script, img, iframe, object, embed, style, form, [onerror], b)"
        assert tab.page.locator(f":is({inside}) {bad}").count() == 0
        links = tab.page.locator(".turns a").evaluate_all("all => all.map(a => a.href)")
        assert {each.partition(":")[0] for each in links} <= {"http", "https"}
        box = tab.page.locator(".turns").bounding_box()
        assert box["width"] <= tab.page.locator(".path").bounding_box()["width"]
    tab.keys("c", "k", "c", "C")
    tab.page.locator(".compare-text").first.wait_for()
    assert tab.page.locator(".compare :is(script, img, b)").count() == 0
    tab.keys("Escape", "/")
    tab.type("alert")
    tab.page.locator(".results li").first.wait_for()
    assert tab.page.locator(".results :is(script, img, b)").count() == 0
    tab.page.goto(f"{tab.url}/-/kvbranch?q=alert")
    assert tab.page.locator(".tree :is(script, img, b)").count() == 0


# -- a large tree ------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    "A tree of many responses, in the form of tree.json"
    chance = random.Random(7)
    nodes = []
    for n in range(LARGE):
        parent = None
        if n:
            near = n - 1 - int(chance.expovariate(0.4))
            parent = max(0, near) if chance.random() < 0.8 else chance.randrange(n)
        nodes.append(
            {
                "id": f"r{n:06}",
                "parent": None if parent is None else f"r{parent:06}",
                "thread": "t",
                "model": "m",
                "prompt": "Why is that so? " * chance.randint(1, 8),
                "start": "Because it is. " * chance.randint(0, 9),
                "tokens": {"input": n, "output": 9},
                "verb": chance.choice([None, "branch", "focus", "retry"]),
                "mode": None,
                "excerpt": chance.choice([None, "some words"]),
                "state": chance.choice(["hot", "disk", "evicted", "none"]),
                "why": None,
                "nbytes": 1,
                "slot": None,
                "starred": n % 50 == 0,
                "note": "noted" if n % 70 == 0 else None,
                "created": None,
                "ms": 5,
            }
        )
    return {"root": "r000000", "current": None, "nodes": nodes}


def test_a_large_tree_is_fast(tab, ids, large):
    tab.page.route("**/tree.json*", lambda route: route.fulfill(json=large))
    tab.page.route(
        "**/path.json*",
        lambda route: route.fulfill(json={"id": "r000000", "turns": []}),
    )
    tab.open(page_of(ids["root"]))
    boxes = tab.js("[...kvbranch.graph.plane.boxes.values()]")
    assert len(boxes) == LARGE
    assert overlaps(boxes) == []
    assert tab.page.locator(".card").count() < 80
    ms = tab.js(
        """() => {
            const {graph} = kvbranch, column = graph.plane.columns.reduce(
                (a, b) => a.length > b.length ? a : b)
            const box = graph.plane.box(column[column.length >> 1])
            const worst = {}
            for (const zoom of [1, 0.5, 0.3, 0.1]) {
                const times = []
                for (let i = 0; i < 40; i++) {
                    graph.camera.set(box.x - 300 + 9 * i, box.y - 400 + 21 * i, zoom)
                    const begin = performance.now()
                    graph.draw()
                    times.push(performance.now() - begin)
                }
                worst[zoom] = times.sort((a, b) => a - b)[30]
            }
            return worst
        }"""
    )
    assert max(ms.values()) < 16, ms  # all below 3 on a quiet machine
    tab.js("kvbranch.graph.camera.set(kvbranch.graph.plane.lefts[9] - 200, 9000, 1)")
    tab.page.wait_for_timeout(100)
    assert 3 < tab.page.locator(".card").count() < 60
    cards = tab.page.locator(".card").evaluate_all(
        """all => all.map(card => {
            const clipped = [...card.children].some(
                each => each.offsetTop + each.offsetHeight > card.offsetHeight)
            return clipped ? card.textContent : ""
        }).filter(Boolean)"""
    )
    assert cards == []


# -- the list ----------------------------------------------------------------


def test_the_list_is_walked_by_keys_and_filtered(tab, ids):
    tab.page.goto(f"{tab.url}/-/kvbranch")
    tab.keys("j")
    first = tab.js("document.activeElement.className")
    assert first == "tree-link"
    tab.keys("j", "k")
    assert tab.page.locator(".tree.is-chosen").count() == 1
    tab.keys("/")
    tab.type("whales another")
    tab.page.wait_for_timeout(120)
    tab.keys("Control+a")
    tab.type("another")
    tab.until("document.querySelectorAll('.tree:not([hidden])').length === 1")
    tab.keys("ArrowDown", "Enter")
    tab.ready()
    assert tab.selected == ids["other"]
    tab.page.goto(f"{tab.url}/-/kvbranch?q=whales")
    assert tab.page.locator(".tree").count() == 1
    assert (
        tab.page.locator(".snippet mark, .outline mark").first.inner_text() == "whales"
    )


# -- accessibility -----------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_nothing_keeps_anybody_out(browser, url, ids, scheme, size):
    more = {"viewport": PHONE, "has_touch": True} if size == "phone" else {}
    tab = Tab(browser, url, color_scheme=scheme, reduced_motion="reduce", **more)
    tab.open(page_of(ids["branch"]))
    assert tab.js("document.documentElement.dataset.theme") == scheme
    assert accessible(tab) == []
    if size == "phone":
        tab.page.get_by_role("button", name="Map").click()
        assert not tab.page.locator(".path").is_visible()
        assert accessible(tab) == []
        wide = tab.js("document.documentElement.scrollWidth <= innerWidth")
        assert wide
    else:
        tab.keys("?")
        assert accessible(tab) == []
        tab.keys("Escape", "/")
        tab.type("red")
        tab.page.locator(".results li").first.wait_for()
        assert accessible(tab) == []
        tab.keys("Escape")
        tab.keys("C")
        tab.page.locator(".compare article").first.wait_for()
        assert accessible(tab) == []
    tab.page.goto(f"{url}/-/kvbranch?q=red")
    assert accessible(tab) == []
    tab.page.goto(f"{url}/-/kvbranch/nosuchresponse")
    tab.expect("404")
    assert accessible(tab) == []
    tab.close()


def test_two_fingers_zoom_and_one_pans(browser, url, ids):
    tab = Tab(browser, url, viewport=PHONE, has_touch=True, is_mobile=True)
    tab.open(page_of(ids["root"]))
    tab.page.get_by_role("button", name="Map").click()
    tab.page.wait_for_timeout(200)
    touches = tab.context.new_cdp_session(tab.page)

    def touch(kind, *points):
        spots = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        event = {"type": f"touch{kind}", "touchPoints": spots}
        touches.send("Input.dispatchTouchEvent", event)

    camera = "(({x, y, zoom}) => [x, y, zoom])(kvbranch.graph.camera)"
    before = tab.js(camera)
    touch("Start", (200, 500))
    touch("Move", (190, 500))
    touch("Move", (140, 470))
    touch("End")
    after = tab.js(camera)
    assert after[2] == before[2]
    assert (after[0] - before[0]) * after[2] == pytest.approx(60, abs=12)
    touch("Start", (150, 400), (250, 400))
    touch("Move", (145, 400), (255, 400))
    touch("Move", (100, 400), (300, 400))
    touch("End")
    assert tab.js(camera)[2] == pytest.approx(2 * after[2], rel=0.15)
    assert tab.selected == ids["root"]
    tab.close()


def test_nothing_moves_for_those_who_do_not_want_it(browser, url, ids):
    tab = Tab(browser, url, reduced_motion="reduce")
    tab.open(page_of(ids["root"]))
    tab.js("kvbranch.graph.camera.set(5000, 5000, 1)")
    tab.keys(".")
    assert tab.js("kvbranch.graph.camera.moving") == 0
    assert tab.js("kvbranch.graph.camera.x") < 1000
    tab.close()


def test_without_scripts_there_is_a_way_to_read(browser, url, ids):
    tab = Tab(browser, url, java_script_enabled=False)
    tab.page.goto(url + page_of(ids["root"]))
    assert tab.page.get_by_role("link", name="as text").is_visible()
    tab.page.goto(f"{url}/-/kvbranch")
    assert tab.page.locator(".tree-link").first.is_visible()
    tab.close()
