"""Names for settings that belong to no trainer in particular, and what to write for them.

They come before the tables of the trainers.
"""

from __future__ import annotations

_KEYS: dict[str, str] = {
    "model.path": "model_id pretrained_model model.name model.id model.base model.model",
    "model.dtype": "model_dtype",
    "model.attention": "use_flash_attention_2",
    "model.kernels": "use_liger",
    "model.quantize": "quantization quantization_config bnb_config",
    "model.quantize.double": "double_quant",
    "model.add_tokens": "resize_vocab added_tokens new_tokens additional_tokens",
    "model.base_dropout": "attn_pdrop resid_pdrop embd_pdrop attention_dropout hidden_dropout",
    "model.rope": "rope_parameters",
    "model.rope.name": "model.rope.type model.rope.rope_type",
    "model.rope.theta": "rope_base rotary_base",
    "model.rope.original_length": "original_max_position_embeddings",
    "model.rope.length": "model_max_position",
    "model.adapter": "peft lora_config",
    "model.adapter.rank": "lora_dim",
    "model.adapter.init": "lora_init",
    "model.adapter.target_modules": "lora_attn_modules",
    "model.adapter.dora": "lora_use_dora",
    "model.adapter.rslora": "lora_use_rslora",
    "model.beacon.ratios": "beacon_ratios",
    "data.train": "dataset_path sources",
    "data.evaluation": "validation validation_file",
    "data.holdout": "eval_split validation_split",
    "data.template": "prompt_template",
    "data.max_length": "seq_len max_seq_len sequence_length block_size context_length",
    "data.chunk.overlap": "chunk_overlap doc_stride sliding_window_overlap",
    "data.chunk.min_length": "min_chunk_length",
    "data.retrieve.embedder": "retrieval_encoder data.retrieve.model",
    "data.pack": "packed",
    "data.train.N.format": "dataset_format formatting conversation_format data.train.N.type",
    "data.train.N.subset": "data.train.N.name data.train.N.config",
    "data.train.N.weight": "data.train.N.ratio data.train.N.proportion data.train.N.probability",
    "data.train.N.columns": "field_messages column_mapping",
    "data.train.N.limit": "max_train_samples",
    "method.train_on": "train_on_input roles_to_train",
    "method.name": "rl trainer task training_type algorithm",
    "method.loss": "dpo_loss",
    "method.z_loss": "z_loss_weight z_loss_coefficient softmax_auxiliary_loss",
    "method.reference": "ref_model_path",
    "method.max_completion_length": "max_response_length",
    "method.no_duplicates": "batch_sampler no_duplicates_batch_sampler",
    "optim.learning_rate": "lr peak_lr base_lr",
    "optim.optimizer": "optimizer_type optimizer_name optim.name optim.type",
    "optim.min_learning_rate": "min_lr lr_min lr_end",
    "optim.cycles": "num_cycles",
    "optim.decay_steps": "num_decay_steps lr_decay_steps",
    "optim.decay": "decay_type",
    "optim.learning_rate_ratios.lora_b": "lora_plus_ratio",
    "optim.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_iters",
    "optim.warmup_ratio": "warmup_fraction warmup_proportion",
    "optim.betas": "beta1 beta2",
    "optim.eps": "epsilon",
    "optim.max_grad_norm": "grad_clip",
    "train.epochs": "epoch",
    "train.steps": "max_train_steps num_steps max_iters",
    "train.tokens": "token_budget total_tokens num_train_tokens train_tokens max_train_tokens",
    "train.batch_size": "total_batch_size",
    "train.micro_batch_size": "micro_batch per_device_batch_size",
    "train.activation_checkpointing": "recompute",
    "train.activation_offloading": "offload_activations cpu_offload_activations",
    "train.tiled_mlp": "tiled_mlp_num_shards",
    "train.early_stopping": "early_stopping_callback",
    "scale.workers": "world_size num_workers n_gpus gpus",
    "scale.sequence_parallel": "ulysses_size",
    "scale.address": "ray_address",
    "save.to": "save_dir output_path checkpoint_dir run_dir save.path save.dir save.folder save.output",
    "save.every": "save_interval checkpoint_every save.steps save.interval",
    "save.keep": "keep_last_n_checkpoints save.limit save.total_limit",
    "evaluate.every": "eval_interval eval_every evaluate.strategy evaluate.steps evaluate.interval",
    "evaluate.generation.max_new_tokens": "max_tokens generation_max_length",
    "export.push_to_hub": "hub_repo_id hub_model_repo",
    "track": "logger loggers metric_logger",
}

