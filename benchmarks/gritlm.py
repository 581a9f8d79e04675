"""Contrastive training in chunks: memory and time by batch, beside the whole batch at once and sentence-transformers.

    pip install sentence-transformers
    python benchmarks/gritlm.py [--batches 64 128 256] [--rounds 2] [--contenders gradcache "peer cached"]
        [--model bert]

A Llama of 8.7 million weights, or a BERT of the same width and depth, fp32, full training, one thread. Samples of a query, its answer and one other passage,
of 10 to 120 tokens (log-normal, median 40), the same token ids for everyone. Contenders, each in a process of its own,
in turn, round after round:

    plain       tailor's model and loss on the whole batch at once
    gradcache   method gritlm, engine gradcache, chunks by the plan, kept_chunks: 2
    checkpoint  method gritlm, engine chunk_checkpoint
    peer        sentence-transformers' MultipleNegativesRankingLoss
    peer cached sentence-transformers' CachedMultipleNegativesRankingLoss, mini-batches of 16

One JSON line per contender and batch: samples per CPU second (median over the rounds), the growth of the resident
memory over that before the first step, and tokens computed per real token.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HIDDEN, LAYERS, VOCABULARY = 256, 6, 8192
STEPS, CHUNK_TOKENS, PEER_CHUNK, TEMPERATURE = 3, 1024, 16, 0.05
KEPT_CHUNKS = 2
"""Of about nine chunks of 64 samples: with more, gradcache would take more memory than `peer cached`."""
CONTENDERS = ("plain", "gradcache", "checkpoint", "peer", "peer cached")


def lengths(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).lognormal(3.7, 0.6, size=count).clip(10, 120).astype(int)


def texts(batch: int) -> list[Any]:
    """Token ids of 3 · batch texts: queries, answers, others."""
    import numpy as np

    generator = np.random.default_rng(1)
    return [generator.integers(10, VOCABULARY, size=length) for length in lengths(3 * batch)]


def make_model(folder: Path, kind: str) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    if kind == "bert":
        # Without dropout, as the Llama: both sides then compute the same.
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(intermediate_size=4 * HIDDEN, **dropout, **sizes)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        llama = LlamaConfig(intermediate_size=704, tie_word_embeddings=True, **sizes)
        LlamaForCausalLM(llama).save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)


def step_of_ours(contender: str, folder: Path, batch: int) -> Any:
    import numpy as np
    import torch

    from tailor.methods.base import MicroBatch
    from tailor.methods.contrastive import ContrastiveBatch, contrastive_loss
    from tailor.methods.gritlm import Gritlm
    from tailor.methods.text_chunks import cut
    from tailor.models.embedding.embedder import embed
    from tailor.models.embedding.layout import lay_out_texts
    from tailor.models.load import load_for_training
    from tailor.spec.methods.gritlm import Gritlm as Spec
    from tailor.spec.model import Model
    from tests.helpers.passes import OneWorker

    model = load_for_training(
        Model(path=str(folder)),
        device=torch.device("cpu"),
        precision="fp32",
        frozen_dtype="float32",
        pack=False,
        activation_checkpointing=False,
        seed=0,
    )
    model.train()
    engine = "chunk_checkpoint" if contender == "checkpoint" else "gradcache"
    spec = Spec(
        name="gritlm", mode="embedding", temperature=TEMPERATURE, engine=engine, kept_chunks=KEPT_CHUNKS
    )
    method, ids = Gritlm(spec), texts(batch)
    ordered = [ids[at] for at in range(batch)]
    for at in range(batch):
        ordered += [ids[batch + at], ids[2 * batch + at]]
    places = np.argsort([-len(one) for one in ordered], kind="stable")
    spans = [(ordered[at], np.array([[0, len(ordered[at])]])) for at in places]
    nothing = np.zeros((0, 2), np.int64)
    context = OneWorker(model)
    one_batch: Any = SimpleNamespace(
        queries=batch, group=2, texts=3 * batch, excluded=nothing, positions=places
    )
    real = sum(len(one) for one in ordered)
    if contender == "plain":
        whole = lay_out_texts(spans, model.layout, list(places))
        computed = whole.input_ids.numel()

        def step() -> None:
            own = embed(model, method.settings, whole)
            assert whole.pool is not None
            vectors = torch.zeros_like(own).index_copy(0, whole.pool.text_index, own)
            how = ContrastiveBatch(batch, 2, torch.from_numpy(nothing), batch)
            found = contrastive_loss(vectors.detach(), how, spec, range(batch))
            (vectors * found.gradient / batch).sum().backward()
    else:
        parts = cut([len(ids) for ids, _ in spans], None, CHUNK_TOKENS)
        read = [lay_out_texts(spans[part], model.layout, list(places[part])) for part in parts]
        work = [MicroBatch(number, one, False, 0) for number, one in enumerate(read)]
        computed = sum(one.input_ids.numel() for one in read)
        engine_of = method._gradcache if engine == "gradcache" else method._chunk_checkpoint

        def step() -> None:
            engine_of(context, one_batch, work, ends_the_step=True)

    return model, step, computed / real


def step_of_peer(contender: str, folder: Path, batch: int) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer, models
    from sentence_transformers.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    # An encoder is bidirectional by itself.
    bidirectional = {"is_causal": False} if (folder / "generation_config.json").is_file() else {}
    word = models.Transformer(str(folder), max_seq_length=512, config_args=bidirectional)
    model = SentenceTransformer(
        modules=[word, models.Pooling(HIDDEN, "mean"), models.Normalize()], device="cpu"
    )
    model.train()
    scale = 1 / TEMPERATURE
    if contender == "peer":
        loss: Any = MultipleNegativesRankingLoss(model, scale=scale)
    else:
        loss = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=PEER_CHUNK)
    ids, features = texts(batch), []
    for part in range(3):
        own = ids[part * batch : (part + 1) * batch]
        width = max(len(one) for one in own)
        padded = torch.zeros(batch, width, dtype=torch.int64)
        mask = torch.zeros(batch, width, dtype=torch.int64)
        for row, one in enumerate(own):
            padded[row, : len(one)] = torch.from_numpy(one)
            mask[row, : len(one)] = 1
        features.append({"input_ids": padded, "attention_mask": mask})
    slots = sum(one["input_ids"].numel() for one in features)

    def step() -> None:
        loss([dict(one) for one in features], torch.arange(batch)).backward()

    return model, step, slots / sum(len(one) for one in ids)


def measure(contender: str, folder: Path, batch: int) -> dict[str, Any]:
    """In this process: CPU seconds of the steps after the first, and the peak of the memory."""
    import torch

    torch.set_num_threads(1)
    make = step_of_peer if contender.startswith("peer") else step_of_ours
    model, step, ratio = make(contender, folder, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = _resident()
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(seconds[1:]), "grown_mib": (peak - before) / 2**20, "computed_per_real": ratio}


def run_one(contender: str, folder: Path, batch: int, environment: dict[str, str]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", contender, str(folder), str(batch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--model", choices=("llama", "bert"), default="llama")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "FOLDER", "BATCH"))
    args = parser.parse_args()
    if args.one:
        contender, folder, batch = args.one
        print(json.dumps(measure(contender, Path(folder), int(batch))))
        return
    path = str(Path(__file__).parents[1])
    # Memory that is returned at once shows in the peak, but takes a third of the time: each is measured on its own.
    timed = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    sized = {**timed, "MALLOC_MMAP_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, args.model)
        for batch in args.batches:
            found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in args.contenders}
            for _ in range(args.rounds):
                for contender in args.contenders:
                    result = run_one(contender, folder, batch, timed)
                    found[contender].append(
                        result | {"grown_mib": run_one(contender, folder, batch, sized)["grown_mib"]}
                    )
            for contender, results in found.items():
                seconds = statistics.median(one["seconds"] for one in results)
                line = {
                    "contender": contender,
                    "model": args.model,
                    "batch": batch,
                    "samples_per_cpu_second": round(batch / seconds, 2),
                    "grown_mib": round(statistics.median(one["grown_mib"] for one in results)),
                    "computed_per_real": round(results[0]["computed_per_real"], 2),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
