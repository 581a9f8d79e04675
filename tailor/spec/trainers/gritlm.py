"""GritLM's command line."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, no, skip, table, taken, unneeded
from tailor.spec.trainers.transformers import DEFAULTS, LAUNCHER, TRAINING
from tailor.spec.trainers.values import ATTENTION

_INSTRUCTIONS = {
    "bb": "bidirectional",
    "cc": "causal",
    "bc": "bidirectional_instruction",
    "cb": "bidirectional_text",
}
ATTENTION_MODES = {
    **{letters: {"method.attention": mode} for letters, mode in _INSTRUCTIONS.items()},
    **{f"{letters}cc": {"method.attention": mode} for letters, mode in _INSTRUCTIONS.items()},
    **{
        f"{letters}bc": {
            "method.attention": mode,
            "method.generative_attention": "prefix_lm",
            "method.train_on": "last_assistant",
        }
        for letters, mode in _INSTRUCTIONS.items()
    },
    "*": no(
        "a token of the answer would attend to the token that it must predict: method.attention keeps its default"
    ),
}
"""`attn`: the attention of embedding instruction and text, prompt and answer (b: bidirectional, c: causal)."""

GRITLM = Trainer(
    "gritlm",
    "GritLM",
    "a command line (`.sh` or text)",
    table(
        TRAINING.values(),
        LAUNCHER.values(),
        taken("model_name_or_path", "model.path"),
        taken("mode", "method.mode"),
        taken(
            "lora",
            "=adapter",
            "`all-linear`; the embeddings are pooled from hidden states",
            convert="adapter",
        ),
        taken(
            "qlora",
            "=adapter",
            "model.adapter with model.quantize",
            values={"true": {"=adapter": "qlora"}, "false": skip("off")},
        ),
        taken("attn_implementation", "model.attention", values=ATTENTION),
        taken(
            "attn",
            "method.attention method.generative_attention",
            "four letters: embedding instruction and text, prompt and answer; see [Attention modes](embeddings.md#attention-modes)",
            values=ATTENTION_MODES,
        ),
        taken("pooling_method", "method.pooling"),
        taken("projection", "method.projection", "it is saved with the model"),
        taken("normalized", "method.normalize"),
        taken("temperature", "method.temperature"),
        taken("train_group_size", "method.group_size"),
        taken(
            "negatives_cross_device",
            "method.negatives",
            "the gradient equals that of one process, for any number of GPUs",
            values={"true": "global", "false": "local"},
        ),
        taken(
            "train_data",
            "data.train",
            "queries with `pos` and `neg`, conversations, or both",
            convert="gritlm_rows",
        ),
        taken("query_max_len", "method.max_query_length"),
        taken("passage_max_len", "method.max_passage_length"),
        taken("generative_max_len", "=generative_length", "`data.max_length`"),
        taken(
            "max_example_num_per_dataset",
            "data.train.N.samples",
            "an entry per file; drawn again for each epoch instead of once",
            convert="samples",
        ),
        taken("per_device_generative_bs", "=generative_per_device", "over all GPUs"),
        taken(
            "loss_gen_type",
            "method.generative_normalization",
            "`mixed` is the published mean; its `token` is `sequence`, and tailor's `token` needs [another weight](embeddings.md#the-weight-of-the-generative-loss)",
            values={"mixed": "mixed", "token": "sequence"},
        ),
        taken("loss_gen_factor", "method.generative_weight"),
        taken(
            "split_emb split_emb_full",
            "method.engine",
            "GradCache splits the pass in any case",
            values={
                "true": skip("GradCache splits the embedding pass in any case"),
                "false": skip("GradCache splits the embedding pass in any case"),
            },
        ),
        taken("gradcache_chunk_size", "method.chunk_size", "the plan selects it"),
        unneeded(
            "no_gen_gas no_emb_gas",
            "the global batch is the same however it is split; GradCache needs no accumulation",
        ),
        unneeded(
            "use_unique_indices", "always: each row of the smaller stream comes once before one comes twice"
        ),
        unneeded("config_name tokenizer_name", "configuration and tokenizer are those of the model's folder"),
        unneeded("save_safetensors", "weights are always safetensors"),
        taken(
            "num_samples",
            "data.train.N.samples",
            "an entry per file; drawn again for each epoch instead of once",
            convert="unclear",
        ),
        taken(
            "prefixlm",
            "method.train_on",
            "as in the published code; with bidirectional prompts `method.generative_attention: prefix_lm`",
            values={"true": "last_assistant", "false": skip("every turn of the assistant is learned")},
        ),
        taken(
            "emb_q_only",
            "method.embedding_gradients",
            "also with GradCache and activation checkpointing",
            values={"true": "queries", "false": skip("off")},
        ),
        taken(
            "emb_p_only",
            "method.embedding_gradients",
            "also with GradCache and activation checkpointing",
            values={"true": "passages", "false": skip("off")},
        ),
    ),
    marks={
        "train_group_size": 6,
        "query_max_len": 4,
        "passage_max_len": 4,
        "pooling_method": 4,
        "attn": 3,
        "mode": 3,
        "normalized": 2,
        "negatives_cross_device": 4,
    },
    defaults={
        **DEFAULTS,
        "mode": "embedding",
        "pooling_method": "weightedmean",
        "query_max_len": 32,
        "passage_max_len": 128,
        "negatives_cross_device": False,
        "loss_gen_type": "mixed",
        "max_grad_norm": 1.0,
        "attn": "bbcc",
    },
    adapter={"rank": 16, "alpha": 64, "dropout": 0.1},
    remark="[gritlm-7b-unified.yaml](../recipes/gritlm-7b-unified.yaml) has the published settings, "
    "[gritlm-tiny.yaml](../recipes/gritlm-tiny.yaml) trains on two cores in minutes. Recall@K and NDCG@K are the task `retrieval`, or `evaluate.retrieval`; "
    "`tailor embed RUN rows.jsonl out.parquet` encodes a corpus. `hn_mine.py` of FlagEmbedding is [`tailor mine`](embeddings.md#hard-negatives), its `add_reranker_score.py` [`tailor score`](embeddings.md#distillation) with `method.distillation`. `encode(get_cache=True)` and `rag/eval.py --cache` are `tailor embed --key-values` and `tailor generate --retrieve FILE --reuse`: their `query`, `doc`, `docquery` and `querydoc` are `query`, `document`, `document-query` and `query-document`. `batch_sampler: no_duplicates` of sentence-transformers is `method.no_duplicates: true`.",
)
