"""`tailor export --as gguf`: made by llama.cpp, opened by llama.cpp, and refused when the file is not the model."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from tokenizers import AddedToken

from tailor.cli.main import main
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.export.gguf import converter, llama_cpp, programs, proof, write
from tailor.export.gguf.proof import prove
from tailor.export.gguf.types import TYPES
from tailor.store import Store
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import sentencepiece_bytes
from tests.helpers.plans import LORA
from tests.helpers.programs import run_forked
from tests.helpers.trained_runs import IM_END, finished_run, read_json

pytest.importorskip("cyllama")
gguf = pytest.importorskip("gguf")
CONVERTED = "converted.gguf"
"""What the converter wrote: without the stop token [END], which llama.cpp does not know by its text."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its merged model, and its export as f32."""
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = functools.partial(sentencepiece_bytes, end_of_turn="[END]")
    finished_run(folder, {"adapter": LORA}, tokenizer=tokenizer)
    convert = converter.convert

    def keep(script: Path, model: Path, to: Path, kind: str, name: str, *, tokens_only: bool = False) -> None:
        convert(script, model, to, kind, name, tokens_only=tokens_only)
        if not tokens_only:
            shutil.copyfile(to, folder / CONVERTED)
            shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(".*"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "run", run_forked)
        patch.setattr(converter, "convert", keep)
        words = ["--as", "gguf", "--type", "f32", "--base-id", "owner/base"]
        assert main(["export", str(folder / "run"), "--to", str(folder / "out"), *words]) == 0
    return folder


