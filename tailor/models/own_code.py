"""Python code in model folders: it runs only when the user trusts these files, by a recipe or `--trust-remote-code`.

Files of the model never grant trust. A grant names source files by their content, so it does not extend to other code
that appears in the folder later, nor to other models.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from tailor.errors import ModelError
from tailor.layout import GENERATION_CONFIG, MODEL_CONFIG, TOKENIZER_CONFIG
from tailor.models.files import find_folder
from tailor.spec.model import Model
from tailor.store import OBJECT

HINT = (
    "read its Python files; if you trust them, set model.trust_remote_code: true in the recipe, or pass "
    "--trust-remote-code to commands that load a trained model"
)
CONFIGS = (
    MODEL_CONFIG,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files whose `auto_map` names the classes of a model's own code."""
_REFERENCE = re.compile(r"(?:(?P<repo>.+)--)?\w+\.\w+")


class UntrustedCodeError(ModelError):
    """A model needs code from its folder, which the user does not trust."""


@dataclass(frozen=True)
class Trust:
    """The source files that the user trusts, as SHA-256 of their content. Sent to workers with the model."""

    sources: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *folders: Path) -> Trust:
        """Trust all Python files in these folders, as they are now."""
        return cls(frozenset().union(*(sources(folder) for folder in folders)))

    @classmethod
    def of_model(cls, model: Model) -> Trust:
        """What `model.trust_remote_code` of a recipe trusts."""
        if not model.trust_remote_code:
            return NOTHING
        return cls.of(find_folder(model.path, model.revision, trust_remote_code=True))

    def allows(self, path: str, revision: str | None = None) -> bool:
        """Whether every Python file of a model is trusted. False for a model without code, and one that does not exist."""
        if not self.sources:
            return False
        try:
            found = sources(find_folder(path, revision, trust_remote_code=True))
        except ModelError:
            return False
        return bool(found) and found <= self.sources


NOTHING = Trust()


def sources(folder: Path) -> frozenset[str]:
    """SHA-256 of the content of each Python file below a folder."""
    return frozenset(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.py") if path.is_file()
    )


def granted(model: Model) -> bool:
    """The value of `trust_remote_code` to load a model with. ModelError when its files refer to code outside its folder.

    Such code is not among the files that the user has read.
    """
    if not model.trust_remote_code:
        return False
    folder = find_folder(model.path, model.revision, trust_remote_code=True)
    for name in CONFIGS:
        for reference in _references(folder / name):
            match = _REFERENCE.fullmatch(reference)
            if match is None or match["repo"] not in (None, model.path):
                raise ModelError(
                    f"{folder / name}: auto_map refers to code outside the model's folder: {reference}",
                    hint="copy the code into the model's folder, and name it as MODULE.CLASS",
                )
    return True


def untrusted(path: str, error: Exception) -> UntrustedCodeError | None:
    """The error to report when transformers refused a model because it needs its own code; None for other errors."""
    if "trust_remote_code" not in str(error):
        return None
    return UntrustedCodeError(
        f"{path}: the model comes with its own code, which is not run unless you trust it", hint=HINT
    )


def _references(file: Path) -> list[str]:
    """The classes that `auto_map` of a configuration file names. StoreError when the file is damaged."""
    if not file.is_file():
        return []
    values = OBJECT.read_path(file).get("auto_map") or {}
    found = values.values() if isinstance(values, dict) else [values]
    flat = [one for value in found for one in (value if isinstance(value, list | tuple) else [value])]
    return [str(one) for one in flat if one is not None]
