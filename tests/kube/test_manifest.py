"""The manifests of `tailor manifest` are valid for KubeRay and Kubernetes, for many recipes and cluster files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.cli.main import main
from tailor.errors import RecipeError, TemplateError
from tailor.kube import manifest
from tailor.kube.pods import STOP_MARGIN_SECONDS
from tailor.kube.spec import Cluster
from tailor.spec.load import load_recipe
from tests.kube.helpers import CLUSTER, RECIPE, objects, write
from tests.kube.kuberay import pods, problems

GPUS = "worker: {cpu: 16, memory: 128Gi, gpu: 4, shared_memory: 32Gi}\n"
RECIPES = {
    "one": RECIPE,
    "four": RECIPE + "scale: {workers: 4}\n",
    "full": RECIPE.replace("save:", "train: {batch_size: 32}\nsave:").replace("every: 50", "every: 10"),
    "sixteen": RECIPE + "scale: {workers: 16}\ntrain: {batch_size: 64}\n",
}
CLUSTERS = {
    "plain": CLUSTER,
    "head": CLUSTER.replace("worker: {cpu: 4, memory: 8Gi}", "head: {cpu: 16, memory: 8Gi}"),
    "volumes": CLUSTER
    + "volumes:\n"
    + "  - {name: runs, mount: /runs, claim: runs}\n"
    + "  - {name: data, mount: /data, claim: data, read_only: true}\n"
    + "  - {name: scratch, mount: /scratch, size: 100Gi}\n"
    + "cache: {claim: cache, mount: /models}\n",
    "secrets": CLUSTER
    + "env: {AWS_ENDPOINT_URL: 'http://s3:9000', NCCL_DEBUG: '0'}\n"
    + "secret_env: {HF_TOKEN: hf/token, AWS_SECRET_ACCESS_KEY: s3/secret.key}\n"
    + "env_from: [more-secrets]\nimage_pull_secrets: [registry]\nservice_account: trainer\n",
    "nodes": CLUSTER.replace(
        "worker: {cpu: 4, memory: 8Gi}",
        "worker:\n  cpu: 4\n  memory: 8Gi\n  ephemeral_storage: 200Gi\n  workers_per_pod: 2\n"
        "  node_selector: {pool: a, example.com/fast: 'true'}\n"
        "  tolerations:\n    - {operator: Exists}\n"
        "    - {key: spot, value: 'true', effect: NoExecute, toleration_seconds: 30}\n"
        "priority_class: high\nlabels: {team: nlp}\nannotations: {example.com/note: 'a: b'}",
    ),
    "queue": CLUSTER + "gang: {scheduler: kueue, queue: training, priority_class: research}\n",
    "volcano": CLUSTER + "gang: {scheduler: volcano, queue: training, priority_class: research}\n",
    "scaled": CLUSTER + "autoscaler: {max_pods: 32, upscaling_mode: Conservative}\nauth: disabled\n",
    "deadlines": CLUSTER
    + "job: {backoff_limit: 3, ttl_seconds_after_finished: 60, active_deadline_seconds: 9, "
    + "pre_running_deadline_seconds: 5}\nname: night\nnamespace: research\n",
    "in_image": CLUSTER + "recipe_path: /opt/tailor/recipes/x y.yaml\n",
}


@pytest.mark.parametrize("kind", manifest.KINDS)
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_manifest_is_taken(recipe: str, cluster: str, kind: manifest.Kind, tmp_path: Path) -> None:
    for value in objects(tmp_path, RECIPES[recipe], CLUSTERS[cluster], kind=kind):
        assert problems(value) == []


ROOT = Path(__file__).parents[2]
SHIPPED = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "schema" not in path.name]
FILES = sorted(path for path in (ROOT / "cluster").glob("*.yaml") if path.stem != "persistent")


@pytest.mark.parametrize("at", range(len(SHIPPED)), ids=[path.stem for path in SHIPPED])
def test_every_shipped_recipe_on_a_shipped_cluster_file(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the next cluster file that has enough GPUs; rows that recipes leave to the user are in the image."""
    monkeypatch.chdir(ROOT)
    overrides = [f"save.to=s3://tailor/runs/{SHIPPED[at].stem}", "scale.gpu=auto"]
    recipe = None
    for turn in range(len(FILES)):
        cluster = manifest.load_cluster(str(FILES[(at + turn) % len(FILES)].relative_to(ROOT)))
        cluster = cluster.model_copy(update={"image_files": ["/opt/tailor"]})
        with suppress(RecipeError):
            recipe = manifest.load_recipe(str(SHIPPED[at].relative_to(ROOT)), cluster, overrides)
            break
    assert recipe is not None
    made = manifest.documents(recipe, cluster, kind="RayJob", stem=SHIPPED[at].stem, overrides=overrides)
    assert [value["kind"] for value in made] == ["ConfigMap", "RayJob"]
    assert [problems(value) for value in made] == [[], []]


