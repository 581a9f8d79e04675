"""Values of other trainers that have another name in a recipe."""

from __future__ import annotations

from tailor.spec.trainers.rows import no, refuse, skip, unlike

_NO_OPTIMIZER = "this optimizer is not available; optim.optimizer keeps its default adamw"

OPTIMIZERS = {
    **dict.fromkeys(
        (
            "adamw",
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_hf",
            "adamw_apex_fused",
            "adamw_torch_xla",
            "adamw_bf16",
            "adamw_torch_npu_fused",
            "adamw_anyprecision",
            "optimi_adamw",
            "adamw_fused",
            "torch.optim.adamw",
        ),
        "adamw",
    ),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "ao_adamw_8bit", "bitsandbytes.optim.adamw8bit"),
        "adamw_8bit",
    ),
    **dict.fromkeys(
        ("adamw_torch_4bit", "ao_adamw_4bit"),
        unlike(
            "adamw_8bit",
            "the optimizer state has 8 bits instead of 4, which needs 1 byte per trained weight more",
        ),
    ),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit", "bitsandbytes.optim.pagedadamw"), "paged_adamw"),
    **dict.fromkeys(("paged_adamw_8bit", "bitsandbytes.optim.pagedadamw8bit"), "paged_adamw_8bit"),
    "adafactor": "adafactor",
    **dict.fromkeys(("lion", "lion_32bit", "lion_pytorch"), "lion"),
    **dict.fromkeys(
        ("lion_8bit", "paged_lion", "paged_lion_32bit", "paged_lion_8bit"),
        unlike("lion", "lion has neither 8-bit nor paged state here: the same updates, with more GPU memory"),
    ),
    "muon": "muon",
    **dict.fromkeys(("schedule_free_adamw", "schedulefree", "schedule_free"), "schedule_free"),
    **dict.fromkeys(("dist_muon", "torch.optim.muon"), "muon"),
    **dict.fromkeys(("sgd", "torch.optim.sgd"), "sgd"),
    **dict.fromkeys(
        (
            "galore_adamw",
            "galore_adamw_8bit",
            "galore_adafactor",
            "galore_adamw_layerwise",
            "apollo_adamw",
            "apollo_adamw_layerwise",
            "ademamix",
            "ademamix_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "lomo",
            "adalomo",
            "grokadamw",
            "rmsprop",
            "rmsprop_bnb",
            "rmsprop_bnb_8bit",
            "rmsprop_bnb_32bit",
            "adagrad",
            "stable_adamw",
            "schedule_free_radam",
            "schedule_free_sgd",
            "came_pytorch",
            "q_galore_adamw8bit",
            "flash_adamw",
            "flash_adam",
            "flash_sgd",
            "flash_lion",
            "ao_adamw_fp8",
            "lars",
            "adam_mini",
            "badam",
        ),
        no(_NO_OPTIMIZER),
    ),
}

_NO_SCHEDULE = "this schedule is not available; optim.schedule keeps its default cosine"