@pytest.fixture
def cheap(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is run once for all tests: this gives its result again."""
    monkeypatch.setattr(
        converter,
        "convert",
        lambda _, model, to, *words, **options: shutil.copyfile(exported / CONVERTED, to),
    )


def refusal(exported: Path, file: Path, model: Path | None = None) -> str:
    with pytest.raises(ModelError) as error:
        prove(file, model or exported / "model", Store(str(exported / "run")), TYPES["f32"])
    return error.value.message


def test_the_folder_has_the_file_and_its_proof(exported: Path) -> None:
    out = exported / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "model.gguf",
        "gguf.json",
        "export.json",
        "merge.json",
        "README.md",
        "loss.png",
        "COMMIT",
    }
    record = read_json(out / "gguf.json")
    assert record["type"] == "f32"
    assert record["kl"] < 1e-9
    assert record["greedy_answers"] == record["equal_answers"] == 3
    assert record["stop_tokens"] == ["</s>", "[END]"]
    with llama_cpp.opened(out / "model.gguf") as file:
        assert file.chat_template == (exported / "model" / "chat_template.jinja").read_text()
        assert file.stop_ids == {2, IM_END}
        assert not file.adds_bos
    with llama_cpp.opened(exported / CONVERTED) as file:
        assert IM_END not in file.stop_ids, "the control: without tailor, llama.cpp would not stop"
    card = ModelCard.load(out / "README.md")
    assert "gguf" in card.data.tags
    assert card.data.base_model == "owner/base"
    assert "llama-server -m PATH/model.gguf" in card.text
    assert "opened by llama.cpp" in card.text
    assert "AutoModelForCausalLM" not in card.text


def test_a_mixture_with_adapters_on_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its merged experts are in the file, in float32 and quantized. Its sliding window is longer than the compared rows."""

    def mixtral(folder: Path) -> Path:
        return sentencepiece_bytes(MIXTURES["mixtral"].make(folder, sliding_window=4096))

    run = finished_run(tmp_path, {"adapter": {**LORA, "experts": True}}, make=mixtral)
    monkeypatch.setattr(programs, "run", run_forked)
    merged = tmp_path / "merged"
    assert main(["merge", str(run), "--to", str(merged)]) == 0
    (merged / "COMMIT").unlink()
    script = converter.find_converter(None)
    for kind, limit in (("f32", 1e-9), ("q8_0", 0.01)):
        assert write.write_gguf(merged, Store(str(run)), TYPES[kind], script).figures.kl < limit
    base = Path(shutil.copytree(tmp_path / "base", tmp_path / "other", ignore=shutil.ignore_patterns("tok*")))
    shutil.copyfile(merged / "model.gguf", base / "model.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copyfile(merged / name, base / name)
    with pytest.raises(ModelError, match="its logits differ"):
        prove(base / "model.gguf", base, Store(str(run)), TYPES["q8_0"])  # the control: the adapter matters


def test_the_name_of_a_run_changes_no_tokens(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp reads the tokenizer of a model in another way if its name has `phi3`."""
    monkeypatch.setattr(programs, "run", run_forked)
    model, script, file = exported / "model", converter.find_converter(None), tmp_path / "x.gguf"
    tokenizer = load_tokenizer(str(model))
    converter.convert(script, model, file, "f32", "my-Phi3", tokens_only=True)
    with pytest.raises(ModelError, match="cannot read the file"), llama_cpp.opened(file):
        pass  # the control
    name = write.name_in_file("my-Phi3", tokenizer)
    converter.convert(script, model, file, "f32", name, tokens_only=True)
    with llama_cpp.opened(file) as opened:
        assert opened.encode("a  b", start=False) == tokenizer.encode("a  b")
    tokenizer.added = {
        at: AddedToken(text, rstrip=text == "</s>")
        for at, text in enumerate(("<unk>", "<s>", "</s>", "<|endoftext|>"))
    }
    assert (name, write.name_in_file("mine", tokenizer)) == ("my-Phi 3", "mine (Phi-3)")


def test_a_missing_stop_token_is_found(exported: Path) -> None:
    assert refusal(exported, exported / CONVERTED) == (
        "the GGUF file is not the model: llama.cpp does not stop at [END], which ends an answer of the model"
    )


def test_another_tokenizer_and_template_are_found(exported: Path, tmp_path: Path) -> None:
    file = exported / "out" / "model.gguf"
    model = Path(shutil.copytree(exported / "model", tmp_path / "model"))
    content = json.loads((model / "tokenizer.json").read_text())
    content["normalizer"] = None
    (model / "tokenizer.json").write_text(json.dumps(content))
    assert "llama.cpp encodes '1234 and" in refusal(exported, file, model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    assert "it has another chat template" in refusal(exported, file, model)


@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "output_norm.weight"])
def test_damaged_weights_are_found(exported: Path, tmp_path: Path, tensor: str) -> None:
    file = Path(shutil.copyfile(exported / "out" / "model.gguf", tmp_path / "damaged.gguf"))
    reader = gguf.GGUFReader(file, "r+")
    found = next(one for one in reader.tensors if one.name == tensor)
    found.data[: len(found.data) // 2] *= np.float32(1.02)
    reader.data.flush()
    message = refusal(exported, file)
    assert "its logits differ from the model's: KL " in message
    assert "nats per token (limit of f32 1.0e-06)" in message


def changed(exported: Path, tmp_path: Path, key: str, value: float) -> Path:
    """The file with another value in its metadata."""
    file = Path(shutil.copyfile(exported / "out" / "model.gguf", tmp_path / "changed.gguf"))
    reader = gguf.GGUFReader(file, "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    return file


def test_another_rope_is_found_at_a_distance(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(exported, tmp_path, "llama.rope.freq_base", 11000.0)
    monkeypatch.setitem(TYPES, "f32", replace(TYPES["f32"], limit=TYPES["q4_k_m"].limit))
    monkeypatch.setattr(proof, "FAR", 0.01)  # so large a model differs more
    message = refusal(exported, file)
    assert "its logits differ 4032 positions apart: KL " in message
    assert "it has another RoPE" in message
    monkeypatch.setattr(proof, "distance_of", lambda config: None)
    with pytest.raises(ModelError, match="greedy answers differ"):  # the control: near tokens hardly show it
        prove(file, exported / "model", Store(str(exported / "run")), TYPES["f32"])
    assert read_json(exported / "out" / "gguf.json")["reach"] == 4032


def test_an_end_of_text_that_the_model_does_not_have_is_found(exported: Path, tmp_path: Path) -> None:
    file = changed(exported, tmp_path, "tokenizer.ggml.eos_token_id", 65)
    assert "llama.cpp stops at <0x3C>, at which the model does not" in refusal(exported, file)


def test_greedy_answers_are_compared(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers otherwise is found even if the logits of rows were not compared."""
    monkeypatch.setitem(TYPES, "f32", replace(TYPES["f32"], limit=100))
    answer = llama_cpp.GgufModel.answer
    monkeypatch.setattr(llama_cpp.GgufModel, "answer", lambda *words: (answer(*words)[0][::-1], None))
    assert "greedy answers differ: " in refusal(exported, exported / "out" / "model.gguf")


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_a_quantized_file_is_proven(exported: Path, kind: str, tmp_path: Path) -> None:
    source, file = exported / "out" / "model.gguf", tmp_path / "model.gguf"
    llama_cpp.quantize(source, file, TYPES[kind].ftype)
    proved = prove(file, exported / "model", Store(str(exported / "run")), TYPES[kind])
    assert 1e-8 < proved.figures.kl < TYPES[kind].limit
    assert file.stat().st_size < 0.6 * source.stat().st_size
    assert proved.line().startswith(
        "opened by llama.cpp: token ids of 23 texts equal; on 3 evaluation rows of the run, 72 tokens"
    )


@pytest.mark.usefixtures("cheap")
def test_a_file_over_the_limit_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TYPES, "q8_0", replace(TYPES["q8_0"], limit=1e-5))
    out = tmp_path / "out"
    words = ["export", str(exported / "run"), "--to", str(out), "--as", "gguf", "--type", "q8_0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "its logits differ from the model's: KL " in error
    assert "nats per token (limit of q8_0 1.0e-05)" in error
    assert error.endswith("hint: choose a --type with more bits\n")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.usefixtures("cheap")
def test_ollama_with_a_gguf_file(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(exported / "run"), "--to", str(out), "--as", "ollama", "--type", "q8_0"]) == 0
    assert "note: q8_0: opened by llama.cpp: token ids of 23 texts equal" in capsys.readouterr().out
    lines = (out / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert {'PARAMETER stop "</s>"', 'PARAMETER stop "[END]"'} <= set(lines)
    assert (out / "model.gguf").is_file()
    assert not (out / "model.safetensors").exists()
    assert "ollama create NAME" in (out / "README.md").read_text()


def test_what_cannot_be_a_gguf_file(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ["--to", str(tmp_path / "out")]

    def error(*words: str) -> str:
        assert main(["export", str(exported / "run"), *to, *words]) in (1, 2)
        captured = capsys.readouterr()
        assert "merged" not in captured.out, "it is refused before the merge"
        return captured.err

    assert error("--as", "gguf", "--type", "q4km").startswith(
        "tailor: --type q4km: unknown GGUF type; did you mean q4_k_m?\n  hint: use f32, f16, bf16, q8_0"
    )
    assert "--type has no effect with --as huggingface; only --as gguf or ollama uses it" in error(
        "--type", "f16"
    )
    assert "a GGUF file has the whole model, not an adapter" in error("--as", "gguf", "--weights", "adapter")
    assert "--type has no effect: an adapter" in error(
        "--as", "ollama", "--weights", "adapter", "--type", "f16"
    )
    assert "--llama-cpp has no effect: without --type" in error("--as", "ollama", "--llama-cpp", "x")
    assert f"--llama-cpp {tmp_path}: no convert_hf_to_gguf.py there" in error(
        "--as", "gguf", "--llama-cpp", str(tmp_path)
    )
    own = tmp_path / "llama.cpp" / converter.SCRIPT
    own.parent.mkdir()
    own.write_text('models = {"MistralForCausalLM": 1}')
    assert "llama.cpp cannot convert the architecture LlamaForCausalLM" in error(
        "--as", "gguf", "--llama-cpp", str(own.parent)
    )
    with monkeypatch.context() as patch:
        patch.setattr("tailor.machine.memory_bytes", lambda: 1000)
        assert "comparing the GGUF file with the model needs 0 GiB of memory" in error("--as", "gguf")
    monkeypatch.setattr("tailor.export.gguf.converter.find_spec", lambda name: None)
    assert "llama.cpp's converter, which is not installed\n  hint: pip install 'tailor[gguf]'" in error(
        "--as", "gguf"
    )
    monkeypatch.setattr("tailor.export.gguf.llama_cpp.find_spec", lambda name: None)
    assert "GGUF files need the package cyllama" in error("--as", "gguf")


def test_without_a_template_the_file_adds_the_bos_as_the_tokenizer_does(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp adds it to SentencePiece tokenizers that do not say whether."""
    model = Path(shutil.copytree(exported / "model", tmp_path / "model"))
    (model / "chat_template.jinja").unlink()
    path = model / "tokenizer_config.json"
    config = read_json(path)
    path.write_text(json.dumps({key: config[key] for key in config if key != "add_bos_token"}))

    def stop(script: Path, model: Path, to: Path, kind: str, name: str) -> None:
        raise ModelError(f"add_bos_token: {read_json(model / 'tokenizer_config.json')['add_bos_token']}")

    monkeypatch.setattr(converter, "convert", stop)
    with pytest.raises(ModelError, match="add_bos_token: False"):
        write.write_gguf(model, Store(str(exported / "run")), TYPES["f32"], tmp_path)


def test_more_stop_tokens_than_a_file_can_name(exported: Path) -> None:
    with pytest.raises(ModelError, match="does not know 3 of the model's 4 stop tokens"):
        write._with_stops(exported / CONVERTED, [2, 5, 6, 7])
