"""How a base model embeds texts by its sentence-transformers files, and the text format of a base model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.model_files import file_reader
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG, MODULES, SENTENCE_BERT, SENTENCE_TRANSFORMERS, TOKENIZER_CONFIG
from tailor.plan import encoders
from tailor.store import OBJECT

POOLING = {
    "cls_token": "cls",
    "lasttoken": "lasttoken",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weightedmean",
}
"""End of an older key `pooling_mode_…` in the pooling's config.json -> the pooling's name."""
SUPPORTED = ("cls", "lasttoken", "mean", "weightedmean")
_PACKAGE = "sentence_transformers."
_ORDERS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_SETTINGS = (
    SENTENCE_BERT,
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
"""Names of the settings of the module Transformer. Older versions of sentence-transformers named the file after the model."""
_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
_NAME = re.compile(r"[\w.-]*")


@dataclass(frozen=True)
class PublishedEmbedder:
    """A model in the layout of sentence-transformers."""

    modules: tuple[str, ...]
    """Class names of the modules, in order. Only those of other packages have the package's name."""
    pooling: str
    """Several poolings, which are concatenated, are joined by `+`."""
    include_prompt: bool
    """Whether the prompt before a text is pooled too."""
    prompt: str
    """The prompt of texts for which none is named."""
    max_length: int | None
    """Maximum tokens of a text."""
    lowercase: bool
    """Whether sentence-transformers converts texts to lower case before the tokenizer."""
    other: str = ""
    """Another setting that changes the embeddings, for messages; empty without one."""

    @property
    def normalize(self) -> bool:
        return "Normalize" in self.modules

    @property
    def unsupported(self) -> str:
        """What tailor does not do with the embeddings of this model; empty if nothing."""
        if others := [name for name in self.modules if name not in _ORDERS[1]]:
            return f"the module {others[0]}"
        if list(self.modules) not in _ORDERS:
            return f"the modules {', '.join(self.modules)} in this order"
        if self.pooling not in SUPPORTED:
            return f"{self.pooling} pooling"
        if not self.include_prompt:
            return "include_prompt: false"
        return "do_lower_case: true" if self.lowercase else self.other

    def require_supported(self, path: str) -> None:
        """ModelError when tailor would compute other embeddings. path: for messages."""
        if self.unsupported:
            raise ModelError(
                f"{path} has {self.unsupported} in its sentence-transformers files, which tailor does not support",
                hint=f"use a model whose embeddings are pooled and normalized only, or train a copy without {MODULES}",
            )


def read_published(path: str, revision: str | None = None) -> PublishedEmbedder | None:
    """The sentence-transformers files of a folder, URL or Hub model; None if it has none. ModelError if they are damaged."""
    read = file_reader(path, revision)
    text = read(MODULES)
    if text is None:
        return None
    modules = parse_modules(text, path)
    pooling: Mapping[str, Any] = {}
    for kind, folder in modules:
        if kind.rpartition(".")[2] == "Pooling":
            name = f"{folder}/{MODEL_CONFIG}" if folder else MODEL_CONFIG
            if not _NAME.fullmatch(folder) or not (pooling := _object(read, path, name)):
                raise ModelError(f"{path}/{name} is missing or damaged", hint="copy the model again")
    settings = next(filter(None, (_object(read, path, name) for name in _SETTINGS)), {})
    prompts = _object(read, path, SENTENCE_TRANSFORMERS)
    names = pooling.get("pooling_mode") or [
        name for key, name in POOLING.items() if pooling.get(f"pooling_mode_{key}")
    ]
    named = prompts.get("prompts")
    default = named.get(str(prompts.get("default_prompt_name"))) if isinstance(named, dict) else None
    length = settings.get("max_seq_length") or _object(read, path, TOKENIZER_CONFIG).get("model_max_length")
    return PublishedEmbedder(
        modules=tuple(kind.rpartition(".")[2] if kind.startswith(_PACKAGE) else kind for kind, _ in modules),
        pooling="+".join(map(str, names if isinstance(names, list) else [names])) or "mean",
        include_prompt=pooling.get("include_prompt") is not False,
        prompt=default if isinstance(default, str) else "",
        max_length=length if type(length) is int and length > 0 else None,
        lowercase=settings.get("do_lower_case") is True,
        other=_other(modules, settings, prompts),
    )


def _other(
    modules: Sequence[tuple[str, str]], settings: Mapping[str, Any], prompts: Mapping[str, Any]
) -> str:
    """A setting of a model that changes its embeddings, and that tailor does not use; empty without one."""
    if (dimension := prompts.get("truncate_dim")) is not None:
        return f"truncate_dim: {dimension}"
    if folder := next((folder for kind, folder in modules if kind.endswith(".Transformer")), ""):
        return f"the module Transformer in the folder {folder}"
    if (task := settings.get("transformer_task", "feature-extraction")) != "feature-extraction":
        return f"transformer_task: {task}"
    if (output := settings.get("module_output_name", "token_embeddings")) != "token_embeddings":
        return f"module_output_name: {output}"
    methods = settings.get("modality_config")
    of_text = methods.get("text") if isinstance(methods, dict) else None
    if of_text is not None and of_text != _OUTPUT:
        return f"modality_config: {json.dumps({'text': of_text})}"
    return ""


def parse_modules(text: str, path: str) -> list[tuple[str, str]]:
    """(class, folder) of each module in a modules.json, in order. ModelError when it is damaged. path: for messages."""
    try:
        return [(str(one["type"]), str(one.get("path") or "")) for one in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path}/{MODULES} is damaged", hint="copy the model again") from None


def text_format(path: str, revision: str | None = None) -> TextFormat:
    """The format of texts to embed that a base model is trained with: that of GritLM, or an encoder's own.

    An encoder reads a text as sentence-transformers gives it: the prompt and the text as one string within the tokenizer's
    special tokens, all of which is pooled.
    """
    read = file_reader(path, revision)
    if not encoders.is_encoder(_object(read, path, MODEL_CONFIG)):
        return GRITLM
    published = read_published(path, revision)
    return TextFormat("{instruction}", "" if published is None else published.prompt, joined=True)


def differing(path: str, revision: str | None, pooling: str, normalize: bool) -> str:
    """A note when an encoder was published with another pooling than a recipe trains it with; else empty.

    ModelError when it was published with what tailor does not compute.
    """
    if not encoders.is_encoder(_object(file_reader(path, revision), path, MODEL_CONFIG)):
        return ""
    found = read_published(path, revision)
    if found is None:
        return ""
    found.require_supported(path)
    if (found.pooling, found.normalize) == (pooling, normalize):
        return ""
    norm = "with" if found.normalize else "without"
    return (
        f"{path} was published with {found.pooling} pooling {norm} normalization; the recipe trains it with "
        f"method.pooling: {pooling} and method.normalize: {str(normalize).lower()}"
    )


def _object(read: Callable[[str], str | None], path: str, name: str) -> Mapping[str, Any]:
    text = read(name)
    return {} if text is None else OBJECT.parse(text.encode(), f"{path}/{name}")
