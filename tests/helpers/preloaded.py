"""Imports, and nothing else: what a training process imports, for the process that test processes are forked from.

They take 6 seconds of CPU, which is more than most tests train. None of them starts CUDA. The only thread is jemalloc's
(pyarrow), which prepares itself for forks.
"""

import os

from tailor.quiet import ENVIRONMENT

# As a command sets it before these imports, when transformers' progress bars read it.
os.environ.update(ENVIRONMENT)
# DeepSpeed chooses its device when it is imported; the processes that are forked compute on the CPU.
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import rich.console
import rich.progress  # noqa: F401
import tensorboardX  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import tailor.artifacts.load
import tailor.train.loop  # noqa: F401
