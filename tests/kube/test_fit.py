"""A recipe that cannot run on a cluster is refused at its place, before anything is applied."""

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
    "is a folder of each pod for itself, lost with it; write s3://…, or a folder below the mount of a claim in "
    "volumes of the cluster file"
)
MEND = "put it on s3://… or hf://…, on a claim in volumes, or in the image (image_files)"


def refusals(folder: Path, cluster: str, *overrides: str) -> list[str]:
    try:
        objects(folder, RECIPE, cluster, overrides)
    except RecipeError as error:
        return [str(problem).removeprefix("command line: ") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("cluster", "override", "refusal"),
    [
        (CLUSTER, "scale.workers=3", None),
        (
            CLUSTER,
            "scale.gpu=true",
            "scale.gpu: is true, but worker.gpu of the cluster file is 0; set it, or scale.gpu: auto",
        ),
        (GPUS, "scale.workers=4", None),
        (
            GPUS,
            "scale.workers=6",
            (
                "scale.workers: 6 of the 8 GPUs of 2 pods would train, and the others stay idle; "
                "set scale.workers: 8, or worker.gpu: 3 in the cluster file"
            ),
        ),
        (
            GPUS,
            "scale={workers: 4, gpu: false}",
            "scale.gpu: is false, and worker.gpu of the cluster file is 4: GPUs would stay idle",
        ),
        (HEAD, "scale.workers=1", None),
        (HEAD, "scale.workers=2", "scale.workers: needs 2 GPUs, and the head, which trains, has 1"),
        (CLUSTER, "scale.cpus_per_worker=4", None),
        (
            CLUSTER,
            "scale.cpus_per_worker=5",
            "scale.cpus_per_worker: asks for 5 CPUs in a pod (1 workers); worker.cpu of the cluster file is 4",
        ),
        (
            GPUS,
            "scale={workers: 4, cpus_per_worker: 2}",
            "scale.cpus_per_worker: asks for 8 CPUs in a pod (4 workers); worker.cpu of the cluster file is 4",
        ),
        (
            CLUSTER,
            "scale.address=auto",
            "scale.address: has no place on Kubernetes: the job joins the cluster that it is given",
        ),
        (
            CLUSTER,
            "model.attention=flash_attention_2",
            "model.attention: flash_attention_2 needs a GPU; worker.gpu of the cluster file is 0",
        ),
        (CLUSTER + "autoscaler: {max_pods: 8}\n", "scale.workers=8", None),
        (
            CLUSTER + "autoscaler: {max_pods: 2}\n",
            "scale.workers=3",
            "scale.workers: needs 3 pods; autoscaler.max_pods of the cluster file is 2",
        ),
        (CLUSTER, "save.resume=never", None),
        (
            CLUSTER + "job: {backoff_limit: 1}\n",
            "save.resume=never",
            "save.resume: never refuses what a retry must go on with; write auto, or job.backoff_limit: 0",
        ),
    ],
)
def test_scale(cluster: str, override: str, refusal: str | None, tmp_path: Path) -> None:
    assert refusals(tmp_path, cluster, override) == ([refusal] if refusal else [])


@pytest.mark.parametrize(
    ("to", "refusal"),
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
        ("/data/x", "/data/x lies on data, which the cluster file mounts read_only"),
        (
            "memory://x",
            "memory:// is only visible to one process; write s3://… or a folder below a claim of the cluster file",
        ),
        (
            "https://host/x",
            "https://host/x cannot be written; write s3://… or a folder below a claim of the cluster file",
        ),
    ],
)
@pytest.mark.parametrize("key", ["save.to", "data.store"])
def test_what_is_written_is_shared(key: str, to: str, refusal: str | None, tmp_path: Path) -> None:
    assert refusals(tmp_path, CLAIMS, f"{key}={to}") == ([f"{key}: {refusal}"] if refusal else [])


@pytest.mark.parametrize(
    ("path", "seen"),
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
def test_data_that_pods_see(path: str, seen: bool, tmp_path: Path) -> None:
    expected = f"data.train.0.path: {path} is on this machine, and pods cannot read it; {MEND}"
    assert refusals(tmp_path, CLAIMS, f"data.train.0.path={path}") == ([] if seen else [expected])


def test_rows_of_the_final_evaluation_that_pods_see(tmp_path: Path) -> None:
    tasks = "evaluate.final.tasks=[{name: perplexity}, {name: facts, data: {path: FACTS}}]"
    own = "evaluate.final.data.evaluation=[{path: ROWS}]"
    for rows, facts in (("hf://owner/rows", "/data/facts.jsonl"), ("rows.jsonl", "facts.jsonl")):
        mine = [
            f"evaluate.final.data.evaluation.0.path: {rows} is on this machine, and pods cannot read it; {MEND}",
            f"evaluate.final.tasks.1.data.path: {facts} is on this machine, and pods cannot read it; {MEND}",
        ]
        asked = (own.replace("ROWS", rows), tasks.replace("FACTS", facts))
        assert sorted(refusals(tmp_path, CLAIMS, *asked)) == ([] if rows.startswith("hf") else mine)


def test_models_that_pods_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("org/base", "gpt2", "/data/base", "recipes/quickstart/base"):
        assert refusals(tmp_path, CLAIMS, f"model.path={path}") == []
    (tmp_path / "org" / "base").mkdir(parents=True)
    for path in ("org/base", "./base", "/models/base", "a/b/c"):
        expected = f"model.path: {path} is on this machine, and pods cannot read it; {MEND}"
        assert refusals(tmp_path, CLAIMS, f"model.path={path}") == [expected]


def test_templates_that_pods_see(tmp_path: Path) -> None:
    own = write(tmp_path, "{{ messages }}", "own.jinja")
    for name in ("chatml", str(own), "/data/own.jinja"):
        assert refusals(tmp_path, CLAIMS, f"data.template={name}") == []
    missing = (
        f"data.template: none.jinja is neither a built-in template nor a file that pods can read; {MEND}"
    )
    assert refusals(tmp_path, CLAIMS, "data.template=none.jinja") == [missing]
    in_image = CLAIMS + "recipe_path: /opt/tailor/recipes/x.yaml\n"
    (refusal,) = refusals(tmp_path, in_image, f"data.template={own}")
    assert refusal.startswith(
        f"data.template: {own} is neither a built-in template nor a file that pods can read"
    )


def test_problems_stand_in_the_recipe(tmp_path: Path) -> None:
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
    assert [note[:25] for note in fit.notes(recipe, cluster)] == ["the recipe names s3://, b"] * noted


@pytest.mark.parametrize(
    ("extra", "noted"),
    [
        ("", ["track.wandb, ", "track.mlflow,"]),
        ("secret_env: {WANDB_API_KEY: wandb/key}\n", ["track.mlflow,"]),
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
def test_runs_that_pods_see(key: str, tmp_path: Path) -> None:
    for run in ("s3://bucket/runs/a", "/mnt/runs/a"):
        assert refusals(tmp_path, CLAIMS, f"{key}={run}") == []
    expected = f"{key}: runs/a is on this machine, and pods cannot read it; {MEND}"
    assert refusals(tmp_path, CLAIMS, f"{key}=runs/a") == [expected]
