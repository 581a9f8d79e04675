"""Texts are read in both directions as declared: who feels whom, over attentions, padding and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.errors import ModelError
from tailor.models import attention as own
from tailor.models.causal import CausalModel
from tailor.models.embedding.attention import check_attention, check_prefix_lm, text_states
from tailor.models.embedding.layout import lay_out_texts
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.models import byte_tokenizer, load_model, tiny_llama

CPU = torch.device("cpu")
LENGTHS = (24, 11)
WINDOW = 4
FLOAT32 = torch.float32


def load(path: Path, attention: str = "auto") -> CausalModel:
    return load_model(
        Model(path=str(path), attention=attention),
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, so that a token further away than the window cannot be felt through another one."""
    family = FAMILIES["mistral"]
    return family.make(tmp_path_factory.mktemp("mistral"), num_hidden_layers=1, sliding_window=WINDOW)


@torch.no_grad()
def felt(model: CausalModel, changed: int, **how: Any) -> set[tuple[int, int]]:
    """(text, token) of the states that change with token `changed` of the first text."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(5, 260, length) for length in LENGTHS]
    other = [texts[0].copy(), texts[1]]
    other[0][changed] += 1 if other[0][changed] < 260 else -1
    before, after = (states(model, some, **how) for some in (texts, other))
    return {
        (number, at)
        for number, (left, right) in enumerate(zip(before, after, strict=True))
        for at in range(len(left))
        if not torch.equal(left[at], right[at])
    }


def states(model: CausalModel, texts: list[np.ndarray], **how: Any) -> list[torch.Tensor]:
    batch = lay_out_texts([(text, np.array([[0, len(text)]])) for text in texts], model.layout)
    found = text_states(model, batch, **how)
    if model.layout == "rows":
        return [found[number, : len(text)] for number, text in enumerate(texts)]
    return list(found[0].split([*LENGTHS, found.shape[1] - sum(LENGTHS)]))[:2]


def everyone(among: range) -> set[tuple[int, int]]:
    return {(0, at) for at in among}


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_who_feels_a_changed_token(plain: Path, name: str) -> None:
    """The texts have unequal lengths, so one of them is padded in the rows layout."""
    model = load(plain, name)
    assert (model.base.config._attn_implementation == own.NAME) == (name == "auto")
    assert felt(model, 20, attention="bidirectional") == everyone(range(24))
    assert felt(model, 20, attention="causal") == everyone(range(20, 24))


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_who_feels_a_changed_token_through_a_window(sliding: Path, name: str) -> None:
    model = load(sliding, name)
    around = range(12 - WINDOW, 12 + WINDOW + 1)
    assert felt(model, 12, attention="bidirectional", window="keep") == everyone(around)
    assert felt(model, 12, attention="bidirectional", window="widen") == everyone(range(24))
    assert felt(model, 12, attention="causal") == everyone(range(12, 12 + WINDOW))


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("window", ["keep", "widen"])
def test_the_attentions_agree(plain: Path, sliding: Path, name: str, window: Any) -> None:
    generator = np.random.default_rng(1)
    texts = [generator.integers(5, 260, length) for length in LENGTHS]
    path = {"llama": plain, "mistral": sliding}[name]
    with torch.no_grad():
        ours, *others = (
            torch.cat(states(load(path, kind), texts, attention="bidirectional", window=window))
            for kind in ("auto", "sdpa", "eager")
        )
    for other in others:
        assert torch.allclose(ours, other, atol=2e-5)


def test_control_attention_to_padding_is_noticed(plain: Path) -> None:
    """The control of the mask: without it a text changes with what fills its row up."""
    model = load(plain, "sdpa")
    generator = np.random.default_rng(1)
    texts = [generator.integers(5, 260, length) for length in LENGTHS]
    with torch.no_grad():
        right = states(model, texts, attention="bidirectional")[1]
        batch = lay_out_texts([(text, np.array([[0, len(text)]])) for text in texts], "rows")
        wrong = model.base.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, is_causal=False, use_cache=False
        ).last_hidden_state[1, : LENGTHS[1]]
    assert float((right - wrong).abs().max()) > 0.05


FOUND = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "mixtral",
    "phi3",
    "gpt_neox",
)


@pytest.mark.parametrize("kind", FOUND)
def test_families_that_read_both_ways(kind: str, tmp_path: Path) -> None:
    model = load(FAMILIES[kind].make(tmp_path))
    check_attention(model, FLOAT32, attention="bidirectional")
    check_attention(model, FLOAT32, attention="causal")
    for attention in ("bidirectional_instruction", "bidirectional_text"):
        check_attention(model, FLOAT32, attention=attention)
    check_prefix_lm(model, FLOAT32)


def test_falcon_is_rejected(tmp_path: Path) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=261, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.2
    )
    torch.manual_seed(0)
    FalconForCausalLM(config).save_pretrained(tmp_path)
    model = load(byte_tokenizer(tmp_path))
    with pytest.raises(ModelError, match="FalconForCausalLM") as caught:
        check_attention(model, FLOAT32, attention="bidirectional")
    assert "method.attention: causal" in str(caught.value.hint)
    check_attention(model, FLOAT32, attention="causal")


def test_control_a_leak_is_found(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the probe: an attention over the whole stream is no attention over texts."""
    model = load(plain)

    def over_everything(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return out.transpose(1, 2), None

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, own.NAME, over_everything)
    with pytest.raises(ModelError, match="a text changes the states of another text"):
        check_attention(model, FLOAT32, attention="bidirectional")
