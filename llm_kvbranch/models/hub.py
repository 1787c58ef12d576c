"""Downloads from the Hugging Face hub, into the cache that other tools use as well.

The idea: files are downloaded into Hugging Face's own cache by its own library, with
its token, endpoint, folders and progress bar. Two things are added that the library
does not do (any more): interrupted downloads are resumed, by any process, and content
is compared with the SHA-256 that the hub announced.

The invariant: a file appears in the cache only after it was verified. Files that are
already there were verified here or come from another tool; they are not read again.

This module does not know what is in a GGUF file or what is done with it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DownloadError
from .hub_errors import explained, line_of
from .hub_names import choose, models_in, parts
from .presets import DEFAULT, PRESETS

_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?:blob|resolve)/(?P<revision>[^/?#]+)/(?P<file>[^?#]+)"
    r"|/tree/main|:(?P<quantisation>[\w.-]+))?/?(?:[?#].*)?",
    re.ASCII,
)
_PATIENCE = 2  # seconds to wait for another process


def is_address(name: str) -> bool:
    "Whether a name looks like something to download"
    return name.lower() in PRESETS or (
        bool(_ADDRESS.fullmatch(name)) and not name.lower().endswith(".gguf")
    )


def resolve(repo_or_preset: str | None, file: str | None) -> tuple[str, str]:
    """The repository and file that a user means.

    ``file`` may be the name of a file or a quantisation. Raises DownloadError.
    """
    name = (repo_or_preset or DEFAULT).strip()
    if preset := PRESETS.get(name.lower()):
        if not file:
            return preset.repo, preset.file
        name = preset.repo
    address = _ADDRESS.fullmatch(name)
    if address is None:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise DownloadError(
            f"{name!r} is neither a repository (owner/name) nor a short name"
            f"{meant}. Short names: {', '.join(PRESETS)}"
        )
    repo = address["repo"]
    if address["revision"] not in (None, "main"):
        raise DownloadError(
            f"This address is of revision {address['revision']}, not main: give"
            f" {repo}, the file and --revision separately"
        )
    wanted = file or unquote(address["file"] or "") or address["quantisation"]
    if wanted and wanted.lower().endswith(".gguf"):
        return repo, wanted
    with explained(repo, "the list of files"):
        names = models_in(repo)
    return repo, choose(repo, names, wanted)


def download(repo: str, file: str, revision: str | None = None) -> Path:
    """The path of a file in the cache, where it is downloaded to if necessary.

    Of a split model all parts are downloaded; the path is that of the first. If the
    hub cannot be reached, what is in the cache is used. Raises DownloadError.
    """
    if file.startswith("/") or ".." in file.split("/"):
        raise DownloadError(f"{file!r} is not the name of a file in a repository")
    names = parts(file)
    with explained(repo, file, revision):
        try:
            first = _ask(repo, names[0], revision)
            # Of the same commit, even if another is pushed meanwhile
            files = [first, *(_ask(repo, name, first.commit) for name in names[1:])]
        except Exception:
            paths = _cached(repo, names, revision)
            if not paths:
                raise
        else:
            missing = [one for one in files if _size(one.link) != one.nbytes]
            _check_room(missing)
            for one in missing:
                _bring(one)
            _remember(first, revision)
            paths = [one.link for one in files]
        for path in paths:
            with open(path, "rb") as content:
                if content.read(4) != b"GGUF":
                    raise DownloadError(f"{path} is not a GGUF file: choose another")
    return paths[0]


@dataclass(frozen=True)
class _File:
    "A file as the hub describes it, and its paths in the cache"

    repo: str
    name: str
    commit: str
    etag: str
    nbytes: int
    folder: Path
    link: Path
    blob: Path
    partial: Path  # named as in versions of the library that resumed downloads


def _ask(repo: str, name: str, revision: str | None) -> _File:
    "Ask the hub about a file"
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    with explained(repo, name, revision):
        found = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    commit, etag = found.commit_hash or "", found.etag or ""
    # Both become names of files
    named = re.fullmatch(r"[0-9a-f]{40}", commit) and re.fullmatch(r"[\w-]+", etag)
    if not named or found.size is None:
        raise DownloadError(
            f"{constants.ENDPOINT} does not answer like a Hugging Face hub: check"
            " HF_ENDPOINT, or sign in to your network"
        )
    cache = Path(constants.HF_HUB_CACHE)
    folder = cache / repo_folder_name(repo_id=repo, repo_type="model")
    link = folder / "snapshots" / commit / name
    blob, partial = (folder / "blobs" / n for n in (etag, f"{etag}.incomplete"))
    return _File(repo, name, commit, etag, found.size, folder, link, blob, partial)


def _cached(repo: str, names: list[str], revision: str | None) -> list[Path]:
    "The paths of files in the cache if all are there, else nothing"
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name, revision=revision) for name in names]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(names) else []


def _bring(file: _File) -> None:
    "Download, verify, and only then move to the final path"
    from huggingface_hub import hf_hub_download

    file.blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        if _size(file.blob) != file.nbytes:
            _transfer(file)
            _compare(file)
            os.replace(file.partial, file.blob)
            file.link.unlink(missing_ok=True)
    hf_hub_download(file.repo, file.name, revision=file.commit)  # makes the link
    if not file.link.is_symlink():  # it made a copy: the file system has no links
        file.blob.unlink(missing_ok=True)


def _transfer(file: _File) -> None:
    """Download what is still missing.

    Over HTTP even if the hub offers Xet: neither Xet nor the library's own download
    can be resumed.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    with open(file.partial, "ab") as target:
        if target.tell() > file.nbytes:
            target.seek(0)
            target.truncate()
        # A compressed response could not start in the middle
        headers = {**_utils().build_hf_headers(), "Accept-Encoding": "identity"}
        try:
            with _quietly():
                http_get(
                    hf_hub_url(file.repo, file.name, revision=file.commit),
                    target,
                    resume_size=target.tell(),
                    headers=headers,
                    expected_size=file.nbytes,
                    displayed_filename=Path(file.name).name,
                )
        except Exception as error:
            # Responses of the hub and errors of the disk are explained elsewhere
            if hasattr(error, "response") or getattr(error, "errno", None):
                raise
            raise DownloadError(
                f"The download of {file.name} was interrupted ({line_of(error)}): run"
                f" this again to resume it after {_said(target.tell())} of"
                f" {_said(file.nbytes)}"
            ) from error
        target.flush()
        os.fsync(target.fileno())


