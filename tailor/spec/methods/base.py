"""What every method's section has in common, and what the rest of tailor asks of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from tailor.spec.base import Section
from tailor.spec.data import TEXTS, Kind

Turns = Literal["assistant", "last_assistant", "everything"]
"""Which tokens of a conversation are supervised."""
ReferenceSource = Literal["auto", "adapter_off", "copy", "precomputed"]


@dataclass(frozen=True)
class StreamSizes:
    """Of a method whose steps take rows from two streams: how many of each, over all workers; 0 for none."""

    queries: int
    """Texts to embed come as queries, each with its passages."""
    examples: int
    """Sequences to generate."""
    group: int
    """Passages of each query."""

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
        """A step in words."""
        parts = []
        if self.embeds:
            passages = f"{self.group} passage" + ("s" if self.group > 1 else "")
            parts.append(f"{self.queries} queries with {passages} each")
        if self.generates:
            parts.append(f"{self.examples} sequences to generate")
        return " and ".join(parts)


@dataclass(frozen=True)
class AnswerLimits:
    """Longest prompt and longest answer in tokens; None for no limit of their own."""

    prompt: int | None = None
    completion: int | None = None


@dataclass(frozen=True)
class TextLimits:
    """Longest texts to embed, in tokens with all that is around them."""

    query: int
    passage: int
    negatives: bool = True
    """Whether a query needs a passage that does not answer it."""


class EmbeddingMethod(Protocol):
    """The keys of a method that trains embeddings, as models, plans and artifacts read them."""

    @property
    def pooling(self) -> Literal["mean", "weightedmean", "lasttoken", "cls"]: ...
    @property
    def projection(self) -> int | None: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def attention(self) -> Literal["bidirectional", "causal"]: ...
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
    def max_query_length(self) -> int | None: ...
    @property
    def max_passage_length(self) -> int | None: ...
    @property
    def generates(self) -> bool:
        """Whether it trains the language model's head too."""
        ...


class MethodSection(Section):
    """Base of the method sections. A class variable or property below is a trait: code elsewhere asks for the trait and
    never for the method's name or class.
    """

    implementation: ClassVar[str]
    """`module:function` that builds the loss: (section, reference) -> `tailor.methods.base.Method`."""
    rules: ClassVar[str | None] = None
    """Module of the rules between its keys, with any of `conflicts`, `findings` and `unused`."""
    reads: ClassVar[tuple[Kind, ...]]
    """Kinds of the rows that it learns from."""
    compares_answers: ClassVar[bool] = False
    """Its rows are whole answers to compare, none of them right or wrong by itself."""
    token_loss: ClassVar[bool] = False
    """Its loss is a sum over tokens wherever they are, so a sequence can be cut: over workers, or into windows."""
    documents_per_pass: ClassVar[str | None] = None
    """Why one forward pass always holds several documents, after `method NAME `; None where it need not."""
    min_examples: ClassVar[int] = 1
    """Examples that a split needs."""
    too_few_examples: ClassVar[str] = ""
    """What the examples are needed for, after `method NAME `."""
    embedding_key: ClassVar[str] = "method.name"
    """The key that decides whether it trains embeddings."""
    can_precompute_reference: ClassVar[bool] = True
    """Whether its reference log-probabilities can be computed before training."""

    name: str

    @property
    def reads_conversations(self) -> bool:
        """False for a method of plain texts, which needs no chat template."""
        return self.reads != (TEXTS,)

    @property
    def supervised_turns(self) -> Turns:
        """Which turns of a conversation are supervised where one is read, in training or in an evaluation of the run."""
        return "assistant"

    @property
    def encoded_turns(self) -> Turns:
        """Which tokens of its training rows are supervised."""
        return self.supervised_turns

    @property
    def answer_limits(self) -> AnswerLimits | None:
        """The limits of prompt and answer, for a method that compares answers."""
        return None

    def text_limits(self, max_length: int) -> TextLimits | None:
        """The limits of queries and passages, for a method that reads them. max_length: `data.max_length`."""
        return None

    @property
    def embedding(self) -> EmbeddingMethod | None:
        """Its keys of embeddings; None where it trains none."""
        return None

    @property
    def streams(self) -> StreamSizes | None:
        """What a step takes of its two streams; None for a method whose batches are `train.batch_size` rows."""
        return None

    @property
    def joins(self) -> bool:
        """Rows are cut from a stream of joined documents."""
        return False

    @property
    def reference_source(self) -> ReferenceSource | None:
        """Where the log-probabilities of its reference model come from; None where it has no reference."""
        return None

    @property
    def loss_keys(self) -> tuple[str, ...]:
        """Keys elsewhere in the recipe that may change when a run continues, but decide this method's loss."""
        return ()
