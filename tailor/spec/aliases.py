"""Where the keys of other trainers' configurations belong in a recipe.

The keys are those of transformers' TrainingArguments, TRL, Axolotl, LLaMA-Factory, torchtune, Unsloth and
FlagEmbedding.
"""

from __future__ import annotations

_KEYS: dict[str, str] = {
    "model.path": "base_model base_model_config model_name model_name_or_path model_id pretrained_model",
    "model.revision": "model_revision revision_of_model",
    "model.dtype": "torch_dtype model_dtype",
    "model.attention": "attn_implementation flash_attention flash_attn use_flash_attention_2 sdp_attention",
    "model.quantize": "quantization quantization_config bnb_config",
    "model.quantize.type": "bnb_4bit_quant_type quantization_bit quantization_method",
    "model.quantize.double": "bnb_4bit_use_double_quant double_quantization double_quant",
    "model.rope": "rope_scaling rope_parameters",
    "model.rope.theta": "rope_theta rope_base rotary_base",
    "model.rope.original_length": "original_max_position_embeddings",
    "model.rope.length": "max_position_embeddings model_max_position",
    "model.adapter": "lora peft peft_config lora_config finetuning_type",
    "model.adapter.rank": "r lora_r lora_rank lora_dim",
    "model.adapter.alpha": "lora_alpha",
    "model.adapter.dropout": "lora_dropout",
    "model.adapter.target_modules": "lora_target lora_target_modules lora_target_linear lora_attn_modules",
    "model.adapter.modules_to_save": "lora_modules_to_save additional_target",
    "model.adapter.dora": "use_dora lora_use_dora peft_use_dora",
    "model.adapter.rslora": "use_rslora peft_use_rslora lora_use_rslora",
    "model.beacon.window": "beacon_window beacon_stride",
    "model.beacon.ratios": "beacon_ratio beacon_ratios",
    "model.beacon.draw": "beacon_ratio_mix",
    "model.beacon.sink": "beacon_sink_size",
    "model.beacon.projections": "beacon_param",
    "data.train": "dataset datasets dataset_path dataset_name dataset_dir train_file train_data train_dataset sources",
    "data.evaluation": "eval_dataset eval_data validation validation_file test_datasets eval_file",
    "data.holdout": "val_set_size val_size eval_split validation_split",
    "data.template": "chat_template prompt_template",
    "data.max_length": "sequence_len seq_len seq_length max_seq_len max_seq_length sequence_length cutoff_len "
    "model_max_length block_size context_length",
    "data.chunk.overlap": "chunk_overlap doc_stride sliding_window_overlap",
    "data.chunk.min_length": "min_chunk_length",
    "data.retrieve": "retrieval_method",
    "data.retrieve.passage": "retrieval_key_length",
    "data.pack": "packing sample_packing packed neat_packing",
    "data.train.N.format": "dataset_format formatting conversation_format",
    "data.train.N.columns": "field_messages column_mapping",
    "data.train.N.limit": "max_samples max_train_samples",
    "method.name": "trainer rl task training_type",
    "method.train_on": "train_on_inputs train_on_input roles_to_train assistant_only_loss completion_only_loss",
    "method.loss": "loss_type pref_loss dpo_loss",
    "method.beta": "pref_beta rl_beta dpo_beta kto_beta",
    "method.gamma": "simpo_gamma",
    "method.sft_weight": "rpo_alpha cpo_alpha pref_ftx",
    "method.label_smoothing": "dpo_label_smoothing",
    "method.reference": "ref_model ref_model_path",
    "method.max_completion_length": "max_target_length max_response_length",
    "method.desirable_weight": "kto_chosen_weight",
    "method.undesirable_weight": "kto_rejected_weight",
    "optim.learning_rate": "lr peak_lr base_lr",
    "optim.optimizer": "optimizer_type optimizer_name",
    "optim.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "optim.warmup_steps": "num_warmup_steps lr_warmup_steps warmup_iters",
    "optim.warmup_ratio": "warmup_fraction warmup_proportion",
    "optim.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optim.eps": "adam_epsilon adam_eps epsilon",
    "optim.max_grad_norm": "clip_grad_norm gradient_clipping grad_clip",
    "train.epochs": "num_train_epochs num_epochs epoch",
    "train.steps": "max_steps max_train_steps num_steps max_iters",
    "train.tokens": "token_budget total_tokens num_train_tokens train_tokens max_train_tokens",
    "train.batch_size": "global_batch_size train_batch_size total_batch_size",
    "train.micro_batch_size": "micro_batch per_device_batch_size train_micro_batch_size_per_gpu",
    "train.activation_checkpointing": "gradient_checkpointing enable_activation_checkpointing recompute",
    "train.activation_offloading": "enable_activation_offloading offload_activations cpu_offload_activations",
    "train.tiled_mlp": "tiled_mlp_num_shards",
    "train.precision": "mixed_precision",
    "train.compile": "torch_compile",
    "scale.workers": "num_workers num_gpus n_gpus gpus world_size nproc_per_node num_processes",
    "scale.sequence_parallel": "sequence_parallel_degree sequence_parallel_size context_parallel_size ulysses_size",
    "scale.address": "ray_address",
    "save.to": "output_dir output_path save_dir checkpoint_dir run_dir",
    "save.every": "save_steps save_interval checkpoint_every",
    "save.keep": "save_total_limit keep_last_n_checkpoints",
    "save.best": "load_best_model_at_end",
    "save.resume": "resume_from_checkpoint auto_resume_from_checkpoints",
    "evaluate.every": "eval_steps eval_interval eval_every",
    "evaluate.generation": "predict_with_generate",
    "evaluate.generation.max_new_tokens": "max_tokens generation_max_length",
    "export.push_to_hub": "hub_model_id hub_repo_id hub_model_repo",
    "export.private": "hub_private_repo",
    "track": "report_to logger metric_logger loggers",
}

