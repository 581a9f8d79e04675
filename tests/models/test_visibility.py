"""Packed documents longer than every window and chunk are trained as transformers reads each alone, with its own masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models import attention, probe, visibility
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import Documents
from tailor.models.embedding.attention import check_attention
from tailor.models.sharded_load import load_sharded
from tailor.models.visibility import Rule
from tailor.spec.model import Model
from tests.helpers.family import DENSE, Family
from tests.helpers.stores import make_store
from tests.models.test_isolation import load

CPU = torch.device("cpu")
LENGTHS = [96, 40, 64]
WINDOW = 16
LOCAL = {**DENSE, "sliding_window": WINDOW}
EXPERTS = {"num_local_experts": 4}
SHARED = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
LLAMA4 = {**DENSE, **EXPERTS, "head_dim": 16, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "exaone4": {**LOCAL, "sliding_window_pattern": 2},  # its global layers name the window too
    "phimoe": {**LOCAL, **EXPERTS},  # the window is in the mask alone
    "olmoe": {**LOCAL, "num_experts": 4, "num_experts_per_tok": 2},  # names a window that no mask has
    "qwen2_moe": {**LOCAL, **SHARED},  # has a mask with a window of 0 tokens, which no layer uses
    "llama4_text": {**LLAMA4, "no_rope_layers": [1, 0]},  # chunks, and a layer without
    "gemma3_text": {**LOCAL, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {**LOCAL, "use_sliding_window": True, "max_window_layers": 1},
    "mistral": LOCAL,
    "gemma2": {**LOCAL, "head_dim": 16},  # eager attention, for its soft cap
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


def make(kind: str, folder: Path, **overrides: Any) -> Path:
    return Family(kind, kind, FAMILIES[kind]).make(folder, **overrides)


def of_each_alone(path: Path, split: Any) -> tuple[float, torch.Tensor]:
    """Loss summed over the supervised tokens, and its gradient by the embeddings, of transformers' model with its own masks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    total = torch.zeros(())
    for index in range(len(split)):
        example = split.example(index)
        ids = torch.from_numpy(example.input_ids.astype("int64"))
        labels = torch.full_like(ids, -100)
        for start, stop in example.spans:
            labels[max(start, 1) : stop] = ids[max(start, 1) : stop]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
    total.backward()
    return float(total.detach()), model.get_input_embeddings().weight.grad


def of_a_pack(model: CausalModel, split: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model.next_token_loss(Collator(split, model.layout)([tuple(range(len(split)))]))
    loss.backward()
    return float(loss.detach()), model.base.get_input_embeddings().weight.grad


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pack_is_read_as_transformers_reads_its_documents(kind: str, tmp_path: Path, split: Any) -> None:
    path = make(kind, tmp_path)
    model = load(path)
    loss, gradient = of_a_pack(model, split)
    expected, of_embeddings = of_each_alone(path, split)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert (gradient - of_embeddings).norm() < 1e-5 * of_embeddings.norm()
    if kind != "gemma2":
        assert model.layout == "stream"
        for rules in visibility.rules_of(model.base).values():
            rules[True] = Rule(window=WINDOW) if kind in ("olmoe", "qwen2_moe") else Rule()
        assert abs(of_a_pack(model, split)[0] - expected) > 1e-4 * expected, "control: the rules matter"


def test_a_sharded_model_has_the_rules_on_every_worker(tmp_path: Path, split: Any) -> None:
    path = make("phimoe", tmp_path)
    model, _ = load_sharded(
        Model(path=str(path)),
        lambda module: None,
        rank=0,
        world=1,
        device=CPU,
        precision="fp32",
        frozen_dtype="float32",
        pack=True,
        activation_checkpointing=0,
        activation_offloading=False,
        tiled_mlp=False,
        seed=0,
    )
    assert of_a_pack(model, split)[0] == pytest.approx(of_each_alone(path, split)[0], rel=1e-6)


@pytest.mark.parametrize("kind", ["mistral", "llama4_text"])
def test_the_proof_reaches_past_a_large_window(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "attention_chunk_size" if kind == "llama4_text" else "sliding_window"
    path = make(kind, tmp_path, **{key: 256})
    model = load(path)
    counts: list[int] = []
    ids = probe._ids
    monkeypatch.setattr(probe, "_ids", lambda *a: counts.append(len(made := ids(*a))) or made)
    assert probe.packs_in_isolation(model, CPU, torch.float32)
    assert max(counts) < 100, "windows are shortened, so that the proof stays cheap"
    assert {rule.reach for rules in visibility.rules_of(model.base).values() for rule in rules.values()} >= {
        256
    }
    assert getattr(model.base.config, key) == 256

    monkeypatch.setattr(Rule, "reach", 0)
    monkeypatch.setattr(visibility, "_recognized", lambda *_: Rule())
    attention.set_attention(model.base)
    assert not probe.packs_in_isolation(model, CPU, torch.float32), "control: rules without a window"
    assert load(path).layout == "rows"


def test_a_wrong_gradient_alone_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make("mistral", tmp_path))
    one = attention._one_document
    monkeypatch.setattr(
        attention, "_one_document", lambda query, *rest: one(query.detach(), *rest), raising=True
    )
    with torch.no_grad():
        assert probe._is_isolated(model, CPU, torch.float32, (9, 7)) is False


def test_a_window_in_a_buffer_is_proven_at_its_full_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "window_size": 48}
    sizes |= {"attention_types": [[["global", "local"], 1]], "initializer_range": 0.1}
    path = Family("GPT-Neo", "gpt_neo", sizes).make(tmp_path)
    counts: list[int] = []
    ids = probe._ids
    monkeypatch.setattr(probe, "_ids", lambda *a: counts.append(len(made := ids(*a))) or made)
    assert load(path).layout == "rows"
    assert max(counts) > 2 * 48


