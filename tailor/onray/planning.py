"""Makes the plan of a run from its recipe, its tokens and the hardware, for new runs and for runs that resume."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailor.errors import DataError
from tailor.layout import TOKENS
from tailor.runs.origin import Origin, origins
from tailor.store import Store, run_files, run_folder

if TYPE_CHECKING:
    from tailor.data.token_store import TokenStore
    from tailor.encode.inputs import Inputs
    from tailor.plan import DataFacts, Hardware, Plan
    from tailor.plan.outline import NoOutline, Outline
    from tailor.spec.recipe import Recipe


def tokens_root(recipe: Recipe, run: Store) -> str:
    """URL of the folder with prepared tokens: `data.store`, by default the folder `tokens` next to the run folder."""
    return recipe.data.store or posixpath.join(posixpath.dirname(run.url.rstrip("/")), TOKENS)


def examine(recipe: Recipe) -> Outline | NoOutline:
    """Check what the recipe wants of its model, before the data is prepared, and return the model's structure.

    Raises ModelError for settings that the model does not support.
    """
    from tailor.encode.model_files import load_config
    from tailor.plan.checks import check_config
    from tailor.train.preflight import preflight

    model = recipe.model
    check_config(recipe, load_config(model.path, model.revision))
    return preflight(model, recipe.method, recipe.optim, recipe.train)


def examine_machine(recipe: Recipe) -> None:
    """ScaleError for a GPU that the recipe needs and this machine lacks, if the run uses this machine only."""
    from tailor.onray import cluster
    from tailor.plan.checks import check_device

    if cluster.address(recipe.scale) is None:
        check_device(recipe, cluster.hardware(recipe.scale, None))


def examine_data(recipe: Recipe) -> Inputs:
    """Check what the recipe wants of its data, and of the evaluation's, and return what its rows are encoded with.

    Only some rows are read, and none is encoded. Raises the errors of `Inputs.of`, and DataError for a holdout that leaves no
    row and for evaluations that cannot be made.
    """
    from tailor.encode.inputs import Inputs, empty_split
    from tailor.evaluate import preflight
    from tailor.plan.checks import evaluates_rows

    data, final = recipe.data, recipe.evaluate.final
    inputs = Inputs.of(data, recipe.model, recipe.method)
    if data.holdout is not None and (empty := empty_split(inputs.sources, data.holdout)) is not None:
        split, rows = empty
        if split == "train":
            raise DataError(
                f"data.holdout: {data.holdout:g} selects all {rows:,} rows for evaluation, and leaves none for training",
                hint="lower data.holdout, or add rows",
            )
        if evaluates_rows(recipe) or (final is not None and preflight.reads_split(final)):
            raise DataError(
                f"data.holdout: {data.holdout:g} selects no evaluation row from {rows:,} rows, but the recipe evaluates on them",
                hint="raise data.holdout, or give rows in data.evaluation",
            )
    if recipe.evaluate.generation is not None:
        preflight.check_generation(inputs.sources)
    examine_evaluations(recipe, plain=inputs.rules is None)
    return inputs


def examine_evaluations(recipe: Recipe, *, plain: bool) -> None:
    """Check the data of `evaluate.retrieval` and `evaluate.final`. plain: whether the recipe's rows have no chat template.

    DataError or ModelError for what would make an evaluation fail.
    """
    from tailor.evaluate import preflight

    if recipe.evaluate.retrieval is not None:
        preflight.check_retrieval(recipe.evaluate.retrieval)
    if recipe.evaluate.final is not None:
        preflight.check(recipe.evaluate.final, recipe, plain=plain)


def notes(recipe: Recipe) -> list[str]:
    """What the user should know about the recipe's model, one line each."""
    from tailor.encode.published_embedder import differing

    model, embedding = recipe.model, recipe.method.embedding
    if embedding is None:
        return []
    note = differing(model.path, model.revision, embedding.pooling, embedding.normalize)
    return [note] if note else []


def make_plan(
    recipe: Recipe,
    tokens: TokenStore,
    run: Store,
    hardware: Hardware,
    origin: Origin | None = None,
    *,
    outline: Outline | NoOutline,
) -> Plan:
    """The plan: everything that the workers need to know.

    `hardware`: hardware of one worker. `outline`: see `examine`. `origin`: the run and checkpoint that this run continues with a changed recipe.
    A run that resumes keeps its micro-batch size unless the recipe sets one, because dropout masks are drawn per
    micro-batch.
    """
    data, build = planner(recipe, tokens, run, origin, outline=outline)
    return build(recipe, data, hardware)


def planner(
    recipe: Recipe,
    tokens: TokenStore,
    run: Store,
    origin: Origin | None = None,
    *,
    outline: Outline | NoOutline,
) -> tuple[DataFacts, Callable[[Recipe, DataFacts, Hardware], Plan]]:
    """The facts of the recipe's data, and a function that plans variants of the recipe for any hardware.

    `outline`: see `examine`.
    """
    from tailor import plan as planning
    from tailor.data.facts import data_facts
    from tailor.encode.model_files import load_config

    source = run if origin is None else Store(origin.run)
    previous = run_files.plan(source) if run_folder.checkpoints(source) else {}
    history = [origin] if origin is not None else origins(run)[-1:]
    config = load_config(recipe.model.path, recipe.model.revision)

    def build(variant: Recipe, data: DataFacts, hardware: Hardware) -> Plan:
        if previous and variant.train.micro_batch_size is None:
            train = variant.train.model_copy(update={"micro_batch_size": previous["micro_batch_size"]})
            variant = variant.model_copy(update={"train": train})
        return planning.build(
            variant,
            data,
            config,
            hardware,
            run_url=run.url,
            resume_from=history[0].checkpoint if history else None,
            chunk_tokens=previous.get("chunk_tokens") or None,
            outline=outline,
        )

    return data_facts(tokens, recipe, history[0].first_step if history else 0), build
