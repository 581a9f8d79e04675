"""Tasks that compare a corpus of generated answers with its references, as machine translation does."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask


class Bleu(EvaluationTask):
    """Corpus BLEU of the answers, with the n-gram counts of sacrebleu. Needs the extra `evaluate`."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.translation:BleuEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("bleu",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["bleu"]
    """Metric: `bleu`, from 0 to 1: sacrebleu's score divided by 100."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """Tokenizer of sacrebleu: `13a` for languages with spaces, `intl` for their Unicode punctuation too, `zh` for
    Chinese, `char` for single characters.
    """

    lowercase: bool = False
    """Ignore case."""


class Chrf(EvaluationTask):
    """Corpus chrF of the answers: overlap of character n-grams, counted by sacrebleu. Needs the extra `evaluate`."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.translation:ChrfEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("chrf",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["chrf"]
    """Metric: `chrf`, from 0 to 1: sacrebleu's score divided by 100."""

    word_order: Literal[0, 1, 2] = 0
    """Longest n-grams of words that count too. 0 is chrF, 2 is chrF++."""

    lowercase: bool = False
    """Ignore case."""
