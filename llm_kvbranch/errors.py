"""Every exception that this package raises on purpose.

    KVBranchError               shown by llm as one line, exit code 1
    ├── ModelNotFound           there is no GGUF file to run
    ├── DownloadError           a model cannot be downloaded
    ├── ModelLoadError          llama.cpp rejected the file or the settings
    ├── ContextError            the prompt or the generations do not fit the context
    │   └── BusyError           they will fit once others have ended
    ├── OverloadedError         too many requests are waiting for the server
    │   └── UnavailableError    it is shutting down, or its engine is being started
    ├── EngineError             the engine's process ended because of a request
    ├── ChatError               the model's chat template rejects the messages
    ├── HistoryError            the log has no such response
    │   └── AmbiguousExcerptError   the answer contains the excerpt several times
    ├── TimeLimitError          reading the log took longer than it may
    ├── SettingError            a setting is invalid or cannot be read
    ├── BundleError             a bundle cannot be exported or imported
    │   └── UntrustedBundleError    it is not signed with the user's key
    ├── StoreError              the state store cannot be read or written
    └── StateError              a state file cannot be used; becomes a miss reason
        └── UnreadableStateError    it could not be read, but may be good

The base derives from ``llm.ModelError``, which llm documents as the exception
whose text is displayed to the user. A message says what is wrong and what to
do next, in one line.
"""

import sys
import traceback

import llm


class KVBranchError(llm.ModelError):
    "Base of every error raised by llm-kvbranch"


class ModelNotFound(KVBranchError):
    "There is no GGUF file to run"


class DownloadError(KVBranchError):
    "A model cannot be downloaded, or is not what the hub promised"


class ModelLoadError(KVBranchError):
    "llama.cpp could not load the model or create a context for it"


class ContextError(KVBranchError):
    "The prompt, or the generations running at the same time, do not fit the context"


class BusyError(ContextError):
    "All slots or cells are in use by running generations"


class OverloadedError(KVBranchError):
    "Too many requests are waiting; ``retry_after`` says when to retry, in seconds"

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(OverloadedError):
    "The server is shutting down, or its engine is not running; as OverloadedError"

    def __init__(
        self, message: str = "The server is shutting down", retry_after: int = 1
    ):
        super().__init__(message, retry_after)


class EngineError(KVBranchError):
    "The engine's process ended, and is not tried again with this request"


class ChatError(KVBranchError):
    "The chat template rejected the messages, or a message cannot be rendered"


class HistoryError(KVBranchError):
    "The log has no such response"


class AmbiguousExcerptError(HistoryError):
    "The answer contains the excerpt several times; ``matches`` shows where"

    def __init__(self, what: str, matches: str):
        super().__init__(f"{what}, choose an occurrence: {matches}")
        self.what = what
        self.matches = matches


class TimeLimitError(KVBranchError):
    "Reading the log took longer than a visitor may keep the server busy"


class SettingError(KVBranchError):
    "A setting is invalid, or the settings cannot be read or written"


class BundleError(KVBranchError):
    "A bundle cannot be exported or imported"


class UntrustedBundleError(BundleError):
    "A bundle is not signed with the user's key, and was not explicitly trusted"


class StoreError(KVBranchError):
    "The state store cannot be read or written"


class StateError(KVBranchError):
    """A state file cannot be used.

    ``str(error)`` is the miss reason that the user sees. It contains no path, so
    that equal reasons can be counted together.
    """


class UnreadableStateError(StateError):
    "A state file could not be read: permissions, too many open files, a bad disk"


def report(error: BaseException) -> None:
    """Write to standard error where an unforeseen error was raised.

    Its text is left out, as it may contain a prompt.
    """
    where = traceback.format_list(traceback.extract_tb(error.__traceback__))
    sys.stderr.write("".join([*where, f"{type(error).__name__}\n"]))
