"""Whether the models and datasets of the recipe can be opened on the Hugging Face hub, with the token that is present."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tailor.doctor.finding import Context, Finding
from tailor.doctor.needs import repositories
from tailor.spec.rules.files import hub_cache

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def check(context: Context) -> Iterator[Finding]:
    if context.recipe is None:
        return
    offline = context.offline or any(
        os.environ.get(name, "0").lower() in ("1", "true", "yes", "on") for name in OFFLINE
    )
    for (kind, name), key in repositories(context.recipe).items():
        cached = (hub_cache() / f"{kind}s--{name.replace('/', '--')}").is_dir()
        if offline:
            yield _not_tried(kind, name, key, cached=cached)
        else:
            yield _opened(kind, name, key, cached=cached)


def _not_tried(kind: str, name: str, key: str, *, cached: bool) -> Finding:
    if cached:
        return Finding("ok", f"{key}: {name} is in the hub's cache; not tried, offline")
    return Finding(
        "warning",
        f"{key}: {name} is not in the hub's cache; not tried, offline",
        f"download it: hf download {name}" + (" --repo-type dataset" if kind == "dataset" else ""),
    )


def _opened(kind: str, name: str, key: str, *, cached: bool) -> Finding:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None).auth_check(name, repo_type=kind)
    except GatedRepoError:
        has_token = "with this token" if os.environ.get("HF_TOKEN") else "without a token"
        return Finding(
            "failed",
            f"{key}: {name} is gated and cannot be opened {has_token}",
            f"accept its license at {page}, and set HF_TOKEN",
        )
    except RepositoryNotFoundError:
        return Finding(
            "failed",
            f"{key}: {name} does not exist on the hub, or is private",
            "check the name; for a private one, set HF_TOKEN",
        )
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code == 401:
            return Finding(
                "failed",
                f"{key}: the hub refuses the token",
                "set HF_TOKEN to a valid one, or log in again with `hf auth login`",
            )
        return Finding("warning", f"{key}: the hub answers {code} for {name}", "try again later")
    except Exception as error:  # no network, a proxy, a wrong endpoint: each client library has its own types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if cached:
            return Finding("ok", f"{key}: {name} is in the hub's cache; the hub cannot be reached ({reason})")
        return Finding(
            "warning", f"{key}: the hub cannot be reached: {reason}", "check the network and HF_ENDPOINT"
        )
    return Finding("ok", f"{key}: {name} can be opened")
