"""Keeps the libraries' own log lines, warnings and progress bars off the terminal."""

from __future__ import annotations

import logging
import os
import warnings

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own bars follow it
    "TQDM_DISABLE": "1",  # lm-eval's bars
    "TOKENIZERS_PARALLELISM": "true",  # set at all, it keeps the warning after a fork away
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


def quiet() -> None:
    """Silence the libraries in this process and in those it starts. Call it before they are imported.

    What the user set in the environment stands.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
