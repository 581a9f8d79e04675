"""TRL's command line and configuration files, and transformers' TrainingArguments."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, no, refused, skip, table, taken, unlike, unneeded, unsupported
from tailor.spec.trainers.transformers import DEFAULTS, LAUNCHER, TRAINING
from tailor.spec.trainers.values import ATTENTION, DTYPES, INITS, LOSSES, METHODS, ONLINE

_STREAM = "rows are read once and stored as tokens"

MODEL = table(
    taken("model_name_or_path model", "model.path", "hub id or folder"),
    taken("model_revision", "model.revision"),
    taken("trust_remote_code", "model.trust_remote_code", "a security risk; off by default"),
    taken("attn_implementation", "model.attention", values=ATTENTION),
    taken("dtype torch_dtype", "model.dtype", "of frozen weights", values=DTYPES),
    taken("use_peft", "=adapter", "on if the section model.adapter exists", convert="adapter"),
    taken("lora_r peft_lora_r", "model.adapter.rank"),
    taken("lora_alpha peft_lora_alpha", "model.adapter.alpha"),
    taken("lora_dropout peft_lora_dropout", "model.adapter.dropout"),
    taken("lora_target_modules", "model.adapter.target_modules", convert="modules"),
    taken("lora_modules_to_save", "model.adapter.modules_to_save"),
    taken("use_rslora", "model.adapter.rslora"),
    taken("use_dora", "model.adapter.dora"),
    taken("init_lora_weights", "model.adapter.init", values=INITS),
    taken("load_in_8bit", "=bits8"),
    taken("load_in_4bit", "=bits4"),
    taken("bnb_4bit_quant_type", "=quant_type"),
    taken("use_bnb_nested_quant bnb_4bit_use_double_quant", "=double"),
    unneeded(
        "bnb_4bit_quant_storage bnb_4bit_compute_dtype",
        "quantized weights are sharded as they are; computation is in train.precision",
    ),
    unneeded("lora_task_type", "language models are trained"),
    unsupported("lora_target_parameters", "model.adapter.experts: true adapts all routed experts"),
)
"""Arguments of TRL's ModelConfig."""

ROWS = table(
    TRAINING.values(),
    LAUNCHER.values(),
    MODEL.values(),
    taken("dataset_name datasets", "data.train", "`hf://owner/name`, or a local path", convert="hub_dataset"),
    taken("dataset_mixer", "data.train", "of the alignment handbook", convert="mixer"),
    taken("dataset_mixture", "data.train", "of the alignment handbook", convert="mixture"),
    unneeded("dataset_splits dataset_configs", "they are in the sources of dataset_mixer"),
    taken("dataset_config", "data.train.N.subset", convert="subset"),
    taken("dataset_train_split", "data.train.N.split", convert="split"),
    taken("dataset_test_split", "data.evaluation", "with eval_strategy", convert="test_split"),
    taken(
        "dataset_text_field",
        "data.train.N.columns",
        "with `format: text` and `columns: {text: field}`",
        convert="text_field",
    ),
    taken("test_split_size", "=holdout", convert="holdout"),
    taken("max_length max_seq_length", "data.max_length"),
    taken("packing", "data.pack"),
    taken(
        "assistant_only_loss",
        "method.train_on",
        values={"true": "assistant", "false": skip("see method.train_on")},
    ),
    taken("completion_only_loss", "method.train_on", values={"true": "assistant", "false": "everything"}),
    taken("chat_template_path chat_template", "data.template", convert="template_path"),
    taken("activation_offloading", "train.activation_offloading"),
    taken("loss_type", "method.loss", values=LOSSES, convert="loss_type"),
    taken("beta", "method.beta", "ORPO's weight of the odds ratio is `beta` too"),
    taken(
        "label_smoothing",
        "method.label_smoothing",
        "TRL 1.x ignores it with `sigmoid`; here it is conservative DPO",
    ),
    taken("simpo_gamma", "method.gamma"),
    taken(
        "rpo_alpha cpo_alpha",
        "method.sft_weight",
        "the mean over each answer's tokens, then over the pairs. TRL's ORPO includes the prompt: [Preference tuning](preference.md#dpo)",
    ),
    taken("desirable_weight", "method.desirable_weight"),
    taken("undesirable_weight", "method.undesirable_weight"),
    taken("max_prompt_length", "method.max_prompt_length"),
    taken("max_completion_length max_target_length", "method.max_completion_length"),
    taken(
        "precompute_ref_log_probs",
        "method.reference",
        values={"true": "precomputed", "false": skip("`auto` chooses")},
    ),
    taken(
        "ref_model",
        "method.reference",
        "the base without the adapter, a frozen copy, or precomputed",
        values={"*": no("the reference is always the model before training")},
    ),
    taken(
        "disable_dropout",
        "model.base_dropout",
        "with `model.adapter.dropout: 0`; TRL turns all dropout off by default for DPO and KTO",
        values={"true": 0, "false": skip("the base keeps the dropout of its config.json")},
    ),
    taken("trainer method task", "method.name", values=METHODS),
    taken(
        "truncation_mode",
        "data.on_long",
        values={
            "keep_start": "truncate",
            "keep_end": unlike("truncate", "the end of an answer is removed, and the start of a prompt"),
        },
    ),
    taken("model_init_kwargs", "model.dtype", convert="model_kwargs"),
    taken("max_steps_per_epoch", "train.steps", convert="unclear"),
    unneeded(
        "dataset_num_proc dataset_batch_size dataset_kwargs preprocessing_num_workers", "all cores, once"
    ),
    unneeded("streaming dataset_streaming", _STREAM),
    unneeded(
        "eval_packing packing_strategy padding_free pad_to_multiple_of",
        "packing has no settings: rows fill `data.max_length`",
    ),
    unneeded("shuffle_dataset", "training rows are always shuffled, with train.seed"),
    unneeded(
        "eos_token pad_token", "the chat template says which token ends a turn; rows need no padding token"
    ),
    unneeded(
        "ignore_bias_buffers precompute_ref_batch_size is_encoder_decoder padding_value",
        "it does not concern the training result",
    ),
    unneeded("env", "set environment variables in the shell, or in the cluster file for pods"),
    unneeded("accelerate_config", "FSDP and DeepSpeed are scale.strategy, processes scale.workers"),
    unneeded("generate_during_eval", "evaluate.generation compares answers"),
    unsupported(
        "router_aux_loss_coef",
        "the model's own coefficient is used, or model.router_aux_loss",
        neutral=(0.001,),
    ),
    unsupported(
        "use_weighting ld_alpha f_divergence_type f_alpha_divergence_coef discopop_tau loss_weights reference_free force_use_ref_model",
        "the loss is that of method.loss alone",
        neutral=("reverse_kl", 0.5, 0.05),
    ),
    unsupported("alpha", "AlphaPO's reward shaping is not available; the reward is the mean log-probability"),
    unsupported(
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "the reference stays the model before training",
    ),
    unneeded(
        "temperature top_k top_p prompt_column", "it concerns generation: evaluate.generation has its own"
    ),
    refused(
        "teacher_model_name_or_path teacher_model_kind teacher_sync_steps teacher_update_rate",
        "distillation is not supported",
    ),
    refused("total_episodes missing_eos_penalty", ONLINE),
    refused(
        "reward_model reward_model_path reward_funcs num_generations use_vllm vllm_mode max_new_tokens response_length",
        ONLINE,
    ),
)

