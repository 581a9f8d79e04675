"""The final artefact, in the layout that plain peft and transformers read.

RUN/adapter/ (PEFT) or RUN/model/ (Hugging Face), each with the tokenizer, the chat template that
the data was rendered with, and a generation_config that stops at the end of a turn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tailor.models.attention import stock_attention
from tailor.models.held import Held
from tailor.models.load import DTYPES
from tailor.train import checkpoint
from tailor.train.session import Session


def write_artifact(session: Session) -> str:
    """Write and commit the artefact; returns its URL. Rank 0 only."""
    network = session.model.network
    name = "adapter" if session.plan.model.adapter is not None else "model"
    tokenizer = _tokenizer(session)
    with (
        session.run.publication(name) as made,
        checkpoint.writing(f"the {name}", made.folder, "the last checkpoint"),
    ):
        folder = made.folder
        implementation = session.model.base.config._attn_implementation
        session.model.base.set_attn_implementation(stock_attention(session.model.base))
        if name == "adapter":
            config = network.peft_config["default"]
            config.base_model_name_or_path = session.plan.model.path
            if isinstance(config.target_modules, set):  # else written in another order by every process
                config.target_modules = sorted(config.target_modules)
            network.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink(
                missing_ok=True
            )  # PEFT's form for a model card, with nothing filled in
            Held.of(session.plan.model, session.plan.frozen_dtype).write(folder)
        else:
            dtype = DTYPES[session.plan.precision]  # the one that they were trained in
            network.save_pretrained(folder, state_dict=_in_dtype(network.state_dict(), dtype))
            _declare_dtype(folder / "config.json", dtype)
        session.model.base.set_attn_implementation(implementation)
        _write_tokenizer(session, tokenizer, folder)
        session.host.flush()  # refuses when another process has the run by now
    return session.run.join(name).url


def _in_dtype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies in `dtype`, on the host. Tied weights stay tied."""
    copies: dict[int, torch.Tensor] = {}
    return {
        name: copies.setdefault(weight.data_ptr(), weight.detach().to("cpu", dtype))
        for name, weight in weights.items()
    }


def _declare_dtype(config: Path, dtype: torch.dtype) -> None:
    """transformers writes the dtype of the weights in memory, not of those that it was given to save."""
    values = {**json.loads(config.read_text()), "dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(values, indent=2) + "\n")


def _tokenizer(session: Session) -> Any:
    from transformers import AutoTokenizer

    spec = session.plan.model
    return AutoTokenizer.from_pretrained(
        spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )


def _write_tokenizer(session: Session, tokenizer: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    template = session.tokens.template
    stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if template is not None:
        tokenizer.chat_template = template["text"]
        stops += [token for token in template["end_of_turn_ids"] if token not in stops]
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    ).save_pretrained(folder)
