"""Arguments of transformers' TrainingArguments, which most trainers share."""

from __future__ import annotations

from tailor.spec.trainers.rows import Row, skip, table, taken, unlike, unneeded, unsupported
from tailor.spec.trainers.values import OPTIMIZERS, SCHEDULES

_STATE = "checkpoints always have the optimizer state, so that a run can resume"
_LOADER = "batches come from the token store; no loader settings are needed"
_RAY = "Ray starts and connects the workers"
_LOG = "every step is logged"

TRAINING: dict[str, Row] = table(
    taken("output_dir", "save.to", "local, or any fsspec URL"),
    taken("num_train_epochs", "train.epochs"),
    taken("max_steps", "=max_steps", "instead of epochs; -1 is off"),
    taken("per_device_train_batch_size", "=per_device", "per-device batch × accumulation × GPUs"),
    taken("gradient_accumulation_steps", "=accumulation", "per-device batch × accumulation × GPUs"),
    taken("learning_rate", "optim.learning_rate"),
    taken("lr_scheduler_type", "optim.schedule", values=SCHEDULES),
    taken(
        "lr_scheduler_kwargs",
        "optim.min_learning_rate optim.cycles optim.decay_steps",
        convert="schedule_arguments",
    ),
    taken("warmup_steps", "=warmup", "below 1 it is a share of all steps"),
    taken("warmup_ratio", "=warmup_ratio"),
    taken("optim", "optim.optimizer", values=OPTIMIZERS),
    taken("weight_decay", "optim.weight_decay", "on matrices only, not on norms and biases"),
    taken("adam_beta1", "=beta1"),
    taken("adam_beta2", "=beta2"),
    taken("adam_epsilon", "optim.eps"),
    taken(
        "max_grad_norm", "optim.max_grad_norm", "`null` turns clipping off", values={"0": None, "0.0": None}
    ),
    taken(
        "label_smoothing_factor",
        "method.label_smoothing",
        "of `sft`, `pretrain` and `gritlm`; evaluations are without it",
    ),
    taken("bf16", "=bf16"),
    taken("fp16", "=fp16"),
    taken(
        "gradient_checkpointing activation_checkpointing",
        "train.activation_checkpointing",
        convert="checkpointing",
    ),
    taken("torch_compile", "train.compile"),
    taken(
        "use_liger_kernel",
        "model.kernels",
        "RMSNorm and MLP; the loss is tiled anyway",
        values={"true": "liger", "false": "none"},
    ),
    taken(
        "neftune_noise_alpha", "method.neftune_alpha", "with the document's own length, not the padded one"
    ),
    taken("eval_strategy evaluation_strategy", "=eval_strategy", "`evaluate.every: N`, in steps"),
    taken("eval_steps", "=eval_steps"),
    taken("save_strategy", "=save_strategy", "`save.every: N`, in steps"),
    taken("save_steps", "=save_steps"),
    taken("save_total_limit", "save.keep"),
    taken("load_best_model_at_end", "save.best", "by the evaluation loss"),
    taken(
        "metric_for_best_model",
        "train.early_stopping.metric",
        values={
            "loss": skip("it is the metric of save.best"),
            "eval_loss": skip("it is the metric of save.best"),
        },
        convert="best_metric",
    ),
    taken("early_stopping_patience", "train.early_stopping.patience"),
    taken("early_stopping_threshold", "train.early_stopping.min_delta"),
    taken("seed", "train.seed"),
    taken("push_to_hub", "=push", "with `hub_model_id`; or `tailor push` after the run"),
    taken("hub_model_id", "export.push_to_hub"),
    taken("hub_private_repo", "export.private"),
    taken(
        "resume_from_checkpoint",
        "save.resume",
        "`auto` resumes the run's own last checkpoint",
        convert="resume",
    ),
    taken(
        "report_to", "track.wandb track.mlflow", "TensorBoard files are always written", convert="report_to"
    ),
    taken(
        "group_by_length",
        "data.pack",
        "then rows of similar length share a batch",
        values={"true": False, "false": skip("rows are shuffled")},
    ),
    taken(
        "train_sampling_strategy",
        "data.pack",
        values={
            "random": skip("rows are shuffled"),
            "group_by_length": False,
            "sequential": unlike(None, "rows are always shuffled, with train.seed"),
        },
    ),
    taken(
        "deepspeed",
        "scale.strategy",
        "`{name: deepspeed, stage: N, config: FILE}` keeps your own JSON",
        convert="deepspeed",
    ),
    taken("fsdp", "scale.strategy", "`fsdp`", convert="fsdp"),
    taken(
        "use_cpu no_cuda",
        "scale.gpu",
        values={"true": False, "false": skip("GPUs are used where there are any")},
    ),
    unneeded("project", "for Trackio: see track"),
    unneeded(
        "logging_steps logging_strategy logging_first_step logging_nan_inf_filter log_on_each_node", _LOG
    ),
    unneeded("logging_dir", "TensorBoard files are in the run's folder"),
    unneeded("log_level log_level_replica disable_tqdm", "the terminal shows the progress"),
    unneeded(
        "include_num_input_tokens_seen include_tokens_per_second",
        "tokens and tokens per second are always logged",
    ),
    unneeded("run_name", "a run has the name of its folder; track.wandb.name sets another one for W&B"),
    unneeded(
        "per_device_eval_batch_size eval_accumulation_steps auto_find_batch_size batch_eval_metrics eval_do_concat_batches eval_use_gather_object",
        "the plan chooses batches that fit into memory",
    ),
    unneeded(
        "prediction_loss_only include_for_metrics include_inputs_for_metrics",
        "evaluations report the loss and the metrics of the method",
    ),
    unneeded(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs use_reentrant",
        "activation checkpointing takes no arguments",
    ),
    unneeded("save_only_model", _STATE),
    unneeded(
        "save_on_each_node save_safetensors enable_jit_checkpoint",
        "all workers write one checkpoint of safetensors",
    ),
    unneeded(
        "overwrite_output_dir",
        "a run resumes in its folder; `save.resume: never` refuses a folder with a run",
    ),
    unneeded(
        "ignore_data_skip restore_callback_states_from_checkpoint",
        "a resumed run continues at the next batch",
    ),
    unneeded(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names length_column_name split_batches dispatch_batches",
        _LOADER,
    ),
    unneeded(
        "ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph local_rank local-rank ddp_timeout_seconds",
        _RAY,
    ),
    unneeded(
        "torch_empty_cache_steps skip_memory_metrics debug use_cache tpu_num_cores use_mps_device tpu_metrics_debug jit_mode_eval use_ipex past_index mp_parameters ray_scope torchdynamo",
        "it does not concern the training result",
    ),
    unneeded(
        "bf16_full_eval fp16_full_eval half_precision_backend fp16_backend fp16_opt_level",
        "evaluations have the precision of the training",
    ),
    unneeded("average_tokens_across_devices", "the loss is the mean over the tokens of the global batch"),
    unneeded(
        "do_train do_predict", "`tailor run` trains; `tailor evaluate` and `tailor generate` use the result"
    ),
    unneeded("do_eval", "evaluate.every and evaluate.final say when"),
    unneeded(
        "fsdp_config",
        "FSDP2 wraps each layer and saves sharded checkpoints; for offloading write scale.strategy: {name: fsdp, offload: true}",
    ),
    unneeded("fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params", "each layer is a unit of FSDP"),
    unneeded("accelerator_config", "the batch is global and accumulation follows from it"),
    unneeded(
        "push_to_hub_token hub_token use_auth_token access_token",
        "put the token into the environment: HF_TOKEN",
    ),
    unneeded(
        "hub_strategy hub_always_push push_to_hub_model_id push_to_hub_organization",
        "the finished model is pushed once",
    ),
    unneeded("trackio_space_id trackio_bucket_id trackio_static_space_id", "Trackio is not a tracker here"),
    unneeded("full_determinism", "the same recipe gives the same order of rows"),
    unneeded("data_seed", "train.seed is the seed of the order of rows too"),
    unneeded("greater_is_better", "it follows from the metric"),
    unneeded("dataloader_drop_last", "every row is trained once per epoch; the last batch may be smaller"),
    unsupported(
        "tf32",
        "PyTorch's default for float32 matrix products is kept; bf16 products are not concerned",
        neutral=(True, "true", "auto"),
    ),
    unsupported("optim_args optim_target_modules", "the optimizer has its default settings"),
    unsupported("eval_delay eval_on_start", "evaluations start at the first multiple of evaluate.every"),
    unsupported("torch_compile_backend torch_compile_mode", "torch.compile has its default mode"),
    unsupported("liger_kernel_config", "all of Liger's kernels that model.kernels names are used"),
    unsupported("hub_revision", "the push goes to the main branch"),
    unsupported("parallelism_config", "write scale.sequence_parallel for sequence parallelism"),
    unsupported("lr_scheduler_power", "see optim.schedule"),
)

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "save_steps": 500,
}
"""Where TrainingArguments differ from a recipe's defaults."""

