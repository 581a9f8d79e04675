"""JSON files are checked when they are read: one error that names the file, for everything that is not what was written."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import tailor
from tailor.errors import StoreError
from tailor.models.beacon.files import BEACON_FILE
from tailor.models.embedding.settings import EMBEDDING_FILE
from tailor.runs.log import log_text, read
from tailor.runs.origin import Origin, origins
from tailor.runs.status import STATUS_FILE, Status
from tailor.store import JsonFile, Store
from tests.helpers.run_folders import make_run, train_record

GOOD = {"state": "finished", "started": "2026-01-02T10:00:00.000+00:00"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "it is not valid JSON"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"[1]", "it is not a JSON object"),
        (b"null", "it is not a JSON object"),
        (b'{"a":' * 100_000, "its values are nested too deeply"),
        (b"{}", "it has no state"),
        (json.dumps({**GOOD, "state": "done"}).encode(), "state: input should be 'running', "),
        (json.dumps({**GOOD, "step": "3"}).encode(), "step: input should be a valid integer, not '3'"),
        (
            json.dumps({**GOOD, "step": -1}).encode(),
            "step: input should be greater than or equal to 0, not -1",
        ),
        (json.dumps({**GOOD, "started": "now"}).encode(), "started: "),
        (json.dumps({**GOOD, "started": "2026-01-02"}).encode(), "started: a time needs a time zone"),
        (json.dumps({**GOOD, "timings": {"x": None}}).encode(), "timings.x: "),
        (json.dumps({**GOOD, "format_version": "2"}).encode(), "format_version: '2' is not a version"),
        (json.dumps({**GOOD, "format_version": True}).encode(), "format_version: True is not a version"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(StoreError) as caught:
        STATUS_FILE.parse(content, "/runs/x/status.json")
    assert caught.value.message.startswith(f"/runs/x/status.json is damaged: {reason}")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("remove /runs/x/status.json and run the recipe again")


def test_a_newer_format_is_an_error_and_an_older_or_unknown_key_is_not() -> None:
    newer = json.dumps({**GOOD, "format_version": 2}).encode()
    with pytest.raises(
        StoreError, match=r"newer version of tailor: its format has version 2, .* reads up to 1"
    ):
        STATUS_FILE.parse(newer, "status.json")
    for values in (GOOD, {**GOOD, "format_version": 1}, {**GOOD, "color": "blue"}):
        assert STATUS_FILE.parse(json.dumps(values).encode(), "status.json")["state"] == "finished"


@pytest.mark.parametrize(("file", "key"), [(EMBEDDING_FILE, "pooling"), (BEACON_FILE, "window")])
def test_a_setting_of_a_model_is_never_a_default(file: JsonFile, key: str) -> None:
    """A default in place of a missing setting would change results without an error."""
    with pytest.raises(StoreError, match=f"x.json is damaged: it has no {key}"):
        file.parse(b"{}", "x.json")
    # The control: the shape itself would accept the file.
    assert JsonFile(file.shape, "").parse(b"{}", "x.json") == {}


def test_the_version_is_written(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), steps=2)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["format_version"] == 1
    assert Status.read(run) == Status(
        **{key: value for key, value in status.items() if key != "format_version"}
    )
    header, *lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(header) == {"kind": "header", "format_version": 1}
    assert len(read(run)) == len(lines)


def test_metrics_of_older_versions_have_no_header(tmp_path: Path) -> None:
    text = log_text([train_record(1)])
    run = Store(str(tmp_path))
    for content in (text, text.split("\n", 1)[1]):
        run.write_text("metrics.jsonl", content)
        assert read(run) == [train_record(1)]
    run.write_text("metrics.jsonl", text.replace('"format_version":1', '"format_version":2'))
    with pytest.raises(StoreError, match=r"metrics\.jsonl was written by a newer version"):
        read(run)
    run.write_text("metrics.jsonl", text.replace('"loss":', '"lost":'))
    with pytest.raises(StoreError, match=r"metrics\.jsonl:2: the line is damaged: it has no train\.loss"):
        read(run)


def test_changes_of_older_versions_are_a_list(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    change = {
        "run": "x",
        "step": 4,
        "checkpoint": "y",
        "changes": {"optim.learning_rate": [1, 2]},
        "first_step": 0,
    }
    for content in ([change], {"format_version": 1, "origins": [change]}):
        run.write_json("origin.json", content)
        assert origins(run) == [Origin(**change)]  # type: ignore[arg-type]
    run.write_json("origin.json", [{**change, "changes": {"optim.learning_rate": [1]}}])
    with pytest.raises(StoreError, match=r"origin\.json is damaged: origins\.0\.changes"):
        origins(run)


READERS = ("store/json_files.py", "store/store.py", "store/sharded_publication.py")
"""`Store.read_json` is only used for the messages between the workers of one commit."""


def test_every_reader_of_a_json_file_uses_the_same_mechanism() -> None:
    """No other module parses what it reads from a file."""
    root, found = Path(tailor.__file__).parent, []
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = ast.unparse(node)
                parses = words.startswith("json.load") and ("read_text(" in words or "read_bytes(" in words)
                if parses or node.func.attr == "read_json":
                    found.append((file.relative_to(root).as_posix(), words))
    assert {name for name, _ in found} <= {*READERS, *ELSEWHERE}, found
    assert found, "the control: there is something to find"


ELSEWHERE = ("artifacts/sentence_transformers.py", "encode/pair_template.py")
"""modules.json of sentence-transformers is a list, and checked there; tokenizer.json was written just before."""
