"""Artifacts of every kind, on every store, load as the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.load import load_run
from tailor.artifacts.trust import trust_of
from tailor.data.token_store import TokenStore
from tailor.encode.template import load_template
from tailor.errors import ModelError
from tailor.models.own_code import Trust
from tailor.plan import Plan
from tailor.store import Store
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama, with_own_code
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import commit
from tests.helpers.tokens import write_tokens

IDS = torch.tensor([[9, 41, 77, 130, 12, 200]])
IM_END, EOS = 4, 2


def make_tokens(folder: Path) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randint(5, 261, (24,), generator=generator).tolist(), [(8, 24)]) for _ in range(8)]
    template = {"name": "chatml", "text": load_template("chatml").text, "end_of_turn_ids": [IM_END]}
    return write_tokens(str(folder), {"train": rows}, template=template)


def trained(folder: Path, model: dict[str, Any], base: Path | None = None) -> tuple[Plan, torch.Tensor]:
    """A finished run, and the logits of its model at the end. base: a tiny Llama by default."""
    base = base or tiny_llama(folder / "base")
    run = folder / "run"
    plan = make_plan(base, make_tokens(folder / "tokens"), run, model=model, optim={"learning_rate": 2e-2})
    kept: list[torch.Tensor] = []

    def keep(session: Session, when: str, step: int) -> None:
        session.model.eval()
        session.model.base.set_attn_implementation("sdpa")
        with torch.no_grad():
            kept.append(session.model.network(IDS).logits)

    loop.run(plan, PlainHost(), [keep])
    Store(str(run)).write_json("plan.json", plan.as_dict())
    start, end = kept
    assert (start - end).norm() > 0.01 * start.norm(), "the control: training changed the model"
    return plan, end


@pytest.mark.parametrize(
    "model",
    [{"adapter": LORA}, {"adapter": LORA, "quantize": {"type": "nf4"}}, {}],
    ids=["adapter", "adapter on 4 bits", "all weights"],
)
def test_a_run_is_loaded_as_it_was_trained(tmp_path: Path, model: dict[str, Any]) -> None:
    plan, expected = trained(tmp_path, model)
    for where in (plan.run_url, f"{plan.run_url}/{'adapter' if model else 'model'}"):
        loaded = load_run(where)
        with torch.no_grad():
            logits = loaded.model(IDS).logits
        assert (logits - expected).norm() <= 1e-5 * expected.norm()
        assert set(loaded.stop_ids) == {IM_END, EOS}
        assert loaded.context == 4096
        assert loaded.tokenizer.decode(loaded.prompt_ids([{"role": "user", "content": "Hello"}])) == (
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        )


def test_remote_code_runs_only_if_this_command_trusts_it(tmp_path: Path) -> None:
    """The run's own plan.json says that it was trusted. That is not the word of who loads it."""
    base = with_own_code(tiny_llama(tmp_path / "base"))
    plan, expected = trained(tmp_path, {"trust_remote_code": True}, base)
    assert Store(plan.run_url).read_json("plan.json")["model"]["trust_remote_code"]
    with pytest.raises(ModelError, match="is not run unless you trust it"):
        load_run(plan.run_url)
    loaded = load_run(plan.run_url, trust=trust_of([plan.run_url]))
    assert type(loaded.model).__name__ == "OwnForCausalLM"
    with torch.no_grad():
        assert (loaded.model(IDS).logits - expected).norm() <= 1e-5 * expected.norm()
    bare = Path(plan.run_url, "model").rename(tmp_path / "model")
    with pytest.raises(ModelError, match="is not run unless you trust it") as caught:
        load_run(str(bare), trust=Trust.of(tmp_path / "run"))  # the model is not in this folder any more
    assert "pass --trust-remote-code" in str(caught.value.hint)


def test_the_tokenizer_is_the_bases_own_file(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    path = base / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # as transformers would not write it
    plan, _ = trained(tmp_path, {"adapter": LORA}, base)
    assert (Path(plan.run_url) / "adapter" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_a_tokenizer_that_cannot_be_saved_fails_before_training(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    path = base / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenization_own.Own"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    plan, host = make_plan(base, make_tokens(tmp_path / "tokens"), tmp_path / "run"), PlainHost()
    with pytest.raises(ModelError, match="transformers cannot open its tokenizer"):
        loop.run(plan, host)
    assert host.records == []


def test_a_remote_run_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    plan, expected = trained(tmp_path, {"adapter": LORA})
    remote = Store("memory://load/run")
    adapter = Path(plan.run_url) / "adapter"
    commit(remote, "adapter", {path.name: path.read_bytes() for path in adapter.iterdir()})
    remote.write_json("plan.json", plan.as_dict())
    with torch.no_grad():
        assert torch.allclose(load_run(remote.url).model(IDS).logits, expected, atol=1e-5)


def test_a_plain_model_folder_is_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path)
    loaded = load_run(str(folder))
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, AutoModelForCausalLM.from_pretrained(folder)(IDS).logits)
    assert EOS in loaded.stop_ids


def test_a_folder_without_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(ModelError, match="does not exist") as caught:
        load_run(str(tmp_path / "quikstart"))
    assert caught.value.hint == f"did you mean {tmp_path}/quickstart?"


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ModelError, match="is not finished"):
        load_run(str(tmp_path))


def test_a_missing_base(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, {"adapter": LORA})
    kept = Path(plan.model.path).rename(tmp_path / "kept")
    with pytest.raises(ModelError, match="needs its base model") as caught:
        load_run(plan.run_url)
    assert caught.value.hint == f"restore it at {plan.model.path} (a symbolic link works)"
    Path(plan.model.path).symlink_to(kept)
    load_run(plan.run_url)


def test_a_base_of_another_shape(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, {"adapter": LORA})
    tiny_llama(Path(plan.model.path), hidden_size=128)
    with pytest.raises(ModelError, match="its weights differ from those that the adapter was trained on"):
        load_run(plan.run_url)
    (Path(plan.run_url) / "adapter" / "base.json").unlink()
    (Path(plan.run_url) / "adapter" / "COMMIT").unlink()
    with pytest.raises(ModelError, match="does not fit its base model") as caught:  # as PEFT alone leaves it
        load_run(f"{plan.run_url}/adapter")
    assert "the model that the adapter was trained on" in str(caught.value.hint)
