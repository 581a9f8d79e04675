"""Answers to queries from the best passage of an index, with one model that embeds and generates (GritLM, arXiv 2402.09906).

Key-values of the query and the passage come from the forward passes that embedded them. With one embedded text, the answer
is exactly that of reading the whole sequence with the attention of embedding in the embedded text, and causal attention
after it. For `method.attention: causal` that is plain generation. With two, the texts do not attend to each other and both
have positions from 0, as in the paper: it is another computation than reading them together.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import cached_property

import torch

from tailor.artifacts.load import Loaded
from tailor.errors import DataError, StoreError
from tailor.evaluate import generation, key_value_files
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.reuse import TURNS
from tailor.evaluate.search_file import Hit, Passages, open_written
from tailor.models.embedding.embedder import Embedder
from tailor.models.embedding.key_values import KeyValues, cache_of, require_key_values
from tailor.models.positions import positions_of
from tailor.store import Store


@dataclass(frozen=True)
class Retrieved:
    """What a model reads to answer a query."""

    hit: Hit
    embedded: tuple[KeyValues, ...]
    """Texts whose key-values are used, in order."""
    turn: tuple[int, ...]
    """Token ids of the user turn, up to the answer."""

    @property
    def ids(self) -> list[int]:
        """All token ids, up to the answer."""
        return [*(token for part in self.embedded for token in part.ids.tolist()), *self.turn]


@dataclass(frozen=True)
class Index:
    """A file of embeddings with its texts, and the folder of its key-values, if it has one."""

    passages: Passages
    instruction: str | None
    """Of the passages."""
    key_values: tuple[Store, key_value_files.About] | None


def open_index(source: str, model: EvaluatedModel, reuse: str) -> Index:
    """Open the file of embeddings `source`. DataError if it does not fit the `EvaluatedModel`, or has no texts or key-values."""
    found = open_written(source, model)
    if found is None:
        raise DataError(
            f"--retrieve {source} was not written by `tailor embed`",
            hint="embed the passages with this model: tailor embed RUN corpus.jsonl NAME.parquet --keep text",
        )
    if "document" not in reuse:
        return Index(found.passages, found.written.about["instruction"], None)
    written, about = found.written, found.written.about
    folder = written.folder.join(key_value_files.folder_of(written.name))
    if "key_values" not in about or not folder.exists(key_value_files.INDEX):
        raise DataError(
            f"--reuse {reuse} needs the key-values of the passages, which {source} does not have",
            hint="embed the passages again with --key-values",
        )
    values = key_value_files.read_index(folder)
    if values["identity"] != about["key_values"]:
        raise DataError(
            f"the key-values in {folder.url} are of other embeddings than {posixpath.basename(source)}",
            hint="embed the passages again with --key-values",
        )
    return Index(found.passages, about["instruction"], (folder, values))


class PassageReader:
    """Finds the best passage for a query, and generates the answer with the same network."""

    def __init__(self, loaded: Loaded, embedder: Embedder, index: Index, reuse: str) -> None:
        """reuse: a key of `TURNS`. ModelError for key-values that cannot be used again."""
        self._loaded, self._embedder, self._index, self._reuse = loaded, embedder, index, reuse
        self._embedder.dimension = index.passages.dimension
        if reuse != "nothing":
            require_key_values(embedder.model)

    def retrieve(self, query: str, instruction: str | None) -> Retrieved:
        """The passage nearest to a query. DataError for an empty query, StoreError for damaged key-values."""
        if not query.strip():
            raise DataError("the query is empty")
        texts: dict[str, KeyValues] = {}
        if "query" in self._reuse:
            vector, (texts["query"],) = self._embedder.encode_with_key_values([query], instruction)
        else:
            vector = self._embedder.encode([query], instruction)
        (hit,) = self._index.passages.nearest(vector, 1)
        if "document" in self._reuse:
            assert self._index.key_values is not None
            texts["document"] = self._document(*self._index.key_values, hit)
        parts = () if self._reuse == "nothing" else tuple(texts[name] for name in self._reuse.split("-"))
        ids = self._loaded.prompt_ids(
            [{"role": "user", "content": TURNS[self._reuse].format(passage=hit.text, query=query)}]
        )
        if parts:  # it continues the embedded texts, which begin with BOS
            tokenizer = self._loaded.tokenizer
            ids = [*tokenizer.encode("\n"), *(ids[1:] if ids[:1] == [tokenizer.bos_id] else ids)]
        return Retrieved(hit, parts, tuple(ids))

    def _document(self, folder: Store, about: key_value_files.About, hit: Hit) -> KeyValues:
        """The key-values of a passage, in the dtype of the model. StoreError if they are not those of its tokens."""
        found = key_value_files.read(folder, about, hit.row)
        (expected,) = self._embedder.tokenize([hit.text], self._index.instruction)
        if found.ids.tolist() != expected.input_ids.tolist() or not self._like.fits(found):
            raise StoreError(
                f"the key-values of row {hit.row} in {folder.url} are not those of its text",
                hint="embed the passages again with --key-values",
            )
        dtype = self._like.keys.dtype
        return KeyValues(found.ids, found.keys.to(dtype), found.values.to(dtype))

    @cached_property
    def _like(self) -> KeyValues:
        """Key-values of a short text, which show the shapes and the dtype that the model makes."""
        _, (found,) = self._embedder.encode_with_key_values(["a"])
        return found

    def answer(
        self,
        retrieved: Retrieved,
        *,
        max_new_tokens: int,
        sampling: generation.Sampling | None = None,
        number: int = 0,
    ) -> list[int]:
        """The token ids of the answer. number: of the prompt, for sampling. ModelError if the key-values cannot be used in a
        sequence of this length, DataError if it does not fit the model's positions."""
        model, ids = self._loaded.model, retrieved.ids
        stop_ids, pad_id = self._loaded.stop_ids, self._loaded.pad_id
        if not retrieved.embedded:
            (found,) = generation.generate(
                model,
                [ids],
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                batch_size=1,
                pad_id=pad_id,
                sampling=sampling,
                numbers=[number],
            )
            return found
        require_key_values(self._embedder.model, len(ids) + max_new_tokens)
        config = generation.decoding_config(max_new_tokens, stop_ids, pad_id)
        config.max_new_tokens = generation.room(positions_of(model), len(ids), max_new_tokens)
        draw = sampling and sampling.draw([number])
        with generation.ready(model) as device, torch.no_grad():
            tokens = torch.tensor([ids], device=device)  # int64[1, n]
            out = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                past_key_values=cache_of(list(retrieved.embedded), device),
                generation_config=config,
                logits_processor=[draw] if draw is not None else [],
            )
        return generation.before_stop(out[0, len(ids) :].tolist(), stop_ids)
