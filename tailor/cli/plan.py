"""`tailor plan`: show what a run would do on this machine, or on another one (batches, steps, strategy, memory, time)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.cli.numbers import number, whole
from tailor.cli.output import Output, Raw
from tailor.cli.recipe_arguments import add_recipe
from tailor.cli.resumable import load_to_run
from tailor.errors import ScaleError
from tailor.plan import Plan, beacon, devices, rope
from tailor.plan.batches import BatchSpec
from tailor.plan.facts import ModelFacts
from tailor.plan.outline import Outline, ParameterGroup
from tailor.plan.strategy import ruled_out
from tailor.plan.what_if import WhatIf, replaced, what_if
from tailor.quiet import quiet
from tailor.runs import words
from tailor.runs.words import duration
from tailor.spec.load import load_recipe
from tailor.spec.strategy import Fsdp
from tailor.spec.train import Pose

if TYPE_CHECKING:
    from tailor.plan import Hardware

GIB = 2**30
REFERENCES = {
    "adapter_off": "the same model with its adapter off",
    "copy": "a frozen copy of the model",
    "precomputed": "log-probabilities computed once and stored with the tokens",
}

SECTIONS = ("model", "method", "optim", "save", "evaluate", "divergence", "strategy")
"""Keys of a plan that are sections of the recipe; the recipe's own schema describes them."""
_KEYS = {
    **get_type_hints(Plan),
    **get_type_hints(BatchSpec),
    **dict.fromkeys(SECTIONS, dict[str, Any]),
    "what_if": NotRequired[WhatIf],
}
PlanDocument = TypedDict("PlanDocument", _KEYS)
"""What `Plan.as_dict` returns; with --device also `what_if`."""
PlanDocument.__pydantic_config__ = ConfigDict(extra="forbid")
OUTPUT = Output(Raw[PlanDocument])


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "scale.workers=8")
    other = parser.add_argument_group("for a machine that is not here")
    other.add_argument(
        "--device",
        metavar="NAME",
        help=f"plan for workers with this device: {', '.join(devices.NAMES)} (N cores)",
    )
    other.add_argument(
        "--workers", type=whole(1), metavar="N", help="number of workers. Default: scale.workers"
    )
    other.add_argument(
        "--price",
        type=number(over=0),
        metavar="P",
        help="price of an hour: of one GPU, or of the machine with N cores; shows the price of the run",
    )


def execute(args: argparse.Namespace) -> int:
    overrides = [*args.overrides, *([f"scale.workers={args.workers}"] if args.workers else [])]
    if args.device is None and (args.workers or args.price):
        raise ScaleError(
            f"{'--workers' if args.workers else '--price'} needs --device",
            hint="add --device; to plan for this machine with other workers, add scale.workers=N",
        )
    recipe = load_to_run(args.recipe, overrides)
    device = None
    if args.device is not None:
        device = devices.device(args.device, recipe.scale.max_workers)
        if recipe.scale.gpu is False and device.hardware.device == "cuda":
            raise ScaleError(f"scale.gpu is false, but {device.name} is a GPU", hint="add scale.gpu=auto")
    quiet()
    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.encode.model_files import load_config
    from tailor.encode.prepare import prepare
    from tailor.onray import cluster
    from tailor.onray.kept_tokens import kept_tokens
    from tailor.onray.planning import examine, examine_data, notes, planner, tokens_root
    from tailor.store import Store

    run = Store(recipe.save.to)
    outline = examine(recipe)
    kept = kept_tokens(recipe)
    if kept is not None:
        tokens, more_notes = kept.tokens, [kept.note]
    else:
        inputs = examine_data(recipe)
        # The number of steps depends on the lengths of the examples, so the data is prepared. The run reuses it.
        scorer, root = scorer_of(recipe.data), tokens_root(recipe, run)
        tokens = prepare(recipe.data, recipe.model, recipe.method, root, inputs=inputs, scorer=scorer).tokens
        more_notes = []
    hardware = cluster.hardware(recipe.scale, None) if device is None else device.hardware
    data, build = planner(recipe, tokens, run, outline=outline)
    plan = build(recipe, data, hardware)
    found = None
    if device is not None:
        config = rope.extended(
            load_config(recipe.model.path, recipe.model.revision), recipe.model.rope, recipe.model.path
        )
        found = what_if(
            recipe,
            data,
            ModelFacts.from_config(config, outline if isinstance(outline, Outline) else None),
            device,
            build,
            lambda further: load_recipe(args.recipe, replaced(overrides, further), check_files=False),
            price_per_hour=args.price and args.price * (plan.workers if plan.gpu else 1),
        )
    if args.json:
        args.json.write(plan.as_dict() | ({"what_if": found.as_dict()} if found else {}))
        return 0
    for label, value in [*lines(plan, hardware), *(what_if_lines(found, plan) if found else [])]:
        print(f"{label:<14}{value}")
    for note in [*notes(recipe), *more_notes]:
        print(f"{'note':<14}{note}")
    return 0


