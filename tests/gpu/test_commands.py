"""What the commands and the server say where a model is on a GPU, or in part.

Where this build of llama.cpp has no GPU, they must say that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_kvbranch.engine.devices import devices

from ..support.backend import on_gpu
from ..support.serving import Serving
from ..support.shell import Inside

N_LAYERS = 5  # of the toy, with the output layer
PLACES: dict[str, tuple[dict[str, str], int]] = {
    "all layers": ({}, N_LAYERS),
    "part of the layers": ({"n_gpu_layers": "3"}, 3),
    "no layers": ({"n_gpu_layers": "0"}, 0),
    "KV in main memory": ({"offload_kqv": "false"}, N_LAYERS),
}
places = pytest.mark.parametrize(("settings", "n"), PLACES.values(), ids=PLACES)


@pytest.fixture
def toy_path(toys: Any) -> str:
    return str(toys("llama").load.path)


@pytest.fixture
def shell(tmp_path: Path, toy_path: str) -> Inside:
    "A user whose default model is the toy"
    shell = Inside(tmp_path / "llm")
    shell.env |= {"HOME": str(tmp_path), "LLM_KVBRANCH_MODEL": toy_path}
    return shell


def apply(shell: Inside, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        shell.ok("kvbranch", "models", "settings", "kvllama", name, value)


def is_rightly_said(device: str, settings: dict[str, str], n: int) -> bool:
    "Whether a device is described as it is"
    if not on_gpu() or not n:
        return device.startswith("CPU") and on_gpu() == ("no GPU" not in device)
    (gpu,) = [each for each in devices() if each.takes_layers]
    words = f"{n} of {N_LAYERS} layers on {gpu.description} ({gpu.name})"
    if "offload_kqv" in settings:
        words += ", KV cache in main memory"
    return device == words


class TestCommands:
    "Guards against a GPU that is used unseen, or is said to be used and is not"

    @places
    def test_show(self, shell: Inside, settings: dict[str, str], n: int) -> None:
        apply(shell, settings)
        answer = shell.ask("Where are you?", "-o", "max_tokens", "4")
        assert is_rightly_said(shell.show()["device"], settings, n)
        shell.ask("-c", "And now?", "-o", "max_tokens", "4")
        facts = shell.show()
        assert facts["restored_tokens"] > len(answer) // 20
        assert facts["miss_reason"] is None

    @places
    def test_doctor(self, shell: Inside, settings: dict[str, str], n: int) -> None:
        apply(shell, settings)
        found = json.loads(shell.ok("kvbranch", "doctor", "--json"))
        gpus = [d for d in found["compute"]["devices"] if d["kind"] in ("GPU", "iGPU")]
        assert found["compute"]["can_offload"] == on_gpu() == bool(gpus)
        assert found["model"]["layers"] == N_LAYERS
        assert found["model"]["gpu_layers"] == (n if on_gpu() else 0)
        said = shell.ok("kvbranch", "doctor")
        if not on_gpu():
            assert "GPU" in said
            assert "CPU only" in said
            return
        for gpu in gpus:
            assert 0 < gpu["free"] <= gpu["total"]
            assert gpu["name"] in said
            assert gpu["description"] in said
        assert f"{n} of {N_LAYERS} layers on a GPU" in said


@pytest.mark.slow
class TestServe:
    "Guards against a server, or a state, that another place cannot use"

    @places
    def test_two_servers_and_a_command(
        self,
        shell: Inside,
        tmp_path: Path,
        toy_path: str,
        settings: dict[str, str],
        n: int,
    ) -> None:
        apply(shell, settings)
        replies: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []
        said: list[dict[str, str]] = []
        for question in ("Where are you?", "And now?"):
            said.append({"role": "user", "content": question})
            with Serving(
                tmp_path, "--port", "0", LLM_KVBRANCH_MODEL=toy_path
            ) as serving:
                body = {"model": "kvllama", "messages": said, "max_tokens": 4}
                status, _, text = serving.ask("POST", "/v1/chat/completions", body)
                assert status == 200, text
                (choice,) = json.loads(text)["choices"]
                said.append(choice["message"])
                replies.append(choice["kvbranch"])
                assert serving.stop()[0] == 0
                assert not serving.errors
            shown.append(shell.show())
        for facts in shown:
            assert facts["served"]
            assert is_rightly_said(facts["device"], settings, n)
        assert replies[1]["restored_tokens"] >= replies[0]["prompt_tokens"]
        shell.ask("-c", "Really?", "-o", "max_tokens", "4")
        facts = shell.show()
        assert facts["restored_tokens"] >= replies[1]["prompt_tokens"]
        assert is_rightly_said(facts["device"], settings, n)
