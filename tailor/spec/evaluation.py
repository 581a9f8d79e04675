"""The evaluation file: what `tailor evaluate` measures of a run or model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tailor.spec.base import File
from tailor.spec.suite import Suite

REFERENCE = """\
# Evaluation file reference

Written by `make docs` from the spec in `tailor/spec`; a test keeps the two equal.

`tailor evaluate RUN_OR_MODEL --with FILE` reads an evaluation file. It is YAML as recipes are: 1.2 scalars, unknown
keys are errors, and `extends: other.yaml` takes the keys of another evaluation file. Every key has a default.
The section `evaluate.final` of a recipe has the same keys, and is what its finished run is evaluated by.
"""


class Evaluation(Suite, File):
    """What is evaluated of a run or model."""

    noun: ClassVar[str] = "evaluation file"
    folder: ClassVar[str] = "recipes"
    example: ClassVar[str] = "`tasks:` and `data:`"
    start: ClassVar[str] = "`tasks: [{name: perplexity}]` is a first one"
    where_secrets_stand: ClassVar[str] = "the environment (HF_TOKEN, AWS_…)"
    belongs: ClassVar[Mapping[str, str]] = {
        "metrics": "tasks",
        "max_tokens": "decoding.max_new_tokens",
        "do_sample": "decoding.temperature",
        "dataset": "data.evaluation",
        "num_samples": "limit",
        "baseline": "compare",
        "threshold": "fail_if",
        "thresholds": "fail_if",
        "bootstrap_iters": "intervals.samples",
        "num_workers": "workers",
    }
    says: ClassVar[Mapping[str, str]] = {
        "model": "the model stands on the command line: tailor evaluate RUN_OR_MODEL",
        "output_path": "results go to the run's folder, or to --to",
        "num_beams": "answers are greedy or sampled (decoding.temperature)",
    }
