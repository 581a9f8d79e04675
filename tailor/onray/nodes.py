"""The cluster's nodes in messages: their names, and which of them are dead or being drained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeState:
    """One node, alive or dead, as Ray's control service knows it."""

    name: str
    """`gpu-2 (10.0.0.7)`: its host name and address."""
    alive: bool


def states() -> dict[str, NodeState]:
    """ID -> state of each node that is or was in the cluster. A lost node can stay `alive` for another 30 s."""
    import ray

    return {
        node["NodeID"]: NodeState(
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["Alive"]
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
    }


def names(nodes: Iterable[str]) -> str:
    """`node gpu-2 (10.0.0.7)` or `nodes gpu-2 (10.0.0.7), gpu-3 (10.0.0.8)`. nodes: IDs."""
    known = states()
    found = [known[node].name if node in known else node for node in nodes]
    return f"node{'s' if len(found) > 1 else ''} {', '.join(found)}"


def draining() -> frozenset[str]:
    """IDs of the nodes that will be taken away soon. Ray schedules nothing new on them, but counts them as alive."""
    import ray

    try:  # not a public API; Ray Train uses it
        return frozenset(ray._private.state.state.get_draining_nodes())
    except Exception:  # another version of Ray, or a connection through Ray Client (ray://)
        return frozenset()
