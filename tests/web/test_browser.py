"""The page with the real server and the real model: asking, branching, stopping.

The idea: the tests act as a person does, then check what the page shows, what the
server logged and what was sent. All share one server and one browser; each has its own
conversation.
"""

from __future__ import annotations

import json

import pytest

from ..support.browser import CHROMIUM, DESKTOP, PHONE, Tab, accessible
from ..support.logged import Log
from ..support.servers import Server

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
FIRST = (
    "👋 Light is **scattered** by the small things in air, the more the bluer it is."
)
SECOND = "In the evening its way through the air is long, so that red is left over."
LONG = 700  # tokens of an answer that the test stops


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with Server(home, "--ctx", "4096") as server:
        yield server


@pytest.fixture(scope="module")
def login(server):
    return lambda: server.url + server.post("/-/kvbranch/login", {}).json["path"]


@pytest.fixture(scope="module")
def window(browser, server, login):
    tab = Tab(browser, server.url, login)
    yield tab
    tab.close()


@pytest.fixture
def talk(server, request):
    "A new conversation in the log for one test: the ids of its two turns"
    log = Log(server.home / "logs.db")
    first = log.begin(f"Why is the sky blue? {request.node.name}", FIRST)
    second = log.go_on(first, "And at sunset?", SECOND)
    log.close()
    return first, second


def opened(tab, id, **sampling):
    "The page of a response's tree, with sampling set to short, greedy answers"
    tab.open(f"/-/kvbranch/{id}")
    tab.sampling(**{"temperature": 0, "max_tokens": 12, **sampling})
    return tab


def node(tab, id):
    "The node of a response, as the server gives it"
    return next(each for each in tab.nodes if each["id"] == id)


def turns(tab, id):
    return tab.json(f"/-/kvbranch/path.json?id={id}")["turns"]


def ask(tab, text):
    "Type a question into the focused field and send it"
    tab.type(text)
    tab.keys("Enter")


def go_on(tab, id, text):
    "Ask a follow-up with the keyboard; the id of its answer once it is logged"
    opened(tab, id)
    tab.keys("Enter")
    ask(tab, text)
    return tab.answered()


def sent(tab, path, act):
    "The body that the page sends to a path when `act` is called"
    with tab.page.expect_request(f"**{path}") as request:
        act()
    return json.loads(request.value.post_data)


# -- continuing --------------------------------------------------------------


def test_one_goes_on_from_any_response_and_parents_stay_open(tab, talk):
    first, second = talk
    answer = go_on(tab, second, "And on Mars?")
    assert answer not in talk
    assert tab.page.url.endswith(answer)
    turn = tab.turn(answer)
    assert turn.locator(".question").inner_text() == "And on Mars?"
    stored = turns(tab, answer)[-1]
    assert turn.locator(".answer").inner_text().split() == (
        stored["text"].replace("*", "").split()
    )
    facts = turn.locator(".facts").inner_text()
    for word in (" read", "first token", "tok/s", "miss: "):
        assert word in facts
    assert tab.page.locator(f"#card-{answer} .state").inner_text() == "in memory"
    # The parent has a child now, and can be continued as before
    for parent in (second, first):
        tab.js("id => kvbranch.state.select(id)", parent)
        tab.page.locator(".composer textarea").fill(f"Again, from {parent}?")
        tab.keys("Enter")
        assert node(tab, tab.answered())["parent"] == parent


def test_a_new_node_is_there_before_its_answer(tab, talk):
    _, second = talk
    opened(tab, second, max_tokens=60)
    before = len(tab.nodes)
    tab.keys("Enter")
    ask(tab, "Tell me more.")
    tab.until("document.querySelector('.card.is-running .card-prompt')")
    card = tab.page.locator(".card.is-running")
    assert card.locator(".card-prompt").inner_text() == "Tell me more."
    assert tab.js("kvbranch.state.tree.nodes.size") == before + 1
    tab.page.locator(".turn.is-last .facts.is-live").wait_for()
    tab.until(
        "document.querySelector('.turn.is-last .facts')?.innerText.match(/tok.s/)"
    )
    tab.answered()
    assert tab.page.locator(".card.is-running").count() == 0
    assert len(tab.nodes) == before + 1


