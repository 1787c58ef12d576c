"""Servers that announce themselves, each a process that only listens."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from llm_kvbranch import client

LISTENING = """
import socket, sys
from llm_kvbranch import client
listening = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{listening.getsockname()[1]}"
client.announce(url, sys.argv[1], {"model": sys.argv[1]})
print(listening.getsockname()[1], flush=True)
sys.stdin.readline()
client.withdraw()
"""


@contextlib.contextmanager
def announced(model):
    "A process that has announced that it serves a model, and the port it listens on"
    command = [sys.executable, "-c", LISTENING, model]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        yield process, int(process.stdout.readline())
        end(process)


def end(process):
    if process.poll() is None:
        process.communicate("\n", timeout=60)


def port_of(model):
    found = client.find({"model": model})
    return found and found.port


class TestSeveralServers:
    "Fails if a server is not found, or is lost when another one ends"

    @pytest.mark.parametrize("earlier", [True, False])
    def test_each_is_found_until_it_ends(self, earlier):
        with announced("a") as (first, a), announced("b") as (second, b):
            assert (port_of("a"), port_of("b")) == (a, b)
            end(first if earlier else second)
            assert (port_of("a"), port_of("b")) == ((None, b) if earlier else (a, None))
            with announced("c") as (_, c):
                assert port_of("c") == c
                assert (port_of("a"), port_of("b")).count(None) == 1
        assert not client._paths()[1:]
        assert not client._paths()[0].exists()

    def test_one_that_was_killed_leaves_nothing_behind(self):
        with announced("a") as (first, _), announced("b") as (second, _):
            for process in (first, second):
                process.kill()
                process.wait(60)
        assert all(path.exists() for path in client._paths())
        assert (port_of("a"), port_of("b")) == (None, None)
        with announced("c") as (_, c):
            assert port_of("c") == c
            assert len(client._paths()) == 1

    def test_two_of_one_model(self):
        "Whichever is left answers"
        with announced("a") as (first, a), announced("a") as (_, b):
            assert port_of("a") in (a, b)
            end(first)
            assert port_of("a") == b
