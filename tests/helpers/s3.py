"""A real S3 protocol server on this machine, in a process of its own, and a bucket for each test."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

SERVE = (
    "import sys\nfrom moto.server import ThreadedMotoServer\n"
    "server = ThreadedMotoServer('127.0.0.1', port=0, verbose=False)\nserver.start()\n"
    "print('http://%s:%d' % server.get_host_and_port(), flush=True)\nsys.stdin.read()"  # until its parent ends
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def server() -> Iterator[str]:
    """The address of a server."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the server did not start"
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def make_bucket() -> str:
    """URL of a fresh bucket on the server that AWS_ENDPOINT_URL names."""
    import fsspec

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def forget_clients() -> None:
    """fsspec keeps clients with the address and the credentials that were in the environment when they were made."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def checking_credentials(address: str) -> Iterator[None]:
    """The server refuses the keys that it did not give out, which are all."""
    _configure(address, "0")
    try:
        yield
    finally:
        _configure(address, "inf")


def _configure(address: str, unchecked: str) -> None:
    request = urllib.request.Request(
        f"{address}/moto-api/reset-auth", unchecked.encode(), {"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request).close()
