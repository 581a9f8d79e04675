"""`--trust-remote-code`: the own code of the model that a command names, and of its base."""

from __future__ import annotations

from collections.abc import Sequence

from tailor.artifacts.base_model import base_record_of
from tailor.artifacts.find import find_artifact
from tailor.layout import ADAPTER_CONFIG, BEACON_CONFIG
from tailor.models.base_record import BaseRecord
from tailor.models.files import find_folder
from tailor.models.own_code import Trust
from tailor.store import Store, run_files, run_folder


def trust_of(urls: Sequence[str], base: str | None = None) -> Trust:
    """Trust the Python files of these models, and those of the base of an adapter, of beacons or of a checkpoint.

    base: new path of a base that has moved. No code runs here. Raises ModelError and StoreError for a model that is missing.
    """
    return Trust(frozenset().union(*(_of(Store(url), base).sources for url in urls)))


def _of(store: Store, base: str | None) -> Trust:
    if run_folder.is_checkpoint(store):
        run = Store(store.url.rstrip("/").rsplit("/", 2)[0])
        model = run_files.planned_model(run)
        return Trust.of(find_folder(model.path, model.revision, trust_remote_code=True))
    artifact, run = find_artifact(store)
    folders = [artifact.local_path()]
    if artifact.exists(ADAPTER_CONFIG) or artifact.exists(BEACON_CONFIG):
        record = BaseRecord.read(folders[0]) if artifact.exists(BEACON_CONFIG) else None
        record = record or base_record_of(folders[0], run)
        revision = record.revision if base is None else None
        folders.append(find_folder(base or record.path, revision, trust_remote_code=True))
    return Trust.of(*folders)
