"""The command lines of LongLLM-QLoRA and Activation Beacon."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, no, skip, table, taken, unlike, unneeded, unsupported
from tailor.spec.trainers.transformers import DEFAULTS, LAUNCHER, TRAINING
from tailor.spec.trainers.values import ATTENTION, DTYPES, TEMPLATES

_GENERATE = "it concerns the scripts that generate: `tailor generate` and evaluate.generation have their own"
_VLLM = "evaluations run on the workers of the run, without vLLM"
_COLOSSAL = "ColossalAI is not used; scale.strategy shards the weights"
_TOKENIZER = "the tokenizer is that of the model's folder, and rows are packed without a padding side"

LONG_LLM = Trainer(
    "long-llm",
    "LongLLM-QLoRA and Activation Beacon",
    "a command line (`.sh` or text)",
    table(
        TRAINING.values(),
        LAUNCHER.values(),
        taken("model_name_or_path", "model.path"),
        taken(
            "train_data", "data.train", "`long-llm:` is data_root; `[5000]` is the limit", convert="long_rows"
        ),
        taken("eval_data", "data.evaluation", convert="long_evaluation"),
        taken("data_root", "=data_root", "the folder of paths that start with `long-llm:`"),
        taken(
            "max_length",
            "data.max_length",
            "beyond the model's positions with `model.rope` or `model.beacon`",
        ),
        taken("min_length", "data.min_length", "shorter rows are left out and counted"),
        taken("chat_template", "data.template", values=TEMPLATES),
        taken("attn_impl", "model.attention", values=ATTENTION),
        taken("dtype", "model.dtype", values={**DTYPES, "bf16": skip("train.precision says so")}),
        taken("load_in_4_bit", "=bits4"),
        taken("lora_tune", "=adapter", "`model.adapter`", convert="adapter"),
        taken("lora_rank", "model.adapter.rank"),
        taken("lora_alpha", "model.adapter.alpha"),
        taken("lora_dropout", "model.adapter.dropout"),
        taken("lora_targets", "model.adapter.target_modules", convert="modules"),
        taken("lora_extra_params", "model.adapter.modules_to_save", "embeddings and norms", convert="names"),
        taken("lora", "model.warm_start", "the folder of an adapter"),
        taken("rope_theta", "=rope_theta", "verified on the loaded model, and saved with it"),
        taken("rope_method", "=rope_method"),
        taken("rope_factor", "=rope_factor"),
        taken("max_position_embeddings", "=rope_length"),
        taken("enable_beacon", "=beacon", "the section `model.beacon`"),
        taken("beacon_window", "model.beacon.window"),
        taken("beacon_ratio", "model.beacon.ratios", convert="numbers"),
        taken(
            "beacon_ratio_mix",
            "model.beacon.draw",
            values={
                "step-random": "step-random",
                "adapt": "adapt",
                "adapt-1024": unlike("adapt", "set model.beacon.memory: 1024 for the bound"),
                "instance-random": unlike("step-random", "the ratio is drawn per window, not per document"),
                "*": no("model.beacon.draw keeps its default step-random"),
            },
        ),
        taken("beacon_param", "model.beacon.projections", values={}, convert="projections"),
        taken("beacon_sink_size", "model.beacon.sink"),
        taken(
            "sort_by_stride",
            "train.order",
            "by the length in tokens",
            values={
                "ascend": "short_to_long",
                "descend": no("the longest rows cannot come first; train.order keeps its default"),
            },
        ),
        taken(
            "retrieval_method",
            "data.on_long",
            "`bm25`: data.on_long: retrieve; a dense encoder is data.retrieve.embedder",
            values={
                "bm25": {"data.on_long": "retrieve"},
                "*": no("a dense encoder is data.retrieve.embedder"),
            },
        ),
        taken("retrieval_key_length", "data.retrieve.passage"),
        taken(
            "metrics",
            "evaluate.final.tasks",
            "the tasks `rouge`, `passkey`, `needle` and `long_perplexity`",
            convert="unclear",
        ),
        unneeded("beacon_stride", "windows do not overlap: the stride is the window"),
        unneeded(
            "beacon_attn beacon_pos",
            "beacons are interleaved with the tokens, and each one sees its own and earlier intervals, as published",
        ),
        unneeded(
            "beacon_attend_prev beacon_embed_init",
            "beacons attend to earlier ones and start from the EOS embedding, as published",
        ),
        unneeded("only_train_beacon", "only the beacons are trained"),
        unneeded(
            "group_by_stride beacon_parallel_window",
            "documents of a batch are read window by window; their lengths do not change the loss",
        ),
        unneeded("retrieval_topk", "as many passages are kept as fit into data.max_length"),
        unneeded("lora_unload", "the adapter stays separate; `tailor merge` merges it"),
        unneeded("model_cache_dir dataset_cache_dir", "set HF_HOME in the environment"),
        unneeded("padding_side no_use_fast", _TOKENIZER),
        unneeded("device_map cpu batch_size", "the plan decides where the model is loaded, and the batches"),
        unneeded("enable_vllm vllm_mem vllm_tp vllm_len vllm_disable_ar", _VLLM),
        unneeded("max_new_tokens do_sample temperature top_p", _GENERATE),
        unneeded("use_colossal colossal_plugin colossal_mp", _COLOSSAL),
        unneeded("eval_method", "evaluate.every measures perplexity, evaluate.generation generates"),
        unneeded(
            "eval_beacon_ratio eval_beacon_ratio_mix", "evaluations use `adapt` with the trained ratios"
        ),
        unneeded("log_path", "the run's folder has metrics.jsonl"),
        unsupported(
            "eval_max_length eval_min_length max_eval_num",
            "evaluation rows have the limits of data.max_length and data.evaluation[].limit",
        ),
        unsupported("mistral_sliding_window", "the model keeps the window of its config.json"),
        unsupported(
            "enable_tp", "tensor parallelism is not supported; scale.sequence_parallel splits a long sequence"
        ),
    ),
    marks={
        "lora_tune": 6,
        "enable_beacon": 6,
        "data_root": 4,
        "beacon_window": 4,
        "lora_extra_params": 3,
        "load_in_4_bit": 3,
        "rope_theta": 2,
        "min_length": 1,
    },
    defaults={
        **DEFAULTS,
        "per_device_train_batch_size": 1,
        "lora_rank": 32,
        "lora_alpha": 16,
        "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "lora_extra_params": ["embed_tokens", "norm"],
        "max_length": 4096,
    },
    remark="[llama3-8b-80k-qlora.yaml](../recipes/llama3-8b-80k-qlora.yaml), [llama3-8b-beacon.yaml](../recipes/llama3-8b-beacon.yaml) and "
    "[llama3-8b-beacon-chat.yaml](../recipes/llama3-8b-beacon-chat.yaml) are the published runs. Long texts can also be cut (`data.on_long: chunk`), "
    "one sequence can be split over GPUs (`scale.sequence_parallel`), and `tailor average A B --weights 1 2 --to URL` mixes checkpoints.",
)
