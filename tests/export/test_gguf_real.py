"""GGUF files of real weights: TAILOR_REAL_MODEL is the folder of a model whose tokenizer llama.cpp knows, such as SmolLM2-135M."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.export.gguf import converter, llama_cpp
from tailor.export.gguf.proof import prove
from tailor.export.gguf.types import TYPES
from tailor.export.gguf.write import write_gguf
from tailor.export.gotemplate.compare import choose
from tailor.store import Store

pytest.importorskip("cyllama")
REAL = os.environ.get("TAILOR_REAL_MODEL")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REAL is None, reason="TAILOR_REAL_MODEL names no model folder"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model beside its GGUF file of the type f16, which is proven."""
    assert REAL is not None
    folder = Path(shutil.copytree(REAL, tmp_path_factory.mktemp("real") / "model"))
    proof = write_gguf(folder, Store(str(folder.parent)), TYPES["f16"], converter.find_converter(None))
    print(f"f16: {proof.line()}")
    assert proof.figures.top1 > 0.99
    return folder


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.startswith("q")])
def test_a_quantized_file_of_real_weights_is_proven(model: Path, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    llama_cpp.quantize(model / "model.gguf", file, TYPES[kind].ftype)
    run = Store(str(model.parent))
    print(f"{kind}: {prove(file, model, run, TYPES[kind]).line()}")
    with pytest.raises(ModelError, match="its logits differ from the model's"):
        prove(file, model, run, TYPES["f32"])  # the control: it is not the unquantized model


def test_the_template_is_translated(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    if tokenizer.template is None:
        pytest.skip("the model has no chat template")
    go, _ = choose(tokenizer, "", None)
    assert ".Messages" in go.text
