"""Rules of `model.adapter`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailor.spec.adapter import REPLACING, ending
from tailor.spec.adapter_kinds import KINDS, OF_SOME
from tailor.spec.rules.keys import Conflict, Finding, Keys

INIT = "model.adapter.init"
EXPERTS = "model.adapter.experts"
MAX_GROUPS, MAX_REPEATS = 4, 3
"""Of a pattern for modules' names. Matching takes time that is exponential in them."""


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Keys that an init or a kind of adapter does not support."""
    init = keys(INIT)
    if init in (*REPLACING, "loftq") and keys("model.adapter.dora"):
        yield (
            INIT,
            "model.adapter.dora",
            f"DoRA trains the lengths of the base's own rows, but {init} starts from other ones; remove one of them",
        )
    if init in (*REPLACING, "orthogonal") and keys("model.quantize") is not None:
        yield (
            INIT,
            "model.quantize",
            f"{init} is proven only for a base that is not quantized; use loftq or gaussian, or remove model.quantize",
        )
    if init == "loftq" and keys("model.quantize.type") == "int8":
        yield (INIT, "model.quantize.type", "loftq is for 4 bits; use nf4 or fp4")
    if init == "loftq" and keys("model.add_tokens"):
        yield (INIT, "model.add_tokens", "a quantized base takes no new tokens; remove one of them")

    yield from _of_experts(keys)
    name = keys("model.adapter.type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or name == "lora":
        return
    if not kind.quantized and keys("model.quantize") is not None:
        why = f"{kind.label} is not supported on a quantized base; use lora, oft, ia3 or vera, or remove model.quantize"
        yield "model.adapter.type", "model.quantize", why
    if keys("model.add_tokens"):
        why = f"new tokens are trained only with LoRA, not with {kind.label}; use type: lora"
        yield "model.adapter.type", "model.add_tokens", why
    if keys("optim.learning_rate_ratios.lora_b") not in (None, 1):
        why = f"{kind.label} has no matrix B; remove lora_b"
        yield "model.adapter.type", "optim.learning_rate_ratios.lora_b", why


def _of_experts(keys: Keys) -> Iterator[Conflict]:
    """Keys that an adapter on routed experts does not support: PEFT adapts tensors of several matrices with plain LoRA."""
    if keys(EXPERTS) is not True:
        return
    start = "routed experts in one tensor get a plain LoRA adapter"
    if keys("model.adapter.type") not in (None, "lora"):
        yield EXPERTS, "model.adapter.type", f"{start}; use type: lora, or experts: shared"
    if keys("model.adapter.dropout"):
        yield (
            EXPERTS,
            "model.adapter.dropout",
            f"{start} without dropout; remove dropout, or use experts: shared",
        )
    if keys("model.adapter.dora"):
        yield EXPERTS, "model.adapter.dora", f"{start}; remove dora, or use experts: shared"
    if keys(INIT) not in (None, "default", "gaussian"):
        yield EXPERTS, INIT, f"{start} that starts from zero; use default or gaussian, or experts: shared"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that the kind of adapter does not have."""
    if keys("model.adapter") is None:
        return
    chosen = keys("model.adapter.target_modules")
    if keys(EXPERTS) in (False, "shared") and isinstance(chosen, list):
        yield (
            EXPERTS,
            "has no effect with a list of target_modules, which decides; only true adds routed experts to it",
        )
    if keys.is_wrong("model.adapter.type"):
        return
    name = keys("model.adapter.type") or "lora"
    own = {*KINDS[name].keys, *(("init",) if name == "lora" else ())}
    for key in OF_SOME:
        if key not in own and keys(f"model.adapter.{key}") not in (None, False, {}):
            others = [
                other for other, kind in KINDS.items() if key in kind.keys or (other, key) == ("lora", "init")
            ]
            yield f"model.adapter.{key}", f"has no effect with type: {name}; it is for {', '.join(others)}"


def findings(keys: Keys) -> Iterator[Finding]:
    """Needs of an init, and patterns that cannot be matched."""
    if keys(INIT) == "loftq" and keys.absent("model.quantize"):
        yield INIT, "loftq needs model.quantize: without quantization there is no error to approximate"
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = keys(f"model.adapter.{name}")
        for pattern in patterns if isinstance(patterns, dict) else ():
            if (why := _unusable(str(pattern))) is not None:
                yield f"model.adapter.{name}", f"{pattern} {why}"


def _unusable(pattern: str) -> str | None:
    """Why a pattern cannot be matched against the ends of names; None if it can."""
    if not pattern:
        return "'' names no module"
    try:
        re.compile(
            ending(pattern)
        )  # flags such as (?i) are allowed only at the start of the whole expression
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression for the end of a name: {error}"
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)  # without escapes and sets
    repeats = len(re.findall(r"[*+{]|(?<![(*+}])\?", plain))
    if re.search(r"\)[*+{]", plain) or repeats > MAX_REPEATS or plain.count("(") > MAX_GROUPS:
        return (
            f"could take very long to match: it repeats a group, or has more than {MAX_REPEATS} repeats or "
            f"{MAX_GROUPS} groups; write several simpler patterns"
        )
    return None