SCHEDULES = {
    **{
        name: name
        for name in ("linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "wsd")
    },
    "warmup_stable_decay": "wsd",
    **dict.fromkeys(("cosine_with_min_lr", "cosine_warmup_with_min_lr", "cosine_decay"), "cosine"),
    "polynomial": unlike("linear", "a polynomial of power 1 is linear; another power decays differently"),
    **dict.fromkeys(
        ("inverse_sqrt", "reduce_lr_on_plateau", "one_cycle", "rex", "log_sweep", "greedy", "jagged"),
        no(_NO_SCHEDULE),
    ),
}

TORCHTUNE_SCHEDULES = {
    "constant": "constant",
    "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup": "cosine",
    "torchtune.modules.get_cosine_schedule_with_warmup": "cosine",
    "torchtune.modules.lr_schedulers.get_cosine_schedule_with_warmup": "cosine",
}

_NO_TEMPLATE = "no built-in template has this name; the model's own is used: set data.template if it has none"

TEMPLATES = {
    **{
        name: name
        for name in (
            "alpaca",
            "chatml",
            "deepseek-v2",
            "gemma",
            "gritlm",
            "llama-2",
            "llama-3",
            "llama-3.1",
            "mistral",
            "mistral-v3-tekken",
            "mistral-v7",
            "phi-3",
            "phi-4",
            "qwen-2.5",
            "qwen-3",
            "vicuna",
            "zephyr",
        )
    },
    **dict.fromkeys(("llama2", "llama2_zh"), "llama-2"),
    "llama3": "llama-3",
    "llama3.1": "llama-3.1",
    **dict.fromkeys(("mixtral", "mistral_v1"), "mistral"),
    "mistral_v3_tekken": "mistral-v3-tekken",
    "mistral_v7_tekken": "mistral-v7",
    **dict.fromkeys(("phi", "phi3", "phi_3", "phi_35", "phi-3.5"), "phi-3"),
    **dict.fromkeys(("phi4", "phi_4"), "phi-4"),
    **dict.fromkeys(("qwen", "qwen2", "qwen2.5", "qwen_25"), "qwen-2.5"),
    "qwen3": "qwen-3",
    **dict.fromkeys(("deepseek", "deepseek_v2", "deepseek2"), "deepseek-v2"),
    "yi": "chatml",
    **dict.fromkeys(
        ("tokenizer_default", "hf", "tokenizer_default_fallback_chatml", "auto"),
        skip("the model's own template is the default"),
    ),
    **dict.fromkeys(
        ("default", "empty", "vanilla"),
        no("a plain template such as `User: … Assistant: …` is not built in: set data.template"),
    ),
    "*": no(_NO_TEMPLATE),
}
"""Names of FastChat, Firefly, LLaMA-Factory and Axolotl. Any other name: `*`."""

FIREFLY_TEMPLATES = {
    name: name
    for name in (
        "baichuan",
        "baichuan2",
        "chatglm2",
        "chatglm3",
        "internlm",
        "minicpm",
        "orion",
        "xverse",
        "ziya2",
    )
}
"""Names of templates that write what Firefly writes; other trainers may have others of the same name."""

NOTHINK = {
    name: {"data.template": "qwen-3", "data.template_arguments": {"enable_thinking": False}}
    for name in ("qwen3_nothink", "qwen3_5_nothink")
}
"""LLaMA-Factory's templates without reasoning."""

ATTENTION = {
    "auto": "auto",
    "sdpa": "sdpa",
    "eager": "eager",
    **dict.fromkeys(
        ("flash_attention_2", "fa2", "flash_attn"),
        skip("`auto` is as fast on packed rows and needs no package"),
    ),
    **dict.fromkeys(
        (
            "flash_attention_3",
            "fa3",
            "xformers",
            "flex_attention",
            "flex",
            "sage_attention",
            "sage",
            "s2_attention",
            "fp8",
            "fla",
            "flash_attention_4",
        ),
        skip("the attention kernel does not change the loss; `auto` chooses one"),
    ),
    "disabled": "eager",
    "*": skip("the attention kernel does not change the loss; `auto` chooses one"),
}

DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "float16"), "float16"),
    **dict.fromkeys(("fp32", "float32"), "float32"),
    "auto": "auto",
}

PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16_mixed"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "no", "none", "32"), "fp32"),
    "fp8": unlike("bf16", "fp8 arithmetic is not supported; bf16 is used"),
    "auto": "auto",
}

ONLINE = (
    "training on answers that the model generates (RL) is not supported: supported are sft, pretrain, dpo (with its "
    "losses ipo, hinge, robust, simpo, orpo and cpo), kto, gritlm and rerank"
)
REWARD = "reward models are not trained; the methods are sft, pretrain, dpo, kto, gritlm and rerank"

METHODS = {
    **{name: {"method.name": "sft"} for name in ("sft", "asft", "instruct")},
    **{name: {"method.name": "pretrain"} for name in ("pt", "pretrain", "pretraining", "cpt")},
    "dpo": {"method.name": "dpo"},
    "kto": {"method.name": "kto"},
    **{
        name: {"method.name": "dpo", "method.loss": name}
        for name in ("ipo", "hinge", "robust", "simpo", "orpo", "cpo")
    },
    **dict.fromkeys(
        ("grpo", "ppo", "gdpo", "ebft", "rloo", "online_dpo", "reinforce", "nash_md", "xpo"), refuse(ONLINE)
    ),
    **dict.fromkeys(("rm", "reward", "reward_model"), refuse(REWARD)),
}

LOSSES = {
    **{name: name for name in ("sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "cpo")},
    "kto_pair": refuse("KTO on pairs: use method kto with rows of one labeled answer each"),
    **dict.fromkeys(
        (
            "exo_pair",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_pair",
            "aot_unpaired",
            "apo_zero",
            "apo_down",
            "discopop",
            "sigmoid_norm",
            "apo_zero_unpaired",
        ),
        no("this loss is not available; method.loss keeps its default sigmoid"),
    ),
    **dict.fromkeys(("nll", "kto"), skip("it is the loss of the method")),
    "dft": no(
        "dynamic fine-tuning (DFT) weights tokens by their probability; here each token has the same weight"
    ),
    "chunked_nll": skip("the loss is computed in tiles anyway"),
}

INITS = {
    **{name: name for name in ("gaussian", "orthogonal", "pissa", "olora", "loftq")},
    **dict.fromkeys(("true", "default"), "default"),
    **dict.fromkeys(
        ("eva", "corda", "lora_ga"),
        no("this initialization is not available; adapter.init keeps its default"),
    ),
    "false": no("random B starts from another model than the base; adapter.init keeps its default"),
    "*": no("only `pissa`, without a number of iterations: its decomposition is exact"),
}
