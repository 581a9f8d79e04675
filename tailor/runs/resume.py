"""May a recipe go on in a folder that already holds a run?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, LOCK, LOGS, METRICS, ORIGIN, PLAN, RECIPE, STATUS, TOKENS
from tailor.runs.origin import Origin, origins, short
from tailor.spec.load import load_recipe
from tailor.store import Store, run_folder

if TYPE_CHECKING:
    from tailor.data.token_store import TokenStore
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

MAY_CHANGE = (
    "scale",
    "export",
    "track",
    "save.to",
    "save.every",
    "save.keep",
    "save.resume",
    "data.store",
    "data.budget",
    "evaluate.every",
    "evaluate.final",
    "model.attention",
    "method.reference",
    "method.engine",
    "method.chunk_size",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.activation_offloading",
    "train.tiled_mlp",
    "train.compile",
)
"""Keys that leave the curve as it is. A section stands for all of its keys."""


ON_PURPOSE = (
    "data",
    "evaluate",
    "optim.learning_rate",
    "optim.schedule",
    "optim.warmup_ratio",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.betas",
    "optim.eps",
    "optim.momentum",
    "optim.max_grad_norm",
    "save",
    "train.epochs",
    "train.steps",
    "train.tokens",
    "train.batch_size",
    "train.batch_tokens",
    "train.seed",
    "train.divergence",
)
"""Keys that a run may go on with when `save.resume` names it. The change is told and recorded."""

BATCHES = (
    "data.train",
    "data.max_length",
    "data.pack",
    "train.batch_size",
    "train.batch_tokens",
    "train.seed",
)
"""Keys that make other batches: with new values the data are begun from their start, as with other rows."""

LEFT_OVER = (LOCK, PLAN, STATUS, ORIGIN, METRICS, LOGS, TOKENS)
"""What a run may leave that ended before its recipe was written."""


def check_place(recipe: Recipe, run: Store) -> None:
    """Raises StoreError when a folder without a run holds anything else: a run would mix with it, or replace it."""
    if run_folder.holds_run(run) and run.exists(PLAN):
        return
    expected = {*LEFT_OVER}
    if recipe.data.store is not None and (inside := Store(recipe.data.store).url).startswith(run.url + "/"):
        expected.add(inside.removeprefix(run.url + "/").split("/")[0])
    others = [name for name in run.names() if name not in expected and not name.startswith(".")]
    if others:
        more = ", …" if len(others) > 3 else ""
        raise StoreError(
            f"{run.url} is not empty and holds no run; it has {', '.join(others[:3])}{more}",
            hint=f"give the run a folder of its own, such as save.to: {run.join('run').url}",
        )


def check(recipe: Recipe, run: Store) -> Origin | None:
    """May the recipe go on in this folder? The change of recipe that it begins with, when that was asked for.

    Raises StoreError when the folder's run is of another recipe, when `save.resume` is `never`, and when the
    run that `save.resume` names cannot be gone on with. An attempt that left no checkpoint may be replaced.
    """
    if recipe.save.resume not in ("auto", "never"):
        # A run with checkpoints of its own needs the other one no more.
        is_other = Store(recipe.save.resume).url != run.url
        source = run if is_other and begun(run) else run_folder.find(recipe.save.resume)
        return _on_purpose(recipe, run, source, made_before=is_other and begun(run))
    if not run_folder.holds_run(run):
        return None
    if recipe.save.resume == "never":
        raise StoreError(
            f"{run.url} already holds a run, and save.resume is never",
            hint="set another save.to, remove the folder, or set save.resume: auto",
        )
    if not begun(run):
        return None  # nothing of the earlier attempt is worth going on with
    if found := differences(_recipe_of(run), recipe):
        refused = [key for key, _, _ in found if _bound(key)]
        raise StoreError(
            f"{run.url} holds a run of another recipe. These keys differ:\n{_lines(found)}",
            hint="set another save.to for the new run, or put the keys back to go on with the old one"
            + ("" if refused else f", or set save.resume: {run.url} to go on with these changes"),
        )
    return None


def begun(run: Store) -> bool:
    """Whether the run has something of its own to go on from."""
    return bool(run_folder.checkpoints(run)) or run_folder.artifact(run) is not None


def _on_purpose(recipe: Recipe, run: Store, source: Store, *, made_before: bool) -> Origin | None:
    if made_before:
        if found := differences(_recipe_of(run), recipe):
            raise StoreError(
                f"{run.url} holds a run of another recipe. These keys differ:\n{_lines(found)}",
                hint=f"set another save.to, or save.resume: {run.url} to go on from this run",
            )
        return None
    saved = run_folder.checkpoints(source)
    if not saved:
        raise StoreError(
            f"save.resume names {source.url}, which has no checkpoint to go on from",
            hint="train it further, or take its adapter by model.warm_start",
        )
    found = differences(_recipe_of(source), recipe)
    if refused := [entry for entry in found if _bound(entry[0])]:
        raise StoreError(
            f"{source.url} cannot go on with other values of these keys:\n{_lines(refused)}\n"
            "its weights and its optimizer's state belong to them",
            hint="put them back, or begin anew from its weights with model.warm_start",
        )
    step = run_folder.step_of(saved[-1])
    new_batches = any(_is_of(key, BATCHES) for key, _, _ in found)
    earlier = origins(source)
    return Origin(
        run=source.url,
        step=step,
        checkpoint=source.join(CHECKPOINTS, saved[-1]).url,
        changes={key: [old, new] for key, old, new in found},
        first_step=step if new_batches else earlier[-1].first_step if earlier else 0,
    )


def with_data(origin: Origin, run: Store, tokens: TokenStore) -> Origin | None:
    """The origin, with the training data begun from their start where they are other ones, whatever the recipe says.

    None where nothing at all is other than before.
    """
    before = Store(origin.run).read_json(PLAN)
    if before["train_fingerprint"] != tokens.train_fingerprint:
        return replace(origin, first_step=origin.step)
    same = not origin.changes and origin.run == run.url and before["fingerprint"] == tokens.fingerprint
    return None if same else origin


def _recipe_of(run: Store) -> Recipe:
    return load_recipe(run.local_path(RECIPE), check_files=False)


def _lines(found: list[tuple[str, Any, Any]]) -> str:
    return "\n".join(f"  {key}: {short(before)} there, {short(now)} here" for key, before, now in found)


def check_plan(plan: Plan, run: Store, origin: Origin | None = None) -> None:
    """Raises StoreError when the checkpoint to go on from stands on other data or another arithmetic than the plan.

    Other data are right where the change was asked for.
    """
    source = run if origin is None else Store(origin.run)
    if not run_folder.checkpoints(source):
        return
    before, now = source.read_json(PLAN), plan.as_dict()
    if before["fingerprint"] != now["fingerprint"] and origin is None:
        raise StoreError(
            f"{run.url} holds checkpoints of other data: its rows, the tokenizer or the template have changed since",
            hint="bring the data back to go on, set another save.to for the new run, "
            f"or set save.resume: {run.url} to go on with the new data",
        )
    for key in ("precision", "frozen_dtype"):
        if before[key] != now[key]:
            raise StoreError(
                f"{source.url} holds checkpoints trained with {key} {before[key]}; here it would be {now[key]}",
                hint=f"set train.precision: {before['precision']} to go on, or set another save.to for the new run",
            )
    if origin is not None and plan.steps <= origin.step:
        raise StoreError(
            f"{source.url} has done {origin.step} steps, and this recipe ends after {plan.steps}",
            hint="raise train.steps, train.epochs or train.tokens",
        )


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every key that differs and may not."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    keys = sorted(old.keys() | new.keys())
    return [
        (key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and (not _may_change(key) or key in now.method.loss_keys)
    ]


def _may_change(key: str) -> bool:
    return _is_of(key, MAY_CHANGE)


def _bound(key: str) -> bool:
    """Whether the checkpoints of a run are of no use with another value of the key."""
    return not _is_of(key, ON_PURPOSE)


def _is_of(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in names)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict) and item:
            flat.update(_flat(item, name + "."))
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for index, part in enumerate(item):
                flat.update(_flat(part, f"{name}[{index}]."))
        else:
            flat[name] = item
    return flat
