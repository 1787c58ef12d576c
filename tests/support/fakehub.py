"""A local Hugging Face hub, as far as model downloads need one.

The idea: a real HTTP server that answers as the hub does. A file in large file storage
is redirected to another host, which takes no token, and its SHA-256 is in a header of
the redirect. Tests can make it fail in every known way, and every request is recorded.

    with FakeHub() as hub:
        hub.add("owner/name", {"model.gguf": b"GGUF..."})
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})
        assert hub.transferred("model.gguf") == 1000

This module knows nothing of llm-kvbranch or of the client library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_BLOCK = 1 << 16


@dataclass
class Request:
    "A request; ``sent`` counts the bytes of the file sent in response"

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class _Repo:
    commit: str
    files: dict[str, bytes | Path]
    private: bool
    gated: bool
    promised: dict[str, str] = field(default_factory=dict)  # etags already sent

    def content(self, name: str) -> bytes:
        found = self.files[name]
        return found if isinstance(found, bytes) else found.read_bytes()

    def etag(self, name: str) -> str:
        if name not in self.promised:
            content = self.content(name)
            if is_large(name):
                etag = hashlib.sha256(content).hexdigest()
            else:
                etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.promised[name] = etag
        return self.promised[name]


def is_large(name: str) -> bool:
    "Whether a file is in large file storage; other files are in git"
    return not name.startswith("in-git/")


class FakeHub:
    """A hub, running inside its with block.

    ``token`` gives access to private and gated repositories. ``requests`` has all
    requests in order.
    """

    token = "hf_fake"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._versions: dict[str, list[_Repo]] = {}
        self._break_after: int | None = None
        self._dies = self._is_dead = False
        self._status: int | None = None
        self._ignores_ranges = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host name, as the hub stores files on another host
        self.storage = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | Path],
        *,
        private: bool = False,
        gated: bool = False,
        commit: str | None = None,
    ) -> str:
        """Create a repository or push to it, and return the new commit.

        Files below ``in-git/`` are not in large file storage.
        """
        names = repr(sorted(files)).encode()
        contents = [
            content if isinstance(content, bytes) else content.read_bytes()
            for content in files.values()
        ]
        digest = hashlib.sha1(b"\0".join([repo.encode(), names, *contents]))
        commit = commit or digest.hexdigest()
        version = _Repo(commit, dict(files), private, gated)
        self._versions.setdefault(repo, []).append(version)
        return commit

    def serve_instead(self, repo: str, name: str, content: bytes) -> None:
        "Send bytes that do not match the promised hash"
        newest = self._versions[repo][-1]
        newest.etag(name)
        newest.files[name] = content

    def promise(self, repo: str, name: str, etag: str) -> None:
        "Send an etag that does not match the content"
        self._versions[repo][-1].promised[name] = etag

    def break_after(self, nbytes: int, *, once: bool = False) -> None:
        """Close the connection after so many bytes of the next transfer.

        Unless ``once``, no request is answered until ``mend``.
        """
        self._break_after, self._dies = nbytes, not once

    def mend(self) -> None:
        "Answer requests again"
        self._break_after, self._is_dead = None, False

    def fail(self, status: int | None) -> None:
        "Answer every request with a status; None ends that"
        self._status = status

    def ignore_ranges(self) -> None:
        "Send whole files, whatever range is requested"
        self._ignores_ranges = True

    def transferred(self, name: str) -> int:
        "How many bytes of a file were sent"
        asked = [r for r in self.requests if unquote(r.path).endswith(f"/{name}")]
        return sum(request.sent for request in asked)

    def transfers(self) -> list[Request]:
        "The requests for the content of a file"
        return [r for r in self.requests if r.method == "GET" and r.sent]

    def environment(self, root: Path) -> dict[str, str]:
        "The environment for a process to use this hub, with its home below ``root``"
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(root / "huggingface"),
            "HF_HUB_CACHE": str(root / "huggingface" / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(root / "huggingface" / "token"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _version(self, repo: str, revision: str) -> _Repo | None:
        for version in reversed(self._versions.get(repo, [])):
            if revision in ("main", version.commit):
                return version
        return None

    def _next_break(self) -> int | None:
        at, self._break_after = self._break_after, None
        self._is_dead = at is not None and self._dies
        return at


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.request_seen = Request(
            self.command,
            path,
            self.headers.get("Host", ""),
            self.headers.get("Range"),
            self.headers.get("Authorization"),
        )
        self.hub.requests.append(self.request_seen)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.hub._is_dead:
                self._reset()
            elif self.hub._status is not None:
                self._say(self.hub._status)
            elif self.request_seen.host.startswith("localhost"):
                self._storage(path)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*found.groups())
            elif found := re.fullmatch(
                r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+)|/(tree)/([^/]+))?", path
            ):
                repo, revision, tree, of_tree = found.groups()
                self._describe(repo, revision or of_tree or "main", bool(tree))
            else:
                self._say(404)

    def _repo(self, name: str, revision: str, *, content: bool) -> _Repo | None:
        "The repository if this token may read it; otherwise answers with an error"
        bearer = self.headers.get("Authorization")
        trusted = bearer == f"Bearer {self.hub.token}"
        repo = self.hub._version(name, "main")
        version = self.hub._version(name, revision)
        if bearer and not trusted:
            invalid = "Invalid credentials in Authorization header"
            self._say(401, {"X-Error-Message": invalid})
        elif repo is None or (repo.private and not trusted):
            # The hub does not reveal private repositories
            if trusted:
                self._say(404, {"X-Error-Code": "RepoNotFound"})
            else:
                self._say(401, {"X-Error-Message": "Invalid username or password."})
        elif repo.gated and not trusted and content:
            self._say(403 if bearer else 401, {"X-Error-Code": "GatedRepo"})
        elif version is None:
            self._say(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return version
        return None

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision, content=True)
        if repo is None:
            return
        headers = {"X-Repo-Commit": repo.commit}
        if file not in repo.files:
            self._say(404, {**headers, "X-Error-Code": "EntryNotFound"})
        elif is_large(file):
            headers |= {
                "X-Linked-Etag": f'"{repo.etag(file)}"',
                "X-Linked-Size": str(len(repo.content(file))),
                "Location": f"{self.hub.storage}/{name}/{repo.commit}/{file}",
            }
            self._say(302, headers)
        else:
            self._send(repo.content(file), {**headers, "ETag": f'"{repo.etag(file)}"'})

    def _describe(self, name: str, revision: str, tree: bool) -> None:
        repo = self._repo(name, revision, content=False)
        if repo is None:
            return
        if tree:
            facts: Any = [
                {
                    "type": "file",
                    "path": file,
                    "size": len(repo.content(file)),
                    "oid": repo.etag(file)[:40],
                }
                for file in repo.files
            ]
        else:
            facts = {
                "_id": name,
                "id": name,
                "modelId": name,
                "sha": repo.commit,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "tags": ["gguf"],
                "siblings": [{"rfilename": file} for file in repo.files],
            }
        self._say(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _storage(self, path: str) -> None:
        _, owner, name, commit, file = path.split("/", 4)
        repo = self.hub._version(f"{owner}/{name}", commit)
        if repo is None or self.headers.get("Authorization"):
            self._say(400)  # as object storage does beside signed URLs
        else:
            self._send(repo.content(file), {"ETag": '"of the storage"'})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        "Send a file, or the requested range"
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        # The hub's storage serves no ranges of compressible files
        whole = self.hub._ignores_ranges or "gzip" in self.headers.get(
            "Accept-Encoding", ""
        )
        start = int(found[1]) if found and not whole else 0
        if start and start >= len(content):
            self._say(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        headers |= {
            "Accept-Ranges": "bytes",
            "Content-Length": f"{len(content) - start}",
        }
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = self.hub._next_break()
        end = len(content) if stop is None else min(start + stop, len(content))
        for at in range(start, end, _BLOCK):
            block = content[at : min(at + _BLOCK, end)]
            self.wfile.write(block)
            self.request_seen.sent += len(block)
        self.close_connection = end < len(content)

    def _reset(self) -> None:
        "Reset the connection. In the middle of an answer, sent data would be lost"
        never_linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never_linger)
        # Open streams would keep the connection alive
        socket.close(self.connection.detach())
        self.close_connection = True

    def _say(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
