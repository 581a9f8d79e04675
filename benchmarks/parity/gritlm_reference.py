"""Losses of the published GritLM code over five steps, in each attention mode, for a test of tailor.

    git clone https://github.com/ContextualAI/gritlm /tmp/gritlm
    python benchmarks/parity/gritlm_reference.py /tmp/gritlm > benchmarks/parity/gritlm_values.json

The code comes from the checkout: its collator, training model, losses and GradCache. The model is a tiny random Llama of
transformers, the rows are those of gritlm_rows.json. Two things of the published code cannot be used: its modeling files
need transformers 4.37, and its current version rejects the modes with a segment of its own (`bccc`, `cbcc`, `bbbc`), whose
masks it has removed. transformers' Llama takes `is_causal=False` instead, and this script gives it the masks of these modes,
from the instruction lengths that the published collator makes. `tests/methods/test_gritlm_reference.py` compares.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

STEPS, QUERIES, EXAMPLES, LEARNING_RATE, TEMPERATURE, CHUNK = 5, 4, 2, 0.05, 0.1, 2
LONG = 512
"""Maximum length in tokens, of which no row has so many."""

CASES: dict[str, dict[str, Any]] = {
    "bb": {"attn": "bb", "tailor": {"mode": "embedding"}, "gradcache": True},
    "bbcc": {"attn": "bbcc", "tailor": {}},
    "cccc": {
        "attn": "cccc",
        "pooling": "weightedmean",
        "loss": "token",
        "factor": 0.02,
        "tailor": {"attention": "causal", "pooling": "weightedmean", "generative_normalization": "sequence"},
    },
    "bccc": {"attn": "bccc", "tailor": {"attention": "bidirectional_instruction"}},
    "cbcc": {
        "attn": "cbcc",
        "pooling": "lasttoken",
        "tailor": {"attention": "bidirectional_text", "pooling": "lasttoken"},
    },
    "bbbc": {
        "attn": "bbbc",
        "prefixlm": True,
        "tailor": {"generative_attention": "prefix_lm", "train_on": "last_assistant"},
    },
    "emb_q_only": {"attn": "bbcc", "q_only": True, "tailor": {"embedding_gradients": "queries"}},
    "emb_p_only": {"attn": "bbcc", "p_only": True, "tailor": {"embedding_gradients": "passages"}},
}
"""The published arguments of each case, and tailor's keys."""


def build(checkout: Path, model: Path, case: dict[str, Any]) -> Any:
    from gritlm.training.model import GritLMTrainModel

    four = case["attn"]
    built = GritLMTrainModel(
        temperature=TEMPERATURE,
        loss_gen_type=case.get("loss", "mixed"),
        loss_gen_factor=case.get("factor", 1.0),
        model_name_or_path=str(model),
        mode="unified",
        pooling_method=case.get("pooling", "mean"),
        attn="bbcc" if four[:2] in ("bc", "cb") or four[2:] == "bc" else four,
        device="cpu",
        attn_implementation="eager",
    )
    if four[:2] in ("bc", "cb"):
        built.attn = "cb"  # for which it passes the instruction lengths to the model
    return built.train()


class Masks:
    """Gives transformers' decoder the mask of a mode, from the lengths of the first segment."""

    def __init__(self, decoder: Any, embedding: str, generative: str) -> None:
        self.embedding, self.generative = embedding, generative
        self.prompts: Any = None
        """int64[B]: lengths of the prompts of the sequences to generate in the next call."""
        decoder.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, arguments: Any, options: dict[str, Any]) -> Any:
        lengths, letters = options.pop("instruction_lens", None), self.embedding
        if lengths is None and self.prompts is not None:
            lengths, letters, self.prompts = self.prompts, self.generative, None
        if lengths is not None and letters in ("bc", "cb"):
            options["attention_mask"] = self._mask(options["attention_mask"], lengths, letters)
        return arguments, options

    @staticmethod
    def _mask(padding: Any, lengths: Any, letters: str) -> Any:
        """float32[B, 1, T, T]. letters: of the first segment and of the rest, b or c."""
        import torch

        count = padding.shape[1]
        masks = torch.full((len(padding), 1, count, count), torch.finfo(torch.float32).min)
        for row, (length, real) in enumerate(zip(lengths.tolist(), padding.sum(1).tolist(), strict=True)):
            for token in range(count):
                end = token + 1
                if letters[0] == "b" and token < length:
                    end = length
                if letters[1] == "b" and token >= length:
                    end = real
                masks[row, 0, token, : max(end, 1)] = 0.0
        return masks


