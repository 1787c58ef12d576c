"""State that was made with other settings is not used, and the miss says why.

llama.cpp accepts rows of other weights of the same shape, or with another rope base or
rotation, and answers wrongly. So each of these is part of the fingerprint.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_kvbranch.engine import Engine, Load, Rope, Settings, Weights
from llm_kvbranch.models.catalog import embedded_model
from llm_kvbranch.store.header import fingerprint_of

from ..support.fake import fake_session
from ..support.life import Answer, user

FIELDS = {
    "model": "0123",
    "llama.cpp": "0.3.36/b1/seq3",
    "kv_type": "f16/f16",
    "flash_attn": "auto",
    "rope": "model",
    "lora": "none",
    "n_rs_seq": "0",
    "attn_rot_disable": "",
}
LONG = "Tell me about the sea, its tides and its storms. " * 8


def session(root: Path, fields: dict[str, str], name: str = "gull"):
    fingerprint = fingerprint_of(fields)
    session = fake_session(root, fingerprint=fingerprint)
    session.store.describe(fingerprint, json.dumps({**fields, "name": name}))
    return session


class TestEveryField:
    @pytest.mark.parametrize("name", FIELDS)
    def test_is_a_miss_with_that_reason(self, tmp_path: Path, name: str) -> None:
        parent = Answer(session(tmp_path, FIELDS), [user(LONG)]).check()
        changed = {**FIELDS, name: "changed"}
        ours = session(tmp_path, changed, "tern" if name == "model" else "gull")
        after = Answer(ours, [*parent.chain, user("And?")]).check()
        assert after.facts["restored_tokens"] == 0
        said = "gull is now tern" if name == "model" else f"{name} "
        assert said in after.facts["miss_reason"]
        assert "changed" in after.facts["miss_reason"] or name == "model"
        assert ours.store.misses()[0]["reason"] == after.facts["miss_reason"]
        # The old state is still there for the old settings
        again = Answer(session(tmp_path, FIELDS), [*parent.chain, user("Or?")]).check()
        assert again.facts["restored_tokens"] == parent.entry.state.end

    def test_order_is_no_difference(self) -> None:
        assert fingerprint_of(FIELDS) == fingerprint_of(dict(reversed(FIELDS.items())))


@pytest.mark.model
class TestEngine:
    def test_names_them_all(self, monkeypatch) -> None:
        weights = Weights(Load(embedded_model()))

        def fields_of(settings: Settings) -> dict[str, str]:
            return Engine(weights, settings).fingerprint(lambda path: "0123")

        fields = fields_of(Settings())
        assert fields == {**FIELDS, "llama.cpp": fields["llama.cpp"]}
        for settings in (
            Settings(type_k="q8_0"),
            Settings(type_v="q8_0"),
            Settings(flash_attn="off"),
            Settings(rope=Rope(freq_base=1e6)),
            Settings(rope=Rope(scaling="yarn")),
            Settings(rope=Rope(scaling="none")),
            Settings(rope=Rope(yarn_ext_factor=0.0)),
        ):
            assert fields_of(settings) != fields
        for settings in (Settings(n_batch=7), Settings(n_seq=1), Settings(n_threads=1)):
            assert fields_of(settings) == fields
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        assert fields_of(Settings()) != fields