def _compare(file: _File) -> None:
    """Delete a download whose SHA-256 is not what the hub announced.

    Files outside large file storage have another kind of hash, and mirrors have any.
    Then only the size is known, which the download has checked.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", file.etag):
        return
    digest = hashlib.sha256()
    name = Path(file.name).name
    bar = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None}
    with (
        open(file.partial, "rb") as source,
        _utils().tqdm(desc=f"Checking {name}", total=file.nbytes, **bar) as progress,
    ):
        while block := source.read(1 << 20):
            digest.update(block)
            progress.update(len(block))
    if digest.hexdigest() != file.etag:
        file.partial.unlink()
        raise DownloadError(
            f"{file.name} is not what the hub announced (SHA-256 differs). It was"
            " deleted; download it again"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    "Hide what the library logs on each retry: the progress bar shows it"
    logger = logging.getLogger("huggingface_hub.file_download")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _alone(file: _File) -> Iterator[None]:
    "Hold the library's own lock for a file; it is released with the process"
    lock = file.folder.parent / ".locks" / file.folder.name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_utils().WeakFileLock(lock, timeout=_PATIENCE))
        except TimeoutError:
            raise DownloadError(
                f"Another process is downloading {file.name}: wait until it is done"
            ) from None
        yield


def _check_room(files: list[_File]) -> None:
    from huggingface_hub import constants

    needed = 0
    for file in files:
        if file.nbytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise DownloadError(
                f"{file.name} has {_said(file.nbytes)}, too much for HTTP: run"
                f" `hf download {file.repo} {file.name}`, then run this again"
            )
        if _size(file.blob) != file.nbytes:
            needed += file.nbytes - (_size(file.partial) or 0)
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    missing = needed - shutil.disk_usage(folder).free
    if missing > 0:
        raise DownloadError(
            f"The disk lacks {_said(missing)} of the {_said(needed)} to download into"
            f" {constants.HF_HUB_CACHE}: free some space or set HF_HOME to another disk"
        )


def _remember(file: _File, revision: str | None) -> None:
    "Record the commit of a branch, for looking it up without the hub"
    reference = file.folder / "refs" / (revision or "main")
    if revision != file.commit:
        with contextlib.suppress(OSError):  # a read-only cache will do
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(file.commit)


def _utils() -> Any:
    "Parts of the library that type checkers cannot see"
    return importlib.import_module("huggingface_hub.utils")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _said(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
