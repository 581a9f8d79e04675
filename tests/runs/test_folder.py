"""Finding runs, and keeping two processes out of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.errors import StoreError
from tailor.store import Store, run_folder
from tests.helpers.run_folders import make_run
from tests.helpers.stores import commit


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("a", "group/b", "group/deep/c"):
        make_run(str(tmp_path / name), steps=2)
    (tmp_path / "tokens" / "abc").mkdir(parents=True)
    found = [run.url.removeprefix(str(tmp_path) + "/") for run in run_folder.below(Store(str(tmp_path)))]
    assert found == ["a", "group/b", "group/deep/c"]


def test_a_missing_run_names_the_near_ones(tmp_path: Path) -> None:
    make_run(str(tmp_path / "quickstart"), steps=2)
    with pytest.raises(StoreError) as caught:
        run_folder.find(str(tmp_path / "quikstart"))
    assert "no run at" in caught.value.message
    assert "quickstart" in str(caught.value.hint)
    assert run_folder.find(str(tmp_path / "quickstart")).url == str(tmp_path / "quickstart")


def test_only_a_run_on_conversations_is_one_to_talk_to(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    run.write_json("adapter/tokenizer_config.json", {})
    assert not run_folder.can_chat(run)
    run.write_text("adapter/chat_template.jinja", "{{ messages }}")
    assert run_folder.can_chat(run)
    run.write_json(
        "data.json", {"template": None, "tokens": "t", "sources": []}
    )  # text on a base that has a template
    assert not run_folder.can_chat(run)
    run.write_json("data.json", {"template": "chatml", "tokens": "t", "sources": []})
    assert run_folder.can_chat(run)


def test_checkpoints_without_their_marker_do_not_count(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    commit(run.join("checkpoints"), "step-00000005", {"state.json": "{}"})
    run.write_text("checkpoints/step-00000010/state.json", "{}")
    assert run_folder.checkpoints(run) == ["step-00000005"]
    assert run_folder.step_of(run.join("checkpoints", "step-00000005").url) == 5
