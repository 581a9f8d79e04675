"""LoRA that trains embeddings and norms in full beside it (LongLoRA): trained, saved, and read back by plain peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tests.helpers.trained_runs import finished_run

WHOLE = ["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"]
TOKENS = torch.tensor([[9, 41, 77, 130, 12, 200, 33, 8]])


@pytest.mark.parametrize("quantize", [None, {"type": "nf4"}], ids=["plain", "nf4"])
def test_embeddings_and_norms_are_trained_saved_and_reloaded(
    tmp_path: Path, quantize: dict[str, Any] | None
) -> None:
    adapter = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": WHOLE}
    run = finished_run(tmp_path, {"adapter": adapter, "quantize": quantize})
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    whole = {name: tensor for name, tensor in saved.items() if "lora_" not in name}
    assert len(whole) == 1 + 2 * 2 + 1, "the embedding, two norms of two layers, and the last one"
    for name, tensor in whole.items():
        own = base[name.removeprefix("base_model.model.")]
        assert (tensor - own).abs().max() > 1e-3, f"{name} was trained"
    with torch.no_grad():
        expected = load_run(str(run)).model(TOKENS).logits
    if quantize is None:
        from peft import AutoPeftModelForCausalLM

        plain = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32)
        with torch.no_grad():
            assert (plain(TOKENS).logits - expected).norm() < 1e-5 * expected.norm()
            for module in plain.modules():
                if hasattr(module, "modules_to_save"):
                    module._disable_adapters = True
            assert (plain(TOKENS).logits - expected).norm() > 0.01 * expected.norm(), "control: they count"
    assert merge(str(run), str(tmp_path / "merged")).figures.kl < 1e-6
