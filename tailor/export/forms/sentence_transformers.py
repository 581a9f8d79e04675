"""`tailor export --as sentence-transformers`: a model folder that `SentenceTransformer(folder)` loads.

The layout is the one that every version of sentence-transformers reads. The decoder's config.json has `is_causal: false`,
which breaks generation, so the folder is only for embeddings. The export is verified: plain transformers must produce the
same tokens and embeddings from it as tailor does from the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tailor.artifacts.base_model import saved_dtype
from tailor.artifacts.load_embedder import load_embedder
from tailor.artifacts.sentence_transformers import module_types
from tailor.encode.embedding_examples import TextEncoder, TextFormat
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.tokenizer_files import fix_tokenizer_class
from tailor.errors import ModelError
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.export.forms.base import CardSection, ExportForm
from tailor.export.markdown import block
from tailor.layout import (
    EMBEDDING,
    GENERATIVE_ATTENTION,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    MODULES,
    PROJECTION,
    SENTENCE_BERT,
    SENTENCE_TRANSFORMERS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from tailor.models.embedding.attention import BIDIRECTIONAL_SEGMENT
from tailor.models.embedding.embedder import states_width
from tailor.models.embedding.settings import Embedding
from tailor.plan import encoders
from tailor.plan.rope import positions
from tailor.store import OBJECT

if TYPE_CHECKING:
    from tailor.export.request import Selection, Weights

PROBES = (
    "hello there",
    " hello",
    "\nhello",
    "\n\n two lines",
    "  spaces",
    "!sign",
    "|>",
    "1 2 3",
    "\tx",
    "\r\n-",
    "été",
    "日本の海",
    "a longer sentence, of more words than the others have in all: one, two, three.",
)
"""Test texts. Their first characters can form a token with the end of the prompt before them."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Largest difference between numbers of two embeddings that rounding explains. Plain transformers computes everything in the
model's own dtype."""
_PACKAGE = "sentence_transformers.models"
_SETTINGS = SENTENCE_TRANSFORMERS
_USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH")
queries = model.encode(["…"], prompt_name="query")
passages = model.encode(["…"])
print(model.similarity(queries, passages))
```

The prompts before each text, by name:

{prompts}{lengths}{needs}"""
_NEEDS = "\nIt needs transformers 5.2 or newer: the decoder uses bidirectional attention, which older versions ignore.\n"


class SentenceTransformers(ExportForm):
    """A full model with pooling settings and prompts."""

    weights = ("merged", "model")
    options = ("query_instruction",)

    def refusal(self, weights: Weights) -> str:
        return "--as sentence-transformers needs a full model: an adapter cannot store that the decoder uses bidirectional attention"

    def check(self, selection: Selection) -> None:
        artifact = selection.artifact
        require_embeddings(artifact.url)
        _check_settings(Embedding.read(artifact.local_path(), artifact.url)[0])

    def write(self, folder: Path, selection: Selection) -> tuple[str, ...]:
        write(folder, query_instruction=selection.request.query_instruction)
        return (note,) if (note := _lengths(folder)) else ()

    def card(self, folder: Path) -> CardSection:
        prompts = OBJECT.read_path(folder / _SETTINGS)["prompts"]
        shown = block("json", json.dumps(prompts, indent=2, ensure_ascii=False))
        lengths = f"\n{note}\n" if (note := _lengths(folder)) else ""
        needs = "" if encoders.is_encoder(OBJECT.read_path(folder / MODEL_CONFIG)) else _NEEDS
        return CardSection(
            _USE.format(prompts=shown, lengths=lengths, needs=needs),
            {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"},
            ["sentence-transformers", "feature-extraction"],
        )


def _check_settings(settings: Embedding) -> None:
    if settings.pooling == "weightedmean" and not settings.format.joined:
        raise ModelError(
            "method.pooling: weightedmean cannot be exported: sentence-transformers also counts the prompt's positions in the "
            "weights, so the embeddings would differ",
            hint="export it as huggingface, and embed with `tailor embed`",
        )
    if settings.attention in BIDIRECTIONAL_SEGMENT:
        raise ModelError(
            f"method.attention: {settings.attention} cannot be exported: in sentence-transformers a text is either bidirectional "
            "or causal as a whole, so the embeddings would differ",
            hint="export it as huggingface, and embed with `tailor embed`",
        )


def _lengths(folder: Path) -> str:
    """How far the lengths of the embeddings are from 1, if they are rounded; else empty."""
    dtype = str(saved_dtype(folder)).removeprefix("torch.")
    normalizes = any("Normalize" in kind for kind in module_types(folder, str(folder)))
    if dtype == "float32" or not normalizes:
        return ""
    return (
        f"sentence-transformers normalizes in {dtype}, the data type of the weights, so the lengths of embeddings differ from 1 "
        f"by up to {_ROUNDING[dtype]}. With "
        '`SentenceTransformer("PATH", model_kwargs={"torch_dtype": "float32"})` they are 1.'
    )


_ROUNDING = {"bfloat16": "0.4 %", "float16": "0.05 %"}
"""Largest relative error of a number rounded to the data type."""


def write(folder: Path, *, query_instruction: str | None) -> None:
    """Convert an embedding model folder to the sentence-transformers layout, in place.

    ModelError when the layout cannot represent the model, or when verification fails.
    """
    settings, projection = Embedding.read(folder, str(folder))
    _check_settings(settings)
    tokenizer = load_tokenizer(str(folder))
    document, query = (settings.format.prompt(one, tokenizer) for one in (None, query_instruction))
    prompts = {"document": document, "query": query}
    embedder = load_embedder(str(folder))
    expected = [embedder.encode(PROBES, one) for one in (None, query_instruction)]
    limit = embedder.max_length or _positions(folder)
    width = states_width(embedder.model)
    del embedder  # free its memory before the model is loaded again
    _configure(folder, settings)
    _tokenizer(folder, settings.format, query_instruction, (document, query))
    modules: list[tuple[str, str, dict[str, Any]]] = [
        ("", "Transformer", {}),
        (
            "1_Pooling",
            "Pooling",
            {
                "word_embedding_dimension": width,
                **{
                    f"pooling_mode_{theirs}": settings.pooling == own
                    for own, theirs in (
                        ("cls", "cls_token"),
                        ("mean", "mean_tokens"),
                        ("lasttoken", "lasttoken"),
                        ("weightedmean", "weightedmean_tokens"),
                    )
                },
                # CLS pooling takes the first token, which belongs to the prompt.
                "include_prompt": settings.pooling == "cls" or settings.format.joined,
            },
        ),
    ]
    if projection is not None:
        identity = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": projection.in_features, "out_features": projection.out_features}
        modules.append(("2_Dense", "Dense", {**sizes, "bias": True, "activation_function": identity}))
    if settings.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize", {}))
    for path, _, config in modules[1:]:
        (folder / path).mkdir()
        if config:
            _write_json(folder / path / MODEL_CONFIG, config)
    if projection is not None:
        from safetensors.torch import save_file

        weights = {f"linear.{name}": value.contiguous() for name, value in projection.state_dict().items()}
        save_file(weights, folder / "2_Dense" / MODEL_WEIGHTS)
        (folder / PROJECTION).unlink()
    (folder / EMBEDDING).unlink()
    (folder / GENERATIVE_ATTENTION).unlink(missing_ok=True)  # the folder is only for embeddings
    _write_json(folder / SENTENCE_BERT, {"max_seq_length": limit, "do_lower_case": False})
    _write_json(
        folder / _SETTINGS,
        {
            "prompts": prompts,
            "default_prompt_name": "document",
            "similarity_fn_name": "cosine" if settings.normalize else "dot",
        },
    )
    _write_json(
        folder / MODULES,
        [
            {"idx": at, "name": str(at), "path": path, "type": f"{_PACKAGE}.{kind}"}
            for at, (path, kind, _) in enumerate(modules)
        ],
    )
    _prove(folder, settings, projection, [prompts["document"], prompts["query"]], expected, limit)


def _positions(folder: Path) -> int | None:
    return positions(OBJECT.read_path(folder / MODEL_CONFIG))


def _configure(folder: Path, settings: Embedding) -> None:
    """Write bidirectional attention into config.json, if a decoder was trained with it. An encoder has no other."""
    config = OBJECT.read_path(folder / MODEL_CONFIG)
    if encoders.is_encoder(config):
        return
    if settings.attention == "bidirectional":
        config["is_causal"] = False
        if settings.window == "widen" and config.get("sliding_window"):
            config["sliding_window"] = None
            config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    _write_json(folder / MODEL_CONFIG, config)


def _tokenizer(
    folder: Path, format: TextFormat, query_instruction: str | None, prompts: Sequence[str]
) -> None:
    """Make the tokenizer encode prompt and text as tailor does, separately, and pad on the right.

    sentence-transformers encodes prompt + text as one string, so a token could span the end of the prompt. A pre-tokenizer
    that splits off the prompt prevents that. ModelError when the tokens still differ.
    """
    settings = OBJECT.read_path(folder / TOKENIZER_CONFIG)
    settings["padding_side"] = "right"
    settings.setdefault("pad_token", settings.get("eos_token"))
    _write_json(folder / TOKENIZER_CONFIG, settings)
    expected_tokens = _tokens(folder, format, query_instruction)
    if (first := _first_difference(folder, prompts, expected_tokens)) is None:
        return
    file = folder / TOKENIZER
    content = OBJECT.read_path(file)
    split = {
        "type": "Split",
        "pattern": {"Regex": _pattern(format)},
        "behavior": "Isolated",
        "invert": False,
    }
    then = content["pre_tokenizer"]
    after = then["pretokenizers"] if then and then["type"] == "Sequence" else [then] if then else []
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *after]}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    fix_tokenizer_class(folder, [prompt + text for prompt in prompts for text in PROBES])
    if _first_difference(folder, prompts, expected_tokens) is not None:
        raise ModelError(
            f"sentence-transformers encodes prompt and text as one string, and this tokenizer then encodes {first!r} after "
            "the prompt to different tokens than in training",
            hint="export it as huggingface, and embed with `tailor embed`",
        )


def _pattern(format: TextFormat) -> str:
    """A regular expression for the prompt at the start of a text.

    The pre-tokenizer runs after SentencePiece's normalizers, which write ▁ at the start and for every space.
    """
    head, _, tail = format.instructed.partition("{instruction}")
    head, tail, plain = (re.escape(part).replace(r"\ ", "[ ▁]") for part in (head, tail, format.plain))
    return rf"\A▁?(?:{head}[\s\S]*?{tail}|{plain})"


def _tokens(folder: Path, format: TextFormat, instruction: str | None) -> list[list[int]]:
    """tailor's token ids of the test texts, without and with the instruction."""
    encoder = TextEncoder(load_tokenizer(str(folder)), format)
    pairs = [(one, text) for one in (None, instruction) for text in PROBES]
    return [text.input_ids.tolist() for text in encoder(pairs)]


def _first_difference(
    folder: Path, prompts: Sequence[str], expected_tokens: Sequence[list[int]]
) -> str | None:
    """The first test text that gets different tokens when prompt and text are encoded as one string; None when there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    texts = [(prompt, text) for prompt in prompts for text in PROBES]
    for (prompt, text), ids in zip(texts, expected_tokens, strict=True):
        if tokenizer(prompt + text)["input_ids"] != ids:
            return text
    return None


@torch.no_grad()
def _prove(
    folder: Path,
    settings: Embedding,
    projection: torch.nn.Linear | None,
    prompts: Sequence[str],
    expected: Sequence[np.ndarray],
    limit: int | None,
) -> None:
    """Embed the test texts with plain transformers, as sentence-transformers does. ModelError when the embeddings differ.

    expected: for each prompt, tailor's embeddings, float32[len(PROBES), dimension]. limit: maximum tokens of a text.
    """
    from transformers import AutoModel, AutoTokenizer

    dtype = saved_dtype(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False)
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    worst = 0.0
    for prompt, vectors_here in zip(prompts, expected, strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        cut = {"truncation": limit is not None, "max_length": limit}
        batch = tokenizer([prompt + text for text in PROBES], padding=True, return_tensors="pt", **cut).to(
            device
        )
        states = model(**batch).last_hidden_state.float().cpu()  # [B, T, H]
        mask = batch["attention_mask"].cpu().clone()  # [B, T]
        lasts = mask.sum(1) - 1  # [B]
        if not settings.format.joined:
            mask[:, :start] = 0
        weights = mask * mask.cumsum(1)  # [B, T]
        vectors = {
            "cls": states[:, 0],
            "lasttoken": states[torch.arange(len(states)), lasts],
            "mean": (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
            "weightedmean": (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True),
        }[settings.pooling]
        vectors = vectors if projection is None else projection(vectors)
        vectors = torch.nn.functional.normalize(vectors, dim=-1) if settings.normalize else vectors
        worst = max(worst, float((vectors - torch.from_numpy(vectors_here)).abs().max()))
    if not worst <= TOLERANCE[dtype]:
        raise ModelError(
            f"plain transformers computes different embeddings from {folder.name} than tailor: they differ by {worst:.2g}, so "
            f"{type(model).__name__} behaves differently there",
            hint="export it as huggingface, and embed with `tailor embed`",
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
