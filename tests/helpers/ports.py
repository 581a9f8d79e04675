"""The ports on which processes listen."""

from __future__ import annotations

import ipaddress

import psutil


def listening(processes: set[int]) -> dict[tuple[str, int], bool]:
    """(address, port) -> whether it is a loopback address, for each port on which one of the processes listens."""
    found = {}
    for connection in psutil.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in processes:
            address = ipaddress.ip_address(connection.laddr.ip)
            inner = getattr(address, "ipv4_mapped", None) or address
            found[connection.laddr.ip, connection.laddr.port] = inner.is_loopback
    return found
