"""Model folders as an attacker would send them. Every payload writes a marker file and nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from tailor.store import COMMIT
from tailor.store.publication import _describe, _files

PICKLES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "model.pt",
    "model.pth",
    "consolidated.00.pth",
    "tokenizer.pkl",
    "tokenizer.model.pkl",
    "vocab.pkl",
    "embeddings.pkl",
    "config.pkl",
    "state.pkl",
    "1_Pooling/pytorch_model.bin",
    "2_Dense/pytorch_model.bin",
)
"""Names under which libraries look for pickles."""
CLASSES = {
    "AutoConfig": "payload.Config",
    "AutoModel": "payload.Model",
    "AutoModelForCausalLM": "payload.Model",
    "AutoTokenizer": ["payload.Slow", "payload.Fast"],
    "AutoProcessor": "payload.Processor",
    "AutoFeatureExtractor": "payload.Extractor",
    "AutoImageProcessor": "payload.Extractor",
    "AutoVideoProcessor": "payload.Extractor",
}
_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


class _Runs:
    """Runs code when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


def payload(marker: Path, where: str) -> str:
    """Code that appends a line to the marker file."""
    return f"open({str(marker)!r}, 'a').write({where!r} + '\\n')\n"


def plant(folder: Path, marker: Path, *, unknown: bool) -> Path:
    """Plant every payload in a model or adapter folder. unknown: transformers has no class of its own for it.

    A folder with a marker gets a consistent one: whoever sends a folder can compute checksums.
    """
    for name in PICKLES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(_Runs(payload(marker, f"pickle {name}"))))
    for name in ("payload.py", "custom_generate/generate.py", "__init__.py", "conftest.py", "setup.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(payload(marker, name) + "def generate(model, **_):\n    return None\n")
    for name in _CONFIGS:
        change: dict[str, Any] = {"auto_map": CLASSES, "custom_generate": ".", "trust_remote_code": True}
        if unknown and name == "config.json" and (folder / name).exists():
            change |= {"model_type": "payload", "architectures": ["Model"]}
        if unknown and name == "tokenizer_config.json":
            change["tokenizer_class"] = "Fast"
        _change(folder / name, **change)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "payload.Module"}])
    )
    if (folder / "adapter_config.json").exists():
        mapping = {"base_model_class": "Model", "parent_library": "payload"}
        _change(folder / "adapter_config.json", auto_mapping=mapping, megatron_core="payload")
    return recommit(folder)


def recommit(folder: Path) -> Path:
    """Make the marker of a published folder list the files that it has now."""
    if (folder / COMMIT).exists():
        marker = {name: _describe(folder / name) for name in _files(folder)}
        (folder / COMMIT).write_text(json.dumps(marker))
    return folder


def claim_trust(run: Path) -> None:
    """Let every file of a run folder say that the model was trusted."""
    for name in ("plan.json", "recipe.yaml", "environment.json", "data.json"):
        file = run / name
        if name == "recipe.yaml":
            file.write_text(file.read_text().replace("model:\n", "model:\n  trust_remote_code: true\n"))
        else:
            values = json.loads(file.read_text())
            values["trust_remote_code"] = True
            if isinstance(values.get("model"), dict):
                values["model"]["trust_remote_code"] = True
            file.write_text(json.dumps(values))


def _change(file: Path, **values: Any) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | values))
