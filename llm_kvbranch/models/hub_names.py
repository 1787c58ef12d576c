"""The models in a repository of the hub, and which of them a user means.

This module does not know how files are downloaded.
"""

from __future__ import annotations

import re

from ..errors import DownloadError

USUAL = "Q4_K_M"  # the quantisation that most people use and most repositories have

_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# Files beside models: projectors for images, and data for quantisation
_NO_MODEL = re.compile(r"mmproj|^imatrix", re.IGNORECASE)


def models_in(repo: str) -> list[str]:
    "The GGUF models of a repository; of a split one, the first part"
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = sorted(sibling.rfilename for sibling in info.siblings or ())
    return [
        name
        for name in names
        if name.lower().endswith(".gguf")
        and name.isprintable()
        and not _NO_MODEL.search(name.rpartition("/")[2])
        and parts(name)[0] == name
    ]


def choose(repo: str, names: list[str], quantisation: str | None) -> str:
    "The only model of a quantisation, or of a repository; raises DownloadError"
    if not names:
        raise DownloadError(
            f"{repo} has no GGUF files: look for a repository with GGUF in its name"
        )
    if len(names) == 1 and not quantisation:
        return names[0]
    # Q4_K is not in Q4_K_M, nor Q4_NL in IQ4_NL
    whole = rf"(?<![a-z0-9]){re.escape(quantisation or USUAL)}(?![a-z0-9_])"
    fitting = [name for name in names if re.search(whole, name, re.IGNORECASE)]
    if len(fitting) == 1:
        return fitting[0]
    if quantisation and not fitting:
        problem = f"{repo} has no file of {quantisation}; choose one"
    else:
        problem = f"{repo} has several files; choose one"
    raise DownloadError(f"{problem}: {', '.join(fitting or names)}")


def parts(name: str) -> list[str]:
    "The names of all parts of a split file, else its own"
    found = _PART.search(name)
    if found is None:
        return [name]
    stem, count = name[: found.start()], found[1]
    return [f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)]
