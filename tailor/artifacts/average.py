"""`tailor average`: weighted averages of models, checkpoints or adapters of one base.

Models are averaged tensor by tensor in float32. The average of adapters is exact too: averaging A and B separately does
not average the products B·A, so the factors are concatenated, and the rank is the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import output, verify
from tailor.artifacts.average_adapters import Settings, average_adapters
from tailor.artifacts.average_models import average_checkpoints, average_models
from tailor.artifacts.inputs import AverageInput, open_input
from tailor.artifacts.same_tokenizer import require_same_tokenizers
from tailor.encode.tokenizer_files import fix_tokenizer_class
from tailor.errors import ModelError
from tailor.layout import AVERAGE_RECORD, EMBEDDING
from tailor.models import prefix_lm
from tailor.models.embedding.settings import Embedding
from tailor.models.own_code import NOTHING, Trust
from tailor.store.scratch import scratch


def average(
    urls: Sequence[str],
    to: str,
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    tolerance: float | None = None,
    check: verify.Check | None = None,
    trust: Trust = NOTHING,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Average the inputs at `urls` and write the result to `to`. Returns its URL.

    weights: one per input, normalized to a sum of 1; equal by default. rank: reduces averaged adapters to this rank by
    SVD, and reports the error. check: how averaged adapters are verified, see `verify_average.measure`; tolerance: see
    `verify.Figures.limit`. trust: own code of the inputs' base that may run. Raises ModelError and StoreError.
    """
    shares = _shares(urls, weights)
    output.check(to, AVERAGE_RECORD)
    with scratch() as temporary, ExitStack() as stack:
        parts = [open_input(url, temporary / str(number), stack, trust) for number, url in enumerate(urls)]
        settings = Settings(rank, tolerance, check)
        kind = _kind(parts, settings)
        warning = require_same_tokenizers([part.folder for part in parts], [part.url for part in parts])
        if warning is not None:
            say(f"warning: {warning}")
        require_same_attention([part.folder for part in parts], [part.url for part in parts])
        with output.publication(to, AVERAGE_RECORD) as made:
            averaged = [{"url": part.url, "weight": share} for part, share in zip(parts, shares, strict=True)]
            record: dict[str, Any] = {"averaged": averaged, "kind": kind}
            if kind == "adapter":
                record |= average_adapters(made.folder, parts, shares, settings, say)
            elif kind == "checkpoint":
                average_checkpoints(made.folder, parts, shares)
            else:
                average_models(made.folder, [part.folder for part in parts], shares)
                for line in output.copy_texts(parts[0].folder, made.folder):
                    say(line)
            average_embeddings(
                made.folder, [part.folder for part in parts], [part.url for part in parts], shares
            )
            if (warning := fix_tokenizer_class(made.folder)) is not None:
                say(f"warning: {warning}")
            (made.folder / AVERAGE_RECORD).write_text(output.RECORD_FILE.text(record))
    for part, share in zip(parts, shares, strict=True):
        say(f"{share:.3g} × {part.url}")
    return made.url


def _kind(parts: Sequence[AverageInput], settings: Settings) -> str:
    """The kind of all inputs. ModelError when their kinds differ, or when settings of adapters are given for others."""
    first = parts[0]
    for part in parts:
        if part.kind != first.kind:
            raise ModelError(
                f"{first.url} is {_article(first.kind)} and {part.url} is {_article(part.kind)}",
                hint="average inputs of one kind; `tailor merge` turns an adapter into a model",
            )
    if settings.given() and first.kind != "adapter":
        raise ModelError(
            f"{settings.given()[0]} has an effect only on adapters, but {first.url} is {_article(first.kind)}"
        )
    if settings.rank is not None and settings.rank < 1:
        raise ModelError(f"--rank is {settings.rank}; it must be at least 1")
    return first.kind


def _article(kind: str) -> str:
    return "an adapter" if kind == "adapter" else f"a {kind}"


def _shares(urls: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """The weights, normalized to a sum of 1."""
    if len(urls) < 2:
        raise ModelError("average needs two or more models, adapters or checkpoints")
    if weights is None:
        return [1 / len(urls)] * len(urls)
    if len(weights) != len(urls):
        raise ModelError(
            f"--weights: {len(weights)} given for {len(urls)} inputs", hint="give one weight per input"
        )
    if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise ModelError(
            f"the weights {', '.join(map(str, weights))} are invalid: they must be finite, not negative, and not all 0"
        )
    return [weight / sum(weights) for weight in weights]


def require_same_attention(parts: Sequence[Path], urls: Sequence[str]) -> None:
    """ModelError when some inputs generate as a prefix LM and others causally."""
    saved = [prefix_lm.is_saved(part, url) for part, url in zip(parts, urls, strict=True)]
    if len(set(saved)) > 1:
        raise ModelError(
            f"{urls[saved.index(True)]} was trained as a prefix LM, but {urls[saved.index(False)]} was not",
            hint="average models that were trained with the same method.generative_attention",
        )


def average_embeddings(
    folder: Path, parts: Sequence[Path], urls: Sequence[str], shares: Sequence[float]
) -> None:
    """Write embedding.json and the averaged projection into `folder`, if the inputs have them.

    ModelError when only some inputs have them, or when their embedding settings differ.
    """
    made = [(part / EMBEDDING).is_file() for part in parts]
    if not any(made):
        return
    if not all(made):
        raise ModelError(
            f"{urls[made.index(True)]} was trained for embeddings, but {urls[made.index(False)]} was not",
            hint="average models that were trained with the same embedding settings",
        )
    read = [Embedding.read(part, url) for part, url in zip(parts, urls, strict=True)]
    settings, _ = read[0]
    for (other, _), url in zip(read[1:], urls[1:], strict=True):
        if other != settings:
            raise ModelError(
                f"{urls[0]} and {url} have different embedding settings ({EMBEDDING})",
                hint="average models that were trained with the same embedding settings",
            )
    weights: dict[str, torch.Tensor] | None = None
    if settings.projection:
        each = [projection.state_dict() for _, projection in read if projection is not None]
        weights = {
            name: torch.stack([one[name] * share for one, share in zip(each, shares, strict=True)]).sum(0)
            for name in each[0]
        }
    settings.write(folder, weights)
