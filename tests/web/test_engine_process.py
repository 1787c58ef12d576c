"""A server whose engine ends, hangs or is stopped, while clients read their answers.

The server, the model, the clients and the signals are real.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_kvbranch.log import History, open_log

from ..support.engines import engine_of, hit
from ..support.servers import MODEL, Judge, Server, chat, events, until
from ..support.shell import document

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc"),
]
SIGNALS = ("SIGSEGV", "SIGABRT", "SIGKILL", "SIGSTOP")


class Stream(threading.Thread):
    "Reads one streamed answer, and notes when its pieces came"

    def __init__(self, server: Server, prompt: str, max_tokens: int, forced: str = ""):
        super().__init__(daemon=True)
        self.server, self.forced = server, forced
        self.body = chat(prompt, max_tokens=max_tokens)
        if forced:
            self.body["max_tokens"] *= 3  # words may be made of more tokens
            self.body["grammar"] = f'root ::= "{forced}"'
        self.pieces: list[str] = []
        self.times: list[float] = []
        self.last: dict = {}
        self.failure: BaseException | None = None
        self.start()

    def run(self):
        try:
            body = {**self.body, "stream": True}
            with self.server.opened("POST", "/v1/chat/completions", body) as response:
                for event in events(response):
                    self.times.append(time.monotonic())
                    if event is None:
                        return
                    assert "choices" in event, (event, "".join(self.server.errors))
                    self.pieces.append(event["choices"][0]["delta"].get("content", ""))
                    self.last = event
            raise AssertionError("the stream ended early")
        except BaseException as error:
            self.failure = error

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_running(self) -> bool:
        "Whether its answer has begun and is not complete"
        return bool(self.pieces) and self.is_alive()

    @property
    def pause(self) -> float:
        "The longest time between two pieces, in seconds"
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


class Watcher(threading.Thread):
    "Asks for the model list and the page all the time"

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.server, self.seconds = server, []
        self.statuses: Counter[int] = Counter()
        self.over = threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.2):
            for path in ("/v1/models", "/-/kvbranch", "/-/kvbranch/slots"):
                before = time.monotonic()
                self.statuses[self.server.get(path).status] += 1
                self.seconds.append(time.monotonic() - before)


def prompts(n: int, number: int) -> list[str]:
    "Prompts of different lengths, others for each number"
    return [
        f"{document(20 + 25 * i, number * n + i)} Tell me a long story."
        for i in range(n)
    ]


def settings(home: Path) -> Path:
    """A home where a model has one thread, and kernels that hardly depend on batches.

    With flash attention, a token's bits depend on how many others are in its batch.
    """
    folder = home / "llm" / "kvbranch"
    folder.mkdir(parents=True)
    about = {"models": {MODEL: {"n_threads": 1, "flash_attn": "off"}}}
    (folder / "settings.json").write_text(json.dumps(about))
    return home


def streamed(server: Server, n: int, number: int, max_tokens: int) -> list[Stream]:
    return [
        Stream(
            server, prompt, max_tokens, document(max_tokens // 4, i) if i % 2 else ""
        )
        for i, prompt in enumerate(prompts(n, number))
    ]


def check_store(server: Server, ids: set[str]) -> None:
    "All answers are logged, and have their states"
    from ..support.homes import Homes

    assert server.count() == len(ids)
    states = {path.stem for path in (server.home / "kvbranch").glob("states/*/*")}
    assert states == ids
    assert "no problem" in Homes(server.home.parent)("llm", "kvbranch", "verify")


@pytest.mark.parametrize(
    ("n_hits", "n_streams", "max_tokens", "longest"),
    [(4, 4, 30, 1.0), pytest.param(40, 8, 150, 4.0, marks=pytest.mark.slow)],
)
def test_answers_go_on_whatever_ends_the_engine(
    tmp_path, n_hits, n_streams, max_tokens, longest, capsys
):
    """Half of the answers have words that a grammar forces, and must have just these.

    In the others several tokens are often as likely, and processors compute other bits
    for other batches: there each token must be among the likeliest. A signal is sent
    ``longest`` seconds at most after the one before, while an answer is streamed.
    """
    seed = random.randrange(1 << 32)
    chance, done, n_sent = random.Random(seed), [], Counter()
    names = list(SIGNALS) * (n_hits // len(SIGNALS))
    chance.shuffle(names)
    with Server(settings(tmp_path / "disturbed")) as server:
        disturbed = server
        watcher = Watcher(server)
        while n_sent.total() < n_hits:
            streams = streamed(server, n_streams, len(done), max_tokens)
            while any(each.is_alive() for each in streams):
                time.sleep(chance.uniform(0.1, longest))
                if n_sent.total() < n_hits and any(each.is_running for each in streams):
                    name = names[n_sent.total()]
                    n_sent[name] += hit(server.process.pid, getattr(signal, name))
            done.append(streams)
        watcher.over.set()
        watcher.join()
        for streams in done:
            for each in streams:
                if each.failure is not None:
                    raise each.failure
        ids = {each.last["response_id"] for streams in done for each in streams}
        server.until_idle()
        check_store(server, ids)
        at = Counter(re.findall(r"ended while ([\w ]+):", "".join(server.errors)))
        hit_ones = [each.last["kvbranch"]["restarts"] for s in done for each in s]
        assert max(n or 0 for n in hit_ones) >= 1
        metrics = server.metrics()
        assert metrics["kvbranch_engine_restarts_total"] == at.total()
        assert server.stop()[0] == 0
    with Server(settings(tmp_path / "undisturbed")) as server:
        n_others, judge = 0, Judge()
        for number, streams in enumerate(done):
            expected = streamed(server, n_streams, number, max_tokens)
            for one, other in zip(expected, streams, strict=True):
                one.join()
                if other.forced:
                    assert one.text == other.text == other.forced
                elif one.text != other.text:  # rounding decided between two tokens
                    n_others += 1
                    assert judge.is_right(disturbed, other.last["response_id"])
        assert server.stop()[0] == 0
    pauses = sorted(each.pause for streams in done for each in streams)
    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {seed}: {dict(n_sent)}, engine ended {at.total()} "
            f"times while {dict(at)}; {len(ids)} streams, {n_others} with other words "
            f"by rounding; longest pause {pauses[-1]:.2f} s, median "
            f"{pauses[len(pauses) // 2]:.2f} s"
            f"; {watcher.statuses.total()} requests beside them, "
            f"the slowest {max(watcher.seconds):.2f} s\n"
        )
    assert set(watcher.statuses) == {200}


_ENDLESS = """
import time
from llm_kvbranch.inference import generation
from llm_kvbranch.inference.host import board
board.SECONDS["draw"] = 2.0
draw = generation.Generation.draw
def endless(self, index):
    words = self.request.messages[-1].parts[0].text
    if "endless" in words and ("at once" in words or self.n_generated == 5):
        time.sleep(600)
    return draw(self, index)
