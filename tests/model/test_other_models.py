"""Branches with models of other plugins, through the real command.

llm-echo is another real plugin. The server speaks the OpenAI chat API as vLLM,
SGLang or llama-server do, and is registered with llm the way they are.
"""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from ..support.shell import Shell


@pytest.fixture
def shell(user_path):
    shell = Shell(user_path)
    shell.env["LLM_LOAD_PLUGINS"] = "llm-kvbranch,llm-echo"
    return shell


class Engine(http.server.BaseHTTPRequestHandler):
    "Answers with the prompt, streamed or not, and records the requests"

    requests: list[dict]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(body)
        text = f"You said: {body['messages'][-1]['content']}"
        base = {"id": "c1", "created": 0, "model": "remote"}
        self.send_response(200)
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            data = json.dumps(
                {
                    **base,
                    "object": "chat.completion",
                    "choices": [choice],
                    "usage": {
                        "prompt_tokens": 3,
                        "completion_tokens": 2,
                        "total_tokens": 5,
                    },
                }
            ).encode()
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for delta, reason in [({"content": text}, None), ({}, "stop")]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            chunk = {**base, "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_args): ...


@pytest.fixture
def engine(shell):
    "An OpenAI-compatible server on this machine, known to llm as remote"
    handler = type("Handler", (Engine,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    (shell.home / "extra-openai-models.yaml").write_text(
        f"- model_id: remote\n  model_name: remote\n"
        f"  api_base: http://127.0.0.1:{port}/v1\n"
    )
    shell.env["OPENAI_API_KEY"] = "none"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


class TestEcho:
    "Fails if a branch only works with our models"

    def test_branch_of_its_answer(self, shell):
        shell.ok("-m", "echo", "What is the sea?")
        shell.ok("kvbranch", "last", "--excerpt", "What is", "Why?")
        facts = shell.show()
        assert facts["model"] == "echo"
        assert facts["verb"] == "branch"
        assert facts["excerpt"] == "What is"
        assert facts["state_file"] is None
        assert "Why?" in shell.ok("kvbranch", "tree")

    def test_siblings(self, shell):
        shell.ok("-m", "echo", "What is the sea?")
        output = shell.ok("kvbranch", "retry", "last", "-n", "2")
        assert output.count("What is the sea?") == 2


class TestEngine:
    "Fails if a server is not sent the same prefix again, which its cache needs"

    def test_sent_the_branch(self, shell, engine):
        shell.ok("-m", "remote", "What is the sea?")
        shell.ok("kvbranch", "last", "--excerpt", "You said: What", "Why?")
        assert engine.requests[-1]["messages"] == [
            {"role": "user", "content": "What is the sea?"},
            {"role": "assistant", "content": "You said: What"},
            {"role": "user", "content": "Why?"},
        ]
        shell.ok("-c", "More", "--no-stream")
        before, after = (request["messages"] for request in engine.requests[-2:])
        assert after[: len(before)] == before

    @pytest.mark.model
    def test_outgrowing_this_machine_and_coming_back(self, shell, engine):
        answer = shell.ask("-o", "max_tokens", "12", "Tell me about the sea.")
        shell.ok("kvbranch", "last", "Why?", "-m", "remote")
        assert engine.requests[-1]["messages"][1]["content"] == answer
        arguments = ["-o", "max_tokens", "8", "-o", "temperature", "0"]
        shell.ok("kvbranch", "last", "Go on", "-m", "kvllama", *arguments)
        facts = shell.show()
        assert facts["miss_reason"] == "no state of the last answer is stored"
        assert facts["restored_tokens"] > facts["prompt_tokens"] / 3
