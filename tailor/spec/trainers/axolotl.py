"""Axolotl's YAML."""

from __future__ import annotations

from tailor.spec.trainers.common import EXPERT_PARALLELISM
from tailor.spec.trainers.rows import Trainer, refuse, refused, skip, table, taken, unneeded, unsupported
from tailor.spec.trainers.transformers import TRAINING
from tailor.spec.trainers.values import (
    ATTENTION,
    DTYPES,
    INITS,
    LOSSES,
    METHODS,
    ONLINE,
    OPTIMIZERS,
    REWARD,
    SCHEDULES,
    TEMPLATES,
)

_IMAGES = "models are trained on text; images, audio and video are not supported"
_TOKENIZER = "the tokenizer is that of the model's folder"
_KERNELS = "the loss is computed in tiles and attention on packed rows is fast without this kernel"
_CLOUD = "`tailor submit` and `tailor manifest` start a run on a cluster"
_TRACKER = "this tracker is not available; the run's folder has metrics.jsonl and TensorBoard files"
_GPTQ = "a base in GPTQ format is not supported; use its unquantized weights with model.quantize"
_MOE = "experts are trained by the model's own code"

ROWS = table(
    TRAINING.values(),
    taken("base_model base_model_config", "model.path"),
    taken("revision_of_model", "model.revision"),
    taken("trust_remote_code", "model.trust_remote_code", "a security risk; off by default"),
    taken("attn_implementation", "model.attention", values=ATTENTION),
    taken(
        "flash_attention xformers_attention flex_attention sdp_attention eager_attention sage_attention",
        "model.attention",
        values={"*": skip("`auto` is as fast on packed rows and needs no package")},
    ),
    taken("torch_dtype", "model.dtype", values=DTYPES),
    taken("adapter", "=adapter", "`lora`; `qlora` with load_in_4bit is model.quantize", convert="adapter"),
    taken("lora_r", "model.adapter.rank"),
    taken("lora_alpha", "model.adapter.alpha"),
    taken("lora_dropout", "model.adapter.dropout"),
    taken("lora_target_modules", "model.adapter.target_modules", convert="modules"),
    taken(
        "lora_target_linear",
        "model.adapter.target_modules",
        values={"true": "all-linear", "false": skip("lora_target_modules says which")},
    ),
    taken("lora_modules_to_save", "model.adapter.modules_to_save"),
    taken("lora_model_dir", "model.warm_start"),
    taken("peft_use_dora", "model.adapter.dora"),
    taken("peft_use_rslora", "model.adapter.rslora"),
    taken("peft_init_lora_weights", "model.adapter.init", values=INITS),
    taken("peft.loftq_config", "model.adapter.init", convert="loftq"),
    taken("lora_rank_pattern peft_rank_pattern", "model.adapter.rank_pattern"),
    taken("loraplus_lr_ratio", "optim.learning_rate_ratios.lora_b"),
    taken(
        "loraplus_lr_embedding",
        "optim.learning_rate_ratios.embeddings",
        "a multiple of learning_rate",
        convert="embedding_rate",
    ),
    taken("embedding_lr_scale", "optim.learning_rate_ratios.embeddings"),
    taken(
        "embedding_lr",
        "optim.learning_rate_ratios.embeddings",
        "a multiple of learning_rate",
        convert="embedding_rate",
    ),
    taken("load_in_4bit", "=bits4"),
    taken("load_in_8bit", "=bits8"),
    taken("bnb_config_kwargs", "model.quantize", convert="bnb"),
    taken("datasets", "data.train", convert="axolotl_datasets"),
    taken("pretraining_dataset", "data.train", convert="axolotl_pretraining"),
    taken("test_datasets", "data.evaluation", convert="axolotl_tests"),
    taken("val_set_size", "=holdout", "a share of the rows", convert="holdout"),
    taken(
        "dataset_exact_deduplication",
        "data.deduplicate",
        values={"true": "exact", "false": skip("all rows are kept")},
    ),
    taken("chat_template", "data.template", values=TEMPLATES),
    taken("chat_template_jinja", "data.template", convert="template_path"),
    taken("chat_template_kwargs", "data.template_arguments"),
    taken("sequence_len", "data.max_length"),
    taken("min_sample_len", "data.min_length"),
    taken(
        "excess_length_strategy",
        "data.on_long data.budget.dropped",
        values={
            "drop": "drop",
            "truncate": "truncate",
            "raise": {"data.on_long": "drop", "data.budget.dropped": 0.0},
        },
    ),
    taken("sample_packing", "data.pack"),
    taken("max_packed_sequence_len", "data.max_length"),
    taken("train_on_inputs", "method.train_on", values={"true": "everything", "false": "assistant"}),
    taken("tokens", "model.add_tokens", convert="tokens"),
    taken("rl", "method.name method.loss", values=METHODS),
    taken("rl_beta dpo_beta orpo_alpha kto_beta", "method.beta"),
    taken("dpo_label_smoothing", "method.label_smoothing"),
    taken("dpo_loss_type", "method.loss", values=LOSSES),
    taken("rpo_alpha cpo_alpha", "method.sft_weight"),
    taken("simpo_gamma", "method.gamma"),
    taken("kto_desirable_weight", "method.desirable_weight"),
    taken("kto_undesirable_weight", "method.undesirable_weight"),
    taken(
        "precompute_ref_log_probs",
        "method.reference",
        values={"true": "precomputed", "false": skip("`auto` chooses")},
    ),
    taken("max_prompt_len", "method.max_prompt_length"),
    taken("micro_batch_size", "=per_device", "per-device batch × accumulation × GPUs"),
    taken("batch_size", "=per_device_and_accumulation"),
    taken("num_epochs", "train.epochs"),
    taken("optimizer", "optim.optimizer", values=OPTIMIZERS),
    taken("lr_scheduler", "optim.schedule", values=SCHEDULES),
    taken(
        "cosine_min_lr_ratio",
        "optim.min_learning_rate",
        "a share of the peak; here in absolute units",
        convert="minimum_ratio",
    ),
    taken("eta_min", "optim.min_learning_rate"),
    taken("adam_eps adam_epsilon", "optim.eps"),
    taken("lr_groups", "optim.learning_rate_ratios", convert="unclear"),
    taken("bf16 bfloat16", "=bf16"),
    taken("fp16 float16", "=fp16"),
    taken("gradient_checkpointing", "train.activation_checkpointing", convert="checkpointing"),
    taken("activation_offloading", "train.activation_offloading", values={"legacy": True, "disk": True}),
    taken("tiled_mlp", "train.tiled_mlp"),
    taken("evals_per_epoch", "evaluate.every", "in steps", convert="per_epoch_evaluations"),
    taken("eval_max_new_tokens", "evaluate.generation.max_new_tokens", convert="generation_length"),
    taken("saves_per_epoch", "save.every", "in steps", convert="per_epoch_saves"),
    taken("auto_resume_from_checkpoints", "save.resume", convert="resume"),
    taken("wandb_project", "track.wandb.project"),
    taken("wandb_entity", "track.wandb.entity"),
    taken("wandb_name", "track.wandb.name"),
    taken("mlflow_experiment_name", "track.mlflow.experiment"),
    taken("mlflow_tracking_uri", "track.mlflow.tracking_uri"),
    taken("mlflow_run_name", "track.mlflow.name"),
    taken(
        "context_parallel_size sequence_parallel_degree",
        "scale.sequence_parallel",
        "a divisor of the workers",
        convert="sequence_parallel",
    ),
    taken("dp_shard_size", "scale.strategy", convert="shards"),
    taken("ray_num_workers", "scale.workers"),
    taken(
        "liger_rms_norm liger_glu_activation liger_layer_norm",
        "model.kernels",
        values={"true": "liger", "false": "none"},
    ),
    taken("dequantize", "model.dequantize"),
    taken("model_quantization_config_kwargs", "model.dequantize", convert="dequantize"),
    taken("overrides_of_model_config", "model.rope", convert="unclear"),
    taken("reinit_weights", "model.init", values={"true": "random", "false": skip("the weights are loaded")}),
    taken("noisy_embedding_alpha", "method.neftune_alpha"),
    taken("num_labels", "=none", values={"*": refuse(REWARD)}),
    unneeded(
        "model_config_type model_type tokenizer_type cls_model_config",
        "the model's config.json says which class it is",
    ),
    unneeded(
        "is_llama_derived_model is_mistral_derived_model is_falcon_derived_model is_qwen_derived_model",
        "the model's config.json says which class it is",
    ),
    unneeded(
        "tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common tokenizer_save_jinja_files",
        _TOKENIZER,
    ),
    unneeded(
        "special_tokens eot_tokens",
        "packed rows need no padding token, and the chat template says which token ends a turn; add tokens with model.add_tokens",
    ),
    unneeded("strict", "unknown keys are always errors"),
    unneeded(
        "dataset_prepared_path push_dataset_to_hub dataset_processes dataset_num_proc skip_prepare_dataset dataset_keep_in_memory",
        "tokens are prepared once on all cores and stored; data.store says where",
    ),
    unneeded(
        "shuffle_merged_datasets shuffle_before_merging_datasets",
        "training rows are always shuffled, with train.seed",
    ),
    unneeded(
        "eval_sample_packing sample_packing_eff_est sample_packing_seq_len_multiplier sample_packing_group_size sample_packing_bin_size sample_packing_sequentially total_num_tokens total_supervised_tokens pad_to_sequence_len pretrain_multipack_attn pretrain_multipack_buffer_size streaming streaming_multipack_buffer_size multipack_real_batches sample_packing_mp_start_method",
        "packing has no settings: rows fill `data.max_length`",
    ),
    unneeded("eval_batch_size", "the plan chooses batches that fit into memory"),
    unneeded(
        "eval_table_size eval_causal_lm_metrics do_causal_lm_eval eval_bench_dataset do_bench_eval",
        "evaluate.generation and evaluate.final write samples and metrics",
    ),
    unneeded("logging_steps", "every step is logged"),
    unneeded(
        "loss_watchdog_threshold loss_watchdog_patience",
        "train.divergence stops a run whose loss is NaN or whose gradient norm explodes",
    ),
    unneeded("group_by_length", "rows are packed or shuffled"),
    unneeded(
        "wandb_watch wandb_log_model wandb_run_id wandb_mode wandb_offline use_wandb",
        "set WANDB_MODE in the environment; weights stay in the run's folder",
    ),
    unneeded("use_tensorboard", "TensorBoard files are always written"),
    unneeded("use_mlflow", "track.mlflow says so"),
    unneeded("fsdp_version fsdp_final_state_dict_type", "`fsdp` is FSDP2"),
    unneeded("hf_use_auth_token", "put the token into the environment: HF_TOKEN"),
    unneeded(
        "device_map low_cpu_mem_usage experimental_skip_move_to_device local_rank world_size ddp ddp_timeout gpu_memory_limit max_memory device",
        "the plan decides where the model is loaded",
    ),
    unneeded("dp_replicate_size", "follows from scale.workers"),
    unneeded("use_ray", "every run with several workers is on Ray"),
    unneeded(
        "liger_rope liger_fused_linear_cross_entropy liger_cross_entropy liger_rms_norm_gated liger_use_token_scaling cut_cross_entropy flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_attn_fuse_qkv flash_optimum unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel fused_attn_kernel flex_attn_compile_kwargs use_kernels chunked_cross_entropy s2_attention",
        _KERNELS,
    ),
    unneeded(
        "use_scattermoe use_sonicmoe experts_implementation use_dsv4_kernels use_glm_dsa_kernels llama4_linearized_experts gemma4_hybrid_attn_impl dsv4_fp4_grouped_mode expert_parallel_num_nvl_bytes expert_parallel_token_capacity",
        _MOE,
    ),
    unneeded("plugins", "their settings have rows of their own"),
    unneeded(
        "model_quantization_config",
        "the model's config.json says how its weights are stored; model.dequantize expands them",
    ),
    unneeded(
        "torchdistx_path gptq_groupsize gptq_model_v1 gptq_disable_exllama hub_strategy lora_on_cpu lora_fan_in_fan_out",
        "it does not concern the training result",
    ),
    unneeded("base_model_ignore_patterns", "pickled weights are not loaded"),
    unneeded(
        "provider gpu gpu_count memory timeout node_count volumes branch dockerfile_commands secrets memory_preprocess timeout_preprocess image env region",
        _CLOUD,
    ),
    unneeded("tokenizer_config", _TOKENIZER),
    unneeded("debug", "`tailor data show` prints tokenized rows"),
    unneeded("full_finetune", "without `adapter`, all weights are trained"),
    unneeded(
        "save_only_model save_strategy", "the last step always writes a checkpoint; save.every adds more"
    ),
    unneeded(
        "include_tkps tokens_per_second use_otel_metrics otel_metrics_host otel_metrics_port profiler_steps profiler_steps_start",
        "tokens per second and memory are always logged",
    ),
    unneeded("nvfp4_merge_aware merge_method", "`tailor merge` verifies the merged weights"),
    unneeded("jagged_restart_anneal_steps", "belongs to jagged_restart_steps"),
    unneeded("val_set_size_seed test_value", "the holdout is chosen by content"),
    unneeded(
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings",
        "the embedding has one row per token",
    ),
    unneeded("gc_steps bench_dataset", "memory is not collected by hand"),
    unneeded("ddp_find_unused_parameters freeze_mm_modules", "only what is trained gets gradients"),
    unneeded("lora_target_parameters_off", "off"),
    unsupported("cosine_constant_lr_ratio", "the cosine decays over all steps; `wsd` keeps the peak first"),
    unsupported("lr_quadratic_warmup", "the warm-up is linear"),
    unsupported(
        "relora relora_steps relora_prune_ratio relora_cpu_offload relora_warmup_steps jagged_restart_steps jagged_restart_warmup_steps",
        "ReLoRA's restarts are not made: one adapter is trained throughout",
    ),
    unsupported(
        "lisa_n_layers lisa_step_interval lisa_layers_attribute",
        "LISA's random layers are not supported: all weights are trained, with their memory",
    ),
    unsupported(
        "unfrozen_parameters",
        "parts of the base cannot be frozen: use model.adapter with modules_to_save, or train all weights",
    ),
    unsupported("lora_target_parameters", "model.adapter.experts: true adapts all routed experts"),
    unsupported(
        "quantize_moe_experts", "only linear modules are quantized; fused experts stay in model.dtype"
    ),
    unsupported(
        "peft_layers_to_transform lora_layers_to_transform peft_layer_replication",
        "all layers get an adapter; write their names in model.adapter.target_modules",
    ),
    unsupported(
        "trackio_project_name trackio_run_name use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_log_model swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer use_comet comet_project_name comet_experiment_config project_name",
        _TRACKER,
    ),
    unsupported(
        "use_eaft eaft_alpha eaft_k",
        "entropy-adaptive fine-tuning weights tokens by entropy; here each token has the same weight",
    ),
    unsupported(
        "use_onebitllms", "1-bit training is not supported; weights are trained in float32", neutral=()
    ),
    unsupported(
        "curriculum_sampling",
        "rows are shuffled, and their order in the file does not count; `train.order: short_to_long` sorts them by length",
    ),
    unsupported("model_config", "other keys of config.json keep the model's values"),
    unsupported("model_kwargs", "the model is loaded with its own arguments"),
    unsupported(
        "fp8 fp8_enable_fsdp_float8_all_gather", "fp8 arithmetic is not supported; train.precision is bf16"
    ),
    unsupported(
        "tensor_parallel_size",
        "tensor parallelism is not supported; scale.strategy fsdp shards the weights",
        neutral=(1, "1"),
    ),
    unsupported(
        "expert_parallel_size",
        f"expert parallelism is not supported; {EXPERT_PARALLELISM}",
        neutral=(1, "1"),
    ),
    unsupported("swanlab_lark_webhook_url", _TRACKER),
    unsupported("dpo_use_weighting dpo_norm_loss dpo_use_logits_to_keep", "each pair has the same weight"),
    unsupported("auto_find_batch_size", "the plan chooses micro-batches that fit"),
    unsupported(
        "train_on_eot train_on_eos roles_to_train",
        "set it per source in Axolotl; here method.train_on is for all: the assistant's turns with their end-of-turn token",
    ),
    unsupported("default_system_message", "put the system turn into the rows"),
    refused("processor_type image_size image_resize_algorithm", _IMAGES),
    refused("gptq", _GPTQ),
    refused("reward_model process_reward_model center_rewards_coefficient", REWARD),
    refused("trl vllm ebft async_prefetch", ONLINE),
    unsupported(
        "qat",
        "quantization-aware training is not supported: the weights are not rounded in training, so they lose more when they are quantized afterwards",
    ),
    unneeded("quantization", "`tailor export` writes the trained model; quantize it afterwards"),
    refused("llmcompressor", "sparse training is not supported"),
    refused("diffusion", "diffusion language models are not supported"),
    refused(
        "kd_trainer kd_alpha kd_ce_alpha kd_temperature kd_online_server_base_url",
        "distillation is not supported",
    ),
    unsupported(
        "context_parapllel_size",
        "a misspelling of context_parallel_size: write scale.sequence_parallel",
        neutral=(1,),
    ),
)

AXOLOTL = Trainer(
    "axolotl",
    "Axolotl",
    "YAML",
    ROWS,
    marks={
        "base_model": 6,
        "sequence_len": 3,
        "val_set_size": 1,
        "sample_packing": 2,
        "lora_r": 1,
        "pretraining_dataset": 2,
        "lora_target_linear": 2,
    },
    defaults={
        "adapter": "full",
        "micro_batch_size": 1,
        "num_epochs": 1,
        "sequence_len": 512,
        "excess_length_strategy": "drop",
        "sample_packing": False,
        "warmup_ratio": 0.03,
    },
)
