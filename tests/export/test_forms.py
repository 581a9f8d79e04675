"""An export form of another package: the one in docs/extending.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tailor.cli.main import main
from tailor.export.folder import select
from tailor.export.forms import EXPORT_FORMS, ExportForm
from tailor.export.request import Request
from tailor.store import Store
from tests.helpers.extensions import documented, installed
from tests.helpers.trained_runs import read_json


def test_a_form_of_another_package_exports_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    arguments = ["export", str(run), "--to", str(to), "--as", "vllm"]
    with installed(documented(tmp_path / "package", "An export form"), EXPORT_FORMS):
        assert main(["export", "--help"]) == 0
        assert "sentence-transformers, gguf, ollama, vllm" in " ".join(capsys.readouterr().out.split())
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "note: vLLM refuses requests of more than 64 tokens" in out
        assert out.endswith(
            f"vllm folder written to {to}\nnext            vllm serve {to} --config {to}/vllm.yaml\n"
        )
        assert (to / "vllm.yaml").read_text() == "max-model-len: 64\n"
        assert (to / "model.safetensors").is_file()
        record = read_json(to / "export.json")
        assert (record["as"], record["weights"]) == ("vllm", "merged")
        card = ModelCard.load(to / "README.md")
        assert "vllm serve PATH" in card.text
        assert "AutoModelForCausalLM" not in card.text
        assert card.data.tags[0] == "vllm"

        assert main([*arguments, "--weights", "adapter"]) == 2
        assert capsys.readouterr().err == (
            "tailor: this export form takes merged or model weights, not adapter\n  hint: remove --weights\n"
        )
    shutil.rmtree(to)
    assert main(arguments) == 2, "the control: the package is not installed"
    assert capsys.readouterr().err == (
        "tailor: --as vllm: unknown export form\n  hint: use huggingface, sentence-transformers, gguf, ollama, "
        "or install the package that provides it\n"
    )
    assert not to.exists()


def test_its_check_comes_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Path(shutil.copytree(run, tmp_path / "plain"))
    (plain / "data.json").write_text('{"template": null, "tokens": "t", "sources": []}')
    with installed(documented(tmp_path / "package", "An export form"), EXPORT_FORMS):
        assert main(["export", str(plain), "--to", str(tmp_path / "out"), "--as", "vllm"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"tailor: vllm: the run at {plain} has no chat template\n")
    assert "merged" not in captured.out
    assert not (tmp_path / "out").exists()


def test_a_misspelled_form_gets_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "--to", str(tmp_path / "out"), "--as", "olama"]) == 2
    assert capsys.readouterr().err.startswith(
        "tailor: --as olama: unknown export form; did you mean ollama?\n"
    )


def test_an_option_of_another_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "--to", str(tmp_path / "out"), "--query-instruction", "Find:"]) == 1
    assert capsys.readouterr().err == (
        "tailor: --query-instruction has no effect with --as huggingface; only --as sentence-transformers uses it\n"
    )


class WholeModels(ExportForm):
    """Takes checkpoints, and prefers merged weights."""

    weights = ("merged", "adapter", "model")
    takes_checkpoints = True


def test_a_checkpoint_is_never_the_merged_artifact(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXPORT_FORMS, "get", lambda _: WholeModels)
    chosen = [
        select(Request(), "adapter", Store(str(run)), merges=merges).weights for merges in (False, True)
    ]
    assert chosen == ["adapter", "merged"], "the second is the control: the run's own artifact is merged"
