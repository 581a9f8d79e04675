"""torchtune's YAML, Unsloth's settings, and DeepSpeed's JSON."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, no, refused, skip, table, taken, unneeded, unsupported
from tailor.spec.trainers.transformers import DEFAULTS
from tailor.spec.trainers.trl import ROWS as TRL_ROWS
from tailor.spec.trainers.values import INITS, ONLINE, OPTIMIZERS, PRECISIONS, TORCHTUNE_SCHEDULES

_PROFILER = "throughput and memory are always logged"
_CHECKPOINT = "the model's folder says which files it has"
_DEEPSPEED = (
    "DeepSpeed's own setting: keep your JSON with scale.strategy: {name: deepspeed, stage: N, config: FILE}"
)

TORCHTUNE = Trainer(
    "torchtune",
    "torchtune",
    "YAML",
    table(
        taken("checkpointer.checkpoint_dir", "model.path", "the folder of the downloaded weights"),
        taken(
            "model._component_",
            "=adapter",
            "a name with `lora_` or `qlora_` has an adapter",
            convert="tune_model",
        ),
        taken(
            "model.lora_attn_modules",
            "model.adapter.target_modules",
            "with apply_lora_to_mlp and apply_lora_to_output",
            convert="tune_modules",
        ),
        taken("model.apply_lora_to_mlp", "=lora_mlp"),
        taken("model.apply_lora_to_output", "=lora_output"),
        taken("model.lora_rank", "model.adapter.rank"),
        taken("model.lora_alpha", "model.adapter.alpha"),
        taken("model.lora_dropout", "model.adapter.dropout"),
        taken("model.use_dora", "model.adapter.dora"),
        taken("model.quantize_base", "=bits4"),
        taken("tokenizer.max_seq_len", "data.max_length"),
        taken("dataset._component_", "data.train", convert="tune_dataset"),
        taken("dataset.source", "data.train.N.path", "`hf://owner/name`", convert="tune_source"),
        taken("dataset.data_files", "data.train.N.path", convert="tune_source"),
        taken("dataset.split", "data.train.N.split", convert="split"),
        taken("dataset.subset dataset.name", "data.train.N.subset", convert="subset"),
        taken("dataset.packed", "data.pack"),
        taken(
            "dataset.train_on_input", "method.train_on", values={"true": "everything", "false": "assistant"}
        ),
        taken(
            "dataset.column dataset.column_map dataset.conversation_column",
            "data.train.N.columns",
            convert="tune_columns",
        ),
        taken(
            "dataset.conversation_style",
            "data.train.N.format",
            values={"sharegpt": "sharegpt", "openai": "messages", "chat": "messages"},
        ),
        taken("optimizer._component_", "optim.optimizer", values=OPTIMIZERS),
        taken("optimizer.lr", "optim.learning_rate"),
        taken("optimizer.weight_decay", "optim.weight_decay"),
        taken("optimizer.betas", "optim.betas"),
        taken("optimizer.eps", "optim.eps"),
        taken("optimizer.momentum", "optim.momentum"),
        taken("lr_scheduler._component_", "optim.schedule", values=TORCHTUNE_SCHEDULES),
        taken("lr_scheduler.num_warmup_steps", "=warmup"),
        taken(
            "lr_scheduler.num_cycles", "=none", values={"*": skip("half a cosine, as the schedule cosine")}
        ),
        taken("clip_grad_norm", "optim.max_grad_norm", "off by default in torchtune", convert="clip"),
        taken("batch_size", "=per_device", "per-device batch × accumulation × GPUs"),
        taken("gradient_accumulation_steps", "=accumulation"),
        taken("epochs", "train.epochs"),
        taken("max_steps_per_epoch", "train.steps", convert="steps_per_epoch"),
        taken("dtype", "train.precision", values=PRECISIONS),
        taken("seed", "train.seed", convert="seed"),
        taken("compile", "train.compile"),
        taken("enable_activation_checkpointing", "train.activation_checkpointing"),
        taken("ac_mode ac_option", "train.activation_checkpointing", convert="unclear"),
        taken("enable_activation_offloading", "train.activation_offloading"),
        taken("output_dir", "save.to"),
        taken("loss._component_", "method.name", convert="tune_loss"),
        taken("loss.beta", "method.beta"),
        taken("loss.label_smoothing", "method.label_smoothing"),
        taken(
            "fsdp_cpu_offload",
            "scale.strategy",
            values={"true": {"scale.strategy": {"name": "fsdp", "offload": True}}, "false": skip("off")},
        ),
        taken("run_val_every_n_steps", "evaluate.every", "needs evaluation data", convert="validation"),
        taken("metric_logger._component_", "track.wandb", convert="tune_logger"),
        taken("metric_logger.project", "track.wandb.project", convert="wandb_project"),
        taken("resume_from_checkpoint", "save.resume", convert="resume"),
        taken(
            "tensor_parallel_dim",
            "=none",
            values={
                "1": skip("off"),
                "*": no("tensor parallelism is not supported; scale.strategy fsdp shards the weights"),
            },
        ),
        unneeded(
            "tokenizer tokenizer._component_ tokenizer.path tokenizer.merges_file tokenizer.prompt_template tokenizer.image_size tokenizer.special_tokens_path",
            "tokenizer and chat template are those of the model's folder",
        ),
        unneeded(
            "checkpointer checkpointer._component_ checkpointer.checkpoint_files checkpointer.recipe_checkpoint checkpointer.output_dir checkpointer.model_type checkpointer.adapter_checkpoint checkpointer.safe_serialization checkpointer.keep_last_n_checkpoints",
            _CHECKPOINT,
        ),
        unneeded(
            "dataset datasets model optimizer lr_scheduler loss metric_logger profiler device fsdp low_cpu_ram memory_efficient_fsdp_wrap custom_sharded_layers tensor_parallel_plan data_parallel_shard_dim data_parallel_replicate_dim use_distributed_state_dict",
            "the plan decides where the model is loaded",
        ),
        unneeded("optimizer.fused optimizer.foreach optimizer_in_bwd", "the update is the same"),
        unneeded("shuffle", "training rows are always shuffled, with train.seed"),
        unneeded(
            "log_every_n_steps log_peak_memory_stats log_level metric_logger.log_dir metric_logger.name",
            _PROFILER,
        ),
        unneeded(
            "save_adapter_weights_only save_every_n_epochs",
            "a run writes its adapter, and checkpoints with save.every",
        ),
        unneeded("batch_size_val dataset_val.packed", "the plan chooses the evaluation batches"),
        unneeded("collate_fn enable_kv_cache use_flex", "packed documents never see each other"),
        unneeded("loss.num_output_chunks loss.ignore_index", "the loss is computed in tiles anyway"),
        unneeded("ref_checkpointer", "the reference is the model before training"),
        unneeded("name base_model_path", "values that other settings use"),
        unsupported("dataset_val", "write data.holdout or data.evaluation"),
        unsupported("dataset.new_system_prompt", "put the system turn into the rows"),
        unsupported("quantizer model.quantize_base_ao", "quantization-aware training is not supported"),
        refused("teacher_model teacher_checkpointer kd_loss kd_ratio", "distillation is not supported"),
        refused(
            "policy_model reward_and_value_model value_checkpointer reward_checkpointer ppo_epochs grpo_samples reward_functions ref_policy_checkpointer orchestration inference postprocessing training",
            ONLINE,
        ),
        refused("tasks", "an evaluation, not a training run: `tailor evaluate` has the task lm_eval"),
        refused("prompt", "a generation, not a training run: `tailor generate`"),
    ),
    marks={
        "checkpointer": 3,
        "metric_logger": 2,
        "tokenizer": 2,
        "loss": 1,
        "optimizer": 1,
        "enable_activation_checkpointing": 3,
        "max_steps_per_epoch": 3,
    },
    defaults={
        "epochs": 1,
        "batch_size": 2,
        "dataset.packed": False,
        "clip_grad_norm": None,
        "lr_scheduler._component_": "constant",
    },
    remark="A built-in dataset of torchtune is a dataset of the hub; its prompt template is not taken over.",
)

UNSLOTH = Trainer(
    "unsloth",
    "Unsloth",
    "YAML, JSON, or a command line of unsloth-cli.py",
    table(
        TRL_ROWS.values(),
        taken("model_name", "model.path"),
        taken("max_seq_length", "data.max_length"),
        taken("r lora_r", "model.adapter.rank"),
        taken("lora_alpha", "model.adapter.alpha"),
        taken("lora_dropout", "model.adapter.dropout"),
        taken("target_modules", "model.adapter.target_modules", convert="modules"),
        taken("random_state", "train.seed"),
        taken(
            "use_gradient_checkpointing",
            "train.activation_checkpointing",
            values={"unsloth": True, "true": True, "false": False},
        ),
        taken("use_rslora", "model.adapter.rslora"),
        taken("init_lora_weights", "model.adapter.init", values=INITS),
        taken("loftq_config", "model.adapter.init", convert="loftq"),
        taken("modules_to_save", "model.adapter.modules_to_save"),
        taken(
            "dataset dataset_name", "data.train", "`hf://owner/name`, or a local path", convert="hub_dataset"
        ),
        taken("full_finetuning", "=adapter", convert="not_adapter"),
        taken(
            "train_on_completions train_on_responses_only",
            "method.train_on",
            values={"true": "assistant", "false": "everything"},
        ),
        taken(
            "embedding_learning_rate",
            "optim.learning_rate_ratios.embeddings",
            "a multiple of learning_rate",
            convert="embedding_rate",
        ),
        taken("batch_size", "=per_device", "per-device batch × accumulation × GPUs"),
        taken("num_epochs", "train.epochs"),
        taken("random_seed", "train.seed"),
        taken("training_type", "=adapter", convert="adapter"),
        taken("use_loftq", "model.adapter.init", values={"true": "loftq", "false": skip("off")}),
        taken("enable_wandb", "=wandb", "track.wandb"),
        taken("wandb_project", "track.wandb.project"),
        unneeded("enable_tensorboard tensorboard_dir log_frequency", "TensorBoard files are always written"),
        unneeded("bias", "biases are not trained with an adapter"),
        unneeded(
            "layers_to_transform layer_replication finetune_language_layers finetune_attention_modules finetune_mlp_modules finetune_vision_layers vision_all_linear lora_bias",
            "model.adapter.target_modules names the modules",
        ),
        unneeded(
            "save_model save_method quantization save_gguf save_path hub_path push_model push_gguf quantization_method",
            "`tailor merge`, `tailor export` and `tailor push` write the trained model",
        ),
        unneeded(
            "raw_text_file use_modelscope use_local_vllm format_type custom_format_mapping",
            "see data.train[].format",
        ),
        unneeded("wandb_token hf_token", "put tokens into the environment: WANDB_API_KEY, HF_TOKEN"),
    ),
    marks={
        "max_seq_length": 2,
        "model_name": 3,
        "random_state": 4,
        "use_gradient_checkpointing": 3,
        "load_in_4bit": 1,
        "r": 3,
        "full_finetuning": 4,
        "train_on_completions": 3,
        "target_modules": 1,
    },
    defaults={
        **{name: value for name, value in DEFAULTS.items() if name != "save_steps"},
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "optim": "adamw_8bit",
        "random_seed": 3407,
        "training_type": "lora",
        "load_in_4bit": True,
        "max_seq_length": 2048,
        "lora_r": 64,
        "lora_alpha": 16,
        "train_on_completions": False,
        "packing": False,
        "truncation_mode": "keep_start",
    },
    command_defaults={
        "model_name": "unsloth/llama-3-8b",
        "dataset": "yahma/alpaca-cleaned",
        "load_in_4bit": False,
        "lora_r": 16,
        "max_steps": 400,
        "use_gradient_checkpointing": "unsloth",
    },
)

DEEPSPEED = Trainer(
    "deepspeed",
    "DeepSpeed's JSON",
    "",
    table(
        taken("zero_optimization.stage", "scale.strategy.stage", "a number from 1 to 3"),
        taken("zero_optimization.offload_optimizer", "scale.strategy.offload_optimizer", "its `device`"),
        taken("zero_optimization.offload_param", "scale.strategy.offload_parameters", "its `device`"),
        taken("gradient_clipping", "optim.max_grad_norm"),
        taken("optimizer", "optim", "tailor's own optimizer"),
        taken("scheduler", "optim.schedule"),
        taken("bf16", "train.precision"),
        taken("fp16", "train.precision", "`bf16` with DeepSpeed: it needs no loss scaling"),
        taken("train_batch_size", "train.batch_size"),
        taken("train_micro_batch_size_per_gpu", "train.micro_batch_size"),
        unneeded("gradient_accumulation_steps", "it follows from the batch sizes"),
        unneeded("steps_per_print wall_clock_breakdown", "every step is logged"),
        unneeded(
            "zero_optimization.overlap_comm zero_optimization.reduce_bucket_size zero_optimization.allgather_bucket_size zero_optimization.contiguous_gradients",
            _DEEPSPEED,
        ),
    ),
    remark="Keep your own file with `scale.strategy: {name: deepspeed, stage: 2, config: ds.json}`: its `auto` values are filled in, and contradictions are reported. "
    "`tailor import` reads the stage and the offloading from it.",
)
