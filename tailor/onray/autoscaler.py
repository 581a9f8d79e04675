"""Asks Ray's autoscaler (v2) which nodes it could add to the cluster."""

from __future__ import annotations

import time
from typing import Any

ANSWER_SECONDS = 60.0
"""Maximum wait for the autoscaler's answer. It updates every 5 s, and requests of other runs may come first."""

OTHERS_SECONDS = 7.0
"""How long another run's request may stay before this run replaces it. A request of `can_provide` is shorter."""


def can_provide(bundle: dict[str, float], count: int) -> bool:
    """Whether the cluster could hold `count` such bundles, including the nodes that its autoscaler may add.

    Resources that are in use count as available. False when no autoscaler reports its state: there is none, it is v1,
    or this version of Ray has another report format. True when the autoscaler does not answer in time, because it may
    still be starting.

    Ray keeps a single resource request per cluster (`request_resources`), and keeps it after the process that made it
    has died. Therefore this function withdraws its request as soon as it has the answer, and restores the previous one.
    """
    report = _report(client := _client())
    if report is None:
        return False
    from ray.autoscaler.sdk import request_resources

    ours, previous = [bundle] * count, []  # type: list[dict[str, float]], list[dict[str, float]]
    others, since = None, 0.0
    version: int | None = None
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while report is not None and time.monotonic() < deadline:
            current = _requested(report.cluster_resource_state.cluster_resource_constraints)
            if current != ours:
                if current != others:
                    others, since = current, time.monotonic()
                if not current or time.monotonic() - since >= OTHERS_SECONDS:
                    previous, others, version = current, None, None
                    request_resources(bundles=ours)
            elif version is None:
                version = report.cluster_resource_state.cluster_resource_state_version
            elif report.autoscaling_state.last_seen_cluster_resource_state_version > version:
                return ours not in map(
                    _bundles, report.autoscaling_state.infeasible_cluster_resource_constraints
                )
            time.sleep(0.2)
            report = _report(client)
        return True
    finally:
        report = _report(client)
        if report is None or _requested(report.cluster_resource_state.cluster_resource_constraints) == ours:
            request_resources(bundles=previous)


def _client() -> Any:
    """Ray's client of the global control service, or None. It is not a public API; `ray status` uses it."""
    import ray

    try:
        from ray._raylet import GcsClient
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        # Ray caches the answer, and the cached one may belong to a cluster that this process was connected to before.
        is_v2 = is_autoscaler_v2(fetch_from_server=True)
        return GcsClient(ray.get_runtime_context().gcs_address) if is_v2 else None
    except Exception:  # another version of Ray, or a connection through Ray Client (ray://)
        return None


def _report(client: Any) -> Any:
    """The newest state of the cluster and of its autoscaler, or None."""
    try:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        return GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10))
    except Exception:  # another version of Ray, or no client
        return None


def _requested(constraints: Any) -> list[dict[str, float]]:
    """The bundles of the cluster's current resource request."""
    return [bundle for constraint in constraints for bundle in _bundles(constraint)]


def _bundles(constraint: Any) -> list[dict[str, float]]:
    return [
        dict(each.request.resources_bundle)
        for each in constraint.resource_requests
        for _ in range(each.count)
    ]
