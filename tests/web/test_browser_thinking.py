"""Thinking on the page: apart from the answer, folded, and open while it comes in."""

from __future__ import annotations

import pytest

from llm_kvbranch.models import catalog

from ..support import scripted
from ..support.browser import CHROMIUM, PHONE, Tab, accessible
from ..support.logged import Log
from ..support.servers import Server

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
THOUGHT = "The sky is *blue*, so I speak of light. " * 6
ANSWER = "Light is **scattered** by the air, the more the bluer it is."
_SLOW = """
    import time
    def slow(generation, index):
        time.sleep(0.02)
        return scripted.draw(generation, index)
    Generation.draw = slow
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinking")
    toy, home = scripted.write(folder / "scripted.gguf"), folder / "home"
    (home / "llm").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(home / "llm"))
        patch.setenv("LLM_KVBRANCH_MODEL", str(toy))
        for key, value in (
            ("n_threads", 1),
            ("chat_template", str(scripted.template())),
        ):
            catalog.put_setting(catalog.model(), key, value)
        scripted.say(patch, {"": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"})
        scripted.in_processes(patch, folder, _SLOW)
        with Server(home) as server:
            yield server


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_it_is_folded_when_the_answer_begins(browser, server, tmp_path, phone):
    log = Log(server.home / "logs.db")
    first = log.begin("Hello?", "Hi.")
    log.close()
    desktop = {"viewport": {"width": 1360, "height": 850}}
    look = {"viewport": PHONE, "has_touch": True} if phone else desktop
    link = server.url + server.post("/-/kvbranch/login", {}).json["path"]
    tab = Tab(browser, server.url, lambda: link, **look)
    tab.open(f"/-/kvbranch/{first}")
    tab.page.locator(".composer textarea").fill("Why is the sky blue?")
    tab.page.locator(".composer textarea").press("Enter")
    thinking = tab.page.locator(".turn.is-last .thinking")
    tab.until(
        "document.querySelector('.turn.is-last .thoughts')?.innerText.length > 60"
    )
    assert thinking.locator("summary").inner_text() == "Thinking…"
    assert thinking.get_attribute("open") is not None
    assert not tab.page.locator(".turn.is-last .answer").is_visible()
    tab.page.screenshot(path=tmp_path / "thinking.png")
    answer = tab.answered()
    tab.until("!document.querySelector('.turn.is-last .thinking').open")
    turn = tab.turn(answer)
    assert turn.locator(".answer").inner_text() == ANSWER.replace("*", "")
    summary = turn.locator(".thinking summary").inner_text()
    assert summary.startswith("Thinking, ")
    assert summary.endswith(" tokens")
    tab.page.screenshot(path=tmp_path / "folded.png")
    turn.locator(".thinking summary").click()
    assert turn.locator(".thoughts em").first.inner_text() == "blue"
    assert accessible(tab) == []
    tab.page.screenshot(path=tmp_path / "opened.png")
    (turn_json,) = [
        each
        for each in tab.json(f"/-/kvbranch/path.json?id={answer}")["turns"]
        if each["id"] == answer
    ]
    assert turn_json["reasoning"] == THOUGHT.strip()
    assert turn_json["text"] == ANSWER
    # As loaded from the log
    tab.open(f"/-/kvbranch/{answer}")
    tab.until("document.querySelector('.turn.is-last .thinking summary')?.innerText")
    assert thinking.get_attribute("open") is None
    tab.close()
