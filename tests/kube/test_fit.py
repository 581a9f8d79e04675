"""A recipe that cannot run on a cluster is an error with its position, before anything is applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.errors import RecipeError
from tailor.kube import fit
from tailor.kube.manifest import load_cluster
from tailor.spec.load import load_recipe
from tests.kube.helpers import CLUSTER, RECIPE, objects, write

GPUS = CLUSTER.replace("memory: 8Gi", "memory: 64Gi, gpu: 4")
HEAD = CLUSTER.replace("worker: {cpu: 4, memory: 8Gi}", "head: {cpu: 8, gpu: 1}")
CLAIMS = CLUSTER + (
    "volumes:\n"
    "  - {name: runs, mount: /mnt/runs, claim: runs}\n"
    "  - {name: data, mount: /data, claim: data, read_only: true}\n"
    "  - {name: scratch, mount: /scratch, size: 10Gi}\n"
    "image_files: [/opt/tailor/recipes]\n"
)
OWN_FOLDER = (
    "is a separate folder in each pod, deleted with the pod; write s3://…, or a folder on a claim in volumes of the "
    "cluster file"
)
HINT = "put it on s3://… or hf://…, on a claim in volumes, or in the image (image_files)"


def errors(folder: Path, cluster: str, *overrides: str) -> list[str]:
    try:
        objects(folder, RECIPE, cluster, overrides)
    except RecipeError as error:
        return [str(problem).removeprefix("command line: ") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("cluster", "override", "error"),
    [
        (CLUSTER, "scale.workers=3", None),
        (
            CLUSTER,
            "scale.gpu=true",
            "scale.gpu: is true, but worker.gpu in the cluster file is 0; set worker.gpu, or scale.gpu: auto",
        ),
        (GPUS, "scale.workers=4", None),
        (
            GPUS,
            "scale.workers=6",
            (
                "scale.workers: 6 workers use only 6 of the 8 GPUs of 2 pods; "
                "set scale.workers: 8, or worker.gpu: 3 in the cluster file"
            ),
        ),
        (
            GPUS,
            "scale={workers: 4, gpu: false}",
            "scale.gpu: is false, but worker.gpu in the cluster file is 4, so these GPUs would be unused",
        ),
        (HEAD, "scale.workers=1", None),
        (
            HEAD,
            "scale.workers=2",
            (
                "scale.workers: needs 2 GPUs, but head.gpu in the cluster file is 1, and only the head trains "
                "without a worker section"
            ),
        ),
        (CLUSTER, "scale.cpus_per_worker=4", None),
        (
            CLUSTER,
            "scale.cpus_per_worker=5",
            "scale.cpus_per_worker: needs 5 CPUs per pod (1 worker), but worker.cpu in the cluster file is 4",
        ),
        (
            GPUS,
            "scale={workers: 4, cpus_per_worker: 2}",
            "scale.cpus_per_worker: needs 8 CPUs per pod (4 workers), but worker.cpu in the cluster file is 4",
        ),
        (
            CLUSTER,
            "scale.address=auto",
            "scale.address: cannot be set on Kubernetes, where a job joins its own cluster; remove it",
        ),
        (
            CLUSTER,
            "model.attention=flash_attention_2",
            "model.attention: flash_attention_2 needs a GPU, but worker.gpu in the cluster file is 0",
        ),
        (CLUSTER + "autoscaler: {max_pods: 8}\n", "scale.workers=8", None),
        (
            CLUSTER + "autoscaler: {max_pods: 2}\n",
            "scale.workers=3",
            "scale.workers: needs 3 pods, but autoscaler.max_pods in the cluster file is 2",
        ),
        (CLUSTER, "save.resume=never", None),
        (
            CLUSTER + "job: {backoff_limit: 1}\n",
            "save.resume=never",
            (
                "save.resume: never prevents retries from resuming the run; set save.resume: auto, "
                "or job.backoff_limit: 0 in the cluster file"
            ),
        ),
    ],
)
def test_scale(cluster: str, override: str, error: str | None, tmp_path: Path) -> None:
    assert errors(tmp_path, cluster, override) == ([error] if error else [])


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("s3://bucket/elsewhere", None),
        ("gs://bucket/runs/x", None),
        ("/mnt/runs/x", None),
        ("file:///mnt/runs/x", None),
        ("/mnt/runs/../runs/x", None),
        ("runs/x", f"runs/x (/opt/tailor/runs/x in a pod) {OWN_FOLDER}"),
        ("/tmp/x", f"/tmp/x {OWN_FOLDER}"),
        ("/mnt/runs-b/x", f"/mnt/runs-b/x {OWN_FOLDER}"),
        ("/mnt/runs/../x", f"/mnt/runs/../x (/mnt/x in a pod) {OWN_FOLDER}"),
        ("/scratch/x", f"/scratch/x {OWN_FOLDER}"),
        ("/data/x", "/data/x is on the claim data, which the cluster file mounts read_only"),
        (
            "memory://x",
            "memory:// is only visible to one process; write s3://… or a folder on a claim in volumes of the cluster file",
        ),
        (
            "https://host/x",
            "https://host/x cannot be written; write s3://… or a folder on a claim in volumes of the cluster file",
        ),
    ],
)
@pytest.mark.parametrize("key", ["save.to", "data.store"])
def test_written_folders_must_be_shared(key: str, to: str, error: str | None, tmp_path: Path) -> None:
    assert errors(tmp_path, CLAIMS, f"{key}={to}") == ([f"{key}: {error}"] if error else [])


@pytest.mark.parametrize(
    ("path", "reachable"),
    [
        ("s3://bucket/*.jsonl", True),
        ("hf://owner/rows", True),
        ("https://host/rows.jsonl", True),
        ("/data/*.jsonl", True),
        ("/mnt/runs/rows.jsonl", True),
        ("recipes/quickstart/train.jsonl", True),
        ("rows.jsonl", False),
        ("/scratch/rows.jsonl", False),
        ("../recipes/rows.jsonl", False),
    ],
)
def test_data_must_be_reachable(path: str, reachable: bool, tmp_path: Path) -> None:
    expected = f"data.train.0.path: {path} is on this machine, and pods cannot read it; {HINT}"
    assert errors(tmp_path, CLAIMS, f"data.train.0.path={path}") == ([] if reachable else [expected])


def test_rows_of_the_final_evaluation_must_be_reachable(tmp_path: Path) -> None:
    tasks = "evaluate.final.tasks=[{name: perplexity}, {name: facts, data: {path: FACTS}}]"
    own = "evaluate.final.data.evaluation=[{path: ROWS}]"
    for rows, facts in (("hf://owner/rows", "/data/facts.jsonl"), ("rows.jsonl", "facts.jsonl")):
        expected = [
            f"evaluate.final.data.evaluation.0.path: {rows} is on this machine, and pods cannot read it; {HINT}",
            f"evaluate.final.tasks.1.data.path: {facts} is on this machine, and pods cannot read it; {HINT}",
        ]
        overrides = (own.replace("ROWS", rows), tasks.replace("FACTS", facts))
        assert sorted(errors(tmp_path, CLAIMS, *overrides)) == ([] if rows.startswith("hf") else expected)


def test_models_must_be_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("org/base", "gpt2", "/data/base", "recipes/quickstart/base"):
        assert errors(tmp_path, CLAIMS, f"model.path={path}") == []
    (tmp_path / "org" / "base").mkdir(parents=True)
    for path in ("org/base", "./base", "/models/base", "a/b/c"):
        expected = f"model.path: {path} is on this machine, and pods cannot read it; {HINT}"
        assert errors(tmp_path, CLAIMS, f"model.path={path}") == [expected]


def test_templates_must_be_reachable(tmp_path: Path) -> None:
    own = write(tmp_path, "{{ messages }}", "own.jinja")
    for name in ("chatml", str(own), "/data/own.jinja"):
        assert errors(tmp_path, CLAIMS, f"data.template={name}") == []
    missing = (
        f"data.template: none.jinja is neither a built-in template nor a file that pods can read; {HINT}"
    )
    assert errors(tmp_path, CLAIMS, "data.template=none.jinja") == [missing]
    in_image = CLAIMS + "recipe_path: /opt/tailor/recipes/x.yaml\n"
    (error,) = errors(tmp_path, in_image, f"data.template={own}")
    assert error.startswith(
        f"data.template: {own} is neither a built-in template nor a file that pods can read"
    )


def test_problems_have_positions_in_the_recipe(tmp_path: Path) -> None:
    text = RECIPE.replace("s3://bucket/runs/x", "runs/x") + "scale: {gpu: true}\n"
    with pytest.raises(RecipeError) as caught:
        objects(tmp_path, text, CLUSTER)
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(6, 12), (7, 14)]


@pytest.mark.parametrize(
    ("extra", "noted"),
    [
        ("", True),
        ("secret_env: {HF_TOKEN: hf/token}\n", True),
        ("secret_env: {AWS_ACCESS_KEY_ID: s3/key}\n", False),
        ("service_account: trainer\n", False),
        ("env_from: [s3]\n", False),
    ],
)
def test_s3_without_credentials_is_noted(extra: str, noted: bool, tmp_path: Path) -> None:
    cluster = load_cluster(str(write(tmp_path, CLUSTER + extra, "cluster.yaml")))
    recipe = load_recipe(write(tmp_path, RECIPE, "recipe.yaml"), check_files=False)
    assert [note[:25] for note in fit.notes(recipe, cluster)] == ["the recipe uses s3://, bu"] * noted


@pytest.mark.parametrize(
    ("extra", "noted"),
    [
        ("", ["track.wandb n", "track.mlflow "]),
        ("secret_env: {WANDB_API_KEY: wandb/key}\n", ["track.mlflow "]),
        ("env: {MLFLOW_TRACKING_URI: 'http://mlflow'}\nsecret_env: {WANDB_API_KEY: wandb/key}\n", []),
        ("env_from: [trackers]\n", []),
    ],
)
def test_a_tracker_without_its_environment_is_noted(extra: str, noted: list[str], tmp_path: Path) -> None:
    cluster = load_cluster(str(write(tmp_path, CLUSTER + extra, "cluster.yaml")))
    trackers = ["track.wandb={project: a}", "track.mlflow={experiment: a}"]
    recipe = load_recipe(write(tmp_path, RECIPE, "recipe.yaml"), trackers, check_files=False)
    assert [note[:13] for note in fit.notes(recipe, cluster) if note.startswith("track")] == noted
    plain = load_recipe(tmp_path / "recipe.yaml", check_files=False)
    assert not any(note.startswith("track") for note in fit.notes(plain, cluster))


@pytest.mark.parametrize("key", ["save.resume", "model.warm_start"])
def test_runs_must_be_reachable(key: str, tmp_path: Path) -> None:
    for run in ("s3://bucket/runs/a", "/mnt/runs/a"):
        assert errors(tmp_path, CLAIMS, f"{key}={run}") == []
    expected = f"{key}: runs/a is on this machine, and pods cannot read it; {HINT}"
    assert errors(tmp_path, CLAIMS, f"{key}=runs/a") == [expected]
