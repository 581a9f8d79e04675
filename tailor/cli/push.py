"""`tailor push`: what a run made, to the Hugging Face hub."""

from __future__ import annotations

import argparse

from tailor.cli.export import add_export_options, request
from tailor.quiet import quiet


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("repo", metavar="owner/name", help="the repository; it is made where it is not there")
    parser.add_argument(
        "--public", action="store_true", help="make a new repository public (default: private)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files with their sizes, and upload nothing"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="the commit's message")
    parser.add_argument(
        "--replace", action="store_true", help="commit to a repository that holds something else already"
    )
    add_export_options(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.export.hub import Push, push

    where = Push(args.repo, not args.public, args.revision, args.message, args.replace)
    url = push(
        args.run,
        where,
        request(args, "huggingface"),
        dry_run=args.dry_run,
        say=lambda line: print(line, flush=True),
    )
    if url is not None:
        print(f"pushed to {url}")
    return 0
