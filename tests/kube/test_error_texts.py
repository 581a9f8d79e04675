"""The exact error messages for cluster files. `pytest tests/kube --update-fixtures` updates them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.errors import RecipeError
from tailor.kube.manifest import load_cluster

FIXTURES = Path(__file__).parent / "fixtures"
CLUSTERS = sorted(FIXTURES.rglob("*.yaml"))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: str(path.relative_to(FIXTURES).with_suffix("")))
def test_text(path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(path.parent)
    try:
        load_cluster(path.name)
        text = "ok\n"
    except RecipeError as error:
        text = f"{error}\n"
    expected = path.with_suffix(".expected.txt")
    if request.config.getoption("--update-fixtures"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_every_expected_text_has_its_cluster_file() -> None:
    texts = {path.name.removesuffix(".expected.txt") for path in FIXTURES.rglob("*.expected.txt")}
    assert texts == {path.stem for path in CLUSTERS}


def test_no_secret_is_shown() -> None:
    written = (FIXTURES / "keys" / "secrets.yaml").read_text()
    shown = (FIXTURES / "keys" / "secrets.expected.txt").read_text()
    for secret in ("hf_abcdefghijklmnopqrstuvwxyz0123", "not-to-be-shown", "user:word"):
        assert secret in written
        assert secret not in shown