def test_a_temperature_by_position_packs_only_below_its_first_step(tmp_path: Path) -> None:
    """Llama 4 counts the positions of its attention temperature over the whole row."""
    model = load(make("llama4_text", tmp_path, floor_scale=256))
    assert probe.packs_in_isolation(model, CPU, torch.float32, tokens=256)
    assert not probe.packs_in_isolation(model, CPU, torch.float32, tokens=257)
    assert model.base.config.floor_scale == 256


def test_a_bidirectional_window_is_that_of_transformers(tmp_path: Path) -> None:
    """The flag of a call keeps the window, the config of Gemma 3 makes it w // 2 tokens on each side. Load compares both."""
    model = load(make("gemma3_text", tmp_path / "flag"))
    check_attention(model, torch.float32, attention="bidirectional")
    assert visibility.rule_of(model.base.model.layers[0].self_attn, causal=False) == Rule(
        False, window=WINDOW
    )
    model = load(make("gemma3_text", tmp_path / "config", use_bidirectional_attention=True))
    assert model.layout == "stream"
    assert visibility.rule_of(model.base.model.layers[0].self_attn, causal=True) == Rule(
        False, window=WINDOW // 2
    )


def test_chunks_stay_causal_so_that_texts_are_not_read_both_ways(tmp_path: Path) -> None:
    model = load(make("llama4_text", tmp_path))
    with pytest.raises(ModelError, match=r"layers.0.self_attn still attends to earlier tokens only"):
        check_attention(model, torch.float32, attention="bidirectional")
    check_attention(model, torch.float32, attention="bidirectional", window="widen")


def test_the_kernel_is_tried_with_the_heads_and_gradients_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU in place of the GPU's kernel: the plain one, right or with one mistake."""
    one = attention._one_document

    def pairs(keys: Documents, queries: Documents) -> Any:
        return zip(keys.bounds, queries.bounds, strict=True)

    def kernel(mistake: str) -> Any:
        def flash(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Documents, *rest: Any
        ) -> torch.Tensor:
            keys, scaling, rule = rest
            if mistake == "head size" and query.shape[-1] == 128:
                query = query / 2
            if mistake == "group" and query.shape[1] != key.shape[1]:
                key = key.flip(1)
            if mistake == "window":
                rule = Rule(rule.causal, window=rule.window and rule.window - 1)
            if mistake == "gradient":
                key = key.detach()
            if mistake == "alignment":  # the queries of a document begin where its keys begin
                keys = replace(
                    keys,
                    bounds=tuple((a, a + stop - start) for (a, _), (start, stop) in pairs(keys, queries)),
                )
            cut = [
                [query[:, :, slice(*asked)], key[:, :, slice(*known)], value[:, :, slice(*known)]]
                for known, asked in pairs(keys, queries)
            ]
            return torch.cat([one(*part, 0.0, scaling, rule) for part in cut], dim=2).transpose(1, 2)

        return flash

    def agrees(
        mistake: str,
        size: int = 64,
        group: int = 1,
        *,
        window: bool = False,
        causal: bool = True,
        fewer: bool = False,
    ) -> bool:
        monkeypatch.setattr(attention, "_flash", kernel(mistake))
        try:
            return attention._flash_agrees(CPU, torch.bfloat16, size, group, None, window, causal, fewer)
        except RuntimeError:
            return False

    assert all([agrees("", 128, 4), agrees("", window=True), agrees("", causal=False)])
    assert [agrees("head size"), agrees("head size", 128)] == [True, False]
    assert [agrees("group"), agrees("group", group=2)] == [True, False]
    assert [agrees("window"), agrees("window", window=True)] == [True, False]
    assert not agrees("gradient")
    assert all(agrees("", fewer=True, causal=causal) for causal in (True, False))
    assert [agrees("alignment"), agrees("alignment", fewer=True)] == [True, False]