def test_the_end_of_an_answer_is_followed_by_those_who_are_there(tab, talk):
    _, second = talk
    tab.page.set_viewport_size({"width": 900, "height": 420})
    opened(tab, second, max_tokens=LONG)
    tab.keys("Enter")
    ask(tab, "Tell me a very long story about the sky.")
    left = """() => {
        const {scrollTop, clientHeight, scrollHeight} = kvbranch.pane.scroller
        return scrollHeight - scrollTop - clientHeight
    }"""
    tall = "document.querySelector('.turn.is-last').offsetHeight > 220"
    tab.until(tall)
    assert tab.js(left, 0) < 80
    tab.js("() => { kvbranch.pane.scroller.scrollTop = 0 }", 0)
    n = tab.js("[...kvbranch.state.runs][0].tokens")
    tab.until("n => [...kvbranch.state.runs][0].tokens > n + 8", n)
    assert tab.js("kvbranch.pane.scroller.scrollTop") == 0
    tab.keys("Escape")
    tab.answered()
    tab.page.set_viewport_size(DESKTOP)


def test_the_view_stays_when_an_answer_comes(tab, talk):
    _, second = talk
    opened(tab, second)
    tab.js("kvbranch.graph.camera.set(-40, -60, 0.9)")
    place = """id => {
        const box = document.getElementById(`card-${id}`).getBoundingClientRect()
        return [box.left, box.top]
    }"""
    before = tab.js(place, second)
    tab.keys("Enter")
    ask(tab, "And?")
    tab.answered()
    # It may move so that the new one is visible
    assert tab.js(place, second) == pytest.approx(before, abs=400)
    where = tab.js("(({x, y, zoom}) => [x, y, zoom])(kvbranch.graph.camera)")
    tab.js("async () => { await kvbranch.state.loadTree() }", 0)
    tab.page.wait_for_timeout(100)
    assert tab.js("(({x, y, zoom}) => [x, y, zoom])(kvbranch.graph.camera)") == where


# -- branching from text -----------------------------------------------------


def test_words_are_selected_and_branched_from(tab, talk):
    first, _ = talk
    opened(tab, first)
    tab.select_words(first, "scattered by the small things")
    tab.page.get_by_role("button", name="Branch here").click()
    body = sent(tab, "/v1/chat/branch", lambda: ask(tab, "Which things?"))
    start, end = body["char_range"]  # in code points: the hand is one
    assert FIRST[start:end] == "scattered** by the small things"
    branch = tab.answered()
    stored = node(tab, branch)
    assert (stored["verb"], stored["mode"]) == ("branch", "reuse_kv")
    assert stored["excerpt"] == "scattered** by the small things"
    assert stored["parent"] == first
    parent = tab.turn(first)
    assert "".join(parent.locator("mark").all_inner_texts()) == (
        "scattered by the small things"
    )
    assert parent.locator(".is-cut").all_inner_texts()[0].startswith(" in air")
    assert turns(tab, branch)[0]["cut"] == end
    assert tab.turn(branch).locator(".from q").inner_text()
    # A link in the parent leads to the branch
    tab.keys("h")
    tab.until("id => kvbranch.state.selected === id", first)
    tab.turn(first).locator(f'.leaf[data-select="{branch}"]').click()
    tab.until("id => kvbranch.state.selected === id", branch)


def test_focus_keeps_everything_and_quotes(tab, talk):
    first, _ = talk
    opened(tab, first)
    tab.select_words(first, "small things")
    tab.keys("f")
    tab.page.locator(".asking .is-focus :checked").wait_for(state="attached")
    body = sent(tab, "/focus", lambda: ask(tab, "How small?"))
    assert FIRST[body["char_start"] : body["char_end"]] == "small things"
    focus = tab.answered()
    assert node(tab, focus)["verb"] == "focus"
    assert tab.turn(focus).locator(".quoted").inner_text() == "small things"
    assert tab.turn(focus).locator(".question").inner_text() == "How small?"
    assert tab.turn(first).locator(".is-cut").count() == 0


