"""All trainers that have a table."""

from __future__ import annotations

from tailor.spec.trainers.axolotl import AXOLOTL
from tailor.spec.trainers.components import DEEPSPEED, TORCHTUNE, UNSLOTH
from tailor.spec.trainers.firefly import FIREFLY, QLORA
from tailor.spec.trainers.gritlm import GRITLM
from tailor.spec.trainers.llama_factory import LLAMA_FACTORY
from tailor.spec.trainers.long_llm import LONG_LLM
from tailor.spec.trainers.rows import Trainer
from tailor.spec.trainers.trl import SCRIPT, TRL

TRAINERS: tuple[Trainer, ...] = (
    TRL, AXOLOTL, LLAMA_FACTORY, TORCHTUNE, UNSLOTH, FIREFLY, GRITLM, LONG_LLM, SCRIPT, QLORA, DEEPSPEED,
)  # fmt: skip
"""In the order of the documentation. For a hint, the first table that has a name counts."""

IMPORTED: dict[str, Trainer] = {trainer.name: trainer for trainer in TRAINERS if trainer.reads}
"""Those whose files `tailor import` reads."""