def what_if_lines(found: WhatIf, plan: Plan) -> list[tuple[str, str]]:
    """The lines of a plan for another machine as (label, value)."""
    spent, memory = found.duration, found.memory_bytes / GIB
    time = f"{duration(spent.seconds)} ({duration(spent.low)} to {duration(spent.high)})"
    maximum = ", the model's maximum" if found.length_is_model_maximum else ""
    return [
        ("device", f"{found.workers} × {found.device} with {memory:.1f} GiB per worker"),
        (
            "time",
            f"about {time} for {spent.tokens:,} tokens, {words.number(spent.tokens_per_second)} tokens/s",
        ),
        *(
            [("price", f"about {found.price:,.2f} ({found.price_low:,.2f} to {found.price_high:,.2f})")]
            if found.price is not None
            else []
        ),
        (
            "fits",
            (
                f"{'yes' if found.fits else 'no'}; at most {found.micro_batch_size:,} rows of {plan.row_length:,} tokens, "
                f"or one row of {found.length:,} tokens{maximum}"
            ),
        ),
        *([] if found.fits else [("change", _change(found))]),
    ]


def _change(found: WhatIf) -> str:
    if found.change is None:
        return "no change of up to 3 settings is enough; use a larger device, or more workers with scale.strategy=fsdp"
    return f"{' '.join(found.change.overrides)}: {found.change.peak / GIB:.2f} GiB"


def lines(plan: Plan, hardware: Hardware) -> list[tuple[str, str]]:
    """The lines of the plan as (label, value)."""
    memory = plan.memory
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    parts += tuple(name for name in ("embeddings", "exchange") if getattr(memory, name))
    spent = ", ".join(f"{name} {getattr(memory, name) / GIB:.2f}" for name in parts)
    if memory.reference:
        spent += f", reference {memory.reference / GIB:.2f}"
    if memory.host:
        spent += f"; plus {memory.host / GIB:.2f} GiB of host memory"
    share = memory.peak / hardware.memory_bytes
    workers = f"{plan.workers} worker" + ("s" if plan.workers > 1 else "")
    if plan.sequence_parallel > 1:
        workers += f", {plan.sequence_parallel} per sequence"
    return [
        ("method", f"{plan.method.name}, {_trained(plan)}"),
        *([("reference", REFERENCES[plan.reference])] if plan.reference else []),
        *(
            [("estimate", f"numbers of parameters, from config.json: {plan.parameters_estimated}")]
            if plan.parameters_estimated
            else []
        ),
        *(
            [("weight decay", _decay(plan.parameter_groups))]
            if plan.optim.weight_decay and plan.parameter_groups
            else []
        ),
        *([("dropout", plan.dropout_text())] if plan.base_dropout else []),
        ("precision", f"{plan.precision}, frozen weights {plan.frozen_dtype}"),
        (
            "data",
            f"{plan.tokens_per_epoch:,} tokens per epoch, {plan.supervised_tokens_per_epoch:,} supervised",
        ),
        *(_sources(plan) if len(plan.source_tokens) > 1 else []),
        ("batch", f"{_batch(plan)} per step, over all workers"),
        (
            "per worker",
            f"{workers}: micro-batches of {plan.micro_batch_size}, up to {plan.accumulation} per step",
        ),
        *(("note", note) for note in plan.notes()),
        ("strategy", f"{_strategy(plan)}: {plan.strategy_reason}"),
        *([("windows", _windows(plan))] if plan.model.beacon else []),
        *([("positions", _positions(plan.pose))] if plan.pose else []),
        *([("chunks", _chunks(plan))] if plan.chunk_size or plan.chunk_tokens else []),
        (
            "steps",
            f"{plan.steps} ({plan.steps_per_epoch} per epoch), warmup {plan.warmup_steps}"
            + (f", decay {plan.decay_steps}" if plan.decay_steps else ""),
        ),
        *(
            [("token budget", f"{plan.token_budget:,}; the steps read {plan.run_tokens:,}")]
            if plan.token_budget
            else []
        ),
        (
            "memory",
            (
                f"{memory.peak / GIB:.2f} of {hardware.memory_bytes / GIB:.1f} GiB "
                f"({share:.0%}) per worker, forecast: {spent}"
            ),
        ),
        *([("advice", _advice(plan))] if share > 1 else []),
        ("tokens", plan.tokens_url),
        ("run folder", plan.run_url),
    ]


