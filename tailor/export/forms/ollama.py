"""Writes an Ollama Modelfile beside the weights, for `ollama create NAME -f Modelfile`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.artifacts.inputs import Source, open_source, stores_plain_weights
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError
from tailor.export.forms.base import ExportForm
from tailor.export.forms.gotemplates import translated
from tailor.layout import GENERATION_CONFIG, GENERATIVE_ATTENTION, MODEL_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from tailor.models.adapter_files import change_config, read_config
from tailor.store import OBJECT, run_files

if TYPE_CHECKING:
    from tailor.export.request import Selection

ARCHITECTURES = (
    *(
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
    ),
    *("Gemma3ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Olmo3ForCausalLM", "CohereForCausalLM"),
)
"""Architectures whose safetensors Ollama can import."""
ADAPTER_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM")
"""Architectures whose adapters Ollama can import."""
SPLITS = (
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f",
    "03df5c5863ad70781dcfdef491ead25140f895fe8010964be0daefe27be32b02",
    "21cde974d587f0d54dc8d56b183cc1e6239600172035c68fbd6d4b9f8da0576e",
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e",
)
"""SHA-256 of the pre-tokenizer patterns that Ollama recognizes: Llama 3, DeepSeek (two) and Qwen 2."""


class Ollama(ExportForm):
    """A Modelfile beside a full model, or beside an adapter, with the path of the adapter's base."""

    weights = ("merged", "adapter", "model")
    reads_base = True

    def check(self, selection: Selection) -> None:
        if selection.weights == "adapter" and _source(selection).base_record.rope is not None:
            raise ModelError(
                "Ollama cannot use this adapter: it would load the base without the RoPE parameters of model.rope",
                hint="export the merged model: --weights merged",
            )

        if selection.weights == "adapter" and not stores_plain_weights(_source(selection).base):
            raise ModelError(
                "Ollama cannot use this adapter: the weights of its base are stored quantized",
                hint="export the merged model: --weights merged",
            )

        if selection.artifact.exists(GENERATIVE_ATTENTION):
            raise ModelError(
                "Ollama reads prompts causally, but the model was trained with method.generative_attention: prefix_lm",
                hint="use it with `tailor generate`, `chat` and `evaluate`",
            )

    def write(self, folder: Path, selection: Selection) -> list[str]:
        base = _source(selection).base if selection.weights == "adapter" else None
        return write_modelfile(
            folder,
            base=str(base.absolute()) if base else None,
            config=OBJECT.read_path((base or folder) / MODEL_CONFIG),
            max_length=int(run_files.plan(selection.run)["max_length"]),
        )

    def next_step(self, url: str) -> str:
        return f"ollama create NAME -f {url}/Modelfile"


def _source(selection: Selection) -> Source:
    return open_source(selection.run.url, selection.request.base, selection.request.trust)


def write_modelfile(folder: Path, *, base: str | None, config: dict[str, Any], max_length: int) -> list[str]:
    """Write a Modelfile into `folder` for the model in it, or for the adapter in it on `base`. Returns notes for the user.

    config: the model's config.json. max_length: of training; the context (num_ctx) is at least 2048 and at most the model's
    positions. ModelError when Ollama cannot import the model.
    """
    _check_architecture(config, adapter=base is not None)
    if base is not None:
        _settle_adapter(folder)
    tokenizer = load_tokenizer(str(folder))
    notes = _check_tokenizer(folder)
    if tokenizer.template is None:
        template, bos = "{{ .Prompt }}", bool(tokenizer.prefix)
    else:
        template, known = translated(tokenizer.template.text, tokenizer.specials)
        bos = known.bos
        if known.strips:
            notes.append(
                "the chat template strips white space around messages, which Ollama's cannot do: send messages without it"
            )
    _settle_bos(folder, bos)
    context = config.get("max_position_embeddings")
    generation = OBJECT.read_path(folder / GENERATION_CONFIG)
    ends = generation.get("eos_token_id")
    lines = ["FROM ." if base is None else f"FROM {base}\nADAPTER ."]
    lines.append(f'TEMPLATE """{template}"""')
    for token in [ends] if isinstance(ends, int) else list(ends or []):
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.token(token), ensure_ascii=False)}")
    lines.append(f"PARAMETER num_ctx {min(max(2048, max_length), context or max(2048, max_length))}")
    lines.append("PARAMETER repeat_penalty 1")  # Ollama's default of 1.1 would change the answers
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes


def _check_architecture(config: dict[str, Any], *, adapter: bool) -> None:
    """ModelError when Ollama cannot import the architecture."""
    known = ADAPTER_ARCHITECTURES if adapter else ARCHITECTURES
    name = (config.get("architectures") or ["?"])[0]
    if name not in known:
        what = "adapters of" if adapter else "safetensors of"
        raise ModelError(
            f"Ollama cannot import {what} {name}, only of {', '.join(known)}",
            hint="export the merged model: --weights merged"
            if adapter
            else "convert the merged model with llama.cpp",
        )


def _settle_adapter(folder: Path) -> None:
    """Write alpha as an integer, as Ollama expects. ModelError for features that Ollama does not support."""
    config = read_config(folder)
    if config["peft_type"] != "LORA":
        raise ModelError(
            f"Ollama cannot import adapters of the type {config['peft_type']}, only LoRA",
            hint="export the merged model: --weights merged",
        )
    reasons = {
        "rsLoRA": config.get("use_rslora"),
        "DoRA": config.get("use_dora"),
        "modules trained in full": config.get("modules_to_save"),
        "new tokens (model.add_tokens)": config.get("trainable_token_indices"),
        "different ranks per module (rank_pattern)": config.get("rank_pattern"),
        "an alpha that is not an integer": config["lora_alpha"] != int(config["lora_alpha"]),
    }
    if found := [reason for reason, value in reasons.items() if value]:
        raise ModelError(
            f"Ollama cannot import this adapter, which uses {', '.join(found)}",
            hint="export the merged model: --weights merged",
        )
    change_config(folder, lora_alpha=int(config["lora_alpha"]))


def _check_tokenizer(folder: Path) -> list[str]:
    """Notes on the tokenizer. ModelError when Ollama cannot read it."""
    content = OBJECT.read_path(folder / TOKENIZER)
    if content["model"].get("byte_fallback") and not (folder / "tokenizer.model").is_file():
        raise ModelError(
            "Ollama needs tokenizer.model for a SentencePiece tokenizer, and the base has none",
            hint="copy tokenizer.model of the original model into the base's folder, and merge again",
        )
    splits = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    patterns = [
        part["pattern"]["Regex"] for part in splits if part["type"] == "Split" and "Regex" in part["pattern"]
    ]
    if (folder / "tokenizer.model").is_file():
        return []
    if not patterns or hashlib.sha256("".join(patterns).encode()).hexdigest() not in SPLITS:
        return [
            "Ollama does not recognize this tokenizer's pre-tokenizer pattern and uses its default: some texts may get different tokens"
        ]
    return []


def _settle_bos(folder: Path, bos: bool) -> None:
    """Set add_bos_token in tokenizer_config.json, by which Ollama decides whether to add the BOS."""
    path = folder / TOKENIZER_CONFIG
    config = OBJECT.read_path(path)
    path.write_text(
        json.dumps({**config, "add_bos_token": bos}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
