"""A generated RayCluster without pods, and a run that requests them: Ray's autoscaler computes the pods to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.kube import fit
from tailor.kube.manifest import load_cluster
from tailor.onray.cluster import Cluster, Node
from tailor.onray.placement import pending_resources, resources_per_worker
from tailor.spec.load import load_recipe
from tests.kube.helpers import CLUSTER, RECIPE, objects, write

ROOT = Path(__file__).parents[2]

SCALED = CLUSTER.replace("memory: 8Gi", "memory: 64Gi, gpu: 1") + "autoscaler: {min_pods: 0, max_pods: 4}\n"


def pods_to_start(
    ray_cluster: dict[str, Any], bundle: dict[str, float], workers: int
) -> dict[str, int] | None:
    """Pods by group that Ray's autoscaler would start for a run's request, or None if the request is infeasible."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.core.generated import autoscaler_pb2 as messages

    class Silent(AutoscalerEventLogger):
        def __init__(self) -> None:
            pass

        def log_cluster_scheduling_update(self, *_: Any, **__: Any) -> None:
            pass

    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(ray_cluster), skip_content_hash=True)
    request = messages.ResourceRequest(resources_bundle=bundle)
    constraint = messages.ClusterResourceConstraint()
    constraint.resource_requests.add(request=request, count=workers)

    def schedule(**demand: Any) -> Any:
        return ResourceDemandScheduler(Silent()).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=config.get_node_type_configs(),
                max_num_nodes=config.get_max_num_nodes(),
                **demand,
            )
        )

    if schedule(cluster_resource_constraints=[constraint]).infeasible_cluster_resource_constraints:
        return None
    gang = messages.GangResourceRequest(requests=[request] * workers)
    return {
        launch.instance_type: launch.count for launch in schedule(gang_resource_requests=[gang]).to_launch
    }


def test_the_published_cluster_starts_the_pods_of_its_recipe(tmp_path: Path) -> None:
    text = (ROOT / "cluster/examples/persistent.yaml").read_text()
    (ray_cluster,) = yaml.safe_load_all(text)
    (group,) = ray_cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 4)
    scale = load_recipe(ROOT / "recipes/cluster-lora.yaml", check_files=False).scale
    bundle = pending_resources(scale, gpu=True)
    assert pods_to_start(ray_cluster, bundle, scale.max_workers) == {"worker": 4}
    assert pods_to_start(ray_cluster, bundle, 5) is None, "the control"
    assert pods_to_start(ray_cluster, {**bundle, "accelerator_type:H100": 0.001}, 1) is None, (
        "as the note says"
    )
    pods = Cluster(is_local=False, nodes=(Node(0, 0), *[Node(8, 1)] * 4))
    assert resources_per_worker(scale, pods, 4, gpu=True) == {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("cluster", "overrides", "noted"),
    [
        (SCALED, ["scale={workers: 4, gpu: true}"], []),
        (SCALED, ["scale.workers=4"], ["with scale.gpu: auto, a ru"]),
        (SCALED, ["scale={workers: 4, gpu: true, accelerator: H100}"], ["Ray's autoscaler learns th"]),
        (SCALED.replace("max_pods: 4", "max_pods: 4, version: v1"), [], ["autoscaler.version: v1 doe"]),
        (SCALED.replace("min_pods: 0", "min_pods: 4"), ["scale.workers=4"], []),
    ],
)
def test_notes_about_the_autoscaler(
    cluster: str, overrides: list[str], noted: list[str], tmp_path: Path
) -> None:
    found = load_cluster(str(write(tmp_path, cluster + "env_from: [s3]\n", "cluster.yaml")))
    recipe = load_recipe(write(tmp_path, RECIPE, "recipe.yaml"), overrides, check_files=False)
    assert [note[:26] for note in fit.notes(recipe, found, persistent=True)] == noted
    assert fit.notes(recipe, found) == [], "a job starts with all its pods"


def test_a_persistent_cluster_starts_with_min_pods(tmp_path: Path) -> None:
    for min_pods in (0, 2):
        cluster = SCALED.replace("min_pods: 0", f"min_pods: {min_pods}")
        (made,) = objects(tmp_path, RECIPE, cluster, ["scale={workers: 4, gpu: true}"], kind="RayCluster")
        (group,) = made["spec"]["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (min_pods, min_pods, 4)
