"""The data directory: whose it may be, wherever it is used."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llm_kvbranch import settings
from llm_kvbranch.errors import SettingError
from llm_kvbranch.web.serving import launch

from .support.logged import Log
from .support.serving import environment

ME, OTHER = 12345, 54321
GROUP = 4242


@pytest.fixture
def directory(user_path):
    path = user_path / "kvbranch"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def owned(directory, monkeypatch):
    "A function that gives the directory an owner, a group and a mode, and us an id"

    def give(owner, mode=0o700, group=GROUP, me=ME):
        monkeypatch.setattr(os, "getuid", lambda: me)
        status = SimpleNamespace(st_uid=owner, st_gid=group, st_mode=0o40000 | mode)
        monkeypatch.setattr(
            type(directory), "stat", lambda self, **_: status, raising=True
        )

    settings._has_others.cache_clear()
    yield give
    settings._has_others.cache_clear()


@pytest.fixture
def members(monkeypatch):
    "A function that sets the names in our group; all users are in it by themselves"
    me = SimpleNamespace(pw_name="me", pw_uid=ME, pw_gid=GROUP)
    users = [SimpleNamespace(pw_name="root", pw_uid=0, pw_gid=0), me]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)

    def give(*names, primary=()):
        users.extend(
            SimpleNamespace(pw_name=name, pw_uid=OTHER, pw_gid=GROUP)
            for name in primary
        )
        monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=names))

    give()
    return give


class TestOwner:
    "Fails if other users can put files where ours are kept, or nobody could"

    @pytest.mark.parametrize("owner", [ME, 0])
    @pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o500])
    def test_ours_and_root_s(self, directory, owned, owner, mode):
        owned(owner, mode)
        assert settings.data_directory() == directory

    def test_another_user_s(self, owned):
        owned(OTHER)
        with pytest.raises(SettingError, match="belongs to another user") as caught:
            settings.data_directory()
        assert "\n" not in str(caught.value)
        assert "set LLM_KVBRANCH_DIR to a directory of your own" in str(caught.value)

    def test_root_may_use_another_user_s(self, directory, owned):
        "In a container, it often does"
        owned(OTHER, me=0)
        assert settings.data_directory() == directory

    @pytest.mark.parametrize("me", [ME, 0])
    @pytest.mark.parametrize("owner", [ME, 0])
    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
    def test_one_that_all_can_change(self, owned, owner, mode, me):
        owned(owner, mode, me=me)
        with pytest.raises(SettingError, match=r"Other users can change .* chmod go-w"):
            settings.data_directory()

    @pytest.mark.parametrize(
        ("names", "primary", "allowed"),
        [
            ((), (), True),  # a group of one's own: the usual umask is then 002
            (("me", "root"), (), True),
            (("me", "colleague"), (), False),
            ((), ("colleague",), False),
        ],
    )
    def test_one_that_a_group_can_change(self, owned, members, names, primary, allowed):
        owned(ME, 0o770)
        members(*names, primary=primary)
        if allowed:
            settings.data_directory()
        else:
            with pytest.raises(SettingError, match="Other users can change"):
                settings.data_directory()

    def test_the_group_of_root(self, owned, members):
        "Containers with any user id give their directories to it"
        members("operator")
        owned(0, 0o775, group=0)
        settings.data_directory()

    def test_one_that_is_not_there_yet_will_be_ours(self, user_path):
        assert not settings.data_directory().exists()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
    def test_a_real_one(self, directory, monkeypatch):
        os.chown(directory, OTHER, -1)
        monkeypatch.setattr(os, "getuid", lambda: ME)
        with pytest.raises(SettingError, match="belongs to another user"):
            launch.serve(launch.ServeOptions(port=0), lambda ready: None)


COMMANDS = [
    "kvbranch serve --port 0",
    "kvbranch store",
    "kvbranch store gc",
    "kvbranch store verify",
    "kvbranch store budget 1GB",
    "kvbranch tree",
    "kvbranch show last",
    "kvbranch models",
    "kvbranch models settings",
    "kvbranch last More -m kvllama",
    "-m kvllama Hi",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_everywhere(tmp_path, command):
    "One line, and nothing is written there"
    log = Log(tmp_path / "llm" / "logs.db")
    log.begin("Why is the sky blue?", "Light is scattered.")
    log.close()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    done = subprocess.run(
        [sys.executable, "-m", "llm", *command.split()],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(tmp_path, LLM_KVBRANCH_DIR=str(shared)),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: Other users can change what is in {shared}: make it private with "
        f"chmod go-w {shared}, or set LLM_KVBRANCH_DIR to a directory of your own\n"
    )
    assert not any(shared.iterdir())


def test_other_models_work(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "llm", "models"],
        capture_output=True,
        text=True,
        env=environment(tmp_path, LLM_KVBRANCH_DIR=str(shared)),
        timeout=60,
        check=True,
    )
    assert "kvllama" in done.stdout


class TestMaxPause:
    "Fails if a pause that cannot be meant is taken"

    @pytest.mark.parametrize(
        ("value", "seconds"), [(None, None), (0.3, 0.3), ("1", 1.0), (60, 60.0)]
    )
    def test_one_that_is_set(self, directory, value, seconds):
        settings.put("max_pause", value)
        assert settings.max_pause() == seconds

    def test_the_environment_wins(self, directory, monkeypatch):
        settings.put("max_pause", 2)
        monkeypatch.setenv("LLM_KVBRANCH_MAX_PAUSE", "0.1")
        assert settings.max_pause() == 0.1

    @pytest.mark.parametrize("value", [0, -1, "soon", "nan", [1], True, 1e9])
    def test_a_bad_one(self, directory, value):
        settings.put("max_pause", value)
        with pytest.raises(SettingError, match="must be a number of seconds"):
            launch.serve(launch.ServeOptions(port=0), lambda ready: None)
