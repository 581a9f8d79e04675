"""Writes an Ollama Modelfile beside the weights, for `ollama create NAME -f Modelfile`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.artifacts.inputs import stores_plain_weights
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.export import modelfile, probes
from tailor.export.bos import set_adds_bos
from tailor.export.engines import OLLAMA, OLLAMA_MODELS, artifact_of, found
from tailor.export.forms.base import CardSection, ExportForm
from tailor.export.gguf.folder import card_section, check_gguf, replace_weights
from tailor.export.gguf.types import find_type
from tailor.export.gotemplate.compare import choose
from tailor.layout import GENERATION_CONFIG, GENERATIVE_ATTENTION, GGUF_FILE, GGUF_RECORD, TOKENIZER
from tailor.models.adapter_files import change_config, read_config
from tailor.store import OBJECT, run_files

if TYPE_CHECKING:
    from tailor.export.request import Selection

SPLITS = (
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f",
    "03df5c5863ad70781dcfdef491ead25140f895fe8010964be0daefe27be32b02",
    "21cde974d587f0d54dc8d56b183cc1e6239600172035c68fbd6d4b9f8da0576e",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e",
    "00431aed57e696b747435f734d1e3b9b1bfd931a121fb5cac7129e97c181e9ba",
    "b92c0824a58e1d8dc3221cf3e12c433c3a86f57e46d57229993489f0798e7702",
)
"""SHA-256 of the pre-tokenizer patterns that Ollama recognizes (convert/tokenizer.go): Llama 3, DeepSeek (two), Qwen 2,
Qwen 3.5 and Laguna."""
_USE = """\
```sh
ollama create NAME -f PATH/Modelfile
ollama run NAME
```

`{file}` was {proof}.
"""


class Ollama(ExportForm):
    """A Modelfile beside a full model (as safetensors, or as GGUF), or beside an adapter, with the path of the adapter's base."""

    weights = ("merged", "adapter", "model")
    reads_base = True
    options = ("type", "llama_cpp", "template")

    def check(self, selection: Selection) -> None:
        request = selection.request
        if selection.artifact.exists(GENERATIVE_ATTENTION):
            raise ModelError(
                "Ollama reads prompts causally, but the model was trained with method.generative_attention: prefix_lm",
                hint="use it with `tailor generate`, `chat` and `evaluate`",
            )
        if selection.weights == "adapter":
            _check_adapter(selection)
        if request.type is not None:
            find_type(request.type)
        else:
            if request.llama_cpp is not None:
                raise ModelError(
                    "--llama-cpp has no effect: without --type, Ollama imports safetensors", hint="add --type"
                )
            if selection.weights != "adapter":
                if selection.architecture not in OLLAMA_MODELS:
                    raise ModelError(
                        f"Ollama cannot import safetensors of {selection.architecture}, only of {', '.join(OLLAMA_MODELS)}",
                        hint="export it as GGUF: --type f16",
                    )
                _check_tokenizer(_tokenizer_folder(selection), selection.model_folder)
        tokenizer = load_tokenizer(str(_tokenizer_folder(selection)))
        _template(tokenizer, request.template, adds_bos=probes.starts_with_bos(tokenizer))
        if request.type is not None:
            check_gguf(selection)

    def write(self, folder: Path, selection: Selection) -> Sequence[str]:
        request = selection.request
        tokenizer = load_tokenizer(str(folder))
        generation = OBJECT.read_path(folder / GENERATION_CONFIG)
        notes: list[str] = []
        if selection.weights == "adapter":
            change_config(folder, lora_alpha=int(read_config(folder)["lora_alpha"]))
        if request.type is not None:
            kind = find_type(request.type)
            proof = replace_weights(folder, selection, kind)
            notes, adds_bos, origin = [f"{kind.name}: {proof.line()}"], proof.adds_bos, f"./{GGUF_FILE}"
        else:
            adds_bos = probes.starts_with_bos(tokenizer) if tokenizer.template else bool(tokenizer.prefix)
            set_adds_bos(folder, adds_bos)
            origin = str(selection.source.base.absolute()) if selection.weights == "adapter" else "."
            notes += _check_tokenizer(folder, folder)
        template, others = _template(tokenizer, request.template, adds_bos=adds_bos)
        lines = [
            modelfile.line("FROM", origin),
            *([modelfile.line("ADAPTER", ".")] if selection.weights == "adapter" else []),
            modelfile.line("TEMPLATE", template),
            *modelfile.parameters(tokenizer, generation, _context(selection)),
        ]
        (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [*notes, *others]

    def card(self, folder: Path) -> CardSection | None:
        return card_section(folder, _USE) if (folder / GGUF_RECORD).is_file() else None

    def next_step(self, url: str) -> str:
        return f"ollama create NAME -f {url}/Modelfile"


def _tokenizer_folder(selection: Selection) -> Path:
    """The folder with the tokenizer and the chat template of the exported model."""
    own = selection.artifact.local_path()
    return own if (own / TOKENIZER).is_file() else selection.model_folder


def _template(tokenizer: Tokenizer, own: str | None, *, adds_bos: bool) -> tuple[str, list[str]]:
    """The Go template, and notes. own: the user's. ModelError when it renders conversations differently."""
    if tokenizer.template is None:
        if own is not None:
            raise ModelError(
                f"--template {own}: the run has no chat template to compare it with", hint="remove --template"
            )
        return "{{ .Prompt }}", []
    bos = tokenizer.specials.get("bos_token", "") if adds_bos else ""
    found, notes = choose(tokenizer, bos, own)
    modelfile.line("TEMPLATE", found.text)  # refuses one that a Modelfile cannot hold
    return found.text, notes


def _context(selection: Selection) -> int:
    """The context: that of training, at least 2048, at most the model's positions."""
    wanted = max(2048, int(run_files.plan(selection.run)["max_length"]))
    return min(wanted, selection.config.get("max_position_embeddings") or wanted)


def _check_adapter(selection: Selection) -> None:
    """ModelError for an adapter that Ollama cannot import."""
    merged = "export the merged model: --weights merged"
    if selection.request.type is not None:
        raise ModelError("--type has no effect: an adapter is exported as safetensors", hint=merged)
    if not stores_plain_weights(selection.source.base):
        raise ModelError(
            "Ollama cannot use this adapter: the weights of its base are stored quantized", hint=merged
        )
    if reasons := found(artifact_of(selection.run, "adapter"), OLLAMA):
        raise ModelError(f"Ollama cannot use this adapter: it {'; '.join(reasons)}", hint=merged)


def _check_tokenizer(folder: Path, others: Path) -> list[str]:
    """Notes on the tokenizer in `folder`. ModelError when Ollama cannot read it. others: the folder with tokenizer.model."""
    content = OBJECT.read_path(folder / TOKENIZER)
    if (others / "tokenizer.model").is_file():
        return []
    if content["model"].get("byte_fallback"):
        raise ModelError(
            "Ollama needs tokenizer.model for a SentencePiece tokenizer, and the base has none",
            hint="copy tokenizer.model of the original model into the base's folder, or export it as GGUF: --type f16",
        )
    splits = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    patterns = [
        part["pattern"]["Regex"] for part in splits if part["type"] == "Split" and "Regex" in part["pattern"]
    ]
    if not patterns or hashlib.sha256("".join(patterns).encode()).hexdigest() not in SPLITS:
        return [
            "Ollama does not recognize this tokenizer's pre-tokenizer pattern and uses its default: some texts may get different tokens"
        ]
    return []
