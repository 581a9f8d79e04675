"""The rights in the recipe's stores, tried with a temporary object, and the clocks of these stores."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.doctor.finding import Context, Finding
from tailor.doctor.needs import is_remote, read, written
from tailor.store import Store
from tailor.store.probe import probe

SKEW_WARNS, SKEW_FAILS = 30.0, 600.0
"""Seconds. S3 refuses requests from clocks that are 15 minutes off."""


def check(context: Context) -> Iterator[Finding]:
    if context.recipe is None:
        return
    stores = {url: key for key, url in reversed([*written(context.recipe)]) if is_remote(url)}
    sources = {
        url: key for key, url in read(context.recipe) if is_remote(url) and not url.startswith("hf://")
    }
    if context.offline:
        for url, key in (stores | sources).items():
            yield Finding("ok", f"{key}: {url}; not tried, offline")
        return
    for url, key in stores.items():
        yield from _tried(url, key)
    for url, key in sources.items():
        if not any(char in url for char in "*?["):
            yield _readable(url, key)


def _tried(url: str, key: str) -> Iterator[Finding]:
    found = probe(Store(url))
    for right, error in found.denied:
        yield Finding("failed", f"{key}: cannot {right}: {error.message}", error.hint or "")
    if found.left:
        yield Finding(
            "warning", f"{key}: a temporary object of this check is left: {found.left}", "delete it"
        )
    if not found.denied:
        yield Finding("ok", f"{key}: {url} can be written, read, listed and deleted from")
    if found.ahead is not None and abs(found.ahead) > SKEW_WARNS:
        words = "ahead of" if found.ahead > 0 else "behind"
        yield Finding(
            "failed" if abs(found.ahead) > SKEW_FAILS else "warning",
            f"{key}: the store's clock is {abs(found.ahead):,.0f} s {words} this machine's",
            "set this machine's clock (NTP): stores refuse requests with wrong times",
        )


def _readable(url: str, key: str) -> Finding:
    if Store(url).exists():
        return Finding("ok", f"{key}: {url} can be read")
    return Finding("failed", f"{key}: {url} does not exist", "check the URL")
