"""Rules of `optim`: what the optimizer and the schedule use, and weights with a learning rate of their own."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Finding, Keys

CONSTANT = ("constant", "constant_with_warmup")
RATIOS = "optim.learning_rate_ratios"


def schedule_of(keys: Keys) -> str | None:
    """The schedule, or its default. None if it or the optimizer is wrong."""
    if keys.is_wrong("optim.schedule") or keys.is_wrong("optim.optimizer"):
        return None
    default = "constant" if keys("optim.optimizer") == "schedule_free" else "cosine"
    return keys("optim.schedule") or default


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Keys that contradict each other."""
    steps, warmup, decay = keys("train.steps"), keys("optim.warmup_steps"), keys("optim.decay_steps")
    schedule = schedule_of(keys)
    if steps and warmup and warmup >= steps:
        yield (
            "optim.warmup_steps",
            "train.steps",
            f"the warm-up of {warmup} steps does not end within {steps} steps; lower optim.warmup_steps",
        )
    elif steps and decay and schedule == "wsd" and (warmup or 0) + decay > steps:
        yield (
            "optim.decay_steps",
            "train.steps",
            f"warm-up and decay have {(warmup or 0) + decay} steps together, the run has {steps}; lower optim.decay_steps",
        )
    share = (keys("optim.warmup_ratio") or 0) + (keys("optim.decay_ratio") or 0)
    if schedule == "wsd" and share > 1:
        yield (
            "optim.decay_ratio",
            "optim.warmup_ratio",
            f"they are {share:g} of all steps together; lower one of them",
        )
    low, high = keys("optim.min_learning_rate"), keys("optim.learning_rate")
    if low and high and low > high:
        yield (
            "optim.min_learning_rate",
            "optim.learning_rate",
            f"the minimum {low:g} is larger than the peak {high:g}; lower optim.min_learning_rate",
        )
    if keys("optim.optimizer") == "schedule_free":
        if schedule is not None and schedule not in CONSTANT:
            yield (
                "optim.schedule",
                "optim.optimizer",
                "schedule_free averages weights instead of decaying the learning rate; remove optim.schedule",
            )
        betas = keys("optim.betas")
        if isinstance(betas, list) and betas and betas[0] == 0:
            yield (
                "optim.betas",
                "optim.optimizer",
                "schedule_free needs a first beta above 0: with 0 the averaged weights cannot be computed",
            )
    if keys("model.beacon") is not None:
        for kind in ("lora_b", "embeddings", "head"):
            if _is_set(keys, kind):
                yield (
                    f"{RATIOS}.{kind}",
                    "model.beacon",
                    f"beacons train no such weights; remove {RATIOS}.{kind}",
                )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need another key."""
    warmup = [keys(f"optim.warmup_{unit}") for unit in ("ratio", "steps")]
    wrong = keys.is_wrong("optim.warmup_ratio") or keys.is_wrong("optim.warmup_steps")
    if keys("optim.schedule") == "constant_with_warmup" and not any(warmup) and not wrong:
        yield "optim.schedule", "constant_with_warmup needs optim.warmup_ratio or optim.warmup_steps"
    beacon = keys("model.beacon") is not None
    adapter = not keys.absent("model.adapter")
    if _is_set(keys, "lora_b") and not adapter and not beacon:
        yield f"{RATIOS}.lora_b", "needs model.adapter: without one, there are no LoRA matrices"
    if not adapter:
        return
    frozen = keys.absent("model.adapter.modules_to_save")
    targets = keys("model.adapter.target_modules") or "all-linear"
    for kind, module in (("embeddings", "embed_tokens"), ("head", "lm_head")):
        if _is_set(keys, kind) and frozen and targets == "all-linear":
            yield (
                f"{RATIOS}.{kind}",
                f"needs model.adapter.modules_to_save: with an adapter, only modules listed there ({module}) are trained in full",
            )


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that the optimizer or the schedule ignores."""
    optimizer = keys("optim.optimizer") or "adamw"
    adamw = "adamw" in optimizer or optimizer in ("muon", "schedule_free")
    if not keys.is_wrong("optim.optimizer"):
        for key, used, users in (
            (
                "optim.betas",
                adamw or optimizer == "lion",
                "the adamw optimizers, lion, muon and schedule_free",
            ),
            ("optim.eps", adamw, "the adamw optimizers, muon and schedule_free"),
            ("optim.momentum", optimizer in ("sgd", "muon"), "sgd and muon"),
            ("optim.weight_decay", optimizer != "sgd", "the other optimizers"),
        ):
            if keys(key) is not None and not used:
                yield key, f"has no effect with {optimizer}; it is for {users}"
    schedule = schedule_of(keys)
    if schedule is None:
        return
    for key, used, users in (
        ("optim.min_learning_rate", schedule not in CONSTANT, "schedules that decay"),
        ("optim.cycles", schedule == "cosine_with_restarts", "cosine_with_restarts"),
        ("optim.decay_ratio", schedule == "wsd", "wsd"),
        ("optim.decay_steps", schedule == "wsd", "wsd"),
        ("optim.decay", schedule == "wsd", "wsd"),
    ):
        if keys(key) not in (None, 0) and not used:
            yield key, f"has no effect with schedule {schedule}; it is for {users}"


def _is_set(keys: Keys, kind: str) -> bool:
    return keys(f"{RATIOS}.{kind}") not in (None, 1)