KEYS: dict[str, str] = {name: key for key, names in _KEYS.items() for name in names.split()}
"""Name -> key of a recipe. A name with dots is one in that section only."""

_STRIDE = "write data.chunk.overlap, the tokens that a chunk repeats: data.max_length minus the stride of the window"
_BATCHES = "leave it out: the plan chooses the evaluation batches"
EXPERT_PARALLELISM = "scale.strategy fsdp, or DeepSpeed's stage 3, shards the experts over the workers"
"""What to use instead of it."""

HINTS: dict[str, str] = {
    "data.retrieve.method": "leave it out for BM25; a dense encoder is data.retrieve.embedder",
    "data.retrieve.top_k": "leave it out: as many passages are kept as fit into data.max_length",
    "data.stride": _STRIDE,
    "data.chunk.stride": _STRIDE,
    "model.adapter.task_type": "leave it out: language models are trained",
    "model.beacon.stride": "leave it out: windows do not overlap, so the stride is model.beacon.window",
    "retrieval_method": "write data.on_long: retrieve for BM25; a dense encoder is data.retrieve.embedder",
    "per_device_eval_batch_size": _BATCHES,
    "eval_batch_size": _BATCHES,
    "precompute_ref_log_probs": "write method.reference: precomputed",
    "group_by_length": "write data.pack: false; then rows of similar length share a batch",
    "shuffle": "leave it out: training rows are always shuffled, with train.seed",
    "deepspeed": "write scale.strategy: {name: deepspeed, stage: 2}, with config: FILE for your own DeepSpeed JSON",
    "fsdp": "write scale.strategy: fsdp",
    "report_to": "write track.wandb: {project: NAME} or track.mlflow: {experiment: NAME}; TensorBoard files are always "
    "written",
    "log_with": "write track.wandb: {project: NAME} or track.mlflow: {experiment: NAME}; TensorBoard files are always "
    "written",
    "pissa": "write model.adapter.init: pissa",
    "olora": "write model.adapter.init: olora",
    "loftq": "write model.adapter.init: loftq",
    "qlora": "write model.quantize: {type: nf4} and model.adapter",
    "dpo": "write method: {name: dpo}",
    "orpo": "write method: {name: dpo, loss: orpo}",
    "simpo": "write method: {name: dpo, loss: simpo}",
    "kto": "write method: {name: kto}",
    "grpo": "it is not supported: the methods are sft, pretrain, dpo, kto, gritlm and rerank",
    "ppo": "it is not supported: the methods are sft, pretrain, dpo, kto, gritlm and rerank",
    "serve": "a recipe serves no model: `tailor export` writes a folder for vLLM or Ollama, `tailor chat` answers",
    "serving": "a recipe serves no model: `tailor export` writes a folder for vLLM or Ollama, `tailor chat` answers",
    "merge": "leave it out: `tailor merge RUN` merges an adapter after the run",
    "merge_lora": "leave it out: `tailor merge RUN` merges an adapter after the run",
    "tensorboard_dir": "leave it out: TensorBoard files are always written into the run's folder",
    "profiler": "leave it out: tokens per second and memory are always logged",
    **dict.fromkeys(
        (
            "expert_parallel",
            "expert_parallelism",
            "expert_model_parallel_size",
            "expert_parallel_size",
            "ep_size",
        ),
        f"it is not supported: {EXPERT_PARALLELISM}",
    ),
    "env": "leave it out: set variables in the shell, or in the cluster file for pods",
}
"""Name -> what to write, where a key alone is not the answer."""

