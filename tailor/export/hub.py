"""`tailor push`: uploads the artifact of a run to the Hugging Face hub. The token is read only from HF_TOKEN."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailor.errors import StoreError
from tailor.export.card import draft
from tailor.export.folder import announce, fill, finished, public_base, select
from tailor.export.request import Request
from tailor.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    CHAT_TEMPLATE,
    EMBEDDING,
    EXPORT_RECORD,
    GENERATION_CONFIG,
    GENERATIVE_ATTENTION,
    LOSS_PLOT,
    MERGE_RECORD,
    MODEL_CONFIG,
    MODEL_INDEX,
    MODEL_WEIGHTS,
    PROJECTION,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from tailor.models import adapter_files
from tailor.printable import printable
from tailor.redaction import is_secret, redacted
from tailor.store import OBJECT
from tailor.store.scratch import scratch

BESIDE = ("README.md", LOSS_PLOT, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
MODEL = (
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, MERGE_RECORD, EXPORT_RECORD),
    *(EMBEDDING, PROJECTION, GENERATIVE_ATTENTION),
    *(MODEL_CONFIG, GENERATION_CONFIG, MODEL_WEIGHTS, MODEL_INDEX),
    *(
        TOKENIZER,
        TOKENIZER_CONFIG,
        SPECIAL_TOKENS,
        "added_tokens.json",
        "vocab.json",
    ),
    *("merges.txt", "vocab.txt", "tokenizer.model", CHAT_TEMPLATE, "preprocessor_config.json"),
)
"""Only these files are uploaded, together with `BESIDE`, the shards of a model and its Python files.

A push deletes such files of an earlier push that it does not replace: otherwise the repository would have two models.
"""
WEIGHTS = re.compile(
    r"(.*/)?[^/]+\.(bin|safetensors|pt|pth|ckpt|h5|msgpack|ot|onnx|gguf)(\.index\.json)?", re.IGNORECASE
)
"""Weights of any framework: beside those of a push, readers would not know which ones a library loads."""
PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path", "path", "tokenizer_file")
TEXTS = (".json", ".md", ".txt", ".jinja", ".py", "")


@dataclass(frozen=True)
class Upload:
    """A file to upload. name: in the repository."""

    name: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Push:
    """The target repository, and how to upload."""

    repo: str
    private: bool = True
    revision: str | None = None
    """A branch, created if it does not exist."""
    message: str | None = None
    replace: bool = False
    """Allow a repository that has other content."""


def push(
    url: str,
    push: Push,
    request: Request,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> str | None:
    """Upload the artifact of a finished run with its model card. Returns the commit's URL, or None for a dry run.

    StoreError for a missing or invalid token, a token without write access, a repository with other content, and when
    the hub cannot be reached.
    """
    run, kind = finished(url)
    selection = select(request, kind, run)
    hub = None
    _check_name(push.repo)
    named = replace(request, name=request.name or push.repo.split("/")[1])
    if not dry_run:
        hub = require(push)  # before merging, which takes minutes
        base = public_base(run, request)
        hub.check_card(draft(run, selection.weights, base=base, name=str(named.name)))
    announce(selection, say)
    with scratch() as temporary:
        folder = temporary / push.repo.split("/")[1]
        folder.mkdir()
        fill(folder, replace(selection, request=named), say)
        if (
            request.base_id is None
            and selection.weights == "adapter"
            and folder_of_base(folder).startswith("/")
        ):
            say(
                "note: the model card names no base, because the run has only its local path; give its hub id with --base-id"
            )
        remove_local_paths(folder)
        uploads = files_of(folder)
        for upload in uploads:
            say(f"  {_size(upload.bytes):>10}  {upload.name}")
        total = f"{len(uploads)} files, {_size(sum(upload.bytes for upload in uploads))}"
        seen = "private" if push.private else "public"
        if hub is None:
            say(f"dry run: {total} would be uploaded to the {seen} repository {push.repo}")
            return None
        return hub.upload(
            uploads, push.message or f"Upload {selection.weights} of {run.url.rstrip('/').rsplit('/', 1)[-1]}"
        )


def require(push: Push) -> _Hub:
    """The hub, with access checked. StoreError when it would reject the upload."""
    _check_name(push.repo)
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise StoreError(
            "HF_TOKEN is not set: the hub needs a token", hint="set HF_TOKEN to a token with write access"
        )
    hub = _Hub(push, token)
    hub.check()
    return hub


def files_of(folder: Path) -> list[Upload]:
    """The files to upload, sorted by name. StoreError for a file that seems to contain a secret."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not (
            _is_of_a_model(path.name) or path.name in BESIDE or path.suffix == ".py"
        ):
            continue
        if (
            path.suffix in TEXTS
            and path.name != TOKENIZER
            and is_secret(path.read_text(encoding="utf-8", errors="replace"))
        ):
            raise StoreError(
                f"{path.name} seems to contain a secret; nothing was uploaded",
                hint="remove it from the run's files",
            )
        found.append(Upload(path.name, path, path.stat().st_size))
    return found


