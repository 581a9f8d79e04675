"""Averages: of models by weights, and of adapters by updates (not by factors)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailor.artifacts.average import average
from tailor.artifacts.load_embedder import load_embedder
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.merge import merge
from tailor.cli.main import main
from tailor.errors import ModelError
from tailor.store import Store
from tailor.train import loop
from tests.helpers.adapters import random_adapter
from tests.helpers.collections import embedding_model
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plain_peft import averaged_logits, difference, logits_of_adapter
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

WEIGHTS = [0.5, 0.2, 0.3]


def updates(folder: Path | str) -> dict[str, torch.Tensor]:
    with LoraAdapter(Path(folder), str(folder)) as adapter:
        return {module: adapter.product(module) for module in adapter.updates}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> bool:
    assert one.keys() == other.keys()
    return all(
        float((one[name] - other[name]).norm()) <= tolerance * float(other[name].norm()) for name in other
    )


def weighted(parts: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
    names = {name for part in parts for name in part}
    return {
        name: sum(w * part[name].float() for part, w in zip(parts, weights, strict=True) if name in part)
        for name in names
    }  # type: ignore[misc]


def test_adapters_are_averaged_exactly(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    options: list[dict[str, Any]] = [
        {},
        {"r": 2, "use_rslora": True},
        {"target_modules": ["q_proj", "up_proj"]},
    ]
    folders = [random_adapter(tmp_path / f"a{i}", base, seed=i, **option) for i, option in enumerate(options)]
    parts = [updates(folder) for folder in folders]
    url = average([str(folder) for folder in folders], str(tmp_path / "mean"), weights=WEIGHTS)
    assert close(updates(url), weighted(parts, WEIGHTS))
    assert difference(logits_of_adapter(url, base), averaged_logits(folders, base, WEIGHTS)) < 1e-5
    same = [updates(random_adapter(tmp_path / f"s{i}", base, seed=i)) for i in range(2)]
    files = [load_file(tmp_path / f"s{i}" / "adapter_model.safetensors") for i in range(2)]
    save_file(
        {n: (files[0][n] + files[1][n]) / 2 for n in files[0]}, tmp_path / "s0" / "adapter_model.safetensors"
    )
    assert not close(updates(tmp_path / "s0"), weighted(same, [0.5, 0.5]), 0.1), (
        "control: factors do not average"
    )


def test_rank_is_reduced_and_the_error_reported(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folders = [str(random_adapter(tmp_path / f"a{i}", base, seed=i)) for i in range(2)]
    exact = updates(average(folders, str(tmp_path / "exact")))
    said: list[str] = []
    reduced = updates(average(folders, str(tmp_path / "reduced"), rank=4, say=said.append))
    record = json.loads((tmp_path / "reduced" / "average.json").read_text())
    assert record["rank"] == 4
    lost = sum(float((exact[n] - reduced[n]).square().sum()) for n in exact)
    whole = sum(float(exact[n].square().sum()) for n in exact)
    assert record["svd_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    for name in exact:  # no factors of this rank are nearer
        values = torch.linalg.svdvals(exact[name])
        assert float((exact[name] - reduced[name]).norm()) == pytest.approx(
            float(values[4:].norm()), rel=1e-3
        )
    assert any("of its Frobenius norm" in line for line in said)
    same = average(folders, str(tmp_path / "same"), rank=8)
    assert close(updates(same), exact)
    assert difference(logits_of_adapter(same, base), averaged_logits(folders, base, [1, 1])) < 1e-5
    assert record["verification"]["kl"] > 1e-4, "a reduced rank differs: this is reported"
    assert record["verification"]["tolerance"] is None
    with pytest.raises(
        ModelError, match=r"the average fails verification: its logits differ from those of the"
    ):
        average(folders, str(tmp_path / "refused"), rank=4, tolerance=1e-4)


def test_models_are_averaged_in_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in range(3):
        plain = tiny_llama(tmp_path / f"f{seed}", seed=seed)
        AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(
            tmp_path / f"m{seed}"
        )
        folders.append(tmp_path / f"m{seed}")
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    url = average([str(folder) for folder in folders], "memory://averages/models", weights=[5, 2, 3])
    found = load_file(Store(url).local_path() / "model.safetensors")
    expected = weighted(parts, WEIGHTS)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    summed = sum(part["model.norm.weight"] * w for part, w in zip(parts, WEIGHTS, strict=True))
    assert summed.dtype == torch.bfloat16, "control: what is not done"


def test_checkpoints_of_a_run_become_a_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, tokens = (
        tiny_llama(tmp_path / "base", tie_word_embeddings=True),
        make_store(tmp_path / "t", [30] * 8),
    )
    plan = make_plan(base, tokens, tmp_path / "run", save={"every": 3})
    loop.run(plan, PlainHost())
    run = Store(str(tmp_path / "run"))
    run.write_json("plan.json", plan.as_dict())
    steps = [run.join("checkpoints", name).url for name in ("step-00000003", "step-00000006")]
    url = average(steps, str(tmp_path / "mean"), weights=[1, 3])
    parts = [load_file(Path(step) / "weights.safetensors") for step in steps]
    model = AutoModelForCausalLM.from_pretrained(url, dtype=torch.float32)
    expected = weighted(parts, [0.25, 0.75])
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[f"network.{name}"], atol=1e-7), name
    assert (tmp_path / "mean" / "tokenizer.json").exists()
    assert (tmp_path / "mean" / "generation_config.json").exists()
    other = Path(shutil.copytree(tmp_path / "run", tmp_path / "other"))
    step = str(other / "checkpoints" / "step-00000006")
    average([steps[0], step], str(tmp_path / "alike"))
    (other / "model" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ModelError, match=r"run/.* and .*other/.* have different chat templates"):
        average([steps[0], step], str(tmp_path / "mixed"))


def test_inputs_that_cannot_be_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = tiny_llama(tmp_path / "base"), tiny_llama(tmp_path / "other", seed=1)
    wide = tiny_llama(tmp_path / "wide", hidden_size=128)
    a = random_adapter(tmp_path / "a", base)
    b = random_adapter(tmp_path / "b", other)
    dora = random_adapter(tmp_path / "dora", base, use_dora=True)
    to = ["--to", str(tmp_path / "mean")]
    capsys.readouterr()

    def error(*words: str) -> str:
        assert main(["average", *words, *to]) == 2
        return capsys.readouterr().err

    assert error(str(a)) == "tailor: average needs two or more models, adapters or checkpoints\n"
    assert error(str(a), str(base)) == (
        f"tailor: {a} is an adapter and {base} is a model\n"
        "  hint: average inputs of one kind; `tailor merge` turns an adapter into a model\n"
    )
    assert error(str(a), str(b)) == (
        f"tailor: {a} and {b} have different bases: {base} and {other}\n"
        "  hint: average adapters of one base, or merge each adapter and average the models\n"
    )
    assert "is a DoRA adapter" in error(str(a), str(dora))
    assert "have different tensors: " in error(str(base), str(wide))
    assert error(str(a), str(a), "--weights", "1") == (
        "tailor: --weights: 1 given for 2 inputs\n  hint: give one weight per input\n"
    )
    for bad in ("-1", "nan", "inf"):
        assert f"must be a number >= 0, not {bad}" in error(str(a), str(a), "--weights", "1", bad)
    assert (
        error(str(base), str(base), "--rank", "2")
        == f"tailor: --rank has an effect only on adapters, but {base} is a model\n"
    )
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    "options",
    [{}, {"rslora": True, "modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}],
    ids=["lora", "rslora and a module in full", "embedding"],
)
def test_checkpoints_of_an_adapter_are_averaged(tmp_path: Path, options: dict[str, Any]) -> None:
    base, tokens = tiny_llama(tmp_path / "base"), make_store(tmp_path / "t", [30] * 8)
    plan = make_plan(
        base, tokens, tmp_path / "run", model={"adapter": {**LORA, **options}}, save={"every": 3}
    )
    loop.run(plan, PlainHost())
    run = Store(str(tmp_path / "run"))
    run.write_json("plan.json", plan.as_dict())
    first, last = (run.join("checkpoints", f"step-0000000{step}").url for step in (3, 6))
    same = average([last, last], str(tmp_path / "same"))
    assert close(updates(same), updates(run.join("adapter").url)), "the last checkpoint is the run's adapter"
    merged = merge(same, str(tmp_path / "merged")).url
    expected = merge(run.join("adapter").url, str(tmp_path / "expected")).url
    assert difference(logits_of_adapter(same, base), logits_of_adapter(run.join("adapter").url, base)) < 1e-5
    files = [load_file(Path(folder) / "model.safetensors") for folder in (merged, expected)]
    assert all(torch.allclose(files[0][name], files[1][name], atol=1e-6) for name in files[1])
    mixed = updates(average([first, last], str(tmp_path / "mixed")))
    assert not close(mixed, updates(same), 1e-3), "control"


def test_projections_are_averaged_too(tmp_path: Path) -> None:
    parts = [embedding_model(tmp_path / name, seed=at, projection=16) for at, name in enumerate("ab")]
    folder = Path(average([str(part) for part in parts], str(tmp_path / "mean"), weights=[1, 3]))
    own, *others = (load_file(place / "projection.safetensors")["weight"] for place in (folder, *parts))
    assert torch.allclose(own, 0.25 * others[0] + 0.75 * others[1], atol=1e-7)
    assert not torch.allclose(own, others[0], atol=1e-2), "the control: they differ"
    assert load_embedder(str(folder)).encode(["a text"]).shape == (1, 16)
    other = embedding_model(tmp_path / "c", projection=16, pooling="cls")
    with pytest.raises(ModelError, match=r"have different embedding settings \(embedding\.json\)"):
        average([str(parts[0]), str(other)], str(tmp_path / "x"))
    with pytest.raises(ModelError, match=r".*/a was trained for embeddings, but .*/d was not"):
        average([str(parts[0]), str(tiny_llama(tmp_path / "d"))], str(tmp_path / "x"))
