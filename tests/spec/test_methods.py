"""Errors for keys of another method, with a second method defined here."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Annotated, Literal, get_args

from pydantic import Field, create_model

from tailor.errors import RecipeError
from tailor.spec.base import Section
from tailor.spec.load import judge
from tailor.spec.methods.registry import METHODS
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.reading.source import parse
from tailor.spec.recipe import Recipe
from tests.spec.helpers import GOOD


class Preference(Section):
    """A second method."""

    name: Literal["preference"]
    beta: float = Field(0.1, gt=0)


TwoMethods = create_model(
    "TwoMethods", __base__=Recipe, method=(Annotated[Sft | Preference, Field(discriminator="name")], ...)
)


OneMethod = create_model(
    "OneMethod", __base__=Recipe, method=(Annotated[Sft, Field(discriminator="name")], ...)
)


def texts(method: str, root: type[Section] = TwoMethods) -> list[str]:
    document = parse(GOOD.replace("{name: sft}", method), "r.yaml")
    try:
        judge(document, root)
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_both_methods_are_read() -> None:
    assert texts("{name: sft}") == texts("{name: preference, beta: 0.2}") == []


def test_a_key_of_the_other_method() -> None:
    assert texts("{name: sft, beta: 0.1}") == [
        "r.yaml:4:21: method.beta: unknown key of sft; it is a key of preference"
    ]
    assert texts("{name: preference, train_on: everything}") == [
        "r.yaml:4:28: method.train_on: unknown key of preference; it is a key of sft"
    ]


def test_without_the_other_method_the_key_is_unknown() -> None:
    assert texts("{name: sft, beta: 0.1}", OneMethod) == [
        "r.yaml:4:21: method.beta: unknown key; the keys here are name, train_on, label_smoothing, z_loss, neftune_alpha"
    ]


def test_values_inside_a_tagged_union() -> None:
    assert texts("{name: preference, beta: 0}") == ["r.yaml:4:34: method.beta: 0 is not a number over 0"]


def test_wrong_and_missing_names() -> None:
    assert texts("{name: sfft, zzz: 1}") == [
        "r.yaml:4:16: method.name: sfft is not one of sft, preference; did you mean sft?",
        (
            "r.yaml:4:22: method.zzz: unknown key; the keys here are name, train_on, label_smoothing, z_loss, "
            "neftune_alpha"
        ),
    ]
    assert texts("{beta: 1}") == ["r.yaml:4:1: method.name: missing key; it must be one of sft, preference"]
    assert texts("{nam: sft}") == ["r.yaml:4:10: method.nam: unknown key; did you mean name?"]
    assert texts("preference") == [
        (
            "r.yaml:4:9: method: preference is not a mapping with a name of sft, preference; "
            "write method: {name: preference}"
        )
    ]


def test_every_method_is_in_the_union_and_its_modules_exist() -> None:
    union = get_args(Method)[0]
    assert set(get_args(union) or (union,)) == set(METHODS)
    for name in METHODS.names():
        method = METHODS.get(name)
        assert get_args(method.model_fields["name"].annotation) == (name,)
        assert re.fullmatch(r"[a-z_]+", name)
        module, _, function = method.implementation.partition(":")
        assert callable(getattr(import_module(module), function))
        assert method.rules is None or import_module(method.rules)