TRL = Trainer(
    "trl",
    "TRL and TrainingArguments",
    "YAML, JSON, or a command line",
    ROWS,
    marks={
        "dataset_name": 3,
        "dataset_text_field": 1,
        "model_name_or_path": 2,
        "use_peft": 2,
        "dataset_config": 2,
        "dataset_train_split": 2,
        "assistant_only_loss": 3,
        "output_dir": 1,
        "per_device_train_batch_size": 1,
        "learning_rate": 1,
    },
    defaults={
        **{name: value for name, value in DEFAULTS.items() if name != "learning_rate"},
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "gradient_checkpointing": True,
        "max_length": 1024,
        "packing": False,
        "truncation_mode": "keep_start",
        "dataset_test_split": "test",
    },
    remark="TRL learns every token of plain conversations (`method.train_on: everything`), and only the response of rows with `prompt` and `completion`.",
)

SCRIPT = Trainer(
    "sft-script",
    "SFT scripts with a config.yml",
    "YAML",
    table(
        ROWS.values(),
        taken("model_name", "model.path", "hub id or folder"),
        taken("batch_size", "=per_device", "per-device batch × accumulation × GPUs"),
        taken("seq_length", "data.max_length"),
        taken("save_steps", "save.every"),
        taken("gradient_checkpointing", "train.activation_checkpointing", convert="checkpointing"),
        unneeded("use_auth_token", "put the token into the environment: HF_TOKEN, or `hf auth login`"),
        unneeded(
            "log_with wandb_login", "track.wandb, with WANDB_API_KEY in the environment and the extra `wandb`"
        ),
    ),
    marks={
        "model_name": 4,
        "seq_length": 4,
        "dataset_text_field": 3,
        "peft_lora_r": 4,
        "peft_lora_alpha": 3,
        "dataset_name": 2,
        "use_auth_token": 2,
        "batch_size": 1,
    },
    defaults={
        "model_name": "facebook/opt-350m",
        "batch_size": 64,
        "seq_length": 512,
        "num_train_epochs": 3,
        "learning_rate": 1.41e-5,
        "lr_scheduler_type": "linear",
        "use_peft": False,
        "dataset_text_field": "text",
        "peft_lora_r": 64,
        "peft_lora_alpha": 16,
        "packing": False,
        "truncation_mode": "keep_start",
        "save_steps": 100,
    },
    remark="[recipes/opt-350m-sft.yaml](../recipes/opt-350m-sft.yaml) is such a run.",
)
