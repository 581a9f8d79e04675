"""The type of `method` in a recipe. It imports every method, so the sections and rules of methods must not import it."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.registry import METHODS, method_class

if TYPE_CHECKING:
    Method = MethodSection
else:
    Method = Annotated[reduce(or_, map(method_class, METHODS.names())), Field(discriminator="name")]
    """One of the registered methods, chosen by `name`."""
