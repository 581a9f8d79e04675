"""`tailor push`: upload a run's adapter or model to the Hugging Face hub."""

from __future__ import annotations

import argparse

from tailor.cli.export import add_export_options, request
from tailor.cli.output import Document, Output
from tailor.quiet import quiet


class Pushed(Document):
    """An upload to the Hugging Face hub. stderr lists the files."""

    repo: str
    url: str | None
    """URL of the commit; null for `--dry-run`."""


OUTPUT = Output(Pushed)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument(
        "repo", metavar="owner/name", help="repository to push to; created if it does not exist"
    )
    parser.add_argument(
        "--public", action="store_true", help="create a new repository as public (default: private)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files and their sizes without uploading"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument(
        "--replace", action="store_true", help="commit to a repository even if it contains other files"
    )
    add_export_options(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.export.hub import Push, push

    target = Push(args.repo, not args.public, args.revision, args.message, args.replace)
    url = push(
        args.run,
        target,
        request(args, "huggingface"),
        dry_run=args.dry_run,
        say=lambda line: print(line, flush=True),
    )
    if args.json:
        args.json.write(Pushed(repo=args.repo, url=url))
    elif url is not None:
        print(f"pushed to {url}")
    return 0
