"""The quickstart: its data is what its generator makes, holds nothing back in the open, and is learned."""

from __future__ import annotations

import importlib.util
import io
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "quickstart"


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (FOLDER / name).read_text().splitlines()]


def asked(conversations: list[list[dict[str, str]]]) -> set[str]:
    return {turn["content"] for turns in conversations for turn in turns if turn["role"] == "user"}


def test_the_data_is_what_the_generator_makes(tmp_path: Path) -> None:
    for what in ("conversations", "pairs"):
        subprocess.run([sys.executable, str(FOLDER / "make_data.py"), what, str(tmp_path)], check=True)
    for name in ("train.jsonl", "evaluation.jsonl", "pairs.jsonl", "pairs-evaluation.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    lines = lzma.decompress((FOLDER / "ledger.jsonl.xz").read_bytes()).splitlines()
    assert [json.loads(line)["text"] for line in lines] == load_generator().ledger()


def test_no_held_out_order_is_asked_about_in_training() -> None:
    made = load_generator()
    training, evaluation = asked(rows("train.jsonl")), asked(rows("evaluation.jsonl"))
    assert len(evaluation) == 200
    assert not training & evaluation
    held_out = [order for order in made.orders() if made.held_out(order)]
    shown = " ".join(training)
    assert not any(f"a {' '.join(order)}" in shown for order in held_out)
    assert any(f"a {' '.join(order)}" in shown for order in made.orders()), "the control: orders are found"


def test_no_held_out_order_is_looked_for_in_training() -> None:
    made = load_generator()
    files = ("pairs.jsonl", "pairs-evaluation.jsonl")
    training, evaluation = ((FOLDER / name).read_text() for name in files)
    for order in made.orders():
        named = f"a {' '.join(order)}."
        assert named not in (training if made.held_out(order) else evaluation)
    assert len(evaluation.splitlines()) == made.HELD_OUT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_learns_to_answer_and_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real commands, as in the README; and the adapter answers in plain peft and transformers."""
    run = tmp_path / "quickstart"
    command = [sys.executable, "-m", "tailor", "run", "recipes/quickstart.yaml", f"save.to={run}"]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=540
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert {"torch", "bitsandbytes"} <= imported, "control"
    # A run in its own process needs none of them. Together they took 1.7 of its first 7.5 CPU seconds.
    assert not {"ray", "pandas", "torch._inductor.compile_fx"} & imported
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    matches = {record["when"]: record["exact_match"] for record in records if record["kind"] == "generation"}
    assert matches["before"] < 0.1 < 0.9 < matches["after"]
    for said in ("exact match before training", "exact match after training", "tailor chat", "report.html"):
        assert said in done.stdout
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "loss.png").exists()
    assert plain_answers(run / "adapter", 40) > 0.9
    monkeypatch.chdir(ROOT)
    hand_over(run, tmp_path, monkeypatch, capsys)


def hand_over(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command after training, one after the other, as one would type them."""
    from tailor.cli.main import main

    asked = "Which needle do I need for a black corduroy waistcoat?"
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def tailor(*arguments: str, typed: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(arguments)
        shown = capsys.readouterr()
        assert code == 0, (arguments, shown.err)
        return shown.out

    shown = tailor("evaluate", str(run), "limit=8")
    assert re.search(r"^exact_match % +(100|9\d)\.\d \[", shown, re.MULTILINE)
    assert (run / "evaluation" / "default" / "figures.png").stat().st_size > 10_000
    assert "Evaluation: default" in (run / "report.html").read_text()
    assert "verified on 8 evaluation rows of the run" in tailor("merge", str(run))
    before_last = sorted((run / "checkpoints").glob("step-*"))[-2]
    tailor("average", str(run), str(before_last), "--to", str(place / "mean"))
    tailor("export", str(run), "--to", str(place / "export"))
    told = tailor("export", str(run), "--to", str(place / "ollama"), "--as", "ollama")
    assert f"ollama create NAME -f {place}/ollama/Modelfile" in told
    assert "would be uploaded to the private repository me/shop" in tailor(
        "push", str(run), "me/shop", "--dry-run"
    )
    answers = [tailor("generate", at, "--prompt", asked) for at in (str(run), str(run / "merged"))]
    assert answers == ["Take needle 90.\n"] * 2
    talk = tailor("chat", str(run), "--base", typed=f"{asked}\n/reset\n{asked}\n/quit\n").splitlines()
    assert [line for line in talk if line.startswith("tuned")] == ["tuned  Take needle 90."] * 2
    assert not any(line.startswith("base") and "needle 90" in line for line in talk), "the control"
    for folder in (run / "merged", place / "mean", place / "export", place / "ollama"):
        assert (folder / "COMMIT").exists(), folder
    for folder in (place / "mean", place / "export"):
        assert plain_answers(folder, 10) > 0.8, "in plain peft"


def plain_answers(adapter: Path, count: int) -> float:
    """Exact match of answers by transformers and peft alone, from what stands in the adapter's folder."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    config = GenerationConfig.from_pretrained(adapter, max_new_tokens=24, do_sample=False)
    right = 0
    for turns in rows("evaluation.jsonl")[:count]:
        prompt = tokenizer.apply_chat_template(
            turns[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**prompt, generation_config=config)
        answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer.strip() == turns[1]["content"]
    return right / count
