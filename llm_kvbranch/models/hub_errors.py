"""What went wrong with the hub, in one line that says what to do.

The idea: huggingface_hub does not document what it raises, so errors are recognised by
the name of their class, by HTTP status and by errno.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterator
from typing import Any

from ..errors import DownloadError
from .hub_names import models_in

# The first that matches the class of an error, the HTTP status or the errno. Classes go
# by name because the library changed from httpx to httpx2 in its version 2
_SIGN_IN = "run `hf auth login` or set HF_TOKEN"
# fmt: off
_ADVICE = {
    "OfflineModeIsEnabled":
        "HF_HUB_OFFLINE is set and {what} is not in the cache: unset it to download",
    "GatedRepoError":
        "{repo} requires you to accept its licence at {hub}/{repo}; then " + _SIGN_IN,
    "RevisionNotFoundError":
        "{repo} has no revision {revision}: leave it out to get the newest files",
    "RepositoryNotFoundError 401 404":
        "There is no {repo} that you may read: check the name; if it is private, "
        + _SIGN_IN,
    "403":
        "You may not read {what}: " + _SIGN_IN + " to a token that has access",
    "429":
        "Too many requests to the hub: wait a few minutes, or " + _SIGN_IN,
    "HfHubHTTPError":
        "The hub cannot send {what} now (HTTP {status}): try again later",
    "HTTPError":
        "Cannot reach {hub} ({error}): check the network, then run this again",
    "ENOSPC EDQUOT":
        "The disk is full: free some space and run this again, or set HF_HOME to "
        "another disk",
    "EACCES EPERM EROFS ENOTDIR":
        "Cannot write {path} ({reason}): make it writable, or change HF_HOME",
    "Exception":
        "Cannot get {what}: {error}",
}
# fmt: on


@contextlib.contextmanager
def explained(repo: str, file: str, revision: str | None = None) -> Iterator[None]:
    "Turn whatever the library raises into a DownloadError of one line"
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

    if (
        type(error).__name__ == "LocalEntryNotFoundError"
    ):  # raised from the error of the last request
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
        error=line_of(error),
    )


def _nearest(repo: str, file: str) -> str:
    "Suggestions for the name of a file that does not exist"
    try:
        names = models_in(repo)
    except Exception:  # the first problem is the one to report
        return "See its page for the files it has"
    near = difflib.get_close_matches(file, names)
    return f"It has {', '.join(near or names)}" if names else "It has no GGUF file"


def line_of(error: BaseException) -> str:
    "The message of an error, which may come from the server, as one short line"
    printable = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(printable.split())[:200] or type(error).__name__
