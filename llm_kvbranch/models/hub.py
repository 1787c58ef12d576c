"""Models from the Hugging Face hub, kept where every other tool looks for them.

The idea: a file goes into Hugging Face's own cache, by its own library, with its
token, endpoint, folders and progress bar. Two things are added that the library
does not do, or no longer: a transfer that broke off goes on where it stopped, in
whichever process, and content is compared with the SHA-256 that the hub promised.

The invariant: a file gets its place in the cache only after it was compared. What
has its place was compared here or put there by another tool; it is not read again.

This module does not know what is in a GGUF file, nor what is done with it.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
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
from .presets import DEFAULT, PRESETS

USUAL = "Q4_K_M"  # the quantisation that most people take and most repositories have

_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?:blob|resolve)/(?P<revision>[^/?#]+)/(?P<file>[^?#]+)"
    r"|/tree/main|:(?P<quantisation>[\w.-]+))?/?(?:[?#].*)?",
    re.ASCII,
)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# What lies beside models: projectors for images, and data to quantise with
_NO_MODEL = re.compile(r"mmproj|^imatrix", re.IGNORECASE)
_PATIENCE = 2  # seconds to wait for another process

# What to tell a person: by the class of an error, the HTTP status or the errno; the
# first that fits. Classes by name, as httpx became httpx2 in the library's version 2
_SIGN_IN = "run `hf auth login` or set HF_TOKEN"
# fmt: off
_ADVICE = {
    "OfflineModeIsEnabled":
        "HF_HUB_OFFLINE is set and {what} is not in the cache: unset it to download",
    "GatedRepoError":
        "{repo} has a licence to accept: do so at {hub}/{repo}, then " + _SIGN_IN,
    "RevisionNotFoundError":
        "{repo} has no revision {revision}: leave it out to get the newest files",
    "RepositoryNotFoundError 401 404":
        "There is no {repo} that you may read: check the name; if it is private, "
        + _SIGN_IN,
    "403":
        "You may not read {what}: " + _SIGN_IN + " to a token that may",
    "429":
        "The hub has had too many requests: wait some minutes, or " + _SIGN_IN,
    "HfHubHTTPError":
        "The hub cannot give {what} now (HTTP {status}): run this again later",
    "HTTPError":
        "Cannot reach {hub} ({error}): check the network, then run this again",
    "ENOSPC EDQUOT":
        "The disk is full: free some, then run this again, or set HF_HOME to another",
    "EACCES EPERM EROFS ENOTDIR":
        "Cannot write {path} ({reason}): make it writable, or set HF_HOME elsewhere",
    "Exception":
        "Cannot get {what}: {error}",
}
# fmt: on


def is_address(name: str) -> bool:
    "Whether a name looks like one that can be downloaded"
    return name.lower() in PRESETS or (
        bool(_ADDRESS.fullmatch(name)) and not name.lower().endswith(".gguf")
    )


def resolve(repo_or_preset: str | None, file: str | None) -> tuple[str, str]:
    """The repository and the file that a person means.

    ``file`` may be the name of a file or of a quantisation. Raises DownloadError.
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
            f"{name!r} is neither a repository (owner/name) nor a model with a short"
            f" name{meant}: {', '.join(PRESETS)}"
        )
    repo = address["repo"]
    if address["revision"] not in (None, "main"):
        raise DownloadError(
            f"This address is of revision {address['revision']}, not of main: give"
            f" {repo}, the file and the revision one by one"
        )
    wanted = file or unquote(address["file"] or "") or address["quantisation"]
    if wanted and wanted.lower().endswith(".gguf"):
        return repo, wanted
    with _explained(repo, "the list of files"):
        names = _models_in(repo)
    return repo, _choose(repo, names, wanted)


def _models_in(repo: str) -> list[str]:
    "The GGUF models of a repository; a split one by its first part"
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = sorted(sibling.rfilename for sibling in info.siblings or ())
    return [
        name
        for name in names
        if name.lower().endswith(".gguf")
        and name.isprintable()
        and not _NO_MODEL.search(name.rpartition("/")[2])
        and _parts(name)[0] == name
    ]


def _choose(repo: str, names: list[str], quantisation: str | None) -> str:
    if not names:
        raise DownloadError(
            f"{repo} has no GGUF file: look for a repository with GGUF in its name"
        )
    if len(names) == 1 and not quantisation:
        return names[0]
    # Q4_K is not in Q4_K_M, nor Q4_NL in IQ4_NL
    whole = rf"(?<![a-z0-9]){re.escape(quantisation or USUAL)}(?![a-z0-9_])"
    fitting = [name for name in names if re.search(whole, name, re.IGNORECASE)]
    if len(fitting) == 1:
        return fitting[0]
    if quantisation and not fitting:
        problem = f"{repo} has no file of {quantisation}, name one that it has"
    else:
        problem = f"{repo} has several files, name one"
    raise DownloadError(f"{problem}: {', '.join(fitting or names)}")


def _parts(name: str) -> list[str]:
    "The names of all parts of a split file, else its own"
    found = _PART.search(name)
    if found is None:
        return [name]
    stem, count = name[: found.start()], found[1]
    return [f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)]


def download(repo: str, file: str, revision: str | None = None) -> Path:
    """Where a file is in the cache, brought there if need be.

    Of a split model every part is brought, and the first is where. What the cache
    has will do when the hub cannot be asked. Raises DownloadError.
    """
    if file.startswith("/") or ".." in file.split("/"):
        raise DownloadError(f"{file!r} is not the name of a file in a repository")
    names = _parts(file)
    with _explained(repo, file, revision):
        try:
            first = _ask(repo, names[0], revision)
            # Of one commit, whatever is pushed meanwhile
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
                    raise DownloadError(f"{path} is no GGUF file: choose another one")
    return paths[0]


