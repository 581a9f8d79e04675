"""Whether the environment has the credentials that the recipe needs. Their values are never shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tailor.doctor.finding import Context, Finding
from tailor.doctor.needs import read, repositories, written
from tailor.spec.recipe import Recipe

_AWS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_FILES = {"s3": ".aws/credentials", "gs": ".config/gcloud/application_default_credentials.json"}


def check(context: Context) -> Iterator[Finding]:
    recipe = context.recipe
    if recipe is None:
        present = [
            name for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY") if os.environ.get(name)
        ]
        stored = ["the login of `hf auth login`"] if stored_login() else []
        yield Finding("ok", f"present: {', '.join([*present, *stored]) or 'none'}")
        return
    if repositories(recipe) or recipe.export.push_to_hub is not None:
        yield _hub(pushes=recipe.export.push_to_hub is not None)
    yield from _stores(recipe)
    for name, tracker in recipe.track.chosen():
        if (prefix := tracker.environment_prefix) is not None:
            yield _with_prefix(f"track.{name}", prefix)


def stored_login() -> bool:
    """Whether `hf auth login` has stored a token."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).expanduser().is_file()


def _hub(*, pushes: bool) -> Finding:
    if os.environ.get("HF_TOKEN") or stored_login():
        return Finding(
            "ok", f"{'HF_TOKEN' if os.environ.get('HF_TOKEN') else 'the login of `hf auth login`'} is present"
        )
    if pushes:
        return Finding(
            "failed",
            "export.push_to_hub needs HF_TOKEN, which is not set",
            "set it to a token with write access",
        )
    return Finding(
        "warning",
        "HF_TOKEN is not set",
        "needed for gated models and private data: huggingface.co/settings/tokens",
    )


def _stores(recipe: Recipe) -> Iterator[Finding]:
    protocols = {url.partition("://")[0] for _, url in (*written(recipe), *read(recipe)) if "://" in url}
    if protocols & {"s3", "s3a"}:
        yield _present("s3://", _AWS, home=_FILES["s3"])
    if protocols & {"gs", "gcs"}:
        yield _present("gs://", ("GOOGLE_APPLICATION_CREDENTIALS",), home=_FILES["gs"])


def _present(what: str, variables: tuple[str, ...], home: str) -> Finding:
    for name in variables:
        if os.environ.get(name):
            return Finding("ok", f"{what}: {name} is present")
    if home and (Path.home() / home).is_file():
        return Finding("ok", f"{what}: ~/{home} is present")
    return Finding(
        "warning",
        f"{what}: {variables[0]} is not set",
        "set it, unless the machine's own identity has the rights",
    )


def _with_prefix(what: str, prefix: str) -> Finding:
    if named := sorted(name for name in os.environ if name.startswith(prefix)):
        return Finding("ok", f"{what}: {named[0]} is present")
    return Finding(
        "warning", f"{what}: no variable {prefix}… is set", "set it, unless the tracker's client is logged in"
    )
