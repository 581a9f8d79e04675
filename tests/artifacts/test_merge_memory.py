"""A merge has one tensor in memory at a time, whatever the size of the model and of its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tailor.artifacts.tensors import Writer
from tailor.layout import MODEL_INDEX
from tailor.models import files
from tailor.models.base_record import BaseRecord

LAYERS, WIDTH, INNER, RANK = 24, 512, 2048, 4
MEASURE = """
import sys, torch
from pathlib import Path
from tailor.artifacts.base_model import Structure
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.inputs import open_source
from tailor.artifacts.merged_weights import write_model
from tailor.artifacts.tensors import Reader
import bitsandbytes, peft
adapter, target = sys.argv[1:]
source = open_source(adapter)
structure = Structure.of(source.weights, trust_remote_code=False)
Path(target).mkdir()
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the highest use counts from here
before = status("VmRSS")
with LoraAdapter(source.folder, source.url) as lora, Reader.of_model(source.weights) as reader:
    write_model(Path(target), source, structure, lora, reader, "full", "auto", torch.device("cpu"))
print(before, status("VmHWM"))
"""


def write_base(folder: Path) -> int:
    """A Llama of several files; returns its bytes."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (1000, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    names, total, weight_map = list(shapes), 0, {}
    for number in range(3):
        part = names[number::3]
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        weight_map |= dict.fromkeys(part, file)
        with Writer(folder / file, {name: (torch.float32, shapes[name]) for name in part}) as writer:
            for name in part:
                writer.write(name, torch.full(shapes[name], 0.01))
        total += writer.bytes
    (folder / MODEL_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return total


def write_adapter(folder: Path, base: Path) -> None:
    folder.mkdir()
    targets = {f"model.layers.{layer}.self_attn.q_proj": (WIDTH, WIDTH) for layer in range(LAYERS)}
    targets |= {f"model.layers.{layer}.mlp.up_proj": (INNER, WIDTH) for layer in range(LAYERS)}
    plan = {}
    for module, (out, into) in targets.items():
        plan[f"base_model.model.{module}.lora_A.weight"] = (torch.float32, (RANK, into))
        plan[f"base_model.model.{module}.lora_B.weight"] = (torch.float32, (out, RANK))
    with Writer(folder / "adapter_model.safetensors", plan) as writer:
        for name, (_, shape) in plan.items():
            writer.write(name, torch.ones(shape))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    BaseRecord(str(base), None, "float32", None, files.fingerprint(base)).write(folder)


@pytest.mark.slow
def test_a_merge_needs_the_memory_of_one_tensor(tmp_path: Path) -> None:
    from safetensors import safe_open

    total = write_base(tmp_path / "base")
    assert total > 350e6
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "adapter"), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(int, done.stdout.split()[-2:])
    largest = 4 * WIDTH * INNER
    assert peak - before < 12 * largest < total / 3, (
        f"{(peak - before) / 2**20:.0f} MiB of {total / 2**20:.0f}"
    )
    with safe_open(tmp_path / "merged" / "model-00001-of-00003.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            changed = name.endswith(("q_proj.weight", "up_proj.weight"))
            expected = 0.01 + RANK if changed else 0.01
            assert torch.allclose(file.get_tensor(name), torch.tensor(expected)), name
