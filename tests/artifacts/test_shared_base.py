"""Several runs in one process: adapters share a base and answer as alone, and what cannot be served is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.artifacts import shared_base
from tailor.artifacts.load import Loaded, load_run
from tailor.artifacts.shared_base import load_together
from tailor.errors import ModelError
from tailor.evaluate import continuous
from tests.helpers.adapters import random_adapter
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import tiny_llama

PROMPTS = [list(range(5, 5 + length)) for length in (3, 20)]
EXPERTS = {
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
PAIRS: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "ranks": (None, {}, {"r": 16, "use_dora": True}),
    "a trained head": (None, {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, {}),
    "experts": ("qwen3_moe", EXPERTS, EXPERTS),
}


def answers(loaded: Loaded) -> list[list[int]]:
    return continuous.generate(
        loaded.model,
        PROMPTS,
        max_new_tokens=8,
        stop_ids=loaded.stop_ids,
        batch_size=1,
        pad_id=loaded.pad_id,
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_adapters_on_one_base_answer_as_alone(pair: str, tmp_path: Path) -> None:
    family, *configs = PAIRS[pair]
    base = tmp_path / "base"
    tiny_llama(base) if family is None else MIXTURES[family].make(base)
    runs = {
        name: str(random_adapter(tmp_path / name, base, seed=seed, size=0.3, **config))
        for seed, (name, config) in enumerate(zip(("red", "blue"), configs, strict=True), 1)
    }
    expected = {name: answers(load_run(run)) for name, run in runs.items()}
    together = load_together(runs)
    assert len({id(run.network) for run in together}) == 1
    for run in (*together, *together[::-1]):
        with run.network.with_adapter(run.adapter):
            assert run.generator is not None
            found = answers(run.generator)
        assert found == expected.setdefault(run.name, found)
    assert len({str(one) for one in expected.values()}) == 3, "the control: red, blue and the base differ"


def test_the_adapter_of_a_reranker_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a chat adapter on an equal base, it would be loaded without its scoring head."""
    base = tiny_llama(tmp_path / "base")
    runs = {name: str(random_adapter(tmp_path / name, base)) for name in ("chat", "scores")}
    config = tmp_path / "scores" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": "SEQ_CLS"}))
    monkeypatch.setattr(shared_base, "load_run", None)
    with pytest.raises(ModelError, match="is the adapter of a reranker") as caught:
        load_together(runs)
    assert caught.value.hint is not None
    assert "tailor merge" in caught.value.hint
