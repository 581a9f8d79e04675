"""`tailor init`: write a starter recipe to edit."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from tailor.cli.output import Document, Output
from tailor.errors import StoreError
from tailor.layout import RECIPE
from tailor.spec.reading.source import scalar

STARTER = """\
# A LoRA fine-tuning run. Check it with `tailor validate {file}`, train it with `tailor run {file}`.
# Any key can be set on the command line too: tailor run {file} optim.learning_rate=1e-4
# For completion in an editor: tailor schema > recipe.schema.json
# yaml-language-server: $schema=recipe.schema.json

model:
  path: {model}  # a local folder, or a model id of the Hugging Face hub
  adapter:
    rank: 16  # leave `adapter` out to train every weight
  # quantize:
  #   type: nf4  # keep the frozen weights in 4 bits (QLoRA)

data:
  train:
    - path: {data}  # .jsonl, .json, .parquet, .csv, .txt; a folder, a glob, s3://…, or hf://owner/dataset
      # columns: {{prompt: question, response: answer}}  # your column names, if they differ
  holdout: 0.05  # fraction of the rows held out for evaluation
  max_length: 2048  # in tokens
  # template: chatml  # for a base model without a chat template; `tailor init --templates` lists the built-in ones

method:
  name: sft
  train_on: assistant  # the loss covers the assistant's turns only

optim:
  learning_rate: 2e-4  # usual: 1e-4 to 3e-4 for LoRA, 5e-6 to 5e-5 without an adapter
  schedule: cosine
  warmup_ratio: 0.03

train:
  epochs: 1
  batch_size: 8  # over all workers, so the number of GPUs does not change the loss curve

scale:
  workers: 1

save:
  to: {run}
  every: 200  # steps between checkpoints

evaluate:
  every: 100  # steps between evaluations
  final:  # after the run: what the training cost on general texts, beside the base model
    tasks: [{{name: forgetting}}]
    compare: base
"""


class Starter(Document):
    """The file that was written, or the built-in chat templates (`--templates`) with their purposes."""

    file: str | None
    templates: dict[str, str] | None


OUTPUT = Output(Starter)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", default=RECIPE, help="file to write (default: recipe.yaml)")
    parser.add_argument("--model", default="path/to/model", help="folder or hub id of the base model")
    parser.add_argument("--data", default="path/to/rows.jsonl", help="training data")
    parser.add_argument(
        "--templates", action="store_true", help="list the built-in chat templates, and write nothing"
    )


def execute(args: argparse.Namespace) -> int:
    if args.templates:
        from tailor.encode.template import builtin_templates

        templates = builtin_templates()
        if args.json:
            args.json.write(Starter(file=None, templates=templates))
            return 0
        width = max(map(len, templates)) + 2
        for name, purpose in templates.items():
            print(f"{name:<{width}}{purpose}")
        return 0
    path = Path(args.path)
    run = _quoted(f"runs/{path.stem}")
    text = STARTER.format(file=args.path, model=_quoted(args.model), data=_quoted(args.data), run=run)
    if os.path.lexists(path):
        raise StoreError(f"{path} exists already", hint="name another file, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{args.path} cannot be written: {reason.lower()}") from None
    if args.json:
        args.json.write(Starter(file=str(path), templates=None))
        return 0
    print(f"{args.path} written; edit it, then `tailor validate {args.path}`")
    return 0


def _quoted(text: str) -> str:
    """The text as a YAML scalar, quoted if YAML would read it as something else."""
    plain = text and isinstance(scalar(text), str) and text[0] not in "!&*-?|>%@`\"'#{}[],:= "
    return (
        text if plain and ": " not in text and " #" not in text and text == text.strip() else json.dumps(text)
    )