@dataclass(frozen=True)
class _File:
    "A file as the hub describes it, and its places in the cache"

    repo: str
    name: str
    commit: str
    etag: str
    nbytes: int
    folder: Path
    link: Path
    blob: Path
    partial: Path  # named as by versions of the library that still went on with it


def _ask(repo: str, name: str, revision: str | None) -> _File:
    "What the hub says about a file"
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    with _explained(repo, name, revision):
        found = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    commit, etag = found.commit_hash or "", found.etag or ""
    # Both become names of files
    named = re.fullmatch(r"[0-9a-f]{40}", commit) and re.fullmatch(r"[\w-]+", etag)
    if not named or found.size is None:
        raise DownloadError(
            f"What answers at {constants.ENDPOINT} is no Hugging Face hub: check"
            " HF_ENDPOINT, or the network's sign-in page"
        )
    cache = Path(constants.HF_HUB_CACHE)
    folder = cache / repo_folder_name(repo_id=repo, repo_type="model")
    link = folder / "snapshots" / commit / name
    blob, partial = (folder / "blobs" / n for n in (etag, f"{etag}.incomplete"))
    return _File(repo, name, commit, etag, found.size, folder, link, blob, partial)


def _cached(repo: str, names: list[str], revision: str | None) -> list[Path]:
    "Where files are in the cache if it has them all, else nothing"
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name, revision=revision) for name in names]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(names) else []


def _bring(file: _File) -> None:
    "Transfer, compare, and only then give it its place"
    from huggingface_hub import hf_hub_download

    file.blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        if _size(file.blob) != file.nbytes:
            _transfer(file)
            _compare(file)
            os.replace(file.partial, file.blob)
            file.link.unlink(missing_ok=True)
    hf_hub_download(file.repo, file.name, revision=file.commit)  # makes the link
    if not file.link.is_symlink():  # it made a copy: the file system knows no links
        file.blob.unlink(missing_ok=True)


def _transfer(file: _File) -> None:
    """Fetch what is still missing.

    Over HTTP even if the hub offers Xet: neither that nor the library's own
    download leaves anything to go on with.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    with open(file.partial, "ab") as target:
        if target.tell() > file.nbytes:
            target.seek(0)
            target.truncate()
        # A compressed answer could not go on in the middle
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
            # An answer of the hub and an error of the disk are told as everywhere
            if hasattr(error, "response") or getattr(error, "errno", None):
                raise
            raise DownloadError(
                f"The transfer of {file.name} broke off ({_line(error)}): run this"
                f" again, and it goes on after the first {_said(target.tell())} of"
                f" {_said(file.nbytes)}"
            ) from error
        target.flush()
        os.fsync(target.fileno())


def _compare(file: _File) -> None:
    """Delete what is not what the hub promised.

    What is not in large file storage has another hash, and mirrors have any: then
    the size is all there is to know, and the transfer looked at that.
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
            f"{file.name} is not what the hub promised (SHA-256 differs): it was"
            " deleted, download it again"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    "Without what the library says each time it tries again: the bar shows it"
    logger = logging.getLogger("huggingface_hub.file_download")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _alone(file: _File) -> Iterator[None]:
    "Hold the library's own lock for a file; it goes away with the process"
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
                f"{file.name} has {_said(file.nbytes)}, more than comes over HTTP: run"
                f" `hf download {file.repo} {file.name}`, then this again"
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
            f" {constants.HF_HUB_CACHE}: free some, or set HF_HOME to another disk"
        )


def _remember(file: _File, revision: str | None) -> None:
    "Which commit a branch is at, for whoever asks the cache without the hub"
    reference = file.folder / "refs" / (revision or "main")
    if revision != file.commit:
        with contextlib.suppress(OSError):  # a cache that can only be read will do
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(file.commit)


@contextlib.contextmanager
def _explained(repo: str, file: str, revision: str | None = None) -> Iterator[None]:
    "One line of whatever the library raises, as it does not say what that may be"
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        if type(error).__name__ == "RemoteEntryNotFoundError":
            text = f"{repo} has no file {file}. {_nearest(repo, file)}"
        else:
            text = _advice(error, repo, f"{file} of {repo}", revision)
        raise DownloadError(text) from error


def _advice(error: Any, repo: str, what: str, revision: str | None) -> str:
    from huggingface_hub import constants

    if type(error).__name__ == "LocalEntryNotFoundError":  # of the last question
        error = error.__cause__ or error
    status = getattr(getattr(error, "response", None), "status_code", None)
    number = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    traits = {kind.__name__ for kind in type(error).__mro__} | {str(status), number}
    text = next(text for names, text in _ADVICE.items() if traits & set(names.split()))
    return text.format(
        repo=repo,
        what=what,
        revision=revision,
        hub=constants.ENDPOINT,
        status=status,
        path=getattr(error, "filename", None) or what,
        reason=getattr(error, "strerror", None),
        error=_line(error),
    )


def _nearest(repo: str, file: str) -> str:
    "What may have been meant by the name of a file that is not there"
    try:
        names = _models_in(repo)
    except Exception:  # the problem to tell is the first one
        return "Look at its page for those it has"
    near = difflib.get_close_matches(file, names)
    return f"It has {', '.join(near or names)}" if names else "It has no GGUF file"


def _utils() -> Any:
    "Tools of the library that it does not declare to type checkers"
    return importlib.import_module("huggingface_hub.utils")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _said(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


def _line(error: BaseException) -> str:
    "What an error says, some of which the server said"
    printable = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(printable.split())[:200] or type(error).__name__
