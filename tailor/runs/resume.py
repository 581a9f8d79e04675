"""May a recipe go on in a folder that already holds a run?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.runs import folder
from tailor.runs.status import STATUS
from tailor.spec.load import load_recipe
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

MAY_CHANGE = (
    "scale",
    "track",
    "save.to",
    "save.every",
    "save.keep",
    "save.resume",
    "data.store",
    "data.budget",
    "evaluate.every",
    "model.attention",
    "method.reference",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
)
"""Keys that leave the curve as it is. A section stands for all of its keys."""


LEFT_OVER = (folder.LOCK, folder.PLAN, STATUS, "logs", "tokens")
"""What a run may leave that ended before its recipe was written."""


def check_place(recipe: Recipe, run: Store) -> None:
    """Raises StoreError when a folder without a run holds anything else: a run would mix with it, or replace it."""
    if folder.holds_run(run) and run.exists(folder.PLAN):
        return
    expected = {*LEFT_OVER}
    if recipe.data.store is not None and (inside := Store(recipe.data.store).url).startswith(run.url + "/"):
        expected.add(inside.removeprefix(run.url + "/").split("/")[0])
    others = [name for name in run.names() if name not in expected and not name.startswith(".")]
    if others:
        more = ", …" if len(others) > 3 else ""
        raise StoreError(
            f"{run.url} is not empty and holds no run; it has {', '.join(others[:3])}{more}",
            mend=f"give the run a folder of its own, such as save.to: {run.join('run').url}",
        )


def check(recipe: Recipe, run: Store) -> None:
    """Raises StoreError when the folder's run is another one, or when `save.resume` is `never`.

    An attempt that left no checkpoint may be replaced by any recipe.
    """
    if not folder.holds_run(run):
        return
    if recipe.save.resume == "never":
        raise StoreError(
            f"{run.url} already holds a run, and save.resume is never",
            mend="set another save.to, remove the folder, or set save.resume: auto",
        )
    if not folder.checkpoints(run) and folder.artifact(run) is None:
        return  # nothing of the earlier attempt is worth going on with
    differing = differences(load_recipe(run.local_path(folder.RECIPE), check_files=False), recipe)
    if differing:
        lines = [f"  {key}: {_short(before)} there, {_short(now)} here" for key, before, now in differing]
        raise StoreError(
            f"{run.url} holds a run of another recipe. These keys differ:\n" + "\n".join(lines),
            mend="set another save.to for the new run, or put the keys back to go on with the old one",
        )


def check_plan(plan: Plan, run: Store) -> None:
    """Raises StoreError when checkpoints stand on other data or another arithmetic than the new plan's."""
    if not folder.checkpoints(run):
        return
    before, now = run.read_json(folder.PLAN), plan.as_dict()
    if before["fingerprint"] != now["fingerprint"]:
        raise StoreError(
            f"{run.url} holds checkpoints of other data: its rows, the tokenizer or the template have changed since",
            mend="bring the data back to go on, or set another save.to for the new run",
        )
    for key in ("precision", "frozen_dtype"):
        if before[key] != now[key]:
            raise StoreError(
                f"{run.url} holds checkpoints trained with {key} {before[key]}; here it would be {now[key]}",
                mend=f"set train.precision: {before['precision']} to go on, or set another save.to for the new run",
            )


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every key that differs and may not."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    keys = sorted(old.keys() | new.keys())
    return [
        (key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)


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


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
