"""Which devices layers go to, and what is said when a GPU has no room."""

from __future__ import annotations

import pytest

from llm_kvbranch.engine import Settings
from llm_kvbranch.engine.devices import Device, used_for_layers
from llm_kvbranch.engine.parameters import no_context


def device(name: str, kind: str) -> Device:
    return Device(name, name, kind, 1 << 30, 2 << 30)


CPU = device("CPU", "CPU")
BLAS = device("BLAS", "accelerator")
ONE, TWO = device("CUDA0", "GPU"), device("CUDA1", "GPU")
INTEGRATED = device("Vulkan1", "iGPU")
REMOTE = device("RPC0", "GPU")


class TestDevices:
    "Guards against devices that are named but not used"

    @pytest.mark.parametrize(
        ("found", "used"),
        [
            ([CPU], []),
            ([BLAS, CPU], []),
            ([ONE, TWO, CPU], [ONE, TWO]),
            ([INTEGRATED, CPU], [INTEGRATED]),
            ([INTEGRATED, ONE, CPU], [ONE]),
            ([ONE, REMOTE], [REMOTE, ONE]),
            ([INTEGRATED, REMOTE], [REMOTE, INTEGRATED]),
        ],
    )
    def test_integrated_ones_are_the_last_choice(
        self, found: list[Device], used: list[Device]
    ) -> None:
        assert used_for_layers(found) == used

    def test_one_alone(self) -> None:
        assert used_for_layers([CPU, ONE, TWO], 1) == [TWO]
        assert used_for_layers([CPU, ONE, TWO], 2) == []


class TestNoContext:
    "Guards against an error that does not say what to do on a GPU"

    def said(self, reason: str, on_gpu: bool = True, **chosen: object) -> str:
        return no_context(Settings(**chosen), 4096, on_gpu, reason)  # type: ignore[arg-type]

    def test_no_memory(self) -> None:
        reason = "failed to allocate buffer for kv cache"
        assert self.said(reason).endswith(
            "Set a smaller n_ctx, kv_type or n_gpu_layers, or offload_kqv to false"
        )
        assert self.said(reason, offload_kqv=False).endswith("or n_gpu_layers")
        assert self.said(reason, on_gpu=False).endswith(reason)

    def test_no_flash_attention(self) -> None:
        reason = "quantized V cache was requested, but this requires Flash Attention"
        said = self.said(reason, type_k="q8_0", type_v="q4_0")
        assert said.endswith("set kv_type to q8_0/f16, or n_gpu_layers to 0")
        assert "no flash attention" in said
        # What the user turned off is not the GPU's fault
        assert self.said(reason, type_v="q4_0", flash_attn="off").endswith(reason)
