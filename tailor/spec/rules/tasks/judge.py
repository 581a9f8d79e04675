"""Rules of the task judge."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from tailor.spec.rules.keys import Finding, Keys


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    variable = keys(f"{key}.key_variable")
    if isinstance(variable, str) and not variable.isidentifier():
        yield f"{key}.key_variable", "is not the name of an environment variable, such as OPENAI_API_KEY"
    url = keys(f"{key}.base_url")
    if not isinstance(url, str):
        return
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        right = False
    if not right:
        yield f"{key}.base_url", f"{url} is not a URL of an API, such as http://localhost:8000/v1"
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        yield f"{key}.base_url", "ends before /chat/completions, which is added to it"
