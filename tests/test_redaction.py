"""Secrets are recognized by their shape and by the key before them; ordinary values are kept."""

from __future__ import annotations

import time

import pytest

from tailor.redaction import is_secret, is_secret_key, is_secret_variable, redacted, redacted_values
from tests.helpers.secrets import FORMS, NEEDLE, ORDINARY


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_redacted(form: str) -> None:
    secret = FORMS[form]
    assert is_secret(secret)
    for text in (secret, f"error at {secret}, see below", f"('{secret}',)", f"a\n{secret}\nb"):
        shown = redacted(text)
        assert NEEDLE not in shown
        assert "***" in shown
        assert redacted(shown) == shown


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_kept(text: str) -> None:
    assert redacted(text) == text
    assert not is_secret(text)


def test_what_is_around_a_secret_is_kept() -> None:
    text = "cannot read https://user:pa/ss@host/x?page=2&sig=abc%3D&n=1 (403)"
    assert redacted(text) == "cannot read https://***@host/x?page=2&sig=***&n=1 (403)"


@pytest.mark.parametrize(
    "name", ["token", "hf_token", "apiKey", "wandb-api-key", "DB_PASSWORD", "clientSecret"]
)
def test_keys_of_secrets(name: str) -> None:
    assert is_secret_key(name)
    assert redacted_values({name: "short", "path": "/x", "list": [{name: "short"}]}) == {
        name: "***",
        "path": "/x",
        "list": [{name: "***"}],
    }


@pytest.mark.parametrize(
    "name",
    ["eos_token", "bos_token", "max_tokens", "tokenizer", "passkey", "key", "keys", "end_of_turn_token"],
)
def test_other_keys(name: str) -> None:
    assert not is_secret_key(name)


def test_variables() -> None:
    assert is_secret_variable("HF_TOKEN")
    assert is_secret_variable("MY_KEY")
    assert not is_secret_variable("TOKEN_FILE")
    assert not is_secret_variable("MONKEY")


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "://a:",
        "password",
        "-",
        "A_",
        "sk-",
        "eyJ",
        "-----BEGIN PRIVATE KEY",
        "'password': ",
        "?x-amz-",
        "gla-",
    ],
)
def test_long_text_takes_linear_time(part: str) -> None:
    """Work inside regular expressions can only be timed: 8 times the text takes 64 times as long if it is quadratic."""

    def seconds(size: int) -> float:
        text, times = part * (size // len(part)), []
        for _ in range(2):
            began = time.thread_time()
            redacted(text)
            times.append(time.thread_time() - began)
        return min(times)

    assert seconds(80_000) < 0.1 + 30 * seconds(10_000)