def test_fresh_begins_anew(tab, talk):
    first, _ = talk
    opened(tab, first)
    tab.select_words(first, "the bluer it is")
    tab.page.get_by_role("button", name="Ask fresh").click()
    ask(tab, "What does this say?")
    fresh = tab.answered()
    assert (node(tab, fresh)["verb"], node(tab, fresh)["mode"]) == ("branch", "fresh")
    assert tab.turn(fresh).locator(".anew").is_visible()
    assert turns(tab, fresh)[-1]["facts"]["prompt_tokens"] < 60


def test_a_branch_from_a_whole_answer(tab, talk):
    _, second = talk
    opened(tab, second)
    tab.keys("f")  # nothing is selected to focus on
    assert tab.page.locator(".asking").count() == 0
    tab.keys("b")
    modes = tab.page.locator(".asking-modes label").all_inner_texts()
    assert modes == ["Branch here", "Ask fresh"]
    ask(tab, "What else?")
    branch = tab.answered()
    assert (node(tab, branch)["parent"], node(tab, branch)["verb"]) == (
        second,
        "branch",
    )


def test_what_is_typed_about_words_is_not_lost(tab, talk):
    first, _ = talk
    opened(tab, first)
    tab.select_words(first, "small things")
    tab.keys("b")
    tab.type("Half a quest")
    tab.keys("Escape")
    assert tab.page.locator(".asking").count() == 0
    tab.select_words(first, "small things")
    tab.keys("b")
    assert tab.page.locator(".asking textarea").input_value() == "Half a quest"


# -- retry and edit ----------------------------------------------------------


def test_three_answers_side_by_side(tab, talk):
    first, second = talk
    opened(tab, second, temperature=1.2, max_tokens=40, seed=5)
    tab.keys("r", "3")
    columns = tab.page.locator(".row-columns .column")
    tab.until("document.querySelectorAll('.row-columns .facts.is-live').length === 3")
    assert columns.count() == 3
    tab.until(
        "[...document.querySelectorAll('.row-columns .answer')]"
        ".every(each => each.innerText.length > 10)"
    )
    tab.answered()
    tab.until("document.querySelectorAll('.row-columns .state').length === 3")
    stored = [each for each in tab.nodes if each["verb"] == "retry"]
    assert [each["parent"] for each in stored] == [first] * 3
    assert len({each["start"] for each in stored}) == 3
    tab.page.get_by_role("button", name="Compare", exact=True).last.click()
    tab.page.locator(".compare article").nth(2).wait_for()
    tab.keys("Escape")
    chosen = columns.nth(1).locator(".turn").get_attribute("data-id")
    columns.nth(1).locator(".choose").click()
    assert tab.selected == chosen
    assert columns.count() == 3
    tab.page.locator(".composer textarea").fill("Go on.")
    tab.keys("Enter")
    assert node(tab, tab.answered())["parent"] == chosen
    assert columns.count() == 0


def test_an_edited_prompt_is_a_branch_beside_it(tab, talk):
    first, second = talk
    opened(tab, second)
    tab.keys("e")
    field = tab.page.locator(".asking textarea")
    assert field.input_value() == "And at sunset?"
    field.fill("And at noon?")
    tab.keys("Enter")
    edited = tab.answered()
    assert node(tab, edited)["parent"] == first
    questions = tab.page.locator(".turn .question").all_inner_texts()
    assert questions[1:] == ["And at noon?"]
    switch = tab.turn(edited).locator(".siblings")
    assert switch.inner_text() == "2/2"
    switch.get_by_label("Previous sibling").click()
    tab.turn(second).locator(".question").wait_for()
    assert tab.turn(second).locator(".question").inner_text() == "And at sunset?"


