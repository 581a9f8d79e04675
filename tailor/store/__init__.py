"""Storage on any fsspec URL: files are written atomically, and folders become visible with their commit marker."""

from __future__ import annotations

from tailor.store.copies import stamp_of
from tailor.store.failures import hint_of
from tailor.store.filesystem import cache_folder, filesystem, opened
from tailor.store.json_files import OBJECT, JsonFile
from tailor.store.periodic import Periodic
from tailor.store.publication import Publication, listed_files, published, verified, verify
from tailor.store.removal import DeletionError
from tailor.store.store import COMMIT, Store

__all__ = [
    "COMMIT",
    "OBJECT",
    "DeletionError",
    "JsonFile",
    "Periodic",
    "Publication",
    "Store",
    "cache_folder",
    "filesystem",
    "hint_of",
    "listed_files",
    "opened",
    "published",
    "stamp_of",
    "verified",
    "verify",
]