ALIASES: dict[str, str] = {name: key for key, names in _KEYS.items() for name in names.split()}
"""Key of another trainer -> key of a recipe."""

MIGRATION_HINTS: dict[str, str] = {
    "load_in_4bit": "write model.quantize: {type: nf4}",
    "load_in_8bit": "write model.quantize: {type: int8}",
    "bf16": "write train.precision: bf16",
    "fp16": "write train.precision: fp16",
    "per_device_train_batch_size": "write train.batch_size, the global batch over all workers "
    "(train.micro_batch_size is the number of rows in one forward pass)",
    "per_device_eval_batch_size": "leave it out: the plan chooses the evaluation batches",
    "eval_batch_size": "leave it out: the plan chooses the evaluation batches",
    "gradient_accumulation_steps": "leave it out: the number of accumulation steps follows from train.batch_size, the global batch",
    "logging_steps": "leave it out: every step is logged",
    "save_strategy": "write save.every: N for a checkpoint every N steps",
    "eval_strategy": "write evaluate.every: N for an evaluation every N steps",
    "evaluation_strategy": "write evaluate.every: N for an evaluation every N steps",
    "precompute_ref_log_probs": "write method.reference: precomputed",
    "group_by_length": "write data.pack: false; then rows of similar length share a batch",
    "shuffle": "leave it out: training rows are always shuffled, with train.seed",
    "deepspeed": "write scale.strategy: {name: deepspeed, stage: 2}, with config: FILE for your own DeepSpeed JSON",
    "fsdp": "write scale.strategy: fsdp",
}
"""Key of another trainer -> what to write, where another key alone is not the answer."""

SECRETS = frozenset(
    (
        *("token", "hf_token", "hub_token", "use_auth_token", "auth_token", "api_key", "wandb_api_key"),
        *("access_key", "secret", "secret_key", "password"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    )
)
"""Names of keys that hold secrets. Secrets belong in environment variables."""
