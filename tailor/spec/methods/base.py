"""Base of the methods' sections, and the traits by which the rest of tailor handles a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from tailor.spec.base import Section
from tailor.spec.data import TEXTS, Kind

Turns = Literal["assistant", "last_assistant", "everything"]
"""Which tokens of a conversation are supervised (count in the loss)."""
ReferenceSource = Literal["auto", "adapter_off", "copy", "precomputed"]
TextAttention = Literal["bidirectional", "causal", "bidirectional_instruction", "bidirectional_text"]
"""Attention of a text to embed. The last two are bidirectional in one of its two segments: what comes before the text, and
the text."""


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a GRIT batch, over all workers. 0 means that the step has none."""

    queries: int
    """Queries to embed, each with its passages."""
    examples: int
    """Sequences for the next-token loss."""
    group: int
    """Passages per query."""
    distinct: bool = False
    """No two rows of a training batch have a text in common."""
    by: Literal["dataset", "source"] = "source"
    """All queries of a batch are of one dataset, or of one source."""
    first: Literal["longest", "queries", "passages"] = "longest"
    """Which texts of a batch come first. Queries and passages are then apart, each with the longest first."""

    @property
    def embeds(self) -> bool:
        return self.queries > 0

    @property
    def generates(self) -> bool:
        return self.examples > 0

    @property
    def mode(self) -> str:
        return "unified" if self.embeds and self.generates else "embedding" if self.embeds else "generative"

    def describe(self) -> str:
        """The batch in words, for messages."""
        parts = []
        if self.embeds:
            passages = f"{self.group} passage" + ("s" if self.group > 1 else "")
            parts.append(f"{self.queries} queries with {passages} each")
        if self.generates:
            parts.append(f"{self.examples} sequences for the next-token loss")
        return " and ".join(parts)


@dataclass(frozen=True)
class AnswerLimits:
    """Maximum length of prompt and answer, in tokens. None: no separate limit."""

    prompt: int | None = None
    completion: int | None = None


@dataclass(frozen=True)
class LossTerms:
    """What the next-token loss has in training besides cross-entropy. Evaluations measure the cross-entropy alone."""

    label_smoothing: float = 0.0
    """Probability mass that the target gives to all tokens of the vocabulary, evenly."""
    z_loss: float = 0.0
    """Coefficient of the squared logsumexp of the logits, averaged over the tokens as the loss is."""

    def __bool__(self) -> bool:
        return bool(self.label_smoothing or self.z_loss)


NO_TERMS = LossTerms()


@dataclass(frozen=True)
class TextLimits:
    """Maximum length of the texts to embed, in tokens, with instruction and special tokens."""

    query: int
    passage: int
    negatives: bool = True
    """Whether each query needs a passage that does not answer it, of its own row or of another one."""
    scores: bool = False
    """Whether each row needs a teacher's scores of its passages, and negatives of its own if `negatives`."""
    pairs: bool = False
    """Whether a query is read together with each passage, as one pair of at most `passage` tokens."""


class EmbeddingMethod(Protocol):
    """Keys of a method that trains embeddings, as models, plans and artifacts read them."""

    @property
    def pooling(self) -> Literal["mean", "weightedmean", "lasttoken", "cls"]: ...
    @property
    def projection(self) -> int | None: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def attention(self) -> TextAttention: ...
    @property
    def window(self) -> Literal["keep", "widen"]: ...
    @property
    def matryoshka(self) -> list[int]: ...
    @property
    def group_size(self) -> int: ...
    @property
    def chunk_size(self) -> int | None: ...
    @property
    def engine(self) -> str: ...
    @property
    def kept_chunks(self) -> int: ...
    @property
    def max_query_length(self) -> int | None: ...
    @property
    def max_passage_length(self) -> int | None: ...
    @property
    def generates(self) -> bool:
        """Whether it also trains next-token prediction."""
        ...


