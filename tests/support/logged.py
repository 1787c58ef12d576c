"""Real logs, written quickly: every verb, with a model that says what it is told."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import llm

from llm_kvbranch.log import branching
from llm_kvbranch.log.branching import Place
from llm_kvbranch.log.history import History, open_log
from llm_kvbranch.log.tables import migrations

# Texts of people and models that a page must not interpret
HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "end of a script": "</script><script>alert(1)</script><!-- ]]>",
    "end of a text area": "</textarea></title></style><b>bold</b>",
    "template": "{{ 7 * 7 }}{% raw %}${alert(1)}`",
    "link": '[x](javascript:alert(1)) <a href="javascript:alert(1)">y</a>',
    "right to left": "\u202eevil\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d",
    "nul": "before\0after",
    "controls": "a\x01\x1b[31mred\x7f\u2028\u2029\ufeff\ufffe",
    "one long line": "x" * 100_000,
    "beyond the plane": "👩‍👩‍👧 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "quotes": "\"'`&lt;&#39; > ' onmouseover='alert(1)",
    "fences": "```\nnever closed\n~~~~\n# not a heading\n<!--",
}


class Parrot(llm.Model):
    "Says what it was told to say"

    model_id = "parrot"
    can_stream = True

    def __init__(self, model_id: str = "parrot"):
        self.model_id = model_id
        self.say = ""
        self.facts: dict[str, Any] | None = None

    def execute(self, prompt, stream, response, conversation):
        response.set_usage(input=len(prompt.messages), output=len(self.say))
        if self.facts:
            response.response_json = {"kvbranch": self.facts}
        yield self.say


@functools.cache
def _empty() -> bytes:
    "A log made by llm, made once because that takes longer than most tests"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logs.db"
        open_log(str(path), create=True).close()
        return path.read_bytes()


class Log:
    "A log to write to; every method returns the id of its response"

    def __init__(self, path: Path, ours: bool = True):
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_bytes(_empty())
        self.db = open_log(str(path))
        if ours:
            migrations.apply(self.db)
        self.history = History(self.db)
        self.model = Parrot()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.db.close()

    def begin(self, prompt: str, answer: str, system: str | None = None) -> str:
        self.model.say = answer
        response = llm.Conversation(model=self.model).prompt(prompt, system=system)
        response.text()
        thread = {"id": response.conversation.id, "name": prompt[:100]}
        self.history.log_by_content(response, thread)
        return str(response.id)

    def go_on(self, parent: str, prompt: str, answer: str, **more: Any) -> str:
        branch = branching.continue_(self.history, parent, prompt)
        return self._log(branch, answer, **more)

    def as_llm(self, parent: str, prompt: str, answer: str) -> str:
        "A next turn as llm -c logs it, without a record of where it came from"
        branch = branching.continue_(self.history, parent, prompt)
        self.model.say = answer
        response = branching.ask(branch, self.model)
        response.text()
        with self.history.writing():
            self.history.store.log(response, branch.parent.thread_id)
        return str(response.id)

    def branch(
        self, parent: str, start: int, end: int, prompt: str, answer: str
    ) -> str:
        place = Place(range=(start, end))
        return self._log(branching.branch(self.history, parent, prompt, place), answer)

    def focus(self, parent: str, start: int, end: int, prompt: str, answer: str) -> str:
        place = Place(range=(start, end))
        return self._log(branching.focus(self.history, parent, prompt, place), answer)

    def fresh(self, parent: str, start: int, end: int, prompt: str, answer: str) -> str:
        place = Place(range=(start, end))
        return self._log(branching.fresh(self.history, parent, prompt, place), answer)

    def retry(self, response: str, answer: str) -> str:
        return self._log(branching.retry(self.history, response), answer)

    def _log(self, branch: Any, answer: str, **more: Any) -> str:
        self.model.say = answer
        response = branching.ask(branch, self.model, **more)
        response.text()
        branching.log_only(self.history, branch, response)
        return str(response.id)


def grow(log, seed, n=40):
    "Random conversations with every verb, of few words so that many are equal"
    chance, ids = random.Random(seed), []
    for _ in range(n):
        answer = " ".join(chance.choices(["yes", "no"], k=chance.randint(3, 4)))
        asked = chance.choice(["Why?", "How?"])
        verb = chance.choice(
            ["begin", *["go_on", "as_llm"] * 2, "branch", "focus", "fresh", "retry"]
        )
        if verb == "begin" or not ids:
            ids.append(log.begin(asked, answer))
            continue
        parent = chance.choice(ids)
        if verb == "as_llm":
            ids.append(log.as_llm(parent, asked, answer))
        elif verb == "go_on":
            system = chance.choice([None, None, "Be brief."])
            ids.append(log.go_on(parent, asked, answer, system=system))
        elif verb == "retry":
            ids.append(log.retry(parent, answer))
        else:
            ids.append(
                getattr(log, verb)(parent, 0, chance.randint(1, 8), asked, answer)
            )
    return ids


def datasette_on(*paths: Path, **more: Any) -> Any:
    "datasette on some files; ``config`` goes where its version expects it"
    import inspect

    from datasette.app import Datasette
    from datasette.plugins import pm

    from llm_kvbranch import web

    if not any(plugin is web for plugin in pm.get_plugins()):
        pm.register(web, name="llm_kvbranch")
    config = more.pop("config", None)
    if config is not None:
        known = inspect.signature(Datasette.__init__).parameters
        more["config" if "config" in known else "metadata"] = config
    datasette = Datasette([str(path) for path in paths], **more)
    if hasattr(datasette, "root_enabled"):
        datasette.root_enabled = True
    return datasette
