"""`tailor serve`: serve trained models over HTTP, with the interface of OpenAI."""

from __future__ import annotations

import argparse
import shlex
import sys

from tailor.cli.numbers import number, whole
from tailor.cli.trust import add_trust_option, granted
from tailor.cli.worker_options import add_verbose_option
from tailor.errors import DataError, ScaleError
from tailor.quiet import quiet
from tailor.redaction import redacted
from tailor.spec.serving import Limits

LIMITS = Limits()
HOST, PORT = "127.0.0.1", 8000


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="run folder, or folder of an adapter or model; requests name it by NAME (default: the folder's name)",
    )
    parser.add_argument(
        "--host", default=HOST, help=f"address to listen at (default {HOST}: this machine only)"
    )
    parser.add_argument(
        "--port", type=whole(0), default=PORT, metavar="N", help=f"port (default {PORT}; 0: a free one)"
    )
    parser.add_argument(
        "--no-key",
        action="store_true",
        help="with --host: allow other machines without an API key (TAILOR_API_KEY in the environment)",
    )
    parser.add_argument(
        "--max-tokens",
        type=whole(1),
        default=LIMITS.max_tokens,
        metavar="N",
        help=f"maximum length of an answer (default {LIMITS.max_tokens})",
    )
    parser.add_argument(
        "--max-body",
        type=number(over=0),
        default=LIMITS.body_bytes / (1 << 20),
        metavar="MIB",
        help=f"maximum size of a request (default {LIMITS.body_bytes >> 20} MiB)",
    )
    parser.add_argument(
        "--max-waiting",
        type=whole(1),
        default=LIMITS.waiting,
        metavar="N",
        help=f"requests that may wait; further ones get the status 503 (default {LIMITS.waiting})",
    )
    parser.add_argument(
        "--timeout",
        type=number(over=0),
        default=LIMITS.seconds,
        metavar="S",
        help=f"seconds for one request (default {LIMITS.seconds:g})",
    )
    parser.add_argument(
        "--replicas",
        type=whole(1),
        metavar="N",
        help="copies of the models on Ray Serve, one GPU each if there are GPUs (default: this process, without Ray)",
    )
    parser.add_argument(
        "--manifest",
        metavar="CLUSTER",
        help="write a Kubernetes manifest (RayService) for this cluster file, instead of serving",
    )
    parser.add_argument(
        "--max-replicas", type=whole(1), metavar="N", help="with --manifest: scale up to N replicas by load"
    )
    add_trust_option(parser)
    add_verbose_option(parser)


def execute(args: argparse.Namespace) -> int:
    runs = named(args.runs)
    if args.manifest is not None:
        return _manifest(args, runs)
    if args.max_replicas is not None:
        raise DataError(
            "--max-replicas has no effect without --manifest", hint="remove it, or give --replicas"
        )
    require_extra()
    if not args.verbose:
        quiet()
    from tailor.serve import server

    limits = limits_of(args)
    key = server.api_key()
    server.require_protection(args.host, key, open_to_all=args.no_key)
    sock = server.listen(args.host, args.port)  # before minutes of loading
    trust = granted(args, list(runs.values()))
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{sock.getsockname()[1]}/v1"

    def started() -> None:
        print(f"serving {', '.join(runs)} at {url}; Ctrl-C ends", file=sys.stderr, flush=True)

    if args.replicas is not None:
        from tailor.onray import serve

        serve.run(runs, args.replicas, limits, sock, key, started, trust=trust, verbose=args.verbose)
        return 0
    from tailor.artifacts.shared_base import load_together
    from tailor.serve.backend import LocalBackend

    backend = LocalBackend(load_together(runs, trust=trust), max_waiting=limits.waiting)
    try:
        server.run(backend, limits, sock, key, started)
    finally:
        backend.close()
    return 0


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(
        body_bytes=int(args.max_body * (1 << 20)),
        seconds=args.timeout,
        max_tokens=args.max_tokens,
        waiting=args.max_waiting,
    )


def named(words: list[str]) -> dict[str, str]:
    """Name of each run -> its folder. DataError for a name that is given twice, or cannot be one."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, url = word.partition("=")
        if not equals or "/" in name:
            name, url = word.rstrip("/").rpartition("/")[2], word
        if not name.strip() or not url:
            raise DataError(f"{word}: the name or the folder is missing", hint="write NAME=RUN")
        if name in found:
            raise DataError(f"two runs have the name {name}", hint=f"name one of them: NAME={url}")
        found[name] = url
    return found


def require_extra() -> None:
    """ScaleError when the packages of the extra `serve` are not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ScaleError(
            f"`tailor serve` needs the package {error.name}, which is not installed",
            hint="pip install 'tailor[serve]'",
        ) from None


def _manifest(args: argparse.Namespace, runs: dict[str, str]) -> int:
    from tailor.kube import manifest, service

    cluster = manifest.load_cluster(args.manifest)
    settings = service.Service(
        runs=runs,
        replicas=args.replicas or 1,
        max_replicas=args.max_replicas,
        limits=limits_of(args),
        trust_remote_code=args.trust_remote_code,
    )
    objects = service.documents(settings, cluster, open_to_all=args.no_key)
    command = ["tailor", "serve", *args.runs, "--manifest", args.manifest]
    sys.stdout.write(manifest.text(objects, redacted(f"Written by: {shlex.join(command)}")))
    return 0
