"""The section "Use" of a model card: code that loads the model with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tailor.encode.gguf import SUFFIX
from tailor.layout import MODEL_CONFIG
from tailor.plan import quantized
from tailor.store import OBJECT

_LARGER = 'model.resize_token_embeddings(max(len(model.get_input_embeddings().weight), len(AutoTokenizer.from_pretrained("PATH"))))'
"""AutoPeftModelForCausalLM does this by itself."""

EMBED = """\
## Use

This model embeds texts; it was not trained to generate.

```sh
tailor embed PATH texts.jsonl embeddings.parquet
```
"""
"""The section of a model that only embeds: plain transformers does not know its pooling and attention."""

RERANK = """\
## Use

This model scores a query with a passage; it neither embeds nor generates.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("PATH")
scores = model.predict([("query", "passage")])
```
"""
"""The section of a reranker."""

RERANK_ADAPTER = """\
## Use

This adapter makes its base model a reranker, which scores a query with a passage; it neither embeds nor generates. To load it with
sentence-transformers' CrossEncoder, merge it first (`tailor merge`).

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, pad_token_id=tokenizer.pad_token_id)
model = PeftModel.from_pretrained(base, "PATH").eval()
scores = model(**tokenizer(["query"], ["passage"], padding=True, return_tensors="pt")).logits[:, 0]
```
"""
"""The section of a reranker's adapter."""


def rerank_usage(weights: str, base: str | None) -> str:
    """The section of a reranker. weights: `adapter`, `merged` or `model`; base: its hub id."""
    return RERANK_ADAPTER.replace("BASE", json.dumps(base or "BASE")) if weights == "adapter" else RERANK


def usage(model: dict[str, Any], weights: str, base: str | None, *, converses: bool) -> str:
    """Markdown with Python code. model: the recipe's section; weights: `adapter`, `merged` or `model`; base: its hub id."""
    quantize = model.get("quantize")
    if weights == "adapter" and (loaded := _dequantized(model, base)) is not None:
        lines = loaded
    elif weights == "adapter":
        config, given = [], ""
        if quantize:
            config = [f"quantization = {_quantization(quantize)}  # as in training"]
            given = ", quantization_config=quantization"
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            f"from transformers import AutoTokenizer{', BitsAndBytesConfig' if quantize else ''}",
            "",
            *config,
            f'model = AutoPeftModelForCausalLM.from_pretrained("PATH"{given})',
        ]
        if model.get("rope"):
            # AutoPeftModelForCausalLM would load the base's config.json, which has different RoPE parameters.
            names = (
                f"AutoConfig, AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if quantize else ''}"
            )
            lines = [
                "from peft import PeftModel",
                f"from transformers import {names}",
                "",
                *config,
                'own = AutoConfig.from_pretrained("PATH")  # the base\'s config with the RoPE parameters of training',
                f"model = AutoModelForCausalLM.from_pretrained({json.dumps(base or 'BASE')}, config=own{given})",
                *([_LARGER] if model.get("add_tokens") else []),
                'model = PeftModel.from_pretrained(model, "PATH")',
            ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("PATH")',
        ]
    lines.append('tokenizer = AutoTokenizer.from_pretrained("PATH")')
    if converses:
        lines += [
            'messages = [{"role": "user", "content": "…"}]',
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        ]
    else:
        lines.append('inputs = tokenizer("…", return_tensors="pt")')
    lines.append("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))")
    note = ""
    if weights == "adapter" and base is None:
        note = "\n`base_model_name_or_path` in `adapter_config.json` is a local path; set it to the base model on your machine.\n"
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```\n" + note


def _dequantized(model: dict[str, Any], base: str | None) -> list[str] | None:
    """Code that loads an adapter on a base that was dequantized for training; None for other bases."""
    path, extra, imported, after = json.dumps(base or "BASE"), "", "", ""
    if model["path"].endswith(SUFFIX):
        file = Path(model["path"]).name
        path, extra = '"FOLDER"', f", gguf_file={json.dumps(file)}"
    elif model.get("dequantize"):
        config = base_folder(model) / MODEL_CONFIG
        stored = quantized.method(OBJECT.read_path(config)) if config.is_file() else None
        classes = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
        if stored in classes:
            imported = f", {classes[stored]}"
            extra = f", quantization_config={classes[stored]}(dequantize=True)"
        else:
            after = ".dequantize()"
    else:
        return None
    lines = [
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{imported}",
        "",
    ]
    if model.get("quantize") or model.get("rope"):
        lines.append(
            "# Not quite as in training, where the base was changed further after loading: use the merged weights."
        )
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({path}{extra}){after}")
    lines += [_LARGER] if model.get("add_tokens") else []
    return [*lines, 'model = PeftModel.from_pretrained(model, "PATH")']


def _quantization(quantize: dict[str, Any]) -> str:
    if quantize["type"] == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{quantize["type"]}", '
        f'bnb_4bit_use_double_quant={quantize["double"]}, bnb_4bit_compute_dtype="bfloat16")'
    )


def base_folder(model: dict[str, Any]) -> Path:
    """The local folder of the base model, if it is on this machine."""
    if Path(model["path"]).is_dir() or model["path"].endswith(SUFFIX):
        return Path(model["path"])
    from tailor.models.files import cached_folder

    return cached_folder(model["path"], model["revision"]) or Path(model["path"])
