"""Whether a recipe that extends the context measures what this costs at the lengths that the base already had."""

from __future__ import annotations

from tailor.plan import rope
from tailor.spec.evaluate import Evaluate
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.suite import BASE, UNSCALED, Suite

TASK = "{name: forgetting}"


def note(model: Model, method: Method, evaluate: Evaluate, positions: int | None) -> str | None:
    """What to add to `evaluate.final` so that it measures the regression at short lengths. None if it does, or need not.

    positions: maximum length of the base without `model.rope`; None if it is not known.
    """
    if method.embedding is not None and not method.embedding.generates:
        return None
    scaled = model.rope is not None and (positions is None or rope.length(model.rope) > positions)
    if not scaled and model.beacon is None:
        return None
    limit = positions
    if limit is None and model.rope is not None:
        limit = rope.length(model.rope) - 1
    final, missing = evaluate.final, []
    if final is None or not any(
        (limit is None or task.within(limit))
        and not (task.embeds or task.ranks)
        and (not task.on_rows or final.data)
        for task in final.tasks
    ):
        missing.append(f"{TASK} in evaluate.final.tasks")
    # `base` of an adapter is the base with the new RoPE: it may have lost as much as the trained model.
    before = UNSCALED if scaled and model.adapter is not None else BASE
    if not [other for other in _compared(final, model) if other != BASE or before == BASE]:
        missing.append(f"evaluate.final.compare: [{before}]")
    if not missing:
        return None
    key = "model.rope" if scaled else "model.beacon"
    known = f" (up to {positions:,} tokens)" if positions is not None else ""
    return (
        f"{key} extends the context, but evaluate.final does not measure what this costs at the base's own lengths{known}; "
        f"hint: add {' and '.join(missing)}"
    )


def _compared(final: Suite | None, model: Model) -> list[str]:
    if final is None:
        return []
    if final.compare == "auto":
        return [BASE] if model.adapter is not None or model.beacon is not None else []
    return [] if final.compare == "none" else [BASE] if final.compare == BASE else list(final.compare)