LAUNCHER: dict[str, Row] = table(
    taken(
        "nproc_per_node nproc-per-node num_processes num_gpus num-processes nproc",
        "=gpus",
        "GPUs per machine",
    ),
    taken(
        "nnodes num_machines num_nodes num-machines",
        "=nodes",
        "machines; the workers are spread by Ray",
        convert="nodes",
    ),
    unneeded(
        "node_rank node-rank machine_rank master_addr master_port master-addr master-port main_process_ip main_process_port rdzv_endpoint rdzv-endpoint rdzv_id "
        "rdzv_backend rdzv-backend rdzv_conf role tee standalone hostfile include exclude num_cpu_threads_per_process same_network main_training_function",
        _RAY,
    ),
    unneeded("max_restarts max-restarts", "scale.max_failures is the number of restarts"),
    unneeded(
        "config_file",
        "an accelerate configuration; FSDP and DeepSpeed are scale.strategy, processes scale.workers",
    ),
    taken("mixed_precision", "train.precision", values={"bf16": "bf16", "fp16": "fp16", "no": "fp32"}),
    taken("use_deepspeed", "scale.strategy", values={"true": {"name": "deepspeed", "stage": 2}}),
    taken("deepspeed_config_file", "scale.strategy", convert="deepspeed"),
    taken("use_fsdp", "scale.strategy", values={"true": "fsdp"}),
    unneeded("multi_gpu dynamo_backend machine-rank", "follows from scale.workers"),
    unneeded("wait kill-on-bad-exit jobid nodelist ntasks gres", "options of Slurm; Ray starts the workers"),
)
"""Options of torchrun, accelerate and deepspeed, before the script."""