def test_an_edited_branch_leaves_where_it_left(tab, talk, server):
    first, _ = talk
    log = Log(server.home / "logs.db")
    at = FIRST.index("small")
    branch = log.branch(first, at, at + 12, "Which?", "Many.")
    focus = log.focus(first, at, at + 12, "Which?", "Many.")
    log.close()
    opened(tab, branch)
    tab.keys("e")
    tab.page.locator(".asking textarea").fill("Which ones?")
    body = sent(tab, "/v1/chat/branch", lambda: tab.keys("Enter"))
    assert body["char_range"] == [at, at + 12]
    edited = tab.answered()
    assert node(tab, edited)["excerpt"] == "small things"
    # A retry is cut there, too
    tab.keys("r", "1")
    again = tab.answered()
    assert again != edited
    assert turns(tab, again)[0]["cut"] == at + 12
    assert tab.turn(first).locator(".cut-note").is_visible()
    tab.js("id => kvbranch.state.select(id)", focus)
    tab.keys("e")
    tab.page.locator(".asking textarea").fill("Which ones?")
    body = sent(tab, "/focus", lambda: tab.keys("Enter"))
    assert (body["char_start"], body["char_end"]) == (at, at + 12)
    tab.answered()


def test_an_edited_first_prompt_begins_a_conversation(tab, talk):
    first, _ = talk
    opened(tab, first)
    tab.keys("e")
    tab.page.locator(".asking textarea").fill("Why is grass green?")
    tab.keys("Enter")
    tab.until("first => !location.pathname.endsWith(first)", first)
    tab.ready()
    assert len(tab.nodes) == 1
    assert tab.nodes[0]["prompt"] == "Why is grass green?"


# -- stopping and failing ----------------------------------------------------


def test_an_answer_is_stopped_and_what_there_is_of_it_stays(tab, talk, server):
    _, second = talk
    opened(tab, second, max_tokens=LONG)
    tab.keys("Enter")
    ask(tab, "Tell me a very long story about the sky.")
    tab.until("[...kvbranch.state.runs][0]?.tokens > 5")
    tab.page.locator(".composer .stop").click()
    stopped = tab.answered()
    assert server.until_idle() < 5
    stored = turns(tab, stopped)[-1]
    assert 5 <= stored["facts"]["generated_tokens"] < LONG
    assert "stopped" in tab.turn(stopped).locator(".facts").inner_text()
    tab.keys("Escape")
    tab.page.locator(".composer textarea").fill("Go on.")
    opened(tab, stopped)  # a stopped answer can be continued like any other
    tab.page.locator(".composer textarea").fill("Go on.")
    tab.keys("Enter")
    assert node(tab, tab.answered())["parent"] == stopped


def test_escape_stops(tab, talk):
    _, second = talk
    opened(tab, second, max_tokens=LONG)
    tab.keys("Enter")
    ask(tab, "Tell me a very long story.")
    tab.until("[...kvbranch.state.runs][0]?.tokens > 2")
    assert "Answering" in tab.page.locator('[aria-live="polite"]').inner_text()
    tab.keys("Escape")
    stopped = tab.answered()
    assert turns(tab, stopped)[-1]["facts"]["generated_tokens"] < LONG
    assert tab.page.locator(".is-live").count() == 0
    tab.keys("Escape")  # the focus moves from the field to the map
    assert "card" in tab.js("document.activeElement.className")


def test_several_answers_come_at_once(tab, talk):
    first, second = talk
    opened(tab, second, max_tokens=150)
    for id, text in ((second, "One"), (first, "Two")):
        tab.js("id => kvbranch.state.select(id)", id)
        tab.page.locator(".composer textarea").fill(f"{text}: tell me more.")
        tab.keys("Enter")
    answering = "run => run.status === 'answering'"
    tab.until(f"[...kvbranch.state.runs].filter({answering}).length === 2")
    assert tab.page.locator(".card.is-running").count() == 2
    tab.answered()
    parents = {each["prompt"]: each["parent"] for each in tab.nodes}
    assert parents["One: tell me more."] == second
    assert parents["Two: tell me more."] == first


def test_what_is_typed_while_an_answer_comes_stays(tab, talk):
    _, second = talk
    opened(tab, second, max_tokens=40)
    tab.keys("Enter")
    ask(tab, "Tell me more.")
    tab.type("My next quest")
    tab.answered()
    tab.type("ion")
    assert tab.page.locator(".composer textarea").input_value() == "My next question"


