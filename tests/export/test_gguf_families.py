"""GGUF files of every family of docs/models.md, on tiny random models: proven by llama.cpp, or refused with the reason.

SOAK=1 pytest tests/export/test_gguf_families.py                      compare, in about four minutes
SOAK=1 pytest tests/export/test_gguf_families.py --update-fixtures    write the lists in docs/export.md
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.export.gguf import converter, programs, write
from tailor.export.gguf.types import TYPES
from tailor.layout import MODEL_CONFIG
from tailor.store import Store
from tests.helpers.families import FAMILIES
from tests.helpers.programs import run_forked
from tests.helpers.tokenizers import bpe_tokenizer, with_sentencepiece_model

pytest.importorskip("cyllama")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BEGIN, END = "<!-- gguf families -->\n", "<!-- /gguf families -->"
FULL, SLIDING = "full_attention", "sliding_attention"
FOUR_TO_ONE: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]}
PUBLISHED: dict[str, dict[str, Any]] = {
    "olmo3": FOUR_TO_ONE,
    "cohere2": {**FOUR_TO_ONE, "sliding_window_pattern": 4},
    "exaone4": FOUR_TO_ONE,
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": [*[SLIDING] * 5, FULL],
        "query_pre_attn_scalar": 16,
    },
    "qwen3_moe": {"norm_topk_prob": True},
    "phi": {"intermediate_size": 256},
    "olmoe": {"num_key_value_heads": 4},
    "gpt_oss": {"head_dim": 64},
}
"""What the published models of a family have, where llama.cpp knows nothing else."""
LOAD = "llama.cpp cannot load the file of a small model"
OMITTED = {"gemma": "the converter writes token ids of the published tokenizer into the file"}
"""Families of which a small model shows nothing, and why."""
WINDOW = 128
"""Sliding windows are longer than the compared rows, as those of published models."""


def outcome(key: str, folder: Path) -> str:
    """Empty if the file is proven, else why llama.cpp cannot have the model."""
    family = FAMILIES[key]
    sizes: dict[str, Any] = {"sliding_window": WINDOW} if "sliding_window" in family.sizes else {}
    script = converter.find_converter(None)
    reason = ""
    gemma = partial(with_sentencepiece_model, space=False)
    tokenizers = ((gemma, 1),) if "gemma" in key else ((bpe_tokenizer, 0), (with_sentencepiece_model, 1))
    for tokenizer, bos in tokenizers:
        ids = {"vocab_size": 704, "bos_token_id": bos, "eos_token_id": bos + 1, "pad_token_id": bos + 1}
        model = family.make(folder / str(bos), **{**ids, **sizes, **PUBLISHED.get(key, {})})
        for path in model.glob("tokenizer*"):
            path.unlink()
        tokenizer(model, tags=())  # llama.cpp ends answers at some
        try:
            (architecture,) = json.loads((model / MODEL_CONFIG).read_text())["architectures"]
            converter.check_architecture(script, architecture)
            write.write_gguf(model, Store(str(folder)), TYPES["f32"], script)
            return ""
        except ModelError as error:
            reason = error.message
        if "tokenizer.model" not in reason:
            break
    return described(reason)


def described(reason: str) -> str:
    """A refusal without what differs between models and machines."""
    if "cannot convert the architecture" in reason:
        return "the converter does not know the architecture"
    if "has no" in reason and "package gguf" in reason:
        return "the converter is newer than the package `gguf`: give a llama.cpp checkout"
    if "the key" in reason or "KeyError" in reason:
        return "the converter needs keys of `config.json` that transformers 5 does not write"
    if "does not know the tokenizer" in reason or "Cannot find Llama BPE tokenizer" in reason:
        return "the converter knows only the published tokenizer"
    if "its logits differ" in reason or "greedy answers differ" in reason:
        return "llama.cpp computes other logits"
    if "cannot read the file" in reason:
        return LOAD
    return "the converter ends with an error"


def test_the_lists_in_the_documents(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "run", run_forked)
    proven, refused = [], dict[str, list[str]]()
    for key, family in FAMILIES.items():
        if key in OMITTED:
            continue
        reason = outcome(key, tmp_path / key)
        print(key, reason)
        if reason:
            refused.setdefault(reason, []).append(family.name)
        else:
            proven.append(family.name)
    lines = [f"Proven: {', '.join(proven)}.", "", "| refused, because | families |", "|---|---|"]
    lines[1:1] = [f"Not compared: {FAMILIES[key].name} ({why})." for key, why in OMITTED.items()]
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(refused.items())]
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = "\n".join(lines) + "\n"
    if request.config.getoption("--update-fixtures"):
        PAGE.write_text(text[:start] + made + text[end:])
        return
    assert text[start:end] == made