def _pod(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return pod


ERRORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a field of the job": lambda job: job["spec"].update(ttlSeconds=1),
    "ttl without shutdown": lambda job: job["spec"].update(
        shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=1
    ),
    "text for a number": lambda job: job["spec"].update(backoffLimit="1"),
    "a submitter that retries": lambda job: job["spec"]["submitterConfig"].update(backoffLimit=2),
    "sidecar": lambda job: job["spec"].update(submissionMode="SidecarMode"),
    "an old Ray": lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.52.0"),
    "a head that takes work": lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].update(
        rayStartParams={"num-cpus": "2"}
    ),
    "a long name": lambda job: job["metadata"].update(name="x" * 48),
    "fewer pods than the minimum": lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(
        replicas=0
    ),
    "a field of the pod": lambda job: _pod(job).update(nodeSelectors={}),
    "a field of a container": lambda job: _pod(job)["containers"][0].update(imag="x"),
    "a number in env": lambda job: _pod(job)["containers"][0]["env"].append({"name": "A", "value": 1}),
    "a variable twice": lambda job: _pod(job)["containers"][0]["env"].append(
        {"name": "HF_HOME", "value": "/x"}
    ),
    "a volume that isn't there": lambda job: _pod(job)["volumes"].pop(),
    "a wrong quantity": lambda job: _pod(job)["containers"][0]["resources"]["limits"].update(memory="8GB"),
    "a wrong effect": lambda job: _pod(job).update(tolerations=[{"operator": "Exists", "effect": 3}]),
    "a field of the submitter": lambda job: job["spec"]["submitterPodTemplate"]["spec"].update(
        restart="Never"
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_errors_are_detected(mistake: str, tmp_path: Path) -> None:
    """Control: the models and schemas detect errors."""
    job = objects(tmp_path)[1]
    assert problems(job) == []
    ERRORS[mistake](job)
    assert problems(job)


def test_pods_follow_from_the_recipe(tmp_path: Path) -> None:
    def group(recipe: str, cluster: str) -> dict[str, Any]:
        job = objects(tmp_path, recipe, cluster)[1]
        (found,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        return dict(found)

    gpus = CLUSTER.replace("worker: {cpu: 4, memory: 8Gi}\n", GPUS)
    found = group(RECIPES["sixteen"], gpus)
    assert (found["replicas"], found["minReplicas"], found["maxReplicas"]) == (4, 4, 4)
    container = found["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert found["rayStartParams"] == {"num-gpus": "4", "object-store-memory": str(16 << 30)}
    assert group(RECIPES["four"], gpus)["replicas"] == 1
    assert group(RECIPES["four"], CLUSTER)["replicas"] == 4
    assert group(RECIPES["four"], CLUSTERS["nodes"])["replicas"] == 2
    scaled = group(RECIPES["four"], CLUSTERS["scaled"])
    assert (scaled["replicas"], scaled["minReplicas"], scaled["maxReplicas"]) == (4, 4, 32)


def test_a_persistent_cluster_may_shrink(tmp_path: Path) -> None:
    (cluster,) = objects(tmp_path, RECIPES["four"], CLUSTERS["scaled"], kind="RayCluster")
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 32)


def test_without_workers_the_head_trains(tmp_path: Path) -> None:
    cluster = objects(tmp_path, RECIPE, CLUSTERS["head"])[1]["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster
    assert "num-cpus" not in cluster["headGroupSpec"]["rayStartParams"]


def test_the_config_map_contains_the_resolved_recipe(tmp_path: Path) -> None:
    """With `extends`, overrides and a chat template of this machine. It loads to the same recipe."""
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}\n")
    write(tmp_path, RECIPE, "base.yaml")
    recipe = "extends: base.yaml\noptim: {schedule: linear}\n"
    overrides = ["optim.learning_rate=3e-4", f"data.template={template}"]
    config_map, job = objects(tmp_path, recipe, CLUSTER, overrides)
    assert config_map["immutable"]
    assert config_map["data"]["template.jinja"] == template.read_text()
    inside = write(tmp_path, config_map["data"]["recipe.yaml"], "resolved.yaml")
    loaded = load_recipe(inside, check_files=False)
    expected = load_recipe(tmp_path / "recipe.yaml", overrides, check_files=False)
    assert loaded.data.template == "/etc/tailor/template.jinja"
    assert loaded.optim == expected.optim
    assert loaded.optim.learning_rate == 3e-4
    assert loaded.model_copy(update={"data": expected.data}) == expected
    assert job["spec"]["entrypoint"] == "tailor run /etc/tailor/recipe.yaml"
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes["recipe"]["configMap"] == {"name": config_map["metadata"]["name"]}


def test_a_template_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="not UTF-8"):
        objects(tmp_path, RECIPE, CLUSTER, [f"data.template={tmp_path / 'own.jinja'}"])


def test_another_recipe_has_another_config_map(tmp_path: Path) -> None:
    names = {
        objects(tmp_path, RECIPE, CLUSTER, overrides)[0]["metadata"]["name"]
        for overrides in ([], [], ["optim.learning_rate=3e-4"])
    }
    assert len(names) == 2


def test_a_recipe_in_the_image(tmp_path: Path) -> None:
    """The path and the overrides are quoted for the shell."""
    (job,) = objects(tmp_path, RECIPE, CLUSTERS["in_image"], ["save.to=s3://b/a b$c"])
    assert job["spec"]["entrypoint"] == ("tailor run '/opt/tailor/recipes/x y.yaml' 'save.to=s3://b/a b$c'")
    volumes = _pod(job)["volumes"]
    assert [volume["name"] for volume in volumes] == ["cache"]


def test_secrets_are_references(tmp_path: Path) -> None:
    pod = _pod(objects(tmp_path, RECIPE, CLUSTERS["secrets"])[1])
    (container,) = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "s3", "key": "secret.key"}}
    assert env["AWS_ENDPOINT_URL"]["value"] == "http://s3:9000"
    assert container["envFrom"] == [{"secretRef": {"name": "more-secrets"}}]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "trainer"


