"""Supervised fine-tuning: the next tokens of what the recipe supervises."""

from __future__ import annotations

from tailor.methods.next_token import NextToken
from tailor.methods.reference import Reference
from tailor.spec.method import Sft


def build(spec: Sft, reference: Reference | None) -> NextToken:
    return NextToken()
