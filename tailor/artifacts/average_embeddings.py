"""How averaged models or adapters embed: as all of them do, with the weighted mean of their projections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tailor.errors import ModelError
from tailor.models.embedding import FILE, Embedding


def average_embeddings(
    folder: Path, parts: Sequence[Path], urls: Sequence[str], shares: Sequence[float]
) -> None:
    """Write embedding.json and the projection beside the average, where the parts have them.

    ModelError when only some of them make embeddings, or make them in another way.
    """
    made = [(part / FILE).is_file() for part in parts]
    if not any(made):
        return
    if not all(made):
        raise ModelError(
            f"{urls[made.index(True)]} makes embeddings, and {urls[made.index(False)]} does not",
            mend="average models that were trained alike",
        )
    read = [Embedding.read(part, url) for part, url in zip(parts, urls, strict=True)]
    settings, _ = read[0]
    for (other, _), url in zip(read[1:], urls[1:], strict=True):
        if other != settings:
            raise ModelError(
                f"{urls[0]} and {url} embed in different ways: their {FILE} differ",
                mend="average models that were trained alike",
            )
    weights: dict[str, torch.Tensor] | None = None
    if settings.projection:
        each = [projection.state_dict() for _, projection in read if projection is not None]
        weights = {
            name: torch.stack([one[name] * share for one, share in zip(each, shares, strict=True)]).sum(0)
            for name in each[0]
        }
    settings.write(folder, weights)
