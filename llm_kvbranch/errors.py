"""Everything this package raises on purpose.

    KVBranchError           shown by llm as one line, exit code 1
    ├── ModelNotFound       there is no GGUF file to run
    ├── DownloadError       a model cannot be had from the hub
    ├── ModelLoadError      llama.cpp refused the file or the settings
    ├── ContextError        the prompt or the generations do not fit the context
    │   └── BusyError       they will, once others have ended
    ├── OverloadedError     too many requests are waiting at the server
    ├── ChatError           the model's chat template cannot take these messages
    ├── HistoryError        no such response in the log
    ├── SettingError        a setting makes no sense or cannot be read
    ├── BundleError         a shared bundle cannot be made, read or trusted
    ├── StoreError          the state store cannot be read or written
    └── StateError          one state file cannot be used; becomes a miss reason
        └── UnreadableStateError    and may be good: it could not be read

The base derives from ``llm.ModelError``, which llm documents as the exception
whose text is displayed to the user. A message says what is wrong and what to
do next, in one line.
"""

import llm


class KVBranchError(llm.ModelError):
    "Base of every error raised by llm-kvbranch"


class ModelNotFound(KVBranchError):
    "There is no GGUF file to run"


class DownloadError(KVBranchError):
    "A model cannot be downloaded, or what came is not what the hub promised"


class ModelLoadError(KVBranchError):
    "llama.cpp could not load the model or create a context for it"


class ContextError(KVBranchError):
    "The prompt, or the generations running at once, do not fit the context"


class BusyError(ContextError):
    "All slots or cells are taken by generations that are running"


class OverloadedError(KVBranchError):
    "Too many requests are waiting; ``retry_after`` is when to try again, in seconds"

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class ChatError(KVBranchError):
    "The chat template rejected the messages, or a message cannot be rendered"


class HistoryError(KVBranchError):
    "The log holds no such response"


class SettingError(KVBranchError):
    "A setting makes no sense, or the settings cannot be read or written"


class BundleError(KVBranchError):
    "A shared bundle cannot be made, read or trusted"


class StoreError(KVBranchError):
    "The state store cannot be read or written"


class StateError(KVBranchError):
    """One state file cannot be used.

    ``str(error)`` is the miss reason that the user sees; it names no path, so
    that equal reasons can be counted together.
    """


class UnreadableStateError(StateError):
    "A state file could not be read (permissions, too many open files, a bad disk)"
