"""The type of `method` in a recipe. It loads every method, so no method's section or rules may import it."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tailor.spec.methods.base import MethodSection
from tailor.spec.methods.registry import METHODS

if TYPE_CHECKING:
    Method = MethodSection
else:
    Method = Annotated[reduce(or_, METHODS), Field(discriminator="name")]
    """One of the registered sections, by its `name`."""
