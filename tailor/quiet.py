"""Silences the log lines, warnings and progress bars of libraries, so that the terminal shows tailor's output only."""

from __future__ import annotations

import logging
import os
import warnings

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers reads it too
    "TQDM_DISABLE": "1",  # progress bars of lm-eval
    "TOKENIZERS_PARALLELISM": "true",  # the default; setting it explicitly suppresses the warning after a fork
    "PYTHONWARNINGS": "ignore",
}
LOGGERS = (
    "ray",
    "ray.data",
    "ray.train",
    "ray.tune",
    "bitsandbytes",
    "peft",
    "datasets",
    "lm_eval",
    "torch.distributed",
)
SETS_ITS_LEVEL = "DeepSpeed"
"""A logger whose level its package sets at import, after `quiet`."""


def quiet() -> None:
    """Silence the libraries in this process and in its child processes. Call it before they are imported.

    Environment variables that the user has set are kept.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(SETS_ITS_LEVEL).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
