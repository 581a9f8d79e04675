"""What a cluster's autoscaler could bring: it is asked, and its report is read."""

from __future__ import annotations

import time
from typing import Any

ANSWER_SECONDS = 60.0
"""Within so long an autoscaler answers. It looks every 5 s; others may be asking too."""

OTHERS_SECONDS = 7.0
"""A request of another run is a question that passes in less."""


def can_bring(bundle: dict[str, float], count: int) -> bool:
    """Whether the cluster could have so many such bundles together, with the machines that its autoscaler may add.

    What is in use counts as well. False where no autoscaler reports: there is none, it is Ray's first one, or a Ray
    whose report is not known here. True where one does not answer, as it may yet start.

    Ray has one request for a whole cluster, and keeps it when its maker dies. So it stands no longer than the answer
    takes, and what it displaced is put back.
    """
    report = _report(client := _client())
    if report is None:
        return False
    from ray.autoscaler.sdk import request_resources

    ours, before = [bundle] * count, []  # type: list[dict[str, float]], list[dict[str, float]]
    theirs, since = None, 0.0
    version: int | None = None
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while report is not None and time.monotonic() < deadline:
            standing = _requested(report.cluster_resource_state.cluster_resource_constraints)
            if standing != ours:
                if standing != theirs:
                    theirs, since = standing, time.monotonic()
                if not standing or time.monotonic() - since >= OTHERS_SECONDS:
                    before, theirs, version = standing, None, None
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
            request_resources(bundles=before)


def _client() -> Any:
    """Ray's own client of the cluster's control, or None. Not of its public interface: `ray status` uses it."""
    import ray

    try:
        from ray._raylet import GcsClient
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        # What is remembered may be of a Ray that this process was connected to before.
        known = is_autoscaler_v2(fetch_from_server=True)
        return GcsClient(ray.get_runtime_context().gcs_address) if known else None
    except Exception:  # another Ray, or a connection through a proxy
        return None


def _report(client: Any) -> Any:
    """The newest report of the cluster's state and of its autoscaler's, or None."""
    try:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        return GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10))
    except Exception:  # as above
        return None


def _requested(constraints: Any) -> list[dict[str, float]]:
    return [bundle for constraint in constraints for bundle in _bundles(constraint)]


def _bundles(constraint: Any) -> list[dict[str, float]]:
    return [
        dict(each.request.resources_bundle)
        for each in constraint.resource_requests
        for _ in range(each.count)
    ]