class MethodSection(Section):
    """Base of the methods' sections.

    The class variables and properties are traits: other code reads a trait and never tests for a method's name or
    class.
    """

    implementation: ClassVar[str]
    """`module:function` that builds the loss: (section, reference) -> `tailor.methods.base.Method`."""
    rules: ClassVar[str | None] = None
    """Module of the rules between its keys, with any of the functions `conflicts`, `findings` and `unused`."""
    reads: ClassVar[tuple[Kind, ...]]
    """Kinds of rows that it reads."""
    compares_answers: ClassVar[bool] = False
    """Whether its rows are answers to compare. No such answer is right or wrong by itself."""
    token_loss: ClassVar[bool] = False
    """Whether its loss is a sum over tokens. Then a sequence can be split, over workers or into windows."""
    documents_per_pass: ClassVar[str | None] = None
    """Why a forward pass always has several documents: the end of a sentence that starts with `method NAME`. None if
    it can have one.
    """
    min_examples: ClassVar[int] = 1
    """Minimum number of examples in a split."""
    too_few_examples: ClassVar[str] = ""
    """Why it needs `min_examples`: the end of a sentence that starts with `method NAME`."""
    embedding_key: ClassVar[str] = "method.name"
    """The key that decides whether it trains embeddings."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of its evaluations, besides the loss, that `train.early_stopping` can watch. Empty: not declared."""
    can_precompute_reference: ClassVar[bool] = True
    """Whether its reference log-probabilities can be computed before training."""
    shares_prompts: ClassVar[bool] = False
    """Whether a forward pass may compute the prompt of a pair of answers once. The loss then takes its numbers by document, from
    `CausalModel.answers` or `log_probabilities`, and never by position.
    """

    name: str

    @property
    def reads_conversations(self) -> bool:
        """False for a method of plain texts, which needs no chat template."""
        return self.reads != (TEXTS,)

    @property
    def supervised_turns(self) -> Turns:
        """Which tokens of a conversation are supervised, in training and in evaluations of the run."""
        return "assistant"

    @property
    def encoded_turns(self) -> Turns:
        """Which tokens of its training rows are supervised."""
        return self.supervised_turns

    @property
    def answer_limits(self) -> AnswerLimits | None:
        """Maximum lengths of prompt and answer. None for methods that do not compare answers."""
        return None

    def text_limits(self, max_length: int) -> TextLimits | None:
        """Maximum lengths of queries and passages. None for methods without them. max_length: `data.max_length`."""
        return None

    @property
    def label_weights(self) -> tuple[float, float] | None:
        """Weights of desirable and undesirable answers: the keys `desirable_weight` and `undesirable_weight`.

        None for a method without labels.
        """
        return None

    @property
    def embedding(self) -> EmbeddingMethod | None:
        """The method's embedding keys. None if it trains no embeddings."""
        return None

    @property
    def streams(self) -> StreamSizes | None:
        """Sizes of its GRIT batches. None for a method whose batches are `train.batch_size` rows."""
        return None

    @property
    def ranked_passages(self) -> int | None:
        """Passages per query of a reranker: one positive and negatives. None for a method that trains no reranker."""
        return None

    @property
    def joins(self) -> bool:
        """Whether documents are joined into one stream that is cut into rows."""
        return False

    @property
    def loss_terms(self) -> LossTerms:
        """Terms of its next-token loss, and what they smooth."""
        return NO_TERMS

    @property
    def embedding_noise(self) -> float:
        """NEFTune's alpha: noise on the embedded tokens of training sequences. 0 without noise."""
        return 0.0

    @property
    def trains_next_tokens(self) -> bool:
        """Whether next-token prediction is a part of its loss. Others score, embed or compare what they read."""
        only_embeds = self.embedding is not None and not self.embedding.generates
        return not (only_embeds or self.compares_answers or self.ranked_passages is not None)

    @property
    def prefix_lm(self) -> bool:
        """Whether sequences to generate have bidirectional attention in their prompt."""
        return False

    @property
    def reference_source(self) -> ReferenceSource | None:
        """Source of the reference log-probabilities. None if it has no reference model."""
        return None

    @property
    def loss_keys(self) -> tuple[str, ...]:
        """Keys outside of `method` that change this method's loss. They must stay the same when a run is resumed."""
        return ()