def remove_local_paths(folder: Path) -> None:
    """Replace local paths in the configurations by the name of the folder: others cannot use them, and they contain names."""
    for name in (ADAPTER_CONFIG, BASE_RECORD, MODEL_CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        values = OBJECT.read_path(path)
        local = {key: str(values[key]) for key in PATH_KEYS if _is_local(values.get(key))}
        if local:
            values |= {key: re.split(r"[/\\]", value.rstrip("/\\"))[-1] for key, value in local.items()}
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"(file://)?(~?/|[A-Za-z]:\\)", value) is not None


def folder_of_base(folder: Path) -> str:
    """The base path or id in the exported adapter's configuration."""
    return str(adapter_files.read_config(folder)["base_model_name_or_path"])


def _is_of_a_model(name: str) -> bool:
    return name in MODEL or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None


class _Hub:
    """The hub's API for one push. Its errors become StoreErrors with hints."""

    def __init__(self, push: Push, token: str) -> None:
        from huggingface_hub import HfApi

        self._push = push
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)

    def check(self) -> None:
        """StoreError when the token is invalid, the repository is public against the request, or has other content."""
        with self._naming():
            self._api.whoami()
        with self._naming():
            files, public = self._files(), self._is_public()
        if public and self._push.private:
            raise StoreError(
                f"the repository {self._push.repo} exists and is public, but the push is private",
                hint="push to it with --public, or give another repository",
            )
        foreign = [name for name in files if name != ".gitattributes"]
        if EXPORT_RECORD in foreign:
            foreign = [name for name in files if WEIGHTS.fullmatch(name) and not _is_of_a_model(name)]
        if foreign and not self._push.replace:
            raise StoreError(
                f"the repository {self._push.repo} already has other files, such as {foreign[0]}",
                hint="give another repository, or put this model into it with --replace",
            )

    def check_card(self, card: str) -> None:
        """StoreError when the hub refuses the metadata of the model card. It would refuse the upload, after the merge."""
        from huggingface_hub.utils import build_hf_headers, get_session

        with self._naming():
            answer = get_session().post(
                f"{self._api.endpoint}/api/validate-yaml",
                json={"content": card, "repoType": "model"},
                headers=build_hf_headers(token=self._api.token),
            )
        if answer.status_code == 400:
            errors = answer.json().get("errors", [])
            messages = "; ".join(" ".join(str(error.get("message")).split()) for error in errors)
            raise StoreError(
                f"the hub refuses the metadata of the model card: {printable(messages)[:500]}",
                hint="its values come from the recipe, the base's model card (license) and --base-id; correct them",
            )

    def upload(self, uploads: list[Upload], message: str) -> str:
        """Create the repository if needed, and upload the files in one commit. Returns the commit's URL."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        push = self._push
        with self._naming():
            self._api.create_repo(push.repo, private=push.private, exist_ok=True)
            if push.revision is not None:
                self._api.create_branch(push.repo, branch=push.revision, exist_ok=True)
            names = {upload.name for upload in uploads}
            stale = [
                name
                for name in self._files()
                if name not in names
                and (_is_of_a_model(name) or (push.replace and WEIGHTS.fullmatch(name) is not None))
            ]
            operations: list[Any] = [
                CommitOperationAdd(path_in_repo=upload.name, path_or_fileobj=str(upload.path))
                for upload in uploads
            ]
            operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
            commit = self._api.create_commit(
                push.repo, operations=operations, commit_message=message, revision=push.revision
            )
        return redacted(str(commit.commit_url))

    def _is_public(self) -> bool:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return not self._api.model_info(self._push.repo).private
        except RepositoryNotFoundError:
            return False

    def _files(self) -> list[str]:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return list(self._api.list_repo_files(self._push.repo, revision=self._push.revision))
        except RevisionNotFoundError:  # the new branch will begin with the files of the main one
            return list(self._api.list_repo_files(self._push.repo))
        except RepositoryNotFoundError:
            return []

    @contextmanager
    def _naming(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            raise self._explained(error) from error
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"the hub cannot be reached: {_first_line(error)}",
                hint="check the network and HF_ENDPOINT, then run the same command again",
            ) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise
            raise StoreError(
                f"the hub cannot be reached: {_first_line(error)}",
                hint="check the network and HF_ENDPOINT, then run the same command again",
            ) from error

    def _explained(self, error: Any) -> StoreError:
        code = error.response.status_code if error.response is not None else None
        if code == 401:
            return StoreError(
                "the hub rejects the token in HF_TOKEN (401)",
                hint="set HF_TOKEN to a valid token with write access",
            )
        if code == 403:
            return StoreError(
                f"the token in HF_TOKEN has no write access to {self._push.repo} (403)",
                hint="use a token with write access to it, or a repository of your own",
            )
        return StoreError(f"the hub rejects the upload to {self._push.repo}: {_first_line(error)}")


def _check_name(repo: str) -> None:
    """StoreError when `repo` is not a valid `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise StoreError(
            f"{repo!r} is not the name of a hub repository", hint="write owner/name, such as my-name/my-model"
        )


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count //= 1000
    return f"{count} GB"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
