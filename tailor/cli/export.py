"""`tailor export`: write a model folder for Hugging Face, sentence-transformers, llama.cpp or Ollama, with a model card."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tailor.cli.merge import add_merge_options
from tailor.cli.output import Document, Output
from tailor.cli.trust import granted
from tailor.export.forms import EXPORT_FORMS, find_form
from tailor.quiet import quiet
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.export.request import Request


class Exported(Document):
    """A folder that was written."""

    url: str
    form: str
    """Its layout, like `--as`."""
    next: str | None
    """A command that uses it."""


OUTPUT = Output(Exported)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a finished run, or RUN/checkpoints/step-…")
    parser.add_argument("--to", metavar="URL", required=True, help="folder to write")
    parser.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        default="huggingface",
        help=f"the layout: {', '.join(EXPORT_FORMS.names())} (default: huggingface)",
    )
    parser.add_argument(
        "--query-instruction",
        metavar="TEXT",
        help="instruction of the prompt `query`, for sentence-transformers",
    )
    parser.add_argument(
        "--type", metavar="TYPE", help="type of the GGUF file, such as f16, q8_0 or q4_k_m (default: f16)"
    )
    parser.add_argument(
        "--llama-cpp",
        metavar="FOLDER",
        help="llama.cpp checkout whose converter makes the GGUF file (default: the installed package)",
    )
    parser.add_argument(
        "--template",
        metavar="FILE",
        help="chat template in Go's syntax, for Ollama (default: made from the run's)",
    )
    add_export_options(parser)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `export` and `push` have in common."""
    parser.add_argument(
        "--weights",
        choices=("adapter", "merged", "model"),
        help="adapter: the adapter alone; merged: the adapter merged into its base; model: a fully trained model "
        "(default: as trained; merged if the layout has no adapters)",
    )
    parser.add_argument(
        "--base-id", metavar="ID", help="hub id of the base model, if the run was trained from a local folder"
    )
    parser.add_argument("--name", help="name of the model in its card (default: the name of the run)")
    add_merge_options(parser)


def request(args: argparse.Namespace, form: str) -> Request:
    """The export request that the options describe."""
    from tailor.artifacts.merge import Settings
    from tailor.export.request import FORM_OPTIONS, Request

    merging = Settings(args.onto, args.dtype, args.tolerance, args.verify)
    own = {name: getattr(args, name, None) for name in FORM_OPTIONS}  # only `export` has them
    trust = granted(args, [args.run])
    return Request(form, args.weights, args.base, args.base_id, merging, args.name, trust, **own)


def execute(args: argparse.Namespace) -> int:
    quiet()
    form = find_form(args.form)
    from tailor.export.folder import export

    url = export(args.run, args.to, request(args, args.form), say=lambda line: print(line, flush=True))
    next_step = form.next_step(url) if Store(url).is_local else None  # other programs open no URLs
    if args.json:
        args.json.write(Exported(url=url, form=args.form, next=next_step))
        return 0
    print(f"{args.form} folder written to {url}")
    if next_step is not None:
        print(f"next            {next_step}")
    return 0
