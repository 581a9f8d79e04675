"""A rendered cluster without pods and a run that asks for them: Ray's own autoscaler finds what to bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.kube import fit
from tailor.kube.manifest import load_cluster
from tailor.onray.cluster import Cluster, Node
from tailor.onray.placement import asked_for, resources_per_worker
from tailor.spec.load import load_recipe
from tests.kube.helpers import CLUSTER, RECIPE, objects, write

ROOT = Path(__file__).parents[2]

SCALED = CLUSTER.replace("memory: 8Gi", "memory: 64Gi, gpu: 1") + "autoscaler: {min_pods: 0, max_pods: 4}\n"


def brought(ray_cluster: dict[str, Any], bundle: dict[str, float], workers: int) -> dict[str, int] | None:
    """The pods by group that Ray's autoscaler makes for what a run asks, or None where it never can."""
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

    def schedule(**asked: Any) -> Any:
        return ResourceDemandScheduler(Silent()).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=config.get_node_type_configs(),
                max_num_nodes=config.get_max_num_nodes(),
                **asked,
            )
        )

    if schedule(cluster_resource_constraints=[constraint]).infeasible_cluster_resource_constraints:
        return None
    waiting = messages.GangResourceRequest(requests=[request] * workers)
    return {
        launch.instance_type: launch.count for launch in schedule(gang_resource_requests=[waiting]).to_launch
    }


def test_the_published_cluster_brings_what_its_recipe_asks_for(tmp_path: Path) -> None:
    text = (ROOT / "cluster/examples/persistent.yaml").read_text()
    (ray_cluster,) = yaml.safe_load_all(text)
    (group,) = ray_cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 4)
    scale = load_recipe(ROOT / "recipes/cluster-lora.yaml", check_files=False).scale
    bundle = asked_for(scale, gpu=True)
    assert brought(ray_cluster, bundle, scale.max_workers) == {"worker": 4}
    assert brought(ray_cluster, bundle, 5) is None, "the control"
    assert brought(ray_cluster, {**bundle, "accelerator_type:H100": 0.001}, 1) is None, "as the note says"
    pods = Cluster(own=False, nodes=(Node(0, 0), *[Node(8, 1)] * 4))
    assert resources_per_worker(scale, pods, 4, gpu=True) == {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("cluster", "overrides", "noted"),
    [
        (SCALED, ["scale={workers: 4, gpu: true}"], []),
        (SCALED, ["scale.workers=4"], ["with scale.gpu: auto a run"]),
        (SCALED, ["scale={workers: 4, gpu: true, accelerator: H100}"], ["Ray's autoscaler learns th"]),
        (SCALED.replace("max_pods: 4", "max_pods: 4, version: v1"), [], ["autoscaler.version v1 does"]),
        (SCALED.replace("min_pods: 0", "min_pods: 4"), ["scale.workers=4"], []),
    ],
)
def test_what_a_run_that_asks_should_know_is_noted(
    cluster: str, overrides: list[str], noted: list[str], tmp_path: Path
) -> None:
    found = load_cluster(str(write(tmp_path, cluster + "env_from: [s3]\n", "cluster.yaml")))
    recipe = load_recipe(write(tmp_path, RECIPE, "recipe.yaml"), overrides, check_files=False)
    assert [note[:26] for note in fit.notes(recipe, found, stays=True)] == noted
    assert fit.notes(recipe, found) == [], "a job has its pods"


def test_a_cluster_that_stays_begins_with_the_fewest_pods(tmp_path: Path) -> None:
    for least in (0, 2):
        cluster = SCALED.replace("min_pods: 0", f"min_pods: {least}")
        (made,) = objects(tmp_path, RECIPE, cluster, ["scale={workers: 4, gpu: true}"], kind="RayCluster")
        (group,) = made["spec"]["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (least, least, 4)
