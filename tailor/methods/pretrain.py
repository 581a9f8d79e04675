"""Pretraining: every next token of plain texts."""

from __future__ import annotations

from tailor.methods.next_token import NextToken
from tailor.methods.reference import Reference
from tailor.spec.method import Pretrain


def build(spec: Pretrain, reference: Reference | None) -> NextToken:
    return NextToken()
