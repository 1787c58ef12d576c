"""What benchmarks/serve.py makes of what servers send, and of what it measured."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
serve_scenarios: Any = importlib.import_module("serve_scenarios")
serve_report: Any = importlib.import_module("serve_report")
serve_servers: Any = importlib.import_module("serve_servers")
sys.path.remove(str(BENCHMARKS))


def event(**body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def delta(content: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}, **more}]}


async def read(*chunks: bytes, kind: str = "text/event-stream") -> Any:
    "The reply to an answer that is sent in these chunks"
    reader = asyncio.StreamReader()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked"
    reader.feed_data(head.encode() + b"\r\n\r\n")
    for chunk in (*chunks, b""):
        reader.feed_data(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    reader.feed_eof()
    reply = serve_servers.Reply(0)
    await serve_servers.Server("it", 0, "", None, 0)._read(reader, reply)
    return reply


class TestReply:
    async def test_text_and_what_ends_it(self) -> None:
        reply = await read(
            event(**delta(None)),
            event(**delta("One")),
            event(**delta(" two")),
            event(**delta("", finish_reason="length", slot_id=3)),
            event(
                choices=[],
                usage={"prompt_tokens": 7, "completion_tokens": 2},
                timings={"prompt_ms": 1},
            ),
            b"data: [DONE]\n\n",
        )
        assert reply.status == 200
        assert [text for _, text in reply.texts] == ["One", " two"]
        assert reply.last["slot_id"] == 3
        assert reply.timings == {"prompt_ms": 1}
        assert (reply.prompt_tokens, reply.generated) == (7, 2)

    async def test_events_in_pieces_and_together(self) -> None:
        sent = event(**delta("a\n\nb")) + event(**delta("ü"))
        reply = await read(sent[:9], sent[9:-3], sent[-3:] + b": ping\n\n")
        assert reply.text == "a\n\nbü"

    async def test_an_error_in_the_stream_is_no_answer(self) -> None:
        with pytest.raises(RuntimeError, match="too long"):
            await read(event(**delta("a")), event(error={"message": "too long"}))

    async def test_a_whole_body(self) -> None:
        reply = await read(b'{"a"', b": 1}", kind="application/json")
        assert json.loads(reply.body) == {"a": 1}


def reply_at(*times: float) -> Any:
    return serve_servers.Reply(0, texts=[(time, "x") for time in times])


def test_gaps_that_touch_a_span() -> None:
    one, other = reply_at(0, 1, 4, 5, 6), reply_at(0.5, 4.5)
    assert serve_scenarios.gaps_within([one, other], 1.5, 4.2) == [3, 1, 4]
    assert serve_scenarios.gaps_within([reply_at(), reply_at(2)], 0, 9) == []


TIMES = {
    "hot ours": [0.2, 0.1, 0.3],
    "hot theirs": [0.4, 0.1, 0.5],
    "cached ours": [1.2],
    "cached theirs": [1.0],
    "command beyond": [0.1, 0.2, 0.3],
    "command first byte": [0.9],
    "command version": [0.6],
    "command own": [0.1],
}


class TestBars:
    def test_medians_are_compared(self) -> None:
        assert serve_report.ratio(TIMES, "hot ours", "hot theirs") == 0.5
        assert serve_report.ratio(TIMES, "hot ours", "nothing") is None

    def test_what_is_missed_is_told(self) -> None:
        lines = list(serve_report.missed(serve_report.bars(TIMES)))
        assert len(lines) == 2
        assert "after a restart" in lines[0]
        assert "1.200, more than 1.1" in lines[0]
        assert "0.200, more than 0.15" in lines[1]

    def test_every_bar_is_in_the_table(self) -> None:
        names = {name for _, _, *names in serve_report.ROWS.values() for name in names}
        assert {
            n for one, other, _ in serve_report.BARS.values() for n in (one, other)
        } <= names

    def test_table_of_a_part(self) -> None:
        text = serve_report.table(
            {
                "raw": TIMES,
                "figures": serve_report.figures(TIMES),
                "bars": serve_report.bars(TIMES),
                "facts": {},
                "settings": {"n_ctx": 8192, "slots": 8},
                "machine": {
                    "cores": 2,
                    "architecture": "x86_64",
                    "system": "Linux",
                    "python": "3",
                },
            }
        )
        assert (
            "| Follow-up, in memory | 0.50 | 200 (100-300) ms | 400 (100-500) ms |"
            in text
        )


def test_instructions() -> None:
    line = "CPU : SSE3 = 1 | AVX2 = 1 | AMX_INT8 = 0 | CPU : AVX2 = 1 | threads = 12"
    assert serve_servers.features(line) == "AVX2 SSE3"


def test_pages_are_forgotten_and_files_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 5000)
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("there is no posix_fadvise here")
    assert serve_servers.forget_pages(tmp_path) == 5000
    assert (tmp_path / "a" / "b").read_bytes() == b"x" * 5000