_FOUR_BITS, _EIGHT_BITS = ("4bit", "4-bit", "4", "int4"), ("8bit", "8-bit", "8")

VALUES: dict[str, dict[str, str]] = {
    "model.adapter": {"qlora": "write adapter: {type: lora}, and model.quantize: {type: nf4}"},
    "model.adapter.type": {
        "qlora": "write type: lora, and model.quantize: {type: nf4}",
        "dora": "write type: lora with dora: true",
        "rslora": "write type: lora with rslora: true",
        **{name: f"write type: lora with init: {name}" for name in ("pissa", "olora", "loftq")},
    },
    "model.adapter.target_modules": dict.fromkeys(("all", "all_linear", "linear"), "write all-linear"),
    "model.quantize": {
        **dict.fromkeys(_FOUR_BITS, "write quantize: {type: nf4}"),
        **dict.fromkeys(_EIGHT_BITS, "write quantize: {type: int8}"),
    },
    "model.quantize.type": {
        **dict.fromkeys(_FOUR_BITS, "write nf4"),
        **dict.fromkeys(_EIGHT_BITS, "write int8"),
    },
    "train.precision": {
        **dict.fromkeys(("bf16-mixed", "bf16-true"), "write bf16"),
        **dict.fromkeys(("16-mixed", "fp16-mixed", "half"), "write fp16"),
    },
    "train.activation_checkpointing": dict.fromkeys(
        ("unsloth", "offload"), "write true, with train.activation_offloading: true"
    ),
    "scale.strategy": {
        **{
            name.format(stage): f"write strategy: {{name: deepspeed, stage: {stage}}}"
            for stage in (1, 2, 3)
            for name in ("zero{}", "zero-{}", "zero_{}", "deepspeed_stage_{}")
        },
        **dict.fromkeys(("full_shard", "hybrid_shard"), "write fsdp"),
    },
    "save.every": {"epoch": "without save.every there is one checkpoint, after the last step"},
    "save.best": dict.fromkeys(("eval_loss", "loss"), "write true: it is by the evaluation loss"),
}
"""Key -> value of other tools (lower case) -> what to write. They come before the values of the tables."""

SECTIONS: dict[str, str] = {
    **dict.fromkeys(
        ("optimizer", "optimization", "optimiser", "optim_args", "lr_scheduler", "scheduler"), "optim"
    ),
    **dict.fromkeys(
        ("training", "trainer", "training_args", "train_args", "training_arguments", "hyperparameters"),
        "train",
    ),
    **dict.fromkeys(("dataset", "datasets", "data_args", "dataloader"), "data"),
    **dict.fromkeys(("model_args", "base_model", "policy_model", "tokenizer"), "model"),
    **dict.fromkeys(("lora", "peft", "peft_config", "lora_config", "adapter"), "model.adapter"),
    **dict.fromkeys(
        ("quantization", "quantize", "bnb", "bnb_config", "quantization_config"), "model.quantize"
    ),
    **dict.fromkeys(("logging", "logger", "loggers", "metric_logger", "tracking", "wandb_config"), "track"),
    **dict.fromkeys(("evaluation", "eval", "validation"), "evaluate"),
    **dict.fromkeys(
        ("output", "checkpoint", "checkpoints", "checkpointing", "checkpointer", "saving"), "save"
    ),
    **dict.fromkeys(
        ("resources", "distributed", "ray", "accelerate", "cluster", "parallelism", "launcher"), "scale"
    ),
    **dict.fromkeys(("algorithm", "loss_config", "dpo_config", "task_config"), "method"),
    **dict.fromkeys(("hub", "push"), "export"),
}
"""Section of another tool -> section of a recipe."""
