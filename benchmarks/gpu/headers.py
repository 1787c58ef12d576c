"""Vulkan's headers for a build, where those of the system are too old.

llama.cpp's Vulkan backend needs headers of version 1.4; Debian 12 has 1.3. The packages
of a later Debian hold nothing but headers, so they are downloaded and unpacked in the
work folder. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NEEDED = (1, 4)
LATER = "trixie"  # has 1.4.309
PACKAGES = ("libvulkan-dev", "spirv-headers")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_VERSION = re.compile(r"VK_HEADER_VERSION_COMPLETE \w+\(0, (\d+), (\d+),")


def ensure_headers(work: Path, environment: dict[str, str]) -> None:
    "Have a build find headers that are new enough; ends the program if there are none"
    found = installed(environment)
    if found and found >= NEEDED:
        return
    have = ".".join(map(str, found)) if found else "missing"
    if not (KEYRING.exists() and shutil.which("apt-get") and shutil.which("dpkg")):
        sys.exit(
            f"Cannot build for vulkan: Vulkan's headers are {have}, llama.cpp needs "
            "1.4. Install the Vulkan SDK and set VULKAN_SDK to its folder"
        )
    folder = work / "headers"
    if not folder.exists():
        print(f"Vulkan's headers are {have}: unpacking those of Debian {LATER}")
        download(work / "apt", folder)
    prepend(environment, "CPLUS_INCLUDE_PATH", folder / "usr" / "include")
    prepend(environment, "CMAKE_PREFIX_PATH", folder / "usr")


def installed(environment: dict[str, str]) -> tuple[int, int] | None:
    "The version of the headers that a compiler would find, None without any"
    listed = [environment.get(name, "") for name in ("CPLUS_INCLUDE_PATH", "CPATH")]
    folders = [part for part in os.pathsep.join(listed).split(os.pathsep) if part]
    if sdk := environment.get("VULKAN_SDK"):
        folders.append(f"{sdk}/include")
    for folder in (*folders, "/usr/local/include", "/usr/include"):
        header = Path(folder) / "vulkan" / "vulkan_core.h"
        if header.exists() and (match := _VERSION.search(header.read_text())):
            return int(match[1]), int(match[2])
    return None


def download(apt: Path, folder: Path) -> None:
    "The headers of a later Debian, by lists and a cache of our own"
    for name in ("lists/partial", "archives/partial", "packages"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    source = (
        f"Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {LATER}\n"
        f"Components: main\nSigned-By: {KEYRING}\n"
    )
    (apt / "later.sources").write_text(source)
    settings = {
        "Dir::Etc::sourcelist": apt / "later.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "root",  # the folder may be private
    }
    command: list[str | Path] = ["apt-get", "-qq"]
    for key, value in settings.items():
        command += ["-o", f"{key}={value}"]
    subprocess.run([*command, "update"], check=True)
    subprocess.run([*command, "download", *PACKAGES], check=True, cwd=apt / "packages")
    unfinished = apt / "unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    for package in (apt / "packages").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, unfinished], check=True)
    unfinished.rename(folder)


def prepend(environment: dict[str, str], name: str, folder: Path) -> None:
    parts = [str(folder), environment.get(name, "")]
    environment[name] = os.pathsep.join(part for part in parts if part)
