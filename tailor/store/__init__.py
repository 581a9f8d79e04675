"""Storage on any fsspec URL: files are written atomically, and folders become visible with their commit marker."""

from __future__ import annotations

from tailor.store.copies import stamp_of
from tailor.store.failures import hint_of
from tailor.store.filesystem import cache_folder, filesystem, opened
from tailor.store.periodic import Periodic
from tailor.store.publication import Publication, verified, verify
from tailor.store.store import COMMIT, Store

__all__ = [
    "COMMIT",
    "Periodic",
    "Publication",
    "Store",
    "cache_folder",
    "filesystem",
    "hint_of",
    "opened",
    "stamp_of",
    "verified",
    "verify",
]