generation.Generation.draw = endless
"""


def test_a_step_without_end(tmp_path):
    "Others are answered meanwhile, the request is refused, and Ctrl-C ends it all"
    (tmp_path / "sitecustomize.py").write_text(_ENDLESS)
    with Server(tmp_path, PYTHONPATH=str(tmp_path)) as server:
        before = Stream(server, "Tell me a long story.", 60)
        bad = server.chat("An endless one at once")
        assert bad.status == 400
        assert "took more than 2 s" in bad.error["message"]
        before.join()
        assert before.failure is None
        assert before.last["kvbranch"]["generated_tokens"] > 1
        assert server.get("/v1/models").status == 200
        with server.streaming("An endless one", max_tokens=60) as stream:
            *pieces, failed = stream
        assert "took more than 2 s" in failed["error"]["message"]
        said = "".join(each["choices"][0]["delta"]["content"] for each in pieces)
        assert len(pieces) > 1
        until(lambda: server.count() == 2, "what was sent is logged")
        with contextlib.closing(open_log(str(server.home / "logs.db"))) as db:
            history = History(db)
            last = history.resolve("last")
            assert history.response(last).text == said
            assert history.facts(last)["finish_reason"] == "failed"
        asked = Stream(server, "An endless one", 60)
        until(lambda: len(asked.pieces) > 2, "the answer runs")
        code, seconds = server.stop()
        asked.join()
        assert code == 0
        assert seconds < 5.5  # and a moment for a busy machine
        assert server.count() == 3


@pytest.mark.slow
def test_a_grammar_without_end(tmp_path):
    "One that llama.cpp itself never gets to the end of"
    with Server(tmp_path) as server:
        grammar = "root ::= (" + '"a"? ' * 30 + '){0,30} "b"'
        bad = {}
        asked = threading.Thread(
            target=lambda: bad.update(
                reply=server.post("/generate", {"prompt": "Hi", "grammar": grammar})
            )
        )
        asked.start()
        time.sleep(1)
        beside = server.chat("Say hello.")
        assert beside.status == 200
        asked.join()
        assert bad["reply"].status == 400
        assert server.chat("Say hello.").text == beside.text
        assert server.stop()[0] == 0


def test_the_engine_is_not_the_server(tmp_path):
    "Fails if the server's own process loads llama.cpp, or outlives its engine"
    with Server(tmp_path) as server:
        assert server.chat("Say hello.").status == 200
        engine = engine_of(server.process.pid)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libllama" not in maps
        assert "libllama" in Path(f"/proc/{engine}/maps").read_text()
        server.kill()
        until(
            lambda: (
                not Path(f"/proc/{engine}").exists()
                or ") Z" in Path(f"/proc/{engine}/stat").read_text()
            ),
            "the engine has ended",
            10,
        )
