"""`method` with `name: sft`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import EXAMPLES
from tailor.spec.methods.base import LossTerms, MethodSection, Turns


class Sft(MethodSection):
    """Supervised fine-tuning (SFT): next-token loss on the supervised tokens."""

    implementation = "tailor.methods.next_token:build"
    metrics = ("perplexity", "token_accuracy")
    rules = "tailor.spec.rules.methods.next_token"
    reads = (EXAMPLES,)
    token_loss = True

    name: Literal["sft"]
    """The method."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all `assistant` turns, the `last_assistant` turn, or
    `everything`. In a completion row it is the response, or all tokens with `everything`. Plain text is always
    supervised in full.
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
    def supervised_turns(self) -> Turns:
        return self.train_on

    @property
    def loss_terms(self) -> LossTerms:
        return LossTerms(self.label_smoothing, self.z_loss)

    @property
    def embedding_noise(self) -> float:
        return self.neftune_alpha
