"""LLaMA-Factory's YAML or JSON."""

from __future__ import annotations

from tailor.spec.trainers.rows import Trainer, no, refuse, refused, skip, table, taken, unneeded, unsupported
from tailor.spec.trainers.transformers import DEFAULTS, TRAINING
from tailor.spec.trainers.values import ATTENTION, LOSSES, METHODS, NOTHINK, PRECISIONS, TEMPLATES

_IMAGES = "models are trained on text; images, audio and video are not supported"
_GENERATE = "it concerns generation: `tailor generate`, `tailor chat` and evaluate.generation have their own"
_MEGATRON = "Megatron's parallelism and fused kernels are not available: scale.strategy shards the weights; the loss is the same"
_KT = "KTransformers, which keeps experts in host memory, is not available: the workers hold all weights, see scale.strategy"
_STATIC = "a base in this format is not supported; use its unquantized weights with model.quantize"
_EXPORT = "`tailor merge`, `tailor export` and `tailor push` write the trained model"
_ONLINE_ONLY = "it belongs to PPO or reward models, which are not trained"

ROWS = table(
    TRAINING.values(),
    taken("model_name_or_path model", "model.path"),
    taken("model_revision", "model.revision"),
    taken("trust_remote_code", "model.trust_remote_code", "a security risk; off by default"),
    taken("flash_attn", "model.attention", values=ATTENTION),
    taken("infer_dtype", "model.dtype", values={"*": skip("it concerns inference")}),
    taken("adapter_name_or_path", "model.warm_start", "one adapter"),
    taken("rope_scaling", "model.rope", convert="rope_scaling"),
    taken("enable_liger_kernel", "model.kernels", values={"true": "liger", "false": "none"}),
    taken("kernel_config", "model.kernels", convert="kernel_config"),
    taken("add_tokens new_special_tokens add_special_tokens", "model.add_tokens", convert="tokens"),
    taken("train_from_scratch", "model.init", values={"true": "random", "false": "pretrained"}),
    taken("quantization_bit", "=bits", "4 or 8"),
    taken("quantization_type", "=quant_type"),
    taken("double_quantization", "=double"),
    taken(
        "quantization_method",
        "=none",
        values={
            "bnb": skip("model.quantize is bitsandbytes"),
            "bitsandbytes": skip("model.quantize is bitsandbytes"),
            "*": refuse("only bitsandbytes quantizes while loading"),
        },
    ),
    taken("quant_config", "model.quantize", convert="quant_config"),
    taken("finetuning_type", "=adapter", "`lora` and `oft` are model.adapter", convert="adapter"),
    taken("lora_rank", "model.adapter.rank"),
    taken("lora_alpha", "model.adapter.alpha", "default: twice the rank"),
    taken("lora_dropout", "model.adapter.dropout"),
    taken("lora_target oft_target", "model.adapter.target_modules", convert="modules"),
    taken("additional_target", "model.adapter.modules_to_save", convert="names"),
    taken("loraplus_lr_ratio", "optim.learning_rate_ratios.lora_b"),
    taken(
        "loraplus_lr_embedding",
        "optim.learning_rate_ratios.embeddings",
        "a multiple of learning_rate",
        convert="embedding_rate",
    ),
    taken("use_rslora", "model.adapter.rslora"),
    taken("use_dora", "model.adapter.dora"),
    taken("pissa_init", "model.adapter.init", values={"true": "pissa", "false": "default"}),
    taken("oft_block_size", "model.adapter.oft_block_size"),
    taken("peft_config", "model.adapter", convert="peft_config"),
    taken("stage", "method.name", values=METHODS),
    taken("pref_beta", "method.beta"),
    taken("pref_loss", "method.loss", values=LOSSES),
    taken("pref_ftx", "method.sft_weight"),
    taken("dpo_label_smoothing", "method.label_smoothing"),
    taken("simpo_gamma", "method.gamma"),
    taken("kto_chosen_weight", "method.desirable_weight"),
    taken("kto_rejected_weight", "method.undesirable_weight"),
    taken("dataset", "data.train", "names of dataset_info.json", convert="factory_datasets"),
    taken("eval_dataset", "data.evaluation", convert="factory_evaluation"),
    taken("dataset_dir", "=dataset_dir", "the folder of dataset_info.json"),
    taken("train_dataset", "data.train", convert="factory_v1"),
    taken("val_size", "=holdout", convert="holdout"),
    taken("template", "data.template", values={**TEMPLATES, **NOTHINK}),
    taken(
        "enable_thinking",
        "data.template_arguments",
        values={
            "true": {"data.template_arguments": {"enable_thinking": True}},
            "false": {"data.template_arguments": {"enable_thinking": False}},
        },
    ),
    taken("cutoff_len model_max_length", "data.max_length"),
    taken("max_samples", "=limit", "of each dataset"),
    taken("packing", "data.pack"),
    taken(
        "neat_packing",
        "data.pack",
        "packed documents never see each other",
        values={"true": True, "false": skip("see packing")},
    ),
    taken(
        "batching_strategy",
        "data.pack",
        values={
            "normal": False,
            "padding_free": True,
            "dynamic_batching": False,
            "dynamic_padding_free": True,
        },
    ),
    taken(
        "train_on_prompt",
        "method.train_on",
        values={"true": "everything", "false": skip("the assistant's turns are learned")},
    ),
    taken(
        "mask_history",
        "method.train_on",
        values={"true": "last_assistant", "false": skip("every turn of the assistant is learned")},
    ),
    taken(
        "preserve_thinking",
        "data.reasoning",
        values={"true": "keep", "false": skip("the template says what it writes")},
    ),
    taken("interleave_probs", "data.train.N.weight", "how often an epoch shows a source", convert="unclear"),
    taken("micro_batch_size", "=per_device"),
    taken("global_batch_size", "train.batch_size"),
    taken(
        "pure_bf16",
        "train.precision",
        "trained weights stay in float32",
        values={"true": "bf16", "false": skip("weights are float32")},
    ),
    taken(
        "mixed_precision",
        "train.precision",
        values={"bf16_mixed": "bf16", "bf16": "bf16", "fp16": "fp16", "no": "fp32"},
    ),
    taken(
        "disable_gradient_checkpointing",
        "train.activation_checkpointing",
        values={"true": False, "false": True},
    ),
    taken("early_stopping_steps", "train.early_stopping.patience"),
    taken("use_muon", "optim.optimizer", values={"true": "muon", "false": skip("see optim")}),
    taken("optim_config", "optim.optimizer", convert="optim_config"),
    taken("dist_config", "scale.strategy", convert="dist_config"),
    taken("ray_num_workers", "scale.workers"),
    taken("sequence_parallel_size cp_size", "scale.sequence_parallel", convert="sequence_parallel"),
    taken(
        "disable_shuffling",
        "=none",
        values={
            "*": no(
                "training rows are shuffled, with train.seed; `train.order: short_to_long` sorts them by length"
            )
        },
    ),
    taken("predict_with_generate", "evaluate.generation", convert="generation"),
    taken(
        "fp8",
        "train.precision",
        values={"true": no("fp8 arithmetic is not supported; train.precision is auto"), "false": skip("off")},
    ),
    taken("hub_model_id export_hub_model_id", "export.push_to_hub"),
    taken(
        "ref_model",
        "method.reference",
        "the base without the adapter, a frozen copy, or precomputed",
        values={"*": no("the reference is always the model before training")},
    ),
    taken("compute_dtype", "train.precision", values=PRECISIONS),
    unneeded("model_class", "the model's config.json says which class it is"),
    unneeded(
        "default_system tool_format", "put the system turn into the rows; the chat template writes tools"
    ),
    unneeded("plot_loss", "report.html has the loss curve"),
    unneeded(
        "preprocessing_num_workers preprocessing_batch_size overwrite_cache tokenized_path data_shared_file_system buffer_size streaming data_seed",
        "tokens are prepared once on all cores and stored; data.store says where",
    ),
    unneeded(
        "ignore_pad_token_for_loss eval_on_each_dataset mix_strategy",
        "padding is never in the loss; an epoch shows every source",
    ),
    unneeded("cache_dir download_mode", "set HF_HOME in the environment"),
    unneeded(
        "use_fast_tokenizer split_special_tokens resize_vocab init_special_tokens new_special_tokens_config",
        "the tokenizer is that of the model; new tokens are model.add_tokens",
    ),
    unneeded(
        "low_cpu_mem_usage device_map offload_folder quantization_device_map init_config",
        "the plan decides where the model is loaded",
    ),
    unneeded(
        "use_unsloth use_unsloth_gc use_reentrant_gc use_v1_kernels upcast_layernorm upcast_lmhead_output",
        "the loss is tiled and activations are recomputed by own code",
    ),
    unneeded("block_diag_attn", "packed documents never see each other"),
    unneeded("create_new_adapter pissa_iter", "a new adapter is trained; the decomposition is exact"),
    unneeded("pissa_convert", "`tailor merge` writes plain weights"),
    unneeded(
        "print_param_status compute_accuracy include_effective_tokens_per_second enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules",
        "the number of trained weights, accuracy and tokens per second are always logged",
    ),
    unneeded(
        "use_kv_cache infer_backend sample_backend max_new_tokens do_sample temperature top_p top_k num_beams max_length repetition_penalty length_penalty skip_special_tokens eval_num_beams vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
        _GENERATE,
    ),
    unneeded("export_dir export_size export_device export_legacy_format export_hf_on_finish", _EXPORT),
    unneeded("hf_hub_token ms_hub_token om_hub_token", "put the token into the environment: HF_TOKEN"),
    unneeded(
        "ray_init_kwargs ray_storage_path ray_storage_filesystem resources_per_worker placement_strategy ray_run_name master_addr master_port cp_mode",
        "scale describes the workers; save.to is the storage",
    ),
    unneeded("fsdp_transformer_layer_cls_to_wrap", "each layer is a unit of FSDP"),
    unneeded(
        "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret swanlab_api_key", "see use_swanlab"
    ),
    unneeded(
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate media_dir freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
        _IMAGES,
    ),
    unneeded("fp8_backend fp8_enable_fsdp_float8_all_gather", "belongs to fp8"),
    unneeded("oft_rank module_dropout", "model.adapter.oft_block_size is the size of OFT's blocks"),
    unneeded(
        "reward_model reward_model_adapters reward_model_quantization_bit reward_model_type ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards",
        _ONLINE_ONLY,
    ),
    unneeded(
        "ref_model_adapters ref_model_quantization_bit", "the reference is always the model before training"
    ),
    unneeded("task task_dir lang n_shot batch_size save_dir", "`tailor evaluate` has the task lm_eval"),
    unneeded("adapter_folder", "hub folders are not needed for a local adapter"),
    unsupported(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode",
        "SwanLab is not available; the run's folder has metrics.jsonl and TensorBoard files",
    ),
    unsupported(
        "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise",
        "GaLore is not available: optim.optimizer keeps its state in full; adamw_8bit needs less memory",
    ),
    unsupported(
        "use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front",
        "APOLLO is not available: optim.optimizer keeps its state in full; adamw_8bit needs less memory",
    ),
    unsupported(
        "use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose",
        "BAdam is not available: all weights are trained in every step",
    ),
    unsupported("use_adam_mini", "Adam-mini is not available: adamw has a second moment per weight"),
    unsupported(
        "use_dft_loss",
        "dynamic fine-tuning (DFT) weights tokens by their probability; here each token has the same weight",
    ),
    unsupported("use_asft_loss asft_alpha", "the KL term of ASFT is not available; the loss is that of SFT"),
    unsupported(
        "use_eaft_loss eaft_alpha",
        "entropy-adaptive fine-tuning weights tokens by entropy; here each token has the same weight",
    ),
    unsupported("moe_aux_loss_coef", "the model's own coefficient is used, or model.router_aux_loss"),
    unsupported("shift_attn", "LongLoRA's shifted attention is not supported; attention is full"),
    unsupported("pref_bco_weight ld_alpha", "the loss has no such term"),
    refused(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro",
        "freezing parts of the base is not supported; use model.adapter, or train all weights",
    ),
    refused("mixture_of_depths", "mixture of depths is not supported"),
    unsupported(
        "use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args hyper_parallel_cp_size tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size virtual_pipeline_model_parallel_size context_parallel_size sequence_parallel recompute_granularity recompute_method recompute_num_layers account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split bias_activation_fusion apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm moe_token_dispatcher_type calculate_per_token_loss use_distributed_optimizer overlap_param_gather overlap_grad_reduce use_packed_sequences extra_config",
        _MEGATRON,
        neutral=(1,),
    ),
    refused("megatron_pretrained_checkpoint", "weights in Megatron's format are not read"),
    unsupported(
        "use_kt kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_config",
        _KT,
    ),
    refused(
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size",
        "experts that KTransformers adds to the model are not supported",
    ),
    refused(
        "export_quantization_bit export_quantization_dataset export_quantization_nsamples export_quantization_maxlen",
        _EXPORT,
    ),
    refused("quantization_base", _STATIC),
)

LLAMA_FACTORY = Trainer(
    "llama-factory",
    "LLaMA-Factory",
    "YAML or JSON",
    ROWS,
    marks={
        "stage": 5,
        "finetuning_type": 6,
        "cutoff_len": 4,
        "template": 2,
        "dataset_dir": 2,
        "model_class": 4,
        "dist_config": 3,
        "train_dataset": 3,
        "peft_config": 2,
        "lora_target": 2,
    },
    defaults={
        **DEFAULTS,
        "stage": "sft",
        "cutoff_len": 2048,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "disable_gradient_checkpointing": False,
    },
    remark="An epoch of a recipe shows every source once. LLaMA-Factory truncates long rows: `data.on_long: truncate` does the same.",
)
