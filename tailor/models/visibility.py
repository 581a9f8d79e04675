"""Which tokens of its document a token attends to, for each attention module of a model.

For sdpa and eager attention, transformers' masks are the only source of this rule. Configs and modules repeat it
incompletely: PhiMoE's modules do not name their sliding window, those of EXAONE 4's global layers name one that does not
apply to them, and Llama 4's do not name their chunks. Therefore `learn` reads the rules from the functions that make the
masks, and attention without masks (`tailor.models.attention`) follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import nn

from tailor.models.decoder import decoder_of, is_encoder

LEARNER = "tailor_visibility"
"""The attention that `learn` sets during its forward pass."""
LOCAL = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
)
LOCAL += ("local_attention", "chunk_size", "block_size", "index_topk")
"""Keys of configs and modules that limit how far a token sees, over the model families. In tokens."""
POSITIONAL = ("floor_scale",)
"""Keys of configs and modules that change attention from some position on (Llama 4's attention temperature). In tokens."""
SHORT = 4
"""Tokens: a window or chunk within `shortened`. Shorter than each document of the checks at load."""
ATTRIBUTE = "tailor_visibility"
"""Attribute of an attention module that holds its rules, by whether it is called as causal."""


@dataclass(frozen=True)
class Rule:
    """The tokens of its own document that a token attends to. Without `window` and `chunk`: all, or all up to itself."""

    causal: bool = True
    window: int | None = None
    """Tokens. As in transformers: a causal window of w is the token and the w - 1 before it; a bidirectional one is w on
    each side."""
    chunk: int | None = None
    """Tokens. A document is cut into chunks of this length from its start, and a token sees its own chunk alone."""

    @property
    def form(self) -> tuple[bool, bool, bool]:
        """(causal, has a window, has chunks): the rule without its length."""
        return self.causal, self.window is not None, self.chunk is not None

    @property
    def reach(self) -> int:
        """The length of the window or chunk, in tokens; 0 without."""
        return self.window or self.chunk or 0

    def short(self) -> Rule:
        """The same rule with at most SHORT tokens."""
        lengths = {
            name: None if n is None else min(n, SHORT)
            for name, n in (("window", self.window), ("chunk", self.chunk))
        }
        return replace(self, **lengths)

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """bool, broadcast: whether the token at position `query` of a document attends to the one at `key`."""
        distance = query - key
        visible = distance >= 0 if self.causal else distance == distance
        if self.window is not None:
            visible = visible & (distance < self.window if self.causal else distance.abs() <= self.window)
        if self.chunk is not None:
            visible = visible & (query // self.chunk == key // self.chunk)
        return visible


Rules = dict[bool, Rule]
"""The rules of one attention module: in a call with `is_causal=False` (False), and in any other call (True)."""


def rule_of(module: nn.Module, *, causal: bool) -> Rule | None:
    """The rule of an attention module for calls with `is_causal=False` (causal False) or without; None if not learned."""
    rules: Rules = getattr(module, ATTRIBUTE, {})
    return rules.get(causal)


def rules_of(base: nn.Module) -> dict[str, Rules]:
    """The learned rules of a model, by the names of its attention modules."""
    return {
        name: vars(module)[ATTRIBUTE] for name, module in base.named_modules() if ATTRIBUTE in vars(module)
    }


def set_rules(base: nn.Module, rules: Mapping[str, Rules]) -> None:
    """Give a model these rules, learned from one with the same modules, and no others."""
    for name, module in base.named_modules():
        vars(module).pop(ATTRIBUTE, None)
        if name in rules:
            setattr(module, ATTRIBUTE, rules[name])


def learn(base: Any, *, causal: bool = True) -> None:
    """Learn the rules of a model's attention modules, and keep them in the modules. As `learned`."""
    rules = learned(base, causal=causal)
    set_rules(
        base,
        {
            **(before := rules_of(base)),
            **{name: {**before.get(name, {}), causal: rule} for name, rule in rules.items()},
        },
    )


@torch.no_grad()
def learned(base: Any, *, causal: bool = True) -> dict[str, Rule]:
    """The rule of each attention module, by name, from the masks that transformers makes for it.

    One forward pass of two tokens. causal: False for calls with `is_causal=False`. Raises ValueError if the model does not
    call transformers' attention interface, or makes a mask that no `Rule` describes.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    learner = _Learner()
    AttentionInterface.register(LEARNER, learner.attention)
    AttentionMaskInterface.register(LEARNER, learner.mask)
    decoder, chosen = decoder_of(base), base.config._attn_implementation
    ids = torch.zeros(1, 2, dtype=torch.int64, device=base.get_input_embeddings().weight.device)
    try:
        base.set_attn_implementation(LEARNER)
        decoder(
            input_ids=ids,
            **({} if is_encoder(base) else {"use_cache": False}),
            **({} if causal else {"is_causal": False}),
        )
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"the model does not take a mask of its attention: {error}") from error
    finally:
        base.set_attn_implementation(chosen)
    if not learner.found:
        raise NoAttention("the model does not call transformers' attention interface")
    return {name: learner.found[module] for name, module in base.named_modules() if module in learner.found}


class NoAttention(ValueError):
    """A model calls no attention of transformers."""


class _Learner:
    """An attention and a mask function of transformers that record which rule each module gets."""

    def __init__(self) -> None:
        self.found: dict[nn.Module, Rule] = {}
        self._masks: dict[int, tuple[Rule | ValueError, torch.Tensor]] = {}
        """By storage, so that a view of a mask is found too. The mask itself keeps its storage in use. An error: of a mask that no
        rule describes, which no module may use. (Qwen2-MoE makes one with a window of 0 tokens.)"""

    def mask(
        self, batch_size: int, *lengths: Any, mask_function: Callable[..., Any], **kwargs: Any
    ) -> torch.Tensor:
        """Called by transformers in place of making a mask: a mask [B, 1, n, n] by which its rule is found."""
        queries = lengths[0] if lengths else kwargs.get("q_length", kwargs.get("cache_position"))
        count = int(queries) if isinstance(queries, int) else len(queries)
        device = kwargs.get("device")
        mask = torch.ones(batch_size, 1, count, count, dtype=torch.bool, device=device)
        rule: Rule | ValueError
        try:
            rule = _recognized(mask_function, kwargs.get("local_size"), device)
        except ValueError as error:
            rule = error
        self._masks[mask.untyped_storage().data_ptr()] = (rule, mask)
        return mask

    def attention(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Called by transformers as an attention. Returns zeros, [B, n, h, d]."""
        if attention_mask is None:  # as sdpa attention reads it
            rule = Rule(causal=getattr(module, "is_causal", True) if is_causal is None else is_causal)
        else:
            pointer = attention_mask.untyped_storage().data_ptr()
            if pointer not in self._masks:
                raise ValueError(f"{type(module).__name__} gets a mask of its own")
            made = self._masks[pointer][0]
            if isinstance(made, ValueError):
                raise made
            rule = made
        if self.found.setdefault(module, rule) != rule:
            raise ValueError(f"{type(module).__name__} is called with several masks")
        rows, heads, count, _ = query.shape
        return query.new_zeros(rows, count, heads, value.shape[-1]), None


def _recognized(function: Callable[..., Any], size: int | None, device: Any) -> Rule:
    """The rule of a mask function of transformers. size: of its window or chunk. ValueError if no rule describes it.

    The function is compared with the rule at all pairs of the first 40 positions, of positions around the multiples of
    `size` and around the powers of two up to a million, so that no longer window passes for none.
    """
    near = (-2, -1, 0, 1, 2)
    chosen = {*range(40), *(2**power + off for power in range(5, 21) for off in near)}
    chosen |= {count * size + off for count in (1, 2, 3) for off in near} if size else set()
    positions = torch.tensor(
        sorted(position for position in chosen if position >= 0), device=device
    )  # int64[n]
    query, key, zero = (
        positions[:, None],
        positions[None, :],
        torch.zeros((), dtype=torch.int64, device=device),
    )
    count = len(positions)
    try:
        visible = torch.as_tensor(function(zero, zero, query, key)).expand(count, count)  # bool[n, n]
    except (IndexError, RuntimeError, TypeError) as error:  # it reads tensors of the batch
        raise ValueError("a mask depends on more than positions") from error
    rules = [Rule(True), Rule(False)]
    if size:
        rules += [Rule(causal, window=size) for causal in (True, False)]
        rules += [Rule(False, window=size - 1)]  # bidirectional Gemma 3, which counts the token itself
        rules += [Rule(causal, chunk=size) for causal in (True, False)]
    for rule in rules:
        if torch.equal(rule.sees(query, key), visible):
            return rule
    raise ValueError("a mask is none of a causal or bidirectional one, a sliding window and chunks")


@contextmanager
def shortened(base: Any, *, keys: Collection[str] = LOCAL, tokens: int = 0) -> Iterator[None]:
    """Context in which each window and chunk of a model has at most SHORT tokens, in its configs, modules and rules.

    keys: those to shorten, by default all. tokens: as for `short_rules`. ValueError if the rules cannot be learned again.
    """
    rules = rules_of(base)
    with _short(base, keys, tokens):
        try:
            for causal in {causal for of_module in rules.values() for causal in of_module}:
                learn(base, causal=causal)
            yield
        finally:
            set_rules(base, rules)


@contextmanager
def short_rules(base: Any, *, tokens: int = 0) -> Iterator[None]:
    """Context in which the learned windows and chunks of a model have at most SHORT tokens.

    tokens: maximum of a forward pass in training. If it exceeds a position from which attention changes (POSITIONAL), this
    position is SHORT too.
    """
    rules = rules_of(base)
    set_rules(
        base, {name: {causal: rule.short() for causal, rule in some.items()} for name, some in rules.items()}
    )
    with _short(base, (), tokens):
        try:
            yield
        finally:
            set_rules(base, rules)


@contextmanager
def _short(base: Any, keys: Collection[str], tokens: int) -> Iterator[None]:
    changed: list[tuple[dict[str, Any], str, int]] = []
    for owner in _owners(base):
        for key in (*keys, *POSITIONAL):
            value = owner.get(key)
            if _is_length(value) and (key in keys or tokens > value):
                changed.append((owner, key, value))
                owner[key] = SHORT
    try:
        yield
    finally:
        for owner, key, value in changed:
            owner[key] = value


def local_lengths(base: Any) -> dict[str, int]:
    """The windows and chunks of more than SHORT tokens that configs and modules name: key and length in tokens."""
    return {key: owner[key] for owner in _owners(base) for key in LOCAL if _is_length(owner.get(key))}


def _is_length(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > SHORT


def _owners(base: Any) -> list[dict[str, Any]]:
    """The attributes of the decoder's modules and of their configs, without PEFT's: OFT has another `block_size`."""
    modules = [m for m in decoder_of(base).modules() if not type(m).__module__.startswith("peft.")]
    configs = [base.config, base.config.get_text_config(), *(getattr(m, "config", None) for m in modules)]
    owners = {id(owner): vars(owner) for owner in (*configs, *modules) if hasattr(owner, "__dict__")}
    return list(owners.values())
