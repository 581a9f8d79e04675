"""Datasets that other trainers know by a name: where they are, and what their rows are."""

from __future__ import annotations

_SHAREGPT = "sharegpt"
_MESSAGES = "messages"

LLAMA_FACTORY: dict[str, tuple[str, str]] = {
    # Name -> (path, format). Files are in the folder of dataset_info.json.
    "identity": ("identity.json", "alpaca"),
    "alpaca_en_demo": ("alpaca_en_demo.json", "alpaca"),
    "alpaca_zh_demo": ("alpaca_zh_demo.json", "alpaca"),
    "glaive_toolcall_en_demo": ("glaive_toolcall_en_demo.json", _SHAREGPT),
    "glaive_toolcall_zh_demo": ("glaive_toolcall_zh_demo.json", _SHAREGPT),
    "dpo_en_demo": ("dpo_en_demo.json", "preference_sharegpt"),
    "dpo_zh_demo": ("dpo_zh_demo.json", "preference_sharegpt"),
    "kto_en_demo": ("kto_en_demo.json", "unpaired"),
    "wiki_demo": ("wiki_demo.txt", "text"),
    "c4_demo": ("c4_demo.jsonl", "text"),
    **{
        name: (f"hf://llamafactory/{name}", "alpaca")
        for name in ("alpaca_en", "alpaca_zh", "alpaca_gpt4_en", "alpaca_gpt4_zh")
    },
    "glaive_toolcall_en": ("hf://llamafactory/glaive_toolcall_en", _SHAREGPT),
    "glaive_toolcall_zh": ("hf://llamafactory/glaive_toolcall_zh", _SHAREGPT),
    "lima": ("hf://llamafactory/lima", _SHAREGPT),
    "guanaco": ("hf://JosephusCheung/GuanacoDataset", "auto"),
    "belle_2m": ("hf://BelleGroup/train_2M_CN", "alpaca"),
    "belle_1m": ("hf://BelleGroup/train_1M_CN", "alpaca"),
    "open_platypus": ("hf://garage-bAInd/Open-Platypus", "alpaca"),
    "codealpaca": ("hf://sahil2801/CodeAlpaca-20k", "alpaca"),
    "slimorca": ("hf://Open-Orca/SlimOrca", _SHAREGPT),
    "sharegpt4": ("hf://shibing624/sharegpt_gpt4", _SHAREGPT),
    "evol_instruct": ("hf://WizardLM/WizardLM_evol_instruct_V2_196k", _SHAREGPT),
    "agent_instruct": ("hf://THUDM/AgentInstruct", _SHAREGPT),
    "neo_sft": ("hf://m-a-p/neo_sft_phase2", _SHAREGPT),
    "magpie_pro_300k": ("hf://Magpie-Align/Magpie-Pro-300K-Filtered", _SHAREGPT),
    "infinity_instruct": ("hf://BAAI/Infinity-Instruct", _SHAREGPT),
    "stem_zh": ("hf://hfl/stem_zh_instruction", "auto"),
    "ruozhiba_gpt4": ("hf://hfl/ruozhiba_gpt4_turbo", "auto"),
    "pile": ("hf://monology/pile-uncopyrighted", "text"),
    "skypile": ("hf://Skywork/SkyPile-150B", "text"),
    "fineweb": ("hf://HuggingFaceFW/fineweb", "text"),
    "fineweb_edu": ("hf://HuggingFaceFW/fineweb-edu", "text"),
    "kto_mix_en": ("hf://argilla/kto-mix-15k", "auto"),
    "ultrafeedback_kto": ("hf://argilla/ultrafeedback-binarized-preferences-cleaned-kto", "auto"),
}
"""LLaMA-Factory's dataset_info.json, for files that have none beside them."""

TORCHTUNE: dict[str, tuple[str, str]] = {
    "alpaca_dataset": ("hf://tatsu-lab/alpaca", "alpaca"),
    "alpaca_cleaned_dataset": ("hf://yahma/alpaca-cleaned", "alpaca"),
    "slimorca_dataset": ("hf://Open-Orca/SlimOrca-Dedup", _SHAREGPT),
    "grammar_dataset": ("hf://liweili/c4_200m", "auto"),
    "samsum_dataset": ("hf://Samsung/samsum", "auto"),
    "wikitext_dataset": ("hf://EleutherAI/wikitext_document_level", "text"),
    "cnn_dailymail_articles_dataset": ("hf://ccdv/cnn_dailymail", "text"),
    "stack_exchange_paired_dataset": ("hf://lvwerra/stack-exchange-paired", "auto"),
    "hh_rlhf_helpful_dataset": ("hf://RLHFlow/HH-RLHF-Helpful-standard", "auto"),
}
"""torchtune's built-in datasets."""

TORCHTUNE_FORMATS = {
    "chat_dataset": _MESSAGES,
    "instruct_dataset": "alpaca",
    "text_completion_dataset": "text",
    "preference_dataset": "auto",
}
"""torchtune's builders: their rows are those of `dataset.source`."""