@pytest.mark.parametrize(
    ("cluster", "labels"),
    [
        ("queue", {"kueue.x-k8s.io/queue-name": "training", "kueue.x-k8s.io/priority-class": "research"}),
        ("volcano", {"volcano.sh/queue-name": "training", "ray.io/priority-class-name": "research"}),
    ],
)
def test_gangs(cluster: str, labels: dict[str, str], tmp_path: Path) -> None:
    job = objects(tmp_path, RECIPE, CLUSTERS[cluster])[1]
    assert job["metadata"]["labels"].items() >= labels.items()
    assert not labels.keys() & objects(tmp_path)[1]["metadata"]["labels"].keys()


@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_authentication_is_set_everywhere(auth: str, tmp_path: Path) -> None:
    job = objects(tmp_path, RECIPE, CLUSTER + f"auth: {auth}\n")[1]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": auth}
    cluster = job["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for template in (*templates, job["spec"]["submitterPodTemplate"]):
        env = {
            entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0].get("env", [])
        }
        # With a token, KubeRay sets it.
        assert env.get("RAY_AUTH_MODE") == ("disabled" if auth == "disabled" else None)


def test_pods_comply_with_the_restricted_standard(tmp_path: Path) -> None:
    """As defined in Kubernetes' Pod Security Standards."""
    for kind in manifest.KINDS:
        for value in objects(tmp_path, RECIPE, CLUSTERS["volumes"], kind=kind):
            for template in pods(value) if value["kind"] == kind else []:
                pod = template["spec"]
                assert pod["securityContext"]["runAsNonRoot"] is True
                assert pod["securityContext"]["runAsUser"] > 0
                assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
                assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
                kinds = {key for volume in pod.get("volumes", []) for key in volume if key != "name"}
                assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
                for container in pod["containers"]:
                    assert container["securityContext"] == {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    }


def test_only_the_autoscaler_gets_a_token_of_the_service_account(tmp_path: Path) -> None:
    for kind in manifest.KINDS:
        for autoscaler in ("", "autoscaler: {max_pods: 4}\n"):
            (value,) = (
                value
                for value in objects(tmp_path, RECIPE, CLUSTER + autoscaler, kind=kind)
                if value["kind"] == kind
            )
            tokens = [template["spec"]["automountServiceAccountToken"] for template in pods(value)]
            assert tokens.count(True) == (1 if autoscaler else 0)
            head = value["spec"].get("rayClusterSpec", value["spec"])["headGroupSpec"]["template"]["spec"]
            assert head["automountServiceAccountToken"] is bool(autoscaler)


