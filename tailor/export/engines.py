"""Which inference engines can serve an artifact as it is, what they refuse or ignore, and the command that helps.

The facts are in `LIMITS`, each with its source in the engine's code. They are of the versions of autumn 2026; an engine that
learns more makes an entry needless, not wrong: the suggested command still works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tailor.artifacts.stacked import targets
from tailor.export.usage import base_folder
from tailor.layout import ADAPTER_CONFIG, GENERATIVE_ATTENTION, MERGED, MODEL_CONFIG
from tailor.store import OBJECT, Store, run_files
from tailor.store import run_folder as runs

Effect = Literal["refuses", "ignores", "misreads"]
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank (vllm/config/lora.py)."""
VLLM_RANK = 16
"""Its default."""
OLLAMA_MODELS = (
    *("LlamaForCausalLM", "MixtralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM"),
    *("Gemma3ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Olmo3ForCausalLM", "CohereForCausalLM"),
    *("GptOssForCausalLM", "Ministral3ForCausalLM", "Gemma4ForCausalLM", "DeepseekV3ForCausalLM"),
    *("Glm4MoeLiteForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Qwen3NextForCausalLM"),
    "NemotronHForCausalLM",
)
"""Architectures whose safetensors Ollama can import (convert/convert.go: LoadModelMetadata). Mistral's left it in 2025."""
OLLAMA_ADAPTERS = ("LlamaForCausalLM", "Gemma2ForCausalLM")
"""Architectures whose adapters Ollama can import (convert/convert.go: ConvertAdapter)."""
OLLAMA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules whose updates Ollama can import (convert/convert_llama_adapter.go: Replacements)."""


@dataclass(frozen=True)
class Artifact:
    """What decides about an artifact. adapter: adapter_config.json; None for a full model."""

    adapter: dict[str, Any] | None
    architecture: str | None
    """The model's class in transformers; None if the base is not on this machine."""
    prefix_lm: bool
    """Whether it reads prompts in both directions."""
    rope: bool = False
    """Whether an adapter's base has RoPE parameters of its own."""


@dataclass(frozen=True)
class Limit:
    """Something that an engine refuses, reads without its effect, or takes for something else.

    finds: the name of what an artifact has of it, or None. source: where the engine's code says so.
    """

    engine: str
    effect: Effect
    finds: Callable[[Artifact], str | None]
    source: str


def _adapter(key: str, words: str) -> Callable[[Artifact], str | None]:
    return lambda one: words if one.adapter is not None and one.adapter.get(key) else None


def _experts(one: Artifact) -> str | None:
    has = one.adapter is not None and targets(one.adapter)
    return "adapters of routed experts (target_parameters), with some architectures" if has else None


def _tables(one: Artifact) -> str | None:
    tables = [name for name in ("embed_tokens", "lm_head") if name in _target_names(one)]
    return f"updates of {' and '.join(tables)}, with some architectures" if tables else None


def _target_names(one: Artifact) -> set[str]:
    """The last parts of the names of the adapted modules; none for a pattern."""
    modules = one.adapter.get("target_modules") if one.adapter is not None else None
    return {str(name).rpartition(".")[2] for name in modules} if isinstance(modules, list) else set()


def _kind(one: Artifact) -> str | None:
    kind = str(one.adapter["peft_type"]) if one.adapter is not None else "LORA"
    return f"adapters of the type {kind}" if kind != "LORA" else None


def _rank(one: Artifact) -> str | None:
    rank = largest_rank(one)
    return f"ranks above {VLLM_RANKS[-1]} ({rank})" if rank > VLLM_RANKS[-1] else None


def _bias(one: Artifact) -> str | None:
    has = one.adapter is not None and (
        one.adapter.get("bias", "none") != "none" or one.adapter.get("lora_bias")
    )
    return "trained biases" if has else None


def _alpha(one: Artifact) -> str | None:
    alpha = one.adapter.get("lora_alpha") if one.adapter is not None else None
    return "an alpha that is not an integer" if alpha is not None and alpha != int(alpha) else None


def _prefix_lm(one: Artifact) -> str | None:
    return "reading prompts in both directions (method.generative_attention)" if one.prefix_lm else None


def _rope(one: Artifact) -> str | None:
    return (
        "the RoPE parameters of model.rope, which are not in the adapter"
        if one.rope and one.adapter
        else None
    )


def _is_adapter(one: Artifact) -> str | None:
    return "adapters as safetensors" if one.adapter is not None else None


def _ollama_modules(one: Artifact) -> str | None:
    others = sorted(_target_names(one) - set(OLLAMA_MODULES))
    return f"updates of {', '.join(others)}" if others and one.architecture in OLLAMA_ADAPTERS else None


