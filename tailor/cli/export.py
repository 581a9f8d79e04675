"""`tailor export`: a folder for Hugging Face, sentence-transformers or Ollama, with a model card."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tailor.cli.merge import add_merge_options
from tailor.export.forms import EXPORT_FORMS, find_form
from tailor.quiet import quiet

if TYPE_CHECKING:
    from tailor.export.request import Request


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a finished run's folder, or a checkpoint of a run")
    parser.add_argument("--to", metavar="URL", required=True, help="where the folder goes")
    parser.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        default="huggingface",
        help=f"the layout: {', '.join(EXPORT_FORMS.names())} (default: huggingface)",
    )
    parser.add_argument(
        "--query-instruction", metavar="TEXT", help="of the prompt `query`, for sentence-transformers"
    )
    add_export_options(parser)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """What `export` and `push` share."""
    parser.add_argument(
        "--weights",
        choices=("adapter", "merged", "model"),
        help="the adapter, merged into its base, or a whole model (default: as trained; merged for "
        "a layout of whole models)",
    )
    parser.add_argument(
        "--base-id", metavar="ID", help="the base's id on the hub, where the run knows only a folder"
    )
    parser.add_argument("--name", help="the model's name in its card (default: the run's)")
    add_merge_options(parser)


def request(args: argparse.Namespace, form: str) -> Request:
    """What the options ask for."""
    from tailor.artifacts.merge import Settings
    from tailor.export.request import Request

    merging = Settings(args.onto, args.dtype, args.tolerance, args.verify)
    query = getattr(args, "query_instruction", None)  # of `export` alone
    return Request(form, args.weights, args.base, args.base_id, merging, args.name, query)


def execute(args: argparse.Namespace) -> int:
    quiet()
    form = find_form(args.form)
    from tailor.export.folder import export

    url = export(args.run, args.to, request(args, args.form), say=lambda line: print(line, flush=True))
    print(f"{args.form} folder in {url}")
    if (next_step := form.next_step(url)) is not None:
        print(f"next            {next_step}")
    return 0
