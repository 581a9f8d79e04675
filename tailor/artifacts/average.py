"""`tailor average`: weighted averages of models, checkpoints or adapters of one base.

Models are averaged tensor by tensor in float32. The average of adapters is exact too: the average of the products
B·A is no product of averages, so the factors are put side by side, and the rank is the sum of the ranks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tailor.artifacts import output
from tailor.artifacts.average_models import average_checkpoints, average_models
from tailor.artifacts.inputs import AverageInput, open_input
from tailor.encode.tokenizer_files import fix_tokenizer_class
from tailor.errors import ModelError
from tailor.layout import AVERAGE_RECORD, EMBEDDING
from tailor.models.embedding.settings import Embedding


def average(
    urls: Sequence[str],
    to: str,
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Average what lies at `urls` and publish it at `to`; returns its URL.

    weights: one of each, scaled to a sum of one; equal by default. rank: of averaged adapters, reduced by SVD;
    the error is told. Raises ModelError and StoreError.
    """
    shares = _shares(urls, weights)
    output.check(to, AVERAGE_RECORD)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        parts = [open_input(url, Path(scratch) / str(number), stack) for number, url in enumerate(urls)]
        kind = _kind(parts, rank)
        with output.publication(to, AVERAGE_RECORD) as made:
            averaged = [{"url": part.url, "weight": share} for part, share in zip(parts, shares, strict=True)]
            record: dict[str, Any] = {"averaged": averaged, "kind": kind}
            if kind == "adapter":
                from tailor.artifacts.average_adapters import average_adapters

                record |= average_adapters(made.folder, parts, shares, rank, say)
            elif kind == "checkpoint":
                average_checkpoints(made.folder, parts, shares)
            else:
                average_models(made.folder, [part.folder for part in parts], shares)
                output.copy_texts(parts[0].folder, made.folder)
            average_embeddings(
                made.folder, [part.folder for part in parts], [part.url for part in parts], shares
            )
            if (warning := fix_tokenizer_class(made.folder)) is not None:
                say(f"warning: {warning}")
            (made.folder / AVERAGE_RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    for part, share in zip(parts, shares, strict=True):
        say(f"{share:.3g} × {part.url}")
    return made.url


def _kind(parts: Sequence[AverageInput], rank: int | None) -> str:
    """What all the parts are. ModelError when they are not of one kind, or a rank is no use for them."""
    first = parts[0]
    for part in parts:
        if part.kind != first.kind:
            raise ModelError(
                f"{first.url} is {_article(first.kind)} and {part.url} is {_article(part.kind)}",
                hint="average things of one kind; `tailor merge` makes a model of an adapter",
            )
    if rank is not None and first.kind != "adapter":
        raise ModelError(f"--rank is for adapters, and {first.url} is {_article(first.kind)}")
    if rank is not None and rank < 1:
        raise ModelError("--rank must be at least 1")
    return first.kind


def _article(kind: str) -> str:
    return "an adapter" if kind == "adapter" else f"a {kind}"


def _shares(urls: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(urls) < 2:
        raise ModelError("an average needs two or more models, adapters or checkpoints")
    if weights is None:
        return [1 / len(urls)] * len(urls)
    if len(weights) != len(urls):
        raise ModelError(
            f"{len(urls)} things to average, and {len(weights)} weights", hint="give one weight for each"
        )
    if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise ModelError("weights must be finite and 0 or more, and one of them more than 0")
    return [weight / sum(weights) for weight in weights]


def average_embeddings(
    folder: Path, parts: Sequence[Path], urls: Sequence[str], shares: Sequence[float]
) -> None:
    """Write embedding.json and the projection beside the average, where the parts have them.

    ModelError when only some of them make embeddings, or make them in another way.
    """
    made = [(part / EMBEDDING).is_file() for part in parts]
    if not any(made):
        return
    if not all(made):
        raise ModelError(
            f"{urls[made.index(True)]} makes embeddings, and {urls[made.index(False)]} does not",
            hint="average models that were trained alike",
        )
    read = [Embedding.read(part, url) for part, url in zip(parts, urls, strict=True)]
    settings, _ = read[0]
    for (other, _), url in zip(read[1:], urls[1:], strict=True):
        if other != settings:
            raise ModelError(
                f"{urls[0]} and {url} embed in different ways: their {EMBEDDING} differ",
                hint="average models that were trained alike",
            )
    weights: dict[str, torch.Tensor] | None = None
    if settings.projection:
        each = [projection.state_dict() for _, projection in read if projection is not None]
        weights = {
            name: torch.stack([one[name] * share for one, share in zip(each, shares, strict=True)]).sum(0)
            for name in each[0]
        }
    settings.write(folder, weights)