def test_more_answers_than_connections_leave_the_page_alive(tab, talk):
    _, second = talk
    opened(tab, second, max_tokens=LONG)
    for n in range(8):
        tab.js("(id, n) => kvbranch.does.continueFrom(id, `Story ${n}`)", second, n)
    answering = "run => run.status === 'answering'"
    tab.until(f"[...kvbranch.state.runs].filter({answering}).length === 5")
    assert len(tab.nodes) == 2  # the page can still send requests
    tab.js("[...kvbranch.state.runs].forEach(run => kvbranch.does.stop(run))")
    tab.until("!kvbranch.state.runs.size")
    assert len(tab.nodes) == 7  # those still waiting were never answered


def test_too_many_requests_say_when_to_come_back(tab, talk):
    _, second = talk
    tab.expect("429")
    opened(tab, second)
    error = {"error": {"message": "100 requests are waiting, try again in 2 s"}}
    tab.page.route(
        "**/continue",
        lambda route: route.fulfill(
            status=429, json=error, headers={"retry-after": "2"}
        ),
    )
    tab.keys("Enter")
    ask(tab, "My precious words")
    failure = tab.page.locator(".turn.is-last .failure")
    failure.wait_for()
    assert "100 requests are waiting" in failure.inner_text()
    again = failure.get_by_role("button", name="Try again")
    assert again.is_disabled()
    assert "in 2 s" in again.inner_text()
    tab.page.unroute("**/continue")
    tab.until("!document.querySelector('.failure button').disabled")
    again.click()
    answer = tab.answered()
    assert tab.turn(answer).locator(".question").inner_text() == "My precious words"
    assert tab.page.locator(".failure").count() == 0


def test_nothing_typed_is_lost_when_it_fails(tab, talk):
    _, second = talk
    tab.expect("ERR_FAILED")
    opened(tab, second)
    n = tab.js("kvbranch.state.tree.nodes.size")
    tab.page.route("**/continue", lambda route: route.abort())
    tab.keys("Enter")
    ask(tab, "My precious words")
    failure = tab.page.locator(".turn.is-last .failure")
    failure.wait_for()
    assert "cannot be reached" in failure.inner_text()
    assert tab.page.locator(".card .state.is-failed").is_visible()
    assert accessible(tab) == []
    failure.get_by_role("button", name="Discard").click()
    assert tab.selected == second
    assert tab.js("kvbranch.state.tree.nodes.size") == n
    assert tab.page.locator(".composer textarea").input_value() == "My precious words"
    tab.page.reload()
    tab.ready()
    assert tab.page.locator(".composer textarea").input_value() == "My precious words"


def test_an_answer_that_breaks_off_says_so(tab, talk):
    _, second = talk
    opened(tab, second)
    events = [
        {"choices": [{"index": 0, "delta": {"content": "So f"}}], "response_id": "zz1"},
        {"error": {"message": "The context is full"}},
    ]
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
    kind = {"content-type": "text/event-stream"}
    tab.page.route("**/continue", lambda route: route.fulfill(body=body, headers=kind))
    tab.keys("Enter")
    ask(tab, "And?")
    turn = tab.page.locator(".turn.is-last")
    turn.locator(".failure").wait_for()
    assert "The context is full" in turn.inner_text()
    assert turn.locator(".answer").inner_text() == "So f"


def test_drafts_are_kept_for_every_response(tab, talk):
    first, second = talk
    opened(tab, second)
    field = tab.page.locator(".composer textarea")
    field.fill("at the second")
    tab.js("id => kvbranch.state.select(id)", first)
    assert field.input_value() == ""
    field.fill("at the first")
    tab.page.reload()
    tab.ready()
    assert (tab.selected, field.input_value()) == (first, "at the first")
    tab.js("id => kvbranch.state.select(id)", second)
    assert field.input_value() == "at the second"


# -- marks and pruning -------------------------------------------------------


def test_stars_and_notes(tab, talk):
    _, second = talk
    opened(tab, second)
    tab.keys("s")
    tab.page.locator(".card.is-selected .card-star").wait_for()
    tab.keys("n")
    tab.type("Worth <b>reading</b>")
    tab.keys("Control+Enter")
    tab.page.locator(".card.is-selected .card-note").wait_for()
    stored = node(tab, second)
    assert (stored["starred"], stored["note"]) == (True, "Worth <b>reading</b>")
    tab.page.reload()
    tab.ready()
    note = tab.turn(second).locator(".note")
    assert note.inner_text() == "Worth <b>reading</b>"
    note.click()
    tab.page.get_by_role("button", name="Remove", exact=True).click()
    tab.turn(second).locator(".note").wait_for(state="detached")
    tab.turn(second).get_by_label("Remove the star").click()
    tab.page.locator(".card-star").wait_for(state="detached")
    stored = node(tab, second)
    assert (stored["starred"], stored["note"]) == (False, None)