def losses(checkout: Path, model: Path, rows: dict[str, Any], case: dict[str, Any]) -> list[dict[str, float]]:
    import torch
    from grad_cache import GradCache
    from gritlm.training import run
    from gritlm.training.data import CustomCollator
    from transformers import AutoTokenizer

    trained = build(checkout, model, case)
    masks = Masks(trained.model.model, case["attn"][:2], case["attn"][2:])
    collate = CustomCollator(
        AutoTokenizer.from_pretrained(model, padding_side="right"),
        query_max_len=LONG,
        passage_max_len=LONG,
        generative_max_len=LONG,
        base_bos=run.BASE_BOS,
        turn_sep=run.TURN_SEP,
        user_bos=run.USER_BOS,
        user_eos=run.USER_EOS,
        embed_bos=run.EMBED_BOS,
        embed_eos=run.EMBED_EOS,
        assistant_bos=run.ASSISTANT_BOS,
        assistant_eos=run.ASSISTANT_EOS,
        prefixlm=case.get("prefixlm", False),
    )
    optimizer = torch.optim.SGD(trained.parameters(), lr=LEARNING_RATE)
    found = []
    for step in range(STEPS):
        chosen = [rows["embedding"][(step * QUERIES + at) % len(rows["embedding"])] for at in range(QUERIES)]
        turns = [
            rows["generative"][(step * EXAMPLES + at) % len(rows["generative"])] for at in range(EXAMPLES)
        ]
        turns += [None] * (QUERIES - EXAMPLES)
        batch = collate(
            [
                (row["query"], [row["pos"][0], row["neg"][0]], example)
                for row, example in zip(chosen, turns, strict=True)
            ]
        )
        one: dict[str, float] = {}
        if case["attn"] != "bb":
            generative = dict(batch["generative"])
            # The first label is that of BOS, which nothing predicts.
            labels = generative["labels"].clone()
            labels[:, 0] = -100
            masks.prompts = (labels != -100).int().argmax(1)
            out = trained(generative=generative)
            out.loss.backward()
            one["generative"] = float(out.loss_gen.detach())
        query, passage = dict(batch["query"]), dict(batch["passage"])
        if case.get("gradcache"):
            cache = GradCache(
                models=[trained, trained],
                chunk_sizes=CHUNK,
                loss_fn=trained.emb_loss_fn,
                split_input_fn=lambda given, size: [
                    {side: {name: value[at : at + size] for name, value in features.items()}}
                    for side, features in given.items()
                    for at in range(0, len(features["input_ids"]), size)
                ],
                get_rep_fn=lambda out: out.q_reps if out.q_reps is not None else out.p_reps,
            )
            one["embedding"] = float(cache({"query": query}, {"passage": passage}))
        else:
            keys = {"q_grad": not case.get("p_only"), "p_grad": not case.get("q_only")}
            out = trained(query=query, passage=passage, **keys)
            out.loss_emb.backward()
            one["embedding"] = float(out.loss_emb.detach())
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), float("inf"))
        one["gradient_norm"] = float(norm)
        optimizer.step()
        optimizer.zero_grad()
        found.append(one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="folder of the published code")
    checkout = parser.parse_args().checkout
    sys.path[:0] = [str(checkout), str(checkout / "gritlm/training/GradCache/src")]

    import torch

    from tests.helpers.models import tiny_llama

    torch.set_num_threads(1)
    rows = json.loads((Path(__file__).parent / "gritlm_rows.json").read_text())
    values: dict[str, Any] = {
        "queries": QUERIES,
        "examples": EXAMPLES,
        "learning_rate": LEARNING_RATE,
        "temperature": TEMPERATURE,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        model = tiny_llama(Path(folder))
        for name, case in CASES.items():
            weight = {"generative_weight": case["factor"]} if "factor" in case else {}
            values["cases"][name] = {
                "method": {**case["tailor"], **weight},
                "steps": losses(checkout, model, rows, case),
            }
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
