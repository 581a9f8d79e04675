"""Decide whether a recipe may resume the run that is already in its folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, LOCK, LOGS, METRICS, ORIGIN, PLAN, RECIPE, STATUS, TOKENS
from tailor.runs.origin import Origin, origins, short
from tailor.spec.load import load_recipe
from tailor.store import Store, run_files, run_folder

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
    "model.kernels",
    "method.reference",
    "method.engine",
    "method.chunk_size",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.activation_offloading",
    "train.tiled_mlp",
    "train.compile",
)
"""Keys that may always change on resume, because they do not change the loss curve. A section includes all of its keys."""


MAY_CHANGE_ON_REQUEST = (
    "data",
    "evaluate",
    "optim.learning_rate",
    "optim.schedule",
    "optim.min_learning_rate",
    "optim.cycles",
    "optim.decay_ratio",
    "optim.decay_steps",
    "optim.decay",
    "optim.learning_rate_ratios",
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
    "train.order",
    "train.pose",
    "train.divergence",
    "train.early_stopping",
)
"""Keys that may change when `save.resume` names the run. The change is reported, and recorded in `origin.json`."""

BATCHES = (
    "data.train",
    "data.weight_by",
    "data.deduplicate",
    "data.decontaminate",
    "data.max_length",
    "data.min_length",
    "data.pack",
    "train.batch_size",
    "train.batch_tokens",
    "train.seed",
    "train.order",
)
"""Keys that determine the batches. After a change training starts at the beginning of the data, as with other rows."""

LEFTOVERS = (LOCK, PLAN, STATUS, ORIGIN, METRICS, LOGS, TOKENS)
"""Files and folders of a run that ended before it wrote its recipe."""


def check_folder(recipe: Recipe, run: Store) -> None:
    """StoreError when the folder is not a run folder but contains other files, which a run would mix with or replace."""
    if run_folder.holds_run(run) and run.exists(PLAN):
        return
    expected = {*LEFTOVERS}
    if recipe.data.store is not None and (inside := Store(recipe.data.store).url).startswith(run.url + "/"):
        expected.add(inside.removeprefix(run.url + "/").split("/")[0])
    others = [name for name in run.names() if name not in expected and not name.startswith(".")]
    if others:
        more = ", …" if len(others) > 3 else ""
        raise StoreError(
            f"{run.url} is not empty and not a run folder; it contains {', '.join(others[:3])}{more}",
            hint=f"set save.to to an empty or new folder, such as save.to: {run.join('run').url}",
        )


def check(recipe: Recipe, run: Store) -> Origin | None:
    """Check whether the recipe may run in this folder. Returns the change of recipe if `save.resume` requests one.

    StoreError when the folder's run has another recipe, when it has any run and `save.resume` is `never`, or when
    the run that `save.resume` names cannot be resumed. A run without a checkpoint may be replaced.
    """
    if recipe.save.resume not in ("auto", "never"):
        # Once the run has checkpoints of its own, it no longer needs the run that save.resume names.
        is_other = Store(recipe.save.resume).url != run.url
        has_own = is_other and has_progress(run)
        source = run if has_own else run_folder.find(recipe.save.resume)
        return _requested_change(recipe, run, source, has_own=has_own)
    if not run_folder.holds_run(run):
        return None
    if recipe.save.resume == "never":
        raise StoreError(
            f"{run.url} already contains a run, and save.resume is never",
            hint="set another save.to, remove the folder, or set save.resume: auto",
        )
    if not has_progress(run):
        return None  # the earlier attempt left nothing to resume
    if changes := differences(_recipe_of(run), recipe):
        fixed = [key for key, _, _ in changes if _is_fixed(key)]
        raise StoreError(
            f"{run.url} contains a run with another recipe. These keys differ:\n{_lines(changes)}",
            hint="set another save.to for a new run, or restore the old values to resume the old run"
            + ("" if fixed else f", or set save.resume: {run.url} to resume with these changes"),
        )
    return None


def has_progress(run: Store) -> bool:
    """Whether the run has a checkpoint or a final artifact."""
    return bool(run_folder.checkpoints(run)) or run_folder.artifact(run) is not None


def _requested_change(recipe: Recipe, run: Store, source: Store, *, has_own: bool) -> Origin | None:
    """The change of recipe with which `run` resumes `source`. has_own: `run` already has checkpoints of its own."""
    if has_own:
        if changes := differences(_recipe_of(run), recipe):
            raise StoreError(
                f"{run.url} contains a run with another recipe. These keys differ:\n{_lines(changes)}",
                hint=f"set another save.to, or set save.resume: {run.url} to resume this run with the changes",
            )
        return None
    saved = run_folder.checkpoints(source)
    if not saved:
        raise StoreError(
            f"save.resume names {source.url}, which has no checkpoint to resume from",
            hint="train it until its first checkpoint, or load its adapter with model.warm_start",
        )
    changes = differences(_recipe_of(source), recipe)
    if fixed := [change for change in changes if _is_fixed(change[0])]:
        raise StoreError(
            f"{source.url} cannot be resumed with other values of these keys:\n{_lines(fixed)}\n"
            "its weights and optimizer state depend on them",
            hint="restore the old values, or start a new run from its weights with model.warm_start",
        )
    step = run_folder.step_of(saved[-1])
    new_batches = any(_is_of(key, BATCHES) for key, _, _ in changes)
    earlier = origins(source)
    return Origin(
        run=source.url,
        step=step,
        checkpoint=source.join(CHECKPOINTS, saved[-1]).url,
        changes={key: [old, new] for key, old, new in changes},
        first_step=step if new_batches else earlier[-1].first_step if earlier else 0,
    )


def with_data(origin: Origin, run: Store, tokens: TokenStore, order_version: int) -> Origin | None:
    """Update the origin after the data are prepared: with other training rows, training starts at the beginning of the data.

    So it does with another order of the batches. Returns None when neither the recipe nor the data have changed.
    """
    before = run_files.plan(Store(origin.run))
    same_batches = _order_of(before) == order_version
    if before["train_fingerprint"] != tokens.train_fingerprint or not same_batches:
        return replace(origin, first_step=origin.step)
    same = not origin.changes and origin.run == run.url and before["fingerprint"] == tokens.fingerprint
    return None if same else origin


def changed_keys(recipe: Recipe, run: Store) -> list[str]:
    """The keys in which a recipe differs from that of a run, without those that may always change."""
    return [key for key, _, _ in differences(_recipe_of(run), recipe)]


def _recipe_of(run: Store) -> Recipe:
    return load_recipe(run.local_path(RECIPE), check_files=False)


def _lines(changes: list[tuple[str, Any, Any]]) -> str:
    return "\n".join(
        f"  {key}: {short(before)} in the run, {short(now)} in this recipe" for key, before, now in changes
    )


def check_plan(plan: Plan, run: Store, origin: Origin | None = None) -> None:
    """StoreError when the checkpoint to resume from was trained with other data or another precision than the plan's.

    origin: the requested change of recipe, which allows other data.
    """
    source = run if origin is None else Store(origin.run)
    if not run_folder.checkpoints(source):
        return
    before, now = run_files.plan(source), plan.as_dict()
    if before["fingerprint"] != now["fingerprint"] and origin is None:
        raise StoreError(
            f"{run.url} has checkpoints trained on other data: the rows, the tokenizer or the chat template have changed, or "
            "another version of tailor prepared them",
            hint="restore the data (or that version) to resume the run, set another save.to for a new run, "
            f"or set save.resume: {run.url} to resume with the new data",
        )
    if _order_of(before) != plan.order_version and origin is None:
        raise StoreError(
            f"{run.url} has checkpoints of another version of tailor, which made other batches from the same data: "
            "resuming would repeat some examples and skip others",
            hint=f"resume it with {_version_of(run)}, set another save.to for a new run, or set save.resume: {run.url} to "
            "start from the beginning of the data again",
        )
    for key in ("precision", "frozen_dtype"):
        if before[key] != now[key]:
            raise StoreError(
                f"{source.url} has checkpoints trained with {key} {before[key]}, but the plan has {now[key]}",
                hint=f"set train.precision: {before['precision']} to resume, or set another save.to for a new run",
            )
    if origin is not None and plan.steps <= origin.step:
        raise StoreError(
            f"{source.url} has already trained {origin.step} steps, but this recipe ends after {plan.steps}",
            hint="raise train.steps, train.epochs or train.tokens",
        )


def _order_of(plan: dict[str, Any]) -> int:
    """`Plan.order_version`; the plans of earlier versions have none."""
    return int(plan.get("order_version", 1))


def _version_of(run: Store) -> str:
    version = run_files.environment(run).get("tailor")
    return f"tailor {version}" if version else "that version"


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every key that differs but may not change on resume."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    keys = sorted(old.keys() | new.keys())
    return [
        (key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and (not _may_change(key) or key in now.method.loss_keys)
    ]


def _may_change(key: str) -> bool:
    return _is_of(key, MAY_CHANGE)


def _is_fixed(key: str) -> bool:
    """Whether a run's checkpoints cannot be used with another value of the key."""
    return not _is_of(key, MAY_CHANGE_ON_REQUEST)


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
