"""`method` with `name: pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import TEXTS
from tailor.spec.methods.base import LossTerms, MethodSection, Turns


class Pretrain(MethodSection):
    """Pretraining or continued pretraining: next-token loss on every token of plain texts."""

    implementation = "tailor.methods.next_token:build"
    metrics = ("perplexity", "token_accuracy")
    rules = "tailor.spec.rules.methods.pretrain"
    reads = (TEXTS,)
    token_loss = True

    name: Literal["pretrain"]
    """The method."""

    documents: Literal["join", "isolate"] = "join"
    """How documents fill rows of `data.max_length` tokens. `join`: shuffled documents, each with EOS at its end, form
    one stream that is cut into rows. Almost no padding, every token is trained on once, and a token attends to all
    earlier tokens of its row, also of other documents. `isolate`: as in `sft`; attention is limited to each document,
    and `data.pack` and `data.on_long` apply.
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: the target of a token is 1 - label_smoothing for the right token, plus label_smoothing spread
    evenly over the vocabulary, as in PyTorch's cross_entropy. Only in training.
    """

    z_loss: float = Field(0.0, ge=0, le=1000)
    """Coefficient of the z-loss (PaLM, arXiv 2204.02311): the squared logsumexp of the logits, averaged over the
    supervised tokens. It keeps logits from drifting. Typical: 1e-5 to 1e-4. Only in training.
    """

    neftune_alpha: float = Field(0.0, ge=0, le=1000)
    """NEFTune (arXiv 2310.05914): uniform noise on the embedded tokens in training, of at most
    neftune_alpha / sqrt(tokens of the document × hidden size). Typical: 5 to 15. Default: off.
    """

    @property
    def encoded_turns(self) -> Turns:
        return "everything"

    @property
    def joins(self) -> bool:
        return self.documents == "join"

    @property
    def loss_terms(self) -> LossTerms:
        return LossTerms(self.label_smoothing, self.z_loss)

    @property
    def embedding_noise(self) -> float:
        return self.neftune_alpha
