"""What `tailor export` writes is read by plain peft, plain transformers and the hub's own card reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tailor.artifacts.load import load_run
from tailor.cli.main import main
from tailor.models.quantization import with_one_mode
from tailor.store import Store
from tailor.store import run_folder as runs
from tests.helpers.trained_runs import IM_END, finished_run, read_json

EOS = 2
IDS = torch.tensor([[9, 41, 77, 130, 12, 200]])


def export(run: Path, to: Path, *words: str) -> Path:
    assert main(["export", str(run), "--to", str(to), *words]) == 0
    assert Store(str(to.parent)).is_committed(to.name)
    return to


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_the_adapter_is_exported_with_its_card(run: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import BitsAndBytesConfig

    folder = export(run, tmp_path / "out", "--name", "shop")
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoPeftModelForCausalLM.from_pretrained(
        folder, quantization_config=quantized, dtype=torch.float32
    )
    expected = logits(load_run(str(run)).model)
    with_one_mode(model)  # on some CPUs bitsandbytes would round the weights anew
    assert (logits(model) - expected).norm() < 1e-5 * expected.norm()
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["owner/data"]
    assert {"tailor", "sft", "qlora"} <= set(card.data.tags)
    assert card.data.base_model is None  # known only as a folder
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results.keys() == {"loss", "perplexity", "token_accuracy"}
    assert results["perplexity"] == pytest.approx(2.718281828 ** results["loss"], rel=1e-3)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    text = card.text
    for part in (
        "# shop",
        "LoRA of rank 4",
        "learning_rate: 0.001",
        "| transformers |",
        "![loss by step]",
        "nf4",
    ):
        assert part in text, part


def test_the_bases_id_is_written(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "--base-id", "owner/base")
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "owner/base"
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("owner/base", "adapter")
    assert str(run.parent) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_the_merged_model_is_exported(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = export(run, tmp_path / "out", "--weights", "merged")
    expected = logits(load_run(str(run)).model)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (merged - expected).norm() < 1e-5 * expected.norm()
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert "merged into the base's weights as in training (nf4, dequantized)" in card.text
    assert str(run.parent) not in (folder / "merge.json").read_text()
    base = logits(AutoModelForCausalLM.from_pretrained(run.parent / "base"))
    assert (base - expected).norm() > 0.01 * expected.norm(), "control"


def test_a_modelfile_for_ollama(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(run, tmp_path / "out", "--as", "ollama")
    lines = (folder / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ."
    assert lines[1].startswith('TEMPLATE """{{ $first := true }}{{ range $i, $m := .Messages }}')
    assert {'PARAMETER stop "</s>"', 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"} <= set(lines)
    assert read_json(folder / "tokenizer_config.json")["add_bos_token"] is False
    assert (folder / "model.safetensors").exists()
    assert "pre-tokenizer pattern" in capsys.readouterr().out
    adapter = export(run, tmp_path / "adapter", "--as", "ollama", "--weights", "adapter")
    first = (adapter / "Modelfile").read_text().splitlines()[:2]
    assert first == [f"FROM {run.parent / 'base'}", "ADAPTER ."]
    assert isinstance(read_json(adapter / "adapter_config.json")["lora_alpha"], int)


def test_what_ollama_cannot_import(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is rejected before the merge."""
    other = Path(shutil.copytree(run.parent, tmp_path / "other")) / "run"
    to = ["export", str(other), "--to", str(tmp_path / "out"), "--as", "ollama"]

    def error(*words: str) -> str:
        assert main([*to, *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    template = other / "adapter" / "chat_template.jinja"
    text = template.read_text()
    template.write_text(
        text.replace("message['content']", "message['content'] | upper").replace(
            "message.content", "message.content | upper"
        )
    )
    assert error().startswith("tailor: no Go template can be made of the run's chat template: ")
    own = tmp_path / "own.gotmpl"
    own.write_text("{{ range .Messages }}{{ .Content }}{{ end }}")
    template.write_text(text)
    assert f"--template {own} renders a question differently: 'Hello {{ y" in error("--template", str(own))
    config = other.parent / "base" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))
    moved = ("--base", str(other.parent / "base"))
    assert "Ollama cannot import safetensors of MambaForCausalLM" in error(*moved)
    assert not (tmp_path / "out").exists()


def test_a_run_of_all_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    run = finished_run(tmp_path, {})
    folder = export(run, tmp_path / "out")
    expected = logits(load_run(str(run)).model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    assert ModelCard.load(folder / "README.md").data.license is None
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(tmp_path / "x"), "--weights", "merged"]) == 2
    assert capsys.readouterr().err == (
        f"tailor: --weights merged: the run at {run} trained a full model\n  hint: give --weights model\n"
    )


def test_errors_are_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = ["--to", str(tmp_path / "out")]
    assert main(["export", f"{run}n", *to]) == 2
    assert capsys.readouterr().err == (
        f"tailor: no run at {run}n: it does not exist\n  hint: did you mean {run}?\n"
    )
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("")
    assert main(["export", str(tmp_path / "begun"), *to]) == 2
    assert capsys.readouterr().err == (
        f"tailor: the run at {tmp_path}/begun is not finished: it has neither adapter/ nor model/\n"
        "  hint: run its recipe again: it resumes from the last checkpoint\n"
    )
    assert main(["export", str(run), "--to", str(run)]) == 2
    assert "has other files, which would be overwritten" in capsys.readouterr().err


def test_a_checkpoint_is_exported_as_its_run_would_have_ended(run: Path, tmp_path: Path) -> None:
    checkpoint = max((run / "checkpoints").iterdir())
    folders = [export(what, tmp_path / name) for what, name in ((checkpoint, "at"), (run, "end"))]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (folders[0] / "README.md").is_file()
    assert (folders[0] / "tokenizer.json").is_file()


def test_a_checkpoint_of_an_unfinished_run_has_the_runs_template_and_stop_tokens(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    made = export(checkpoint, tmp_path / "made")
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (made / name).read_bytes() == (run / "adapter" / name).read_bytes(), name
    base = run.parent / "base"
    ends = [read_json(folder / "generation_config.json")["eos_token_id"] for folder in (base, made)]
    assert ends == [EOS, [EOS, IM_END]], "the control: the base's are others"

    plan = read_json(tmp_path / "run" / "plan.json") | {"tokens_url": str(tmp_path / "gone")}
    Store(str(tmp_path / "run")).write_json("plan.json", plan)
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == (
        f"tailor: the run at {tmp_path}/run is not finished, and its prepared tokens at {tmp_path}/gone, which have the chat "
        "template and the stop tokens, are gone\n"
        f"  hint: prepare them again: tailor data report {tmp_path}/run/recipe.yaml\n"
    )


def test_a_checkpoint_is_not_merged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = max((run / "checkpoints").iterdir())
    assert main(["export", str(checkpoint), "--to", str(tmp_path / "x"), "--weights", "merged"]) == 2
    assert capsys.readouterr().err == (
        f"tailor: {checkpoint} is a checkpoint: it cannot be exported merged\n"
        "  hint: export it without --weights and --as, then merge the folder with `tailor merge`\n"
    )
    assert not (tmp_path / "x").exists()


def test_the_card_has_the_figures_of_the_exported_weights(run: Path, tmp_path: Path) -> None:
    """They are those of the step that `save.best` chose, or of the exported checkpoint; else of the last step."""
    best = Path(shutil.copytree(run, tmp_path / "best"))
    plan = read_json(best / "plan.json")
    (best / "plan.json").write_text(json.dumps(plan | {"save": plan["save"] | {"best": True}}))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = next(line for line in reversed(lines) if json.loads(line)["kind"] == "evaluation")
    assert json.loads(last)["step"] == 6

    def told(what: Path, name: str) -> float | None:
        card = ModelCard.load(export(what, tmp_path / name) / "README.md")
        found = {one.metric_type: one.metric_value for one in card.data.eval_results or ()}
        return found.get("loss")

    earlier = {**json.loads(last), "step": 4, "loss": 1.25}
    artifact = {"kind": "artifact", "url": "adapter", "made_from": 4}
    log = [*(line for line in lines if json.loads(line)["kind"] != "artifact")]
    log = [json.dumps(earlier), *log, json.dumps(artifact)]
    (best / "metrics.jsonl").write_text("".join(f"{line}\n" for line in log))
    assert told(best, "chosen") == 1.25
    assert told(run, "last") == pytest.approx(json.loads(last)["loss"], abs=1e-6)
    checkpoint = max((best / "checkpoints").iterdir())
    assert runs.step_of(checkpoint.name) == 6
    assert told(checkpoint, "at") == told(run, "again")
    without = [
        line for line in log if json.loads(line) == earlier or json.loads(line)["kind"] != "evaluation"
    ]
    (best / "metrics.jsonl").write_text("".join(f"{line}\n" for line in without))
    assert told(checkpoint, "unknown") is None, "nothing was measured at its step"