def _ollama(one: Artifact) -> str | None:
    known = OLLAMA_MODELS if one.adapter is None else OLLAMA_ADAPTERS
    if one.architecture is None or one.architecture in known:
        return None
    return f"{'adapters of' if one.adapter is not None else 'safetensors of'} {one.architecture}"


VLLM, LLAMA_CPP, OLLAMA, PEFT = "vLLM", "llama.cpp", "Ollama", "transformers"
_HELPER = "vllm/lora/peft_helper.py"
_OLDER = f"{_HELPER}: releases without get_rank_and_scaling keep r and lora_alpha only"
_IMPORT = "convert/convert.go: AdapterParameters"
_LOADER = "llama.cpp, src/llama-adapter.cpp: LoRA tensor has unexpected suffix"
"""Ollama has adapters loaded by llama-server (llm/llama_server.go)."""
_CAUSAL = "models generate causally"
_IN_FULL = _adapter("modules_to_save", "modules trained in full (modules_to_save)")
_NEW_TOKENS = _adapter("trainable_token_indices", "new tokens (model.add_tokens)")
_DORA = _adapter("use_dora", "DoRA")
_ALPHAS = "different alphas per module (alpha_pattern)"
LIMITS = (
    Limit(PEFT, "ignores", _prefix_lm, _CAUSAL),
    Limit(VLLM, "refuses", _kind, f"{_HELPER}: needs r and lora_alpha"),
    Limit(VLLM, "refuses", _DORA, f"{_HELPER}: vLLM does not yet support DoRA"),
    Limit(VLLM, "refuses", _IN_FULL, f"{_HELPER}: vLLM only supports modules_to_save being either None"),
    Limit(VLLM, "refuses", _bias, f"{_HELPER}: Adapter bias is not supported; lora_bias"),
    Limit(VLLM, "refuses", _NEW_TOKENS, "vllm/lora/utils.py: parse_fine_tuned_lora_name"),
    Limit(VLLM, "refuses", _rank, "vllm/config/lora.py: MaxLoRARanks"),
    Limit(VLLM, "refuses", _tables, "vllm/lora/lora_model.py: check_unexpected_modules; embedding_modules"),
    # Shared experts are plain linear modules there, as in `glm4_moe.py`, and are served.
    Limit(
        VLLM,
        "misreads",
        _experts,
        "vllm/lora/model_manager.py: _stack_moe_lora_weights splits them as gpt-oss does, if not is_3d_moe_weight",
    ),
    Limit(
        VLLM,
        "ignores",
        _adapter("rank_pattern", "scales of different ranks (rank_pattern), in older releases"),
        _OLDER,
    ),
    Limit(VLLM, "ignores", _adapter("alpha_pattern", f"{_ALPHAS}, in older releases"), _OLDER),
    Limit(VLLM, "ignores", _rope, "vllm serve BASE: the base's own config.json"),
    Limit(VLLM, "ignores", _prefix_lm, _CAUSAL),
    Limit(
        LLAMA_CPP,
        "refuses",
        _is_adapter,
        "common/arg.cpp: --lora reads GGUF, which convert_lora_to_gguf.py makes",
    ),
    Limit(LLAMA_CPP, "ignores", _prefix_lm, _CAUSAL),
    Limit(OLLAMA, "refuses", _ollama, "convert/convert.go"),
    Limit(OLLAMA, "refuses", _kind, _IMPORT),
    Limit(OLLAMA, "refuses", _ollama_modules, "convert/convert_llama_adapter.go: Replacements"),
    Limit(OLLAMA, "refuses", _alpha, f"{_IMPORT}: lora_alpha is a uint32"),
    Limit(OLLAMA, "refuses", _DORA, _LOADER),
    Limit(OLLAMA, "refuses", _IN_FULL, _LOADER),
    Limit(OLLAMA, "refuses", _NEW_TOKENS, _LOADER),
    Limit(OLLAMA, "refuses", _bias, _LOADER),
    # A rank_pattern is served: llama-adapter.h scales by alpha over the rank of each module.
    Limit(OLLAMA, "ignores", _adapter("use_rslora", "rsLoRA"), _IMPORT),
    Limit(OLLAMA, "ignores", _adapter("alpha_pattern", _ALPHAS), _IMPORT),
    Limit(OLLAMA, "ignores", _rope, "FROM BASE: the base's own config.json"),
    Limit(OLLAMA, "ignores", _prefix_lm, _CAUSAL),
)
ENGINES = (PEFT, VLLM, LLAMA_CPP, OLLAMA)


