"""`export.push_to_hub`: a run checks the hub before training, and uploads its artifact at the end."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import completed
from tests.helpers.hub import hub
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data: {train: [{path: rows.jsonl}], max_length: 128}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 2, batch_size: 2, precision: fp32}
save: {to: runs/first}
export: {push_to_hub: me/shop, weights: merged}
"""


@pytest.mark.slow
def test_a_run_is_pushed_when_it_has_finished(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base")
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 20)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(token: str | None) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
        environment |= {"HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": os.getcwd()} | ({"HF_TOKEN": token} if token else {})
        return completed(["run", "recipe.yaml"], cwd=tmp_path, env=environment)

    with hub(good=("me",), reader=()) as server:
        done = run(None)
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            2,
            "tailor: HF_TOKEN is not set: the hub needs a token",
        )
        assert run("wrong").stderr.startswith("tailor: the hub rejects the token in HF_TOKEN (401)")
        assert not (tmp_path / "runs").exists(), "nothing was trained"
        done = run("good")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].startswith(f"pushed to {server.url}/me/shop/commit/")
        repository = server.repositories["me/shop"]
        assert repository.private
        assert {"model.safetensors", "merge.json", "README.md"} <= repository.branches["main"].keys()
        del repository.branches["main"]["README.md"]
        done = run("good")  # finished, and pushed again
        assert done.returncode == 0
        assert "README.md" in repository.branches["main"]
