"""Tasks that hide several values in texts of given lengths: the needle variants of RULER (arXiv 2404.06654)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.lengths import FILLER, Grid
from tailor.spec.tasks.rows import Texts


class HaystackGrid(Grid):
    """Keys of tasks with several needles. The score of an answer is the share of the expected values that it contains."""

    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    data: Texts | None = None
    """Rows with the field `text`, which are joined into the haystack. Default: `filler`, repeated."""

    filler: str = Field(FILLER, min_length=1)
    """The sentences that are repeated if there is no `data`."""


class KeyedNeedles(HaystackGrid):
    """Keys of tasks whose needles have a key and a value."""

    digits: int = Field(7, ge=1, le=18)
    """Digits of a hidden value."""

    needle: str = Field("\nOne of the special magic numbers for {key} is: {value}.\n", min_length=1)
    """A sentence with a hidden value. It must contain `{key}` and `{value}`."""

    question: str = Field(
        "\nWhat are all the special magic numbers for {keys} mentioned in the text above? "
        "The special magic numbers for {keys} mentioned in the text above are",
        min_length=1,
    )
    """The end of the prompt. It must contain `{keys}`. With a chat template it ends the user's turn."""


class NeedleMultiKey(KeyedNeedles):
    """Multi-key needle in a haystack: several keys with a value each, and one of them is asked for."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.needles:MultiKeyEvaluator"

    name: Literal["needle_multi_key"]
    """Metrics: `needle_multi_key`, the share of answers that contain the value, and `needle_multi_key_N` for each
    length N.
    """

    keys: int = Field(4, ge=2, le=256)
    """Number of keys. The one that is asked for is at its depth, the others are anywhere."""


class NeedleMultiValue(KeyedNeedles):
    """Multi-value needle in a haystack: one key with several values, and all of them are asked for."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.needles:MultiValueEvaluator"

    name: Literal["needle_multi_value"]
    """Metrics: `needle_multi_value`, the mean share of the values that an answer contains, and `needle_multi_value_N`
    for each length N.
    """

    values: int = Field(4, ge=2, le=256)
    """Number of values. They are at different depths of `depths`, as far as there are enough."""


class NeedleMultiQuery(KeyedNeedles):
    """Multi-query needle in a haystack: several keys with a value each, and all of them are asked for."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.needles:MultiQueryEvaluator"

    name: Literal["needle_multi_query"]
    """Metrics: `needle_multi_query`, the mean share of the values that an answer contains, and `needle_multi_query_N`
    for each length N.
    """

    queries: int = Field(4, ge=2, le=256)
    """Number of keys. They are at different depths of `depths`, as far as there are enough."""


class VariableTracking(HaystackGrid):
    """Variable tracking: a chain of assignments (`VAR B = VAR A`), and all variables with the first value are asked for."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.variable_tracking:VariableTrackingEvaluator"

    name: Literal["variable_tracking"]
    """Metrics: `variable_tracking`, the mean share of the variables that an answer contains, and
    `variable_tracking_N` for each length N.
    """

    hops: int = Field(4, ge=1, le=64)
    """Assignments after the first one: a chain has `hops + 1` variables. The chain starts at its depth, and its
    assignments have equal distances up to the end of the text.
    """

    chains: int = Field(1, ge=1, le=64)
    """Number of chains. The others have other values and are anywhere."""

    question: str = Field(
        "\nFind all variables that are assigned the value {value} in the text above. According to the chains of "
        "variable assignment in the text above, {count} variables are assigned the value {value}, they are:",
        min_length=1,
    )
    """The end of the prompt. It must contain `{value}`; `{count}` is the number of variables. With a chat template it
    ends the user's turn.
    """