@dataclass(frozen=True)
class Verdict:
    """Whether an engine serves an artifact as it was trained.

    reasons: what it refuses or ignores. command: serves it, or makes it servable.
    """

    engine: str
    serves: bool
    reasons: list[str]
    command: str | None

    @property
    def line(self) -> str:
        """The verdict for the user."""
        said = f"{self.engine} {'; '.join(self.reasons)}" if self.reasons else f"{self.engine} serves it"
        return said + (f": {self.command}" if self.command is not None else "")

    @property
    def refused(self) -> bool:
        """Whether the engine could serve it, but for something in it. llama.cpp reads no adapters at all."""
        return not self.serves and self.engine != LLAMA_CPP


def found(artifact: Artifact, engine: str) -> list[str]:
    """What an engine refuses or ignores of an artifact, in words."""
    limits = (limit for limit in LIMITS if limit.engine == engine)
    return [f"{limit.effect} {words}" for limit in limits if (words := limit.finds(artifact)) is not None]


def verdicts(run: Store, *, merged: bool = False) -> list[Verdict]:
    """The verdict of every engine on a finished run that generates text; none for others.

    merged: of the base with the adapter merged into it.
    """
    kind = runs.artifact(run)
    if kind not in ("adapter", "model") or run_files.ranks(run) or run_files.only_embeds(run):
        return []
    artifact = artifact_of(run, "model" if merged else kind)
    return [_verdict(artifact, engine, run) for engine in ENGINES]


def artifact_of(run: Store, kind: str) -> Artifact:
    """The facts about a run's artifact. kind: `adapter`, or `model` (also for the merged adapter)."""
    trained = run.join(str(runs.artifact(run)))
    model = run_files.plan(run)["model"]
    config = OBJECT.read(trained, ADAPTER_CONFIG) if kind == "adapter" else None
    folder = base_folder(model)
    if trained.exists(MODEL_CONFIG):
        names = OBJECT.read(trained, MODEL_CONFIG).get("architectures")
    else:
        path = Path(folder) / MODEL_CONFIG
        names = OBJECT.read_path(path).get("architectures") if path.is_file() else None
    return Artifact(
        adapter=config,
        architecture=str(names[0]) if names else None,
        prefix_lm=trained.exists(GENERATIVE_ATTENTION),
        rope=bool(model.get("rope")),
    )


def _verdict(artifact: Artifact, engine: str, run: Store) -> Verdict:
    reasons = found(artifact, engine)
    command = _serve(artifact, engine, run) if not reasons else _help(artifact, engine, run)
    return Verdict(engine, not reasons, reasons, command)


def _serve(artifact: Artifact, engine: str, run: Store) -> str | None:
    if engine == VLLM and artifact.adapter is not None:
        base = artifact.adapter.get("base_model_name_or_path") or "BASE"
        rank = largest_rank(artifact)
        more = f" --max-lora-rank {max_lora_rank(rank)}" if rank > VLLM_RANK else ""
        return (
            f"vllm serve {base} --enable-lora --lora-modules {runs.name(run)}={run.join('adapter').url}{more}"
        )
    if engine == VLLM:
        return (
            f"vllm serve {run.join(str(runs.artifact(run))).url}" if runs.artifact(run) == "model" else None
        )
    if engine == LLAMA_CPP:
        return f"tailor export {run.url} --as gguf --to FOLDER"
    if engine == OLLAMA:
        more = " --weights adapter" if artifact.adapter is not None else ""
        return f"tailor export {run.url} --as ollama{more} --to FOLDER"
    return f"tailor generate {run.url}"


def _help(artifact: Artifact, engine: str, run: Store) -> str | None:
    if artifact.prefix_lm:
        return f"tailor generate {run.url}"
    if engine == LLAMA_CPP:
        return f"tailor export {run.url} --as gguf --to FOLDER"
    if engine == OLLAMA:
        more = (
            "" if artifact.adapter is not None and artifact.architecture in OLLAMA_MODELS else " --type f16"
        )
        return f"tailor export {run.url} --as ollama{more} --to FOLDER"
    if artifact.adapter is not None:
        return f"tailor merge {run.url} && vllm serve {run.join(MERGED).url}"
    return None


def largest_rank(artifact: Artifact) -> int:
    """The largest rank of an adapter's modules; 0 for a full model."""
    if artifact.adapter is None:
        return 0
    pattern = artifact.adapter.get("rank_pattern") or {}
    return max(int(rank) for rank in (artifact.adapter.get("r") or 0, *pattern.values()))


def max_lora_rank(rank: int) -> int:
    """The smallest value of vLLM's --max-lora-rank for a rank."""
    return next(value for value in VLLM_RANKS if value >= rank)
