"""The plan: every number of a run, derived from its recipe, its data and its hardware. Imports no torch."""

from tailor.plan.build import build
from tailor.plan.facts import DataFacts, Hardware, ModelFacts
from tailor.plan.plan import Plan

__all__ = ["DataFacts", "Hardware", "ModelFacts", "Plan", "build"]
