"""Finds the artifact of a run or folder, and refuses the kinds that a command cannot use."""

from __future__ import annotations

import difflib
import posixpath

from tailor.errors import ModelError
from tailor.layout import ADAPTER_CONFIG, ARTIFACTS, BEACON_CONFIG, MODEL_CONFIG, RECIPE
from tailor.models import adapter_files, scoring_head
from tailor.store import OBJECT, Store, run_folder


def find_artifact(store: Store) -> tuple[Store, Store]:
    """The folder of the adapter or model, and its parent, which is the run's folder if a run wrote it.

    ModelError when `store` has no artifact.
    """
    for below in ARTIFACTS:
        if store.is_committed(below):
            return store.join(below), store
    if any(store.exists(name) for name in (ADAPTER_CONFIG, MODEL_CONFIG, BEACON_CONFIG)):
        return store, Store(posixpath.dirname(store.url.rstrip("/")))
    if store.exists(RECIPE):
        raise ModelError(
            f"the run at {store.url} is not finished: it has neither adapter/ nor model/",
            hint="run its recipe again: it resumes from the last checkpoint",
        )
    problem = "is not a run, an adapter or a model" if store.exists() else "does not exist"
    raise ModelError(f"{store.url} {problem}", hint=_instead(store))


def refuse_beacons(store: Store, done: str) -> None:
    """ModelError when `store` has activation beacons. done: what cannot be done with them, for the message."""
    if store.exists(BEACON_CONFIG):
        raise ModelError(
            f"{store.url} has activation beacons, which cannot be {done}",
            hint="use them with `tailor chat`, `generate` and `evaluate`",
        )


def refuse_reranker(store: Store) -> None:
    """ModelError when `store` has a model with a scoring head, or its adapter: loading as another model would leave it out."""
    if store.exists(ADAPTER_CONFIG):
        if scoring_head.is_adapter(adapter_files.read_config(store.local_path())):
            raise ModelError(
                f"{store.url} is the adapter of a reranker, which scores pairs of texts and can neither embed nor generate",
                hint="merge it: `tailor merge RUN`; then serve it (`tailor serve RUN/merged`), score the passages of rows with "
                "`tailor score`, or load it with sentence-transformers' CrossEncoder",
            )
    elif store.exists(MODEL_CONFIG) and scoring_head.is_declared(OBJECT.read(store, MODEL_CONFIG)):
        raise ModelError(
            f"{store.url} is a reranker, which scores pairs of texts and can neither embed nor generate",
            hint="serve it with `tailor serve`, score the passages of rows with `tailor score`, or load it with "
            "sentence-transformers' CrossEncoder",
        )


def _instead(store: Store) -> str:
    """A hint for a folder that has nothing to load."""
    if store.is_file():
        return "give the folder of a run (save.to of its recipe), an adapter or a model"
    if run_folder.is_checkpoint(store):
        return "it is a checkpoint: give its run instead (`tailor export`, `tailor average` and model.warm_start accept checkpoints)"
    parent, name = posixpath.split(store.url.rstrip("/"))
    near = difflib.get_close_matches(name, Store(parent).names(), n=3, cutoff=0.5)
    if near and not store.exists():
        return "did you mean " + " or ".join(posixpath.join(parent, other) for other in near) + "?"
    return "`tailor runs` lists the runs below a folder"