def test_one_key_sets_how_long_a_stopped_run_may_save(tmp_path: Path) -> None:
    """Ray waits for the run, and Kubernetes for Ray. The images set the same number as the default."""
    for dockerfile in Path("docker").glob("Dockerfile.*"):
        assert f"RAY_JOB_STOP_WAIT_TIME_S={Cluster(image='x').stop_seconds}" in dockerfile.read_text()
    for kind in manifest.KINDS:
        for line, seconds in (("", 600), ("stop_seconds: 90\n", 90)):
            for value in objects(tmp_path, RECIPE, CLUSTER + line, kind=kind):
                for template in pods(value) if value["kind"] == kind else []:
                    container = template["spec"]["containers"][0]
                    if container["name"] == "ray-job-submitter":
                        continue
                    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(seconds)} in container["env"]
                    assert template["spec"]["terminationGracePeriodSeconds"] == seconds + STOP_MARGIN_SECONDS


def test_a_pod_stops_after_its_training(tmp_path: Path) -> None:
    """The hooks, run with a folder of these processes alone in place of /proc."""
    for value in objects(tmp_path, RECIPE, CLUSTER, kind="RayCluster"):
        hooks = [
            template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            for template in pods(value)
        ]
    stop_runs, wait = ((*words[:2], words[2].replace("/proc/", f"{tmp_path}/proc/")) for words in hooks)
    saved = tmp_path / "saved"
    for command, ends in (("tailor", True), ("other", False)):
        saved.unlink(missing_ok=True)
        stop = f"lambda *_: (time.sleep(0.5), open({str(saved)!r}, 'w'), sys.exit(143))"
        script = f"import signal, sys, time; signal.signal(15, {stop}); print(flush=True); time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            run.stdout.readline()
            threading.Thread(target=run.wait, daemon=True).start()  # as the shell of the job does
            folder = tmp_path / "proc" / str(run.pid)
            folder.mkdir(parents=True)
            (folder / "cmdline").write_bytes(f"python3\0/opt/bin/{command}\0run\0recipe.yaml\0".encode())
            subprocess.run(stop_runs, check=True, timeout=30)
            assert saved.exists() is ends, (
                "the hook returns when the run has saved; the control is another command"
            )
            shutil.rmtree(folder)
            run.kill()
    names = tmp_path / "proc" / "1"
    names.mkdir()
    (names / "comm").write_text("ray::IDLE\n")
    subprocess.run(wait, check=True, timeout=30)
    (names / "comm").write_text("ray::RayTrainWorker"[:15] + "\n")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(wait, check=True, timeout=1.5)


def test_the_text_can_be_parsed(tmp_path: Path) -> None:
    """Also by a YAML 1.1 parser, such as Kubernetes'. Strings that look like numbers remain strings."""
    cluster = CLUSTER + "env: {A: '2e-4', B: 'on', C: '010', D: '1_0', E: '1:30', F: '0o7'}\n"
    values = objects(tmp_path, RECIPE, cluster)
    text = manifest.text(values, "a\nb")
    assert list(yaml.safe_load_all(text)) == values
    assert text.startswith("# a\n# b\n---\n")
    assert 'value: "2e-4"' in text
    assert "&id" not in text


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECIPE, "my_Recipe.yaml")
    write(tmp_path, CLUSTER + "job: {backoff_limit: 1}\n", "k8s.yaml")
    assert main(["manifest", "my_Recipe.yaml", "save.every=null", "--cluster", "k8s.yaml"]) == 0
    printed = capsys.readouterr()
    config_map, job = yaml.safe_load_all(printed.out)
    assert job["metadata"]["name"] == "my-recipe"
    assert config_map["metadata"]["name"].startswith("my-recipe-")
    assert [line[:30] for line in printed.err.splitlines()] == [
        "tailor: note: the recipe uses ",
        "tailor: note: without save.eve",
    ]
    assert main(["manifest", "my_Recipe.yaml", "--cluster", "k8s.yaml", "--kind", "RayCluster"]) == 0
    (cluster,) = yaml.safe_load_all(capsys.readouterr().out)
    assert cluster["kind"] == "RayCluster"
    assert main(["manifest", "my_Recipe.yaml"]) == 2
    assert capsys.readouterr().err == (
        "tailor: no --cluster was given, and the default file cluster/k8s.yaml does not exist\n  hint: name a cluster file with --cluster\n"
    )
    assert main(["manifest", "my_Recipe.yaml", "--cluster", "k9s.yaml"]) == 2
    assert capsys.readouterr().err == "k9s.yaml: no such file; did you mean k8s.yaml?\n"


def test_a_wrong_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="schedule"):
        objects(tmp_path, RECIPE, CLUSTER, ["optim.schedule=x"])