def test_pruning_says_what_it_would_do_and_does_that(tab, talk):
    first, second = talk
    third = go_on(tab, second, "And?")
    tab.page.locator(".card.is-selected").focus()
    tab.keys("x")
    says = tab.page.locator(".prune-says")
    says.get_by_text("will be freed").wait_for()
    assert accessible(tab) == []
    tab.page.get_by_role("button", name="Cancel").click()
    assert node(tab, third)["state"] != "none"
    tab.keys("x")
    says.get_by_text("will be freed").wait_for()
    tab.page.get_by_role("button", name="Drop the state").click()
    tab.page.locator(".toast").get_by_text("freed").wait_for()
    tab.js("id => kvbranch.state.select(id)", second)
    tab.page.locator(f"#card-{second}").focus()
    tab.keys("x")
    tab.page.get_by_label("State and log").check()
    says.get_by_text("2 responses will be deleted").wait_for()
    tab.page.get_by_role("button", name="Delete").click()
    tab.until("id => kvbranch.state.selected === id", first)
    assert [each["id"] for each in tab.nodes] == [first]
    tab.until("kvbranch.state.tree.nodes.size === 1")
    assert tab.page.locator(".card").count() == 1


def test_links_are_copied(tab, talk):
    first, _ = talk
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(tab, first)
    tab.keys("y")
    tab.page.locator(".toast").get_by_text("copied").wait_for()
    copied = tab.js("navigator.clipboard.readText()")
    assert copied == f"{tab.url}/-/kvbranch/{first}"


def test_slots_are_shown(tab, talk):
    _, second = talk
    opened(tab, second)
    squares = tab.page.locator(".slots-squares i")
    squares.first.wait_for()
    assert squares.count() == 8
    assert "of 8 slots busy" in tab.page.locator(".slots").get_attribute("title")


# -- accessibility -----------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_keeps_anybody_out(browser, server, login, talk, scheme):
    first, _ = talk
    tab = Tab(browser, server.url, login, color_scheme=scheme)
    opened(tab, first, max_tokens=LONG)
    tab.select_words(first, "small things")
    assert accessible(tab) == []
    tab.keys("b")
    tab.type("A question")
    assert accessible(tab) == []
    tab.keys("Enter")
    tab.until("[...kvbranch.state.runs][0]?.tokens > 2")
    assert accessible(tab) == []
    tab.page.locator(".card.is-selected").focus()
    tab.keys("Escape")
    tab.answered()
    tab.keys("s", "n")
    tab.type("noted")
    assert accessible(tab) == []
    tab.keys("Control+Enter")
    tab.page.locator(".card-note").wait_for()
    tab.keys("r")
    assert accessible(tab) == []
    tab.keys("Escape", "e")
    assert accessible(tab) == []
    tab.close()


def test_what_comes_is_read_out(tab, talk):
    _, second = talk
    opened(tab, second)
    tab.keys("Enter")
    ask(tab, "And?")
    tab.answered()
    assert "12 tokens" in tab.page.locator('[aria-live="polite"]').inner_text()


def test_a_phone_is_enough(browser, server, login, talk):
    first, _ = talk
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    tab = Tab(browser, server.url, login, **phone)
    opened(tab, first)
    tab.page.locator(".composer textarea").fill("And on the moon?")
    tab.page.get_by_role("button", name="Send").click()
    answer = tab.answered()
    assert node(tab, answer)["parent"] == first
    tab.page.get_by_role("button", name="Map").click()
    tab.page.locator(f"#card-{first}").tap()
    assert tab.selected == first
    tab.page.get_by_role("button", name="Conversation").click()
    tab.turn(first).get_by_label("More").click()
    tab.page.get_by_role("menuitem", name="Star").click()
    tab.page.locator(".turn.is-starred").wait_for()
    tab.close()
