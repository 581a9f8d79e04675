"""The text files of a model: of a local folder, an fsspec URL or a Hub model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tailor.encode.gguf import readable
from tailor.errors import ModelError
from tailor.layout import MODEL_CONFIG
from tailor.store import OBJECT, Store


def load_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """Load the model's `config.json` from the folder, URL or Hub model. ModelError when there is none."""
    text = file_reader(path, revision)(MODEL_CONFIG)
    if text is None:
        raise ModelError(
            f"model.path: {path} has no config.json", hint="set model.path to a model folder or a Hub id"
        )
    return parse(path, MODEL_CONFIG, text)


def file_reader(path: str, revision: str | None) -> Callable[[str], str | None]:
    """A function that reads a text file of a model folder, URL or Hub model by its name; None for one that does not exist."""
    if "://" in path:
        store = Store(path)
        if not store.exists():
            raise ModelError(f"model.path: {path} does not exist")
        return lambda name: store.read_text(name) if store.exists(name) else None
    folder = Path(readable(path))
    if folder.is_dir():
        local = Store(folder)
        return lambda name: local.read_text(name) if (folder / name).is_file() else None
    return lambda name: _from_hub(path, revision, name)


def _from_hub(path: str, revision: str | None, name: str) -> str | None:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        if not constants.HF_HUB_OFFLINE and try_to_load_from_cache(path, name, revision=revision) is None:
            _reach_hub(path, revision)
        file = Path(hf_hub_download(path, name, revision=revision))
        return Store(file.parent).read_text(file.name)
    except LocalEntryNotFoundError:
        problem = "is not a local folder, and the Hugging Face Hub cannot be reached"
        if constants.HF_HUB_OFFLINE:
            problem = f"is not a local folder, its {name} is not in the cache, and HF_HUB_OFFLINE is set"
    except EntryNotFoundError:
        return None
    except HFValidationError:
        problem = "is neither a local folder nor a valid Hub id"
    except HfHubHTTPError as error:
        problem = (
            f"is not a local folder, and the Hugging Face Hub returns an error ({str(error).splitlines()[0]})"
        )
    hint = f"check the path; tailor looked for {Path(path).absolute()} and huggingface.co/{path}"
    if constants.HF_HUB_OFFLINE:
        hint = f"unset HF_HUB_OFFLINE to download it, or {hint}"
    raise ModelError(f"model.path: {path} {problem}", hint=hint)


@lru_cache(maxsize=8)
def _reach_hub(path: str, revision: str | None) -> None:
    """LocalEntryNotFoundError if the hub does not answer one request: `hf_hub_download` would try for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(path, MODEL_CONFIG, revision=revision))
    except (HfHubHTTPError, HFValidationError):
        return  # it answers, or is not asked
    except Exception as error:  # of the HTTP client, which differs between versions
        raise LocalEntryNotFoundError(str(error)) from error


def parse(path: str, name: str, text: str | None) -> dict[str, Any]:
    """The object in a JSON file of a model; empty for None. StoreError if it is damaged."""
    return OBJECT.parse((text or "{}").encode(), f"{path}/{name}")