def _strategy(plan: Plan) -> str:
    """The strategy's name and its settings."""
    fields = plan.strategy.model_dump(exclude={"name", "config", "nvme_path"})
    settings = [
        f"{key.replace('_', ' ')} {value}".removesuffix(" True") for key, value in fields.items() if value
    ]
    return ", ".join([plan.strategy.name, *settings])


def _chunks(plan: Plan) -> str:
    size = f"{plan.chunk_size} texts" if plan.chunk_size else f"at most {plan.chunk_tokens:,} tokens"
    engine = plan.method.embedding.engine if plan.method.embedding is not None else ""
    return f"texts are embedded in chunks of {size}, with {engine}"


def _sources(plan: Plan) -> list[tuple[str, str]]:
    """What each training source gives to an epoch."""
    total = max(1, sum(source.tokens for source in plan.source_tokens))
    return [
        ("source", f"{source.tokens / total:.1%} of an epoch's tokens ({source.tokens:,}): {source.path}")
        for source in plan.source_tokens
    ]


def _batch(plan: Plan) -> str:
    if plan.batches.streams is not None:
        return plan.batches.streams.describe()
    if plan.batches.batch_size is None:
        return f"{plan.batches.batch_tokens:,} tokens"
    rows = (
        "rows of joined documents"
        if plan.batches.join
        else "packed rows"
        if plan.batches.pack
        else "examples"
    )
    order = ", short to long in every epoch," if plan.batches.order == "short_to_long" else ""
    return f"{plan.batches.batch_size} {rows}{order}"


def _trained(plan: Plan) -> str:
    quantized = f" on a {plan.quantization} base" if plan.quantization else ""
    about = "about " if plan.parameters_estimated else ""
    parameters = f"{about}{plan.trained_parameters:,} of {plan.total_parameters:,} parameters trained"
    beacon = plan.model.beacon
    if beacon is not None:
        weights = f"low-rank updates (rank {beacon.rank})" if beacon.rank else "copies of the projections"
        return f"beacons with {weights}{quantized}, {parameters}"
    kind = f"{plan.model.adapter.words}{quantized}" if plan.model.adapter else "all weights"
    return f"{kind}, {parameters}"


def _decay(groups: Sequence[ParameterGroup]) -> str:
    """The weight decays, with the kinds of weights that have them."""
    found: dict[float, list[str]] = {}
    for group in groups:
        known = found.setdefault(group.weight_decay, [])
        known += [kind.name for kind in group.kinds if kind.name not in known]
    return "; ".join(f"{decay:g} on {', '.join(kinds)}" for decay, kinds in found.items())


def _positions(pose: Pose) -> str:
    return f"training documents cover {pose.length:,} positions, in {pose.chunks} chunks (PoSE)"


def _windows(plan: Plan) -> str:
    """The windows of the longest row, and the keys that stay in memory."""
    spec = plan.model.beacon
    assert spec is not None
    count = beacon.windows_of(plan.row_length, spec.window)
    keys = sorted((count - 1) * beacon.kept(spec, ratio) + spec.sink for ratio in spec.ratios)
    stored = f"{keys[0]:,}" if keys[0] == keys[-1] else f"{keys[0]:,} to {keys[-1]:,}"
    return (
        f"a row of {plan.row_length:,} tokens has {count} windows of {spec.window}; {stored} keys per layer stay in memory "
        f"(ratio {beacon.adapted(spec, count, plan.positions)} in evaluation)"
    )


def _advice(plan: Plan) -> str:
    """The first change that lowers the memory below that of a worker."""
    if plan.micro_batch_size > 1:
        return "lower train.micro_batch_size"
    if not plan.activation_checkpointing:
        return "set train.activation_checkpointing: true"
    if plan.memory.reference:
        return "set method.reference: precomputed"
    if plan.model.beacon is not None:
        return "lower data.max_length" if plan.model.beacon.rank else "set model.beacon.rank"
    if not plan.strategy.shards_optimizer and plan.workers > 1:
        fsdp = Fsdp(name="fsdp")
        if ruled_out(fsdp, plan, compile=plan.compile, precision=plan.precision) is None:
            return "set scale.strategy: fsdp"
    if plan.model.adapter is None and not plan.strategy.shards_optimizer:
        return "set model.adapter, or optim.optimizer: adamw_8bit"
    if plan.strategy.shards_optimizer:
        return "raise scale.workers, or set the strategy's offload"
    if plan.quantization is None:
        return "set model.quantize: {type: nf4}"
    if not plan.tiled_mlp:
        return "set train.tiled_mlp: true"
    if plan.gpu and not plan.activation_offloading:
        return "set train.activation_offloading: true"
    if not plan.method.token_loss:
        return "lower data.max_length"
    return "lower data.max_length, or raise scale.workers and scale.sequence_parallel"
