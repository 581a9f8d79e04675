"""Mining and training in turns makes a retriever better: the commands of docs/embeddings.md, on a corpus with near duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_run import start
from tests.helpers.collections import write_jsonl

TOPICS, DETAILS, FILLERS = 80, 40, 20
DETAILS_PER_TOPIC = 16
HELD_OUT = 150
TOPIC_WORDS = 4
"""How often a text names its topic; it names its detail once. So topics are easy to learn, and details are hard."""
RECIPE = """\
model: {{path: {base}}}
data: {{train: [{{path: {rows}.jsonl}}], max_length: 32}}
method: {{name: gritlm, mode: embedding, embedding_batch_size: 12, group_size: 4, temperature: 0.05}}
optim: {{learning_rate: 3e-3, warmup_ratio: 0.1}}
train: {{steps: 300, precision: fp32}}
save: {{to: runs/{name}}}
evaluate: {{every: 300, retrieval: {{data: {{path: held-out}}}}}}
"""


def make_data(folder: Path, seed: int) -> None:
    """pairs.jsonl: queries and relevant passages. held-out/: other queries, and all passages, in BEIR's layout.

    Each passage is about one detail of one topic, and 16 passages share a topic. A query names topic and detail in words that
    no passage has.
    """
    generator = np.random.default_rng(seed)

    def text(side: str, topic: int, detail: int) -> str:
        fillers = [f"filler{at}" for at in generator.integers(FILLERS, size=3)]
        words = [*[f"{side}-topic{topic}"] * TOPIC_WORDS, f"{side}-detail{detail}", *fillers]
        return " ".join(generator.permutation(words))

    about = [
        (topic, detail)
        for topic in range(TOPICS)
        for detail in generator.choice(DETAILS, DETAILS_PER_TOPIC, replace=False)
    ]
    corpus = [text("passage", *one) for one in about]
    queries = [text("query", *one) for one in about]
    order = generator.permutation(len(about))
    held_out = [int(at) for at in order[:HELD_OUT]]
    rows = [{"query": queries[at], "pos": [corpus[at]]} for at in order[HELD_OUT:]]
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(folder / "held-out" / "corpus.jsonl", numbered("p", enumerate(corpus)))
    write_jsonl(folder / "held-out" / "queries.jsonl", numbered("q", ((at, queries[at]) for at in held_out)))
    judged = "".join(f"q{at}\tp{at}\t1\n" for at in held_out)
    (folder / "held-out" / "qrels").mkdir()
    (folder / "held-out" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def numbered(letter: str, texts: Any) -> list[dict[str, str]]:
    return [{"_id": f"{letter}{at}", "text": text} for at, text in texts]


def make_base(folder: Path, seed: int) -> None:
    """A small encoder with random weights. Each word is a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    own = [f"{side}-topic{at}" for side in ("query", "passage") for at in range(TOPICS)]
    own += [f"{side}-detail{at}" for side in ("query", "passage") for at in range(DETAILS)]
    words = [*specials, *own, *(f"filler{at}" for at in range(FILLERS))]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{name[1:-1].lower()}_token": name for name in specials}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **settings})
    )


def tailor(folder: Path, *words: str) -> None:
    process = start(folder, *words)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def train(folder: Path, name: str, rows: str, base: str) -> list[float]:
    """NDCG@10 of the held-out queries before and after a run."""
    (folder / f"{name}.yaml").write_text(RECIPE.format(base=base, rows=rows, name=name))
    tailor(folder, "run", f"{name}.yaml")
    records = map(json.loads, (folder / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [record["ndcg@10"] for record in records if record["kind"] == "retrieval"]


def mine(folder: Path, retriever: str, to: str, *options: str) -> None:
    words = ["mine", retriever, "pairs.jsonl", f"{to}.jsonl", "--corpus", "held-out/corpus.jsonl", *options]
    tailor(folder, *words)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_each_round_of_mining_and_training_raises_ndcg(tmp_path: Path, seed: int) -> None:
    """The control: a second round of as many steps with new random negatives, which nearly all have another topic."""
    make_base(tmp_path / "base", seed)
    make_data(tmp_path, seed)
    mine(tmp_path, "random", "rows-1", "--seed", "1")
    before, first = train(tmp_path, "first", "rows-1", "base")
    mine(tmp_path, "runs/first", "rows-2", "--no-margin")
    start, second = train(tmp_path, "second", "rows-2", "runs/first/model")
    mine(tmp_path, "random", "rows-c", "--seed", "2")
    again, control = train(tmp_path, "control", "rows-c", "runs/first/model")
    print(
        f"NDCG@10: {before:.3f}, {first:.3f}, {second:.3f}; second round with random negatives: {control:.3f}"
    )
    assert start == again == pytest.approx(first, abs=1e-6)
    assert before + 0.2 < first
    assert first + 0.2 < second
    assert control + 0.1 < second
    assert 4 * (1 - second) < 1 - control
