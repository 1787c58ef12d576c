"""Downloads: what is fetched from the hub, where it is stored, and the messages.

Against a real HTTP server on this machine in place of the hub.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download

from llm_kvbranch.errors import DownloadError
from llm_kvbranch.models.hub import download, resolve
from llm_kvbranch.models.presets import DEFAULT, PRESETS

from ..support.fakehub import FakeHub

REPO = "owner/Model-GGUF"
FILE = "Model-Q4_K_M.gguf"
MODEL = b"GGUF" + bytes(range(256)) * 4000  # a megabyte
CHUNK = 1 << 16


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub with a model. The library reads its environment at import, so patch it"
    with FakeHub() as hub:
        environment = hub.environment(tmp_path)
        address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        cache = environment["HF_HUB_CACHE"]
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", environment["HF_TOKEN_PATH"])
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        # It retries after a second
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, environment[name])
        hub.add(REPO, {FILE: MODEL, "README.md": b"A model"})
        yield hub


@pytest.fixture
def cache(tmp_path, hub) -> Path:
    return tmp_path / "huggingface" / "hub"


def partial_files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.incomplete"))


def models(cache: Path) -> list[Path]:
    "Everything that another tool would take for a model"
    found = [*cache.rglob("*.gguf"), *cache.glob("*/blobs/*")]
    return [path for path in found if path.suffix != ".incomplete"]


def refused(*arguments: str) -> str:
    "The message to the user, of one line"
    with pytest.raises(DownloadError) as caught:
        download(*arguments)
    return one_line(caught)


def unresolved(name: str | None, file: str | None = None) -> str:
    with pytest.raises(DownloadError) as caught:
        resolve(name, file)
    return one_line(caught)


def one_line(caught: pytest.ExceptionInfo[DownloadError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


class TestDownload:
    "Guards against other bytes, names or paths than other tools of the hub use"

    def test_the_file_under_its_name_in_the_cache(self, hub, cache) -> None:
        path = download(REPO, FILE)
        assert path.read_bytes() == MODEL
        commit = hub.add(REPO, {FILE: MODEL, "README.md": b"A model"})
        folder = cache / "models--owner--Model-GGUF"
        assert path == folder / "snapshots" / commit / FILE
        assert not partial_files(cache)

    def test_the_library_finds_it_without_the_hub(self, hub, cache) -> None:
        path = download(REPO, FILE)
        found = file_download.hf_hub_download(REPO, FILE, local_files_only=True)
        assert Path(found) == path

    def test_what_the_library_brought_is_found(self, hub) -> None:
        theirs = file_download.hf_hub_download(REPO, FILE)
        n_transfers = len(hub.transfers())
        assert download(REPO, FILE) == Path(theirs)
        assert len(hub.transfers()) == n_transfers

    def test_a_second_one_makes_no_transfer(self, hub) -> None:
        path = download(REPO, FILE)
        assert hub.transferred(FILE) == len(MODEL)
        assert download(REPO, FILE) == path
        assert hub.transferred(FILE) == len(MODEL)

    def test_nor_does_the_same_content_in_another_commit(self, hub) -> None:
        old = download(REPO, FILE)
        commit = hub.add(REPO, {FILE: MODEL, "README.md": b"Changed"})
        new = download(REPO, FILE)
        assert new != old
        assert commit in new.parts
        assert new.read_bytes() == MODEL
        assert hub.transferred(FILE) == len(MODEL)

    def test_a_new_version_of_a_file_is_brought(self, hub) -> None:
        download(REPO, FILE)
        hub.add(REPO, {FILE: MODEL + b"new"})
        assert download(REPO, FILE).read_bytes() == MODEL + b"new"

    def test_a_revision(self, hub) -> None:
        commit = hub.add(REPO, {FILE: MODEL})
        assert download(REPO, FILE, commit) == download(REPO, FILE)
        assert all(commit in r.path for r in hub.requests[:3] if FILE in r.path)
        assert "no revision v9" in refused(REPO, FILE, "v9")

    def test_in_folders(self, hub, cache) -> None:
        hub.add(REPO, {"Q8_0/" + FILE: MODEL, "in-git/small.gguf": MODEL})
        assert download(REPO, "Q8_0/" + FILE).read_bytes() == MODEL
        path = download(REPO, "in-git/small.gguf")
        assert path.read_bytes() == MODEL
        assert path.parts[-2:] == ("in-git", "small.gguf")

    def test_where_links_cannot_be_made(self, hub, cache, monkeypatch) -> None:
        def no_link(*_, **__) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "symlink", no_link)
        monkeypatch.setattr(file_download, "_are_symlinks_supported_in_dir", {})
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
        path = download(REPO, FILE)
        assert not path.is_symlink()
        assert path.read_bytes() == MODEL
        assert models(cache) == [path]  # once, not twice as much
        assert download(REPO, FILE) == path
        assert hub.transferred(FILE) == len(MODEL)
        os.truncate(path, 1000)
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_a_file_that_was_cut_is_brought_again(self, hub) -> None:
        path = download(REPO, FILE)
        os.truncate(path, 1000)
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_start_up_does_not_import_the_library(self) -> None:
        code = (
            "import llm_kvbranch.models.hub, sys;"
            "print('huggingface_hub' in sys.modules)"
        )
        out = subprocess.check_output([sys.executable, "-c", code], text=True)
        assert out == "False\n"


class TestSplit:
    "Guards against parts that are missing or of different versions"

    PARTS = tuple(f"big/Big-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3))

    @pytest.fixture
    def split(self, hub) -> FakeHub:
        hub.add(REPO, {name: MODEL + name.encode() for name in self.PARTS})
        return hub

    @pytest.mark.parametrize("named", PARTS)
    def test_every_part_whichever_was_named(self, split, named) -> None:
        path = download(REPO, named)
        assert str(path).endswith(self.PARTS[0])
        for name in self.PARTS:
            there = path.with_name(Path(name).name)
            assert there.read_bytes() == MODEL + name.encode()

    def test_of_one_commit_though_another_is_pushed(self, split, monkeypatch) -> None:
        ask = file_download.get_hf_file_metadata

        def push_then(*arguments, **options):
            answer = ask(*arguments, **options)
            split.add(REPO, dict.fromkeys(self.PARTS, MODEL + b"newer"))
            return answer

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", push_then)
        path = download(REPO, self.PARTS[0])
        for name in self.PARTS:
            there = path.with_name(Path(name).name)
            assert there.read_bytes() == MODEL + name.encode()

    def test_only_what_is_missing(self, split) -> None:
        path = download(REPO, self.PARTS[0])
        lost = path.with_name(Path(self.PARTS[1]).name)
        lost.resolve().unlink()
        lost.unlink()
        download(REPO, self.PARTS[2])
        sizes = [len(MODEL + name.encode()) for name in self.PARTS]
        sent = [split.transferred(name) for name in self.PARTS]
        assert sent == [sizes[0], 2 * sizes[1], sizes[2]]

    def test_a_missing_part(self, split) -> None:
        split.add(REPO, dict.fromkeys(self.PARTS[:2], MODEL))
        assert f"has no file {self.PARTS[2]}" in refused(REPO, self.PARTS[0])
        assert not split.transfers()


class TestInterrupted:
    "Guards against downloading gigabytes twice, or using an incomplete file"

    def test_it_resumes_where_it_stopped(self, hub, cache) -> None:
        hub.break_after(len(MODEL) // 2)
        text = refused(REPO, FILE)
        assert "was interrupted" in text
        assert "run this again" in text
        assert not models(cache)
        (partial,) = partial_files(cache)
        n_there = partial.stat().st_size
        assert len(MODEL) // 2 - CHUNK <= n_there <= len(MODEL) // 2
        assert f"{n_there / 1e6:.1f} MB of 1.0 MB" in text
        n_before = hub.transferred(FILE)
        hub.mend()
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) - n_before == len(MODEL) - n_there
        assert hub.transfers()[-1].range == f"bytes={n_there}-"
        assert not partial_files(cache)

    def test_again_and_again(self, hub) -> None:
        for _ in range(3):
            hub.break_after(len(MODEL) // 4)
            refused(REPO, FILE)
            hub.mend()
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) < len(MODEL) + 4 * CHUNK

    def test_a_short_break(self, hub) -> None:
        hub.break_after(len(MODEL) // 2, once=True)
        with contextlib.suppress(DownloadError):  # older libraries give up at once
            download(REPO, FILE)
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) < len(MODEL) + 2 * CHUNK

    def test_everything_was_there_but_its_place(self, hub, cache, monkeypatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped)
            with pytest.raises(KeyboardInterrupt):
                download(REPO, FILE)
        n_before = hub.transferred(FILE)
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) == n_before

    def test_more_than_everything(self, hub, cache) -> None:
        break_off(hub)
        partial_files(cache)[0].write_bytes(bytes(len(MODEL) + 1))
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_a_server_without_ranges(self, hub) -> None:
        break_off(hub)
        hub.ignore_ranges()
        try:
            path = download(REPO, FILE)
        except (
            DownloadError
        ):  # older libraries append the whole file, which is detected
            path = download(REPO, FILE)
        assert path.read_bytes() == MODEL

    def test_a_damaged_beginning_is_seen(self, hub, cache) -> None:
        break_off(hub)
        (partial,) = partial_files(cache)
        with open(partial, "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        assert "SHA-256 differs" in refused(REPO, FILE)
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_control_c_passes_and_keeps_what_is_there(
        self, hub, cache, monkeypatch
    ) -> None:
        http_get = file_download.http_get

        def interrupted(url, target, **options):
            hub.break_after(len(MODEL) // 2)
            try:
                http_get(url, target, **options)
            except Exception:
                hub.mend()
                raise KeyboardInterrupt from None

        with monkeypatch.context() as patch:
            patch.setattr(file_download, "http_get", interrupted)
            with pytest.raises(KeyboardInterrupt):
                download(REPO, FILE)
        assert partial_files(cache)[0].stat().st_size > CHUNK
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) < 1.5 * len(MODEL)

    def test_two_at_once(self, hub, cache, monkeypatch) -> None:
        from huggingface_hub.utils import WeakFileLock

        monkeypatch.setattr("llm_kvbranch.models.hub._PATIENCE", 0.1)
        break_off(hub)
        (lock,) = cache.rglob("*.lock")
        with WeakFileLock(lock):
            assert "Another process" in refused(REPO, FILE)
        assert download(REPO, FILE).read_bytes() == MODEL


def break_off(hub: FakeHub) -> None:
    hub.break_after(len(MODEL) // 2)
    assert "was interrupted" in refused(REPO, FILE)
    hub.mend()


def stopped(*_) -> None:
    raise KeyboardInterrupt


class TestContent:
    "Guards against wrong content that we or another program would use"

    def test_other_bytes_of_the_right_size(self, hub, cache) -> None:
        hub.serve_instead(REPO, FILE, MODEL[:-1] + b"!")
        text = refused(REPO, FILE)
        assert "not what the hub announced (SHA-256 differs)" in text
        assert "download it again" in text
        assert not models(cache)
        assert not partial_files(cache)
        hub.serve_instead(REPO, FILE, MODEL)
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_are_not_found_in_the_cache_either(self, hub) -> None:
        hub.serve_instead(REPO, FILE, MODEL[:-1] + b"!")
        refused(REPO, FILE)
        assert file_download.try_to_load_from_cache(REPO, FILE) is None

    def test_nothing_is_found_before_that(self, hub, cache, monkeypatch) -> None:
        with monkeypatch.context() as patch:
            hashes = SimpleNamespace(sha256=stopped)  # the fake hub needs its own
            patch.setattr("llm_kvbranch.models.hub.hashlib", hashes)
            with pytest.raises(KeyboardInterrupt):
                download(REPO, FILE)
        assert not models(cache)
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) == len(MODEL)

    def test_no_gguf_file(self, hub) -> None:
        hub.add(REPO, {FILE: b"<html>Sign in</html>"})
        for _ in range(2):  # also when it is already in the cache
            assert "is not a GGUF file" in refused(REPO, FILE)

    def test_one_part_is_no_gguf_file(self, hub) -> None:
        parts = [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
        hub.add(REPO, {parts[0]: MODEL, parts[1]: b"nothing"})
        assert f"{parts[1]} is not a GGUF file" in refused(REPO, parts[0])

    def test_an_etag_that_is_no_hash(self, hub) -> None:
        hub.promise(REPO, FILE, "of-a-mirror-1")
        assert download(REPO, FILE).read_bytes() == MODEL

    @pytest.mark.parametrize("which", ["etag", "commit"])
    def test_what_the_hub_says_is_no_path(self, hub, tmp_path, which) -> None:
        if which == "etag":
            hub.promise(REPO, FILE, "../../../../escaped")
        else:
            hub.add(REPO, {FILE: MODEL}, commit="../../../../escaped")
        assert "not answer like a Hugging Face hub" in refused(REPO, FILE)
        assert not [*tmp_path.rglob("*escaped*"), *tmp_path.parent.glob("*escaped*")]


class TestToken:
    "Guards against a private model that cannot be downloaded, or a leaked token"

    @pytest.mark.parametrize("place", ["environment", "login"])
    def test_opens_private_and_gated_ones(self, hub, monkeypatch, place) -> None:
        if place == "environment":
            monkeypatch.setenv("HF_TOKEN", hub.token)
        else:
            path = Path(constants.HF_TOKEN_PATH)
            path.parent.mkdir()
            path.write_text(hub.token)
        hub.add(REPO, {FILE: MODEL}, private=True)
        hub.add("meta/Gated-GGUF", {FILE: MODEL}, gated=True)
        assert download(*resolve(REPO, None)).read_bytes() == MODEL
        assert download(*resolve("meta/Gated-GGUF", None)).read_bytes() == MODEL

    def test_is_sent_to_the_hub_alone(self, hub, monkeypatch) -> None:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        download(REPO, FILE)
        told = {r.host.split(":")[0] for r in hub.requests if r.authorization}
        (transfer,) = hub.transfers()
        assert told == {"127.0.0.1"}
        assert transfer.host.startswith("localhost")


class TestRefusals:
    "Guards against a traceback, or a message that does not say what to do"

    def test_gated(self, hub) -> None:
        hub.add(REPO, {FILE: MODEL}, gated=True)
        text = refused(REPO, FILE)
        assert f"{hub.url}/{REPO}" in text
        assert "licence" in text
        assert "hf auth login" in text
        assert "HF_TOKEN" in text

    @pytest.mark.parametrize("token", [None, FakeHub.token, "hf_expired"])
    def test_private_or_not_there(self, hub, monkeypatch, token) -> None:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        for text in (refused("owner/Nothing", FILE), unresolved("owner/Nothing")):
            assert "no owner/Nothing that you may read" in text
            assert "hf auth login" in text

    def test_no_such_file(self, hub) -> None:
        hub.add(REPO, {"Model-Q8_0.gguf": MODEL, "mmproj-f16.gguf": MODEL})
        text = refused(REPO, "Model-Q4_0.gguf")
        assert "has no file Model-Q4_0.gguf. It has Model-Q8_0.gguf" in text
        assert "mmproj" not in text

    def test_the_nearest_names(self, hub) -> None:
        hub.add(REPO, dict.fromkeys(["a.gguf", "b.gguf", "Model-Q8_0.gguf"], MODEL))
        assert refused(REPO, "Model-Q8.gguf").endswith("It has Model-Q8_0.gguf")

    def test_no_such_file_nor_one_like_it(self, hub) -> None:
        hub.add(REPO, {"README.md": b""})
        assert "It has no GGUF file" in refused(REPO, FILE)

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (403, "token that has access"),
            (429, "wait a few minutes"),
            (500, "HTTP 500"),
        ],
    )
    def test_statuses(self, hub, status, words) -> None:
        hub.fail(status)
        assert words in refused(REPO, FILE)

    def test_a_status_during_the_transfer(self, hub, monkeypatch) -> None:
        http_get = file_download.http_get

        def after_failure(*arguments, **options):
            hub.fail(500)
            http_get(*arguments, **options)

        monkeypatch.setattr(file_download, "http_get", after_failure)
        assert "HTTP 500" in refused(REPO, FILE)

    def test_a_status_after_the_transfer(self, hub, monkeypatch) -> None:
        replace = os.replace

        def then_fail(*arguments) -> None:
            replace(*arguments)
            hub.fail(500)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", then_fail)
            assert "HTTP 500" in refused(REPO, FILE)
        hub.fail(None)
        assert download(REPO, FILE).read_bytes() == MODEL
        assert hub.transferred(FILE) == len(MODEL)

    def test_no_connection(self, hub, monkeypatch) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        address = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        for text in (refused(REPO, FILE), unresolved(REPO)):
            assert f"Cannot reach {url}" in text
            assert "check the network" in text

    def test_what_is_cached_needs_no_connection(self, hub, monkeypatch) -> None:
        path = download(REPO, FILE)
        for status in (500, 401, 403):
            hub.fail(status)
            assert download(REPO, FILE) == path
        hub.fail(None)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        n_requests = len(hub.requests)
        assert download(REPO, FILE) == path
        assert download(REPO, FILE, path.parent.name) == path
        assert len(hub.requests) == n_requests

    def test_offline(self, hub, monkeypatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert f"HF_HUB_OFFLINE is set and {FILE} of {REPO} is" in refused(REPO, FILE)
        assert f"set and the list of files of {REPO} is not" in unresolved(REPO)
        assert not hub.requests

    def test_half_of_a_split_model_offline(self, hub, monkeypatch) -> None:
        parts = [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
        hub.add(REPO, {name: MODEL + name.encode() for name in parts})
        download(REPO, parts[0]).with_name(parts[1]).unlink()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in refused(REPO, parts[0])

    def test_no_hub(self, hub) -> None:
        hub.fail(200)
        assert "not answer like a Hugging Face hub" in refused(REPO, FILE)
        assert "HF_ENDPOINT" in refused(REPO, FILE)

    @pytest.mark.parametrize("name", ["../../x.gguf", "/tmp/x.gguf", "a/../../x.gguf"])
    def test_a_name_that_leads_elsewhere(self, hub, name) -> None:
        hub.add(REPO, {name: MODEL})
        assert "not the name of a file" in refused(REPO, name)
        assert not hub.requests

    def test_an_impossible_name(self, hub) -> None:
        assert "Cannot get" in refused("owner/Model--GGUF", FILE)


class TestDisk:
    "Guards against hours of download that end with a full disk"

    def free(self, monkeypatch, nbytes: int) -> None:
        usage = SimpleNamespace(free=nbytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    def test_too_small_is_said_before(self, hub, cache, monkeypatch) -> None:
        self.free(monkeypatch, len(MODEL) - 400_000)
        text = refused(REPO, FILE)
        assert "lacks 0.4 MB of the 1.0 MB" in text
        assert "HF_HOME" in text
        assert str(cache) in text
        assert not hub.transfers()

    def test_what_is_there_is_not_counted(self, hub, monkeypatch) -> None:
        break_off(hub)
        self.free(monkeypatch, len(MODEL) * 2 // 3)
        download(REPO, FILE)
        self.free(monkeypatch, 0)
        download(REPO, FILE)

    def test_all_parts_are_counted(self, hub, monkeypatch) -> None:
        parts = [f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
        hub.add(REPO, {name: MODEL + name.encode() for name in parts})
        self.free(monkeypatch, len(MODEL) * 3 // 2)
        assert "lacks 0.5 MB of the 2.0 MB" in refused(REPO, parts[0])

    def test_full(self, hub, cache, monkeypatch) -> None:
        def write(_, target, **__) -> None:
            target.write(MODEL[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(file_download, "http_get", write)
            assert "The disk is full" in refused(REPO, FILE)
        assert download(REPO, FILE).read_bytes() == MODEL

    def test_may_not_be_written(self, hub, cache, monkeypatch) -> None:
        def refuse(path: Path, *_, **__) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)  # root can write everywhere
            text = refused(REPO, FILE)
        assert f"Cannot write {cache}" in text
        assert "Permission denied" in text
        assert "HF_HOME" in text

    def test_a_cache_that_can_only_be_read(self, hub, monkeypatch) -> None:
        path = download(REPO, FILE)

        def refuse(path: Path, *_, **__) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(Path, "write_text", refuse)
        assert download(REPO, FILE) == path

    def test_a_file_in_the_way(self, hub, cache) -> None:
        cache.parent.mkdir()
        cache.write_text("not a folder")
        assert f"Cannot write {cache}" in refused(REPO, FILE)

    def test_larger_than_http_gives(self, hub, monkeypatch) -> None:
        monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", len(MODEL) - 1)
        assert f"hf download {REPO} {FILE}" in refused(REPO, FILE)


class TestResolve:
    "Guards against another model than the one meant, or a guess"

    FILES = ("M-IQ4_XS", "M-Q4_K_M", "M-Q4_K_S", "M-Q5_K_M", "M-UD-Q5_K_XL", "M-q8_0")

    @pytest.fixture
    def many(self, hub) -> FakeHub:
        names = [f"{name}.gguf" for name in self.FILES]
        others = ["README.md", "mmproj-M-Q8_0.gguf", "imatrix.gguf"]
        hub.add(REPO, dict.fromkeys([*names, *others], MODEL))
        return hub

    def test_presets(self, hub) -> None:
        for name, preset in PRESETS.items():
            assert resolve(name, None) == (preset.repo, preset.file)
            assert preset.name == name
            assert preset.note.isprintable()
        assert resolve(None, None) == resolve(DEFAULT.upper(), None)
        assert resolve(None, None)[1] == "Llama-3.2-3B-Instruct-Q4_K_M.gguf"
        sizes = [preset.nbytes for preset in PRESETS.values()]
        assert sizes == sorted(sizes)
        assert sizes[0] > 10**8
        assert not hub.requests

    def test_another_file_of_a_preset(self, hub) -> None:
        repo = PRESETS[DEFAULT].repo
        hub.add(repo, {"L-Q4_K_M.gguf": MODEL, "L-Q8_0.gguf": MODEL})
        assert resolve(DEFAULT, "q8_0") == (repo, "L-Q8_0.gguf")
        assert resolve(None, "q8_0") == (repo, "L-Q8_0.gguf")

    def test_the_only_file(self, hub) -> None:
        hub.add(REPO, {"model.gguf": MODEL, "mmproj-model.gguf": b"", "x.txt": b""})
        assert resolve(REPO, None) == (REPO, "model.gguf")
        assert "no file of Q8_0" in unresolved(REPO, "Q8_0")

    def test_the_usual_quantisation(self, many) -> None:
        assert resolve(REPO, None) == (REPO, "M-Q4_K_M.gguf")

    @pytest.mark.parametrize(
        ("asked", "name"),
        [
            ("Q5_K_M", "M-Q5_K_M.gguf"),
            ("q8_0", "M-q8_0.gguf"),
            ("Q8_0", "M-q8_0.gguf"),
            ("IQ4_XS", "M-IQ4_XS.gguf"),
            ("UD-Q5_K_XL", "M-UD-Q5_K_XL.gguf"),
            ("Q5_K_XL", "M-UD-Q5_K_XL.gguf"),
        ],
    )
    def test_a_quantisation(self, many, asked, name) -> None:
        assert resolve(REPO, asked) == (REPO, name)
        assert resolve(f"{REPO}:{asked}", None) == (REPO, name)

    @pytest.mark.parametrize("asked", ["Q4_K", "Q4", "Q4_XS", "K_M", "Q5_K", "Q4.K.M"])
    def test_half_a_quantisation(self, many, asked) -> None:
        text = unresolved(REPO, asked)
        assert all(f"{name}.gguf" in text for name in self.FILES) or asked == "K_M"
        assert "mmproj" not in text

    def test_which_of_several(self, hub) -> None:
        hub.add(REPO, {"a-Q8_0.gguf": MODEL, "b-Q8_0.gguf": MODEL, "a-F16.gguf": MODEL})
        assert "a-F16.gguf, a-Q8_0.gguf, b-Q8_0.gguf" in unresolved(REPO)
        assert "choose one: a-Q8_0.gguf, b-Q8_0.gguf" in unresolved(REPO, "Q8_0")

    def test_several_of_the_usual_one(self, hub) -> None:
        hub.add(REPO, {"a-Q4_K_M.gguf": MODEL, "b-Q4_K_M.gguf": MODEL})
        assert "choose one: a-Q4_K_M.gguf, b-Q4_K_M.gguf" in unresolved(REPO)

    def test_parts_count_as_one(self, hub) -> None:
        parts = [f"Q8_0/x-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
        hub.add(REPO, dict.fromkeys(parts, MODEL))
        assert resolve(REPO, None) == (REPO, parts[0])
        assert resolve(REPO, "Q8_0") == (REPO, parts[0])

    def test_none(self, hub) -> None:
        hub.add(REPO, {"model.safetensors": b""})
        assert "no GGUF file" in unresolved(REPO)
        assert "no GGUF file" in unresolved(REPO, "Q8_0")

    def test_a_named_file_is_not_looked_for(self, hub) -> None:
        assert resolve(REPO, "x/Y.gguf") == (REPO, "x/Y.gguf")
        assert not hub.requests

    @pytest.mark.parametrize(
        "address",
        [
            "https://huggingface.co/{}/blob/main/M-q8_0.gguf",
            "https://huggingface.co/{}/resolve/main/M-q8_0.gguf?download=true",
            "https://huggingface.co/{}/resolve/main/M%2Dq8_0.gguf",
            "https://huggingface.co/{}/blob/main/M-q8_0.gguf#part",
            "http://hf.co/{}/blob/main/M-q8_0.gguf",
            "hf.co/{}:Q8_0",
            "https://hf.co/{}:q8_0",
            "{}:Q8_0",
        ],
    )
    def test_addresses_of_files(self, many, address) -> None:
        assert resolve(address.format(REPO), None) == (REPO, "M-q8_0.gguf")

    @pytest.mark.parametrize(
        "address",
        [
            "https://huggingface.co/{}",
            "https://huggingface.co/{}/",
            "https://huggingface.co/{}/tree/main",
            "https://huggingface.co/{}?show_file_info=x.gguf",
            "hf.co/{}",
            " {} ",
        ],
    )
    def test_addresses_of_repositories(self, many, address) -> None:
        assert resolve(address.format(REPO), None) == (REPO, "M-Q4_K_M.gguf")
        assert resolve(address.format(REPO), "q8_0") == (REPO, "M-q8_0.gguf")

    def test_an_address_in_a_folder(self, hub) -> None:
        address = f"https://huggingface.co/{REPO}/blob/main/Q8_0/x-q8_0.gguf"
        assert resolve(address, None) == (REPO, "Q8_0/x-q8_0.gguf")

    def test_an_address_of_another_revision(self, hub) -> None:
        text = unresolved(f"https://huggingface.co/{REPO}/blob/v2/x.gguf")
        assert "revision v2" in text

    @pytest.mark.parametrize(
        "name",
        ["llama", "model.gguf", "./models/x.gguf", "/tmp/x.gguf", "a/b/c", "owner/",
         "https://example.com/owner/name", "owner/na me", "../name", "~/x"],
    )  # fmt: skip
    def test_neither(self, hub, name) -> None:
        text = unresolved(name)
        assert all(preset in text for preset in PRESETS)
        assert not hub.requests

    def test_names_that_would_clear_the_screen(self, hub) -> None:
        hub.add(REPO, {"a\x1b[2J.gguf": MODEL, "b.gguf": MODEL, "c.gguf": MODEL})
        assert unresolved(REPO).isprintable()


class TestProcess:
    "Guards against tests that only pass because this process is patched"

    def test_two_processes_with_an_environment(self, tmp_path) -> None:
        content = b"GGUF" + os.urandom(24 << 20)
        code = (
            "import sys; from llm_kvbranch.models.hub import download, resolve\n"
            "try: print(download(*resolve(sys.argv[1], None)))\n"
            "except Exception as error: sys.exit(f'{type(error).__name__}: {error}')"
        )
        command = [sys.executable, "-c", code, REPO]
        with FakeHub() as hub:
            hub.add(REPO, {FILE: content})
            options = {
                "env": {**os.environ, **hub.environment(tmp_path)},
                "cwd": Path(__file__).parents[2],
                "capture_output": True,
                "text": True,
            }
            hub.break_after(16 << 20)
            first = subprocess.run(command, check=False, **options)
            assert first.returncode == 1
            assert "DownloadError: The download of" in first.stderr
            (partial,) = partial_files(tmp_path)
            n_there = partial.stat().st_size
            assert n_there > 0
            n_before = hub.transferred(FILE)
            hub.mend()
            second = subprocess.run(command, check=True, **options)
            assert hub.transfers()[-1].range == f"bytes={n_there}-"
            assert hub.transferred(FILE) - n_before == len(content) - n_there
        path = Path(second.stdout.strip())
        assert path.read_bytes() == content
        assert tmp_path / "huggingface" / "hub" in path.parents
