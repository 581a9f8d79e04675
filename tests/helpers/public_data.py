"""The public data that the shipped recipes name: size, splits, and rows with its columns, as its cards and loaders say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Rows = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class PublicData:
    """rows: of the split that the recipes train on. tokens: of a row, about. sample: made-up rows with its columns."""

    rows: int
    tokens: int
    sample: Rows
    splits: tuple[str, ...] = ("train",)
    subsets: tuple[str, ...] = ()


def _turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


ASK, TELL = "Which needle is for denim?", "Needle 110, with linen thread."
MORE, AGAIN = "And for silk?", "Needle 60."
LONG_LLM = "hf://datasets/namespace-Pt/long-llm-data"
_TALK: Rows = ({"conversations": _turns(ASK, TELL)}, {"conversations": _turns(ASK, TELL, MORE, AGAIN)})
_TEXT: Rows = ({"text": f"{ASK} {TELL}"}, {"text": TELL})
_PAIR = {"prompt": ASK, "chosen": _turns(ASK, TELL), "rejected": _turns(ASK, "Any.")}
_CHAT: Rows = (
    {"prompt": ASK, "prompt_id": "a1", "messages": _turns(ASK, TELL), "category": "Open QA"},
    {"prompt": ASK, "prompt_id": "a2", "messages": _turns(ASK, TELL, MORE, AGAIN, system="Be brief."), "category": "Chat"},
)  # fmt: skip

PUBLIC_DATA: dict[str, PublicData] = {
    "hf://datasets/GAIR/lima/train.jsonl": PublicData(
        1_030,
        700,
        (
            {"conversations": [ASK, TELL], "source": "stackexchange"},
            {"conversations": [ASK, TELL, MORE, AGAIN], "source": "multi_turn"},
        ),
    ),
    "hf://HuggingFaceH4/no_robots": PublicData(9_500, 300, _CHAT, ("train", "test")),
    "hf://HuggingFaceH4/ultrachat_200k": PublicData(
        207_865,
        1_200,
        tuple({key: row[key] for key in ("prompt", "prompt_id", "messages")} for row in _CHAT),
        ("train_sft", "test_sft", "train_gen", "test_gen"),
    ),
    "hf://HuggingFaceH4/ultrafeedback_binarized": PublicData(
        61_135,
        800,
        (
            {
                **_PAIR,
                "prompt_id": "a1",
                "messages": _turns(ASK, TELL),
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            },
        ),
        ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen"),
    ),
    "hf://HuggingFaceTB/smoltalk": PublicData(
        1_043_917,
        800,
        ({"messages": _turns(ASK, TELL, system="Be brief."), "source": "smol-magpie-ultra"},),
        ("train", "test"),
        ("all",),
    ),
    "hf://YeungNLP/moss-003-sft-data": PublicData(
        1_000_000,
        600,
        (
            {
                "conversation_id": 1,
                "category": "Brainstorming",
                "conversation": [{"human": ASK, "assistant": TELL}, {"human": MORE, "assistant": AGAIN}],
                "dataset": "moss",
            },
        ),
    ),
    "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/000_00000.parquet": PublicData(
        726_000,
        1_000,
        (
            {
                "text": f"{ASK} {TELL}",
                "id": "<urn:uuid:1>",
                "dump": "CC-MAIN-2024-10",
                "url": "https://example.org",
                "file_path": "s3://x",
                "language": "en",
                "language_score": 0.97,
                "token_count": 14,
                "score": 3.1,
                "int_score": 3,
            },
        ),
    ),
    "hf://stanfordnlp/imdb": PublicData(
        25_000, 300, ({"text": TELL, "label": 1},), ("train", "test", "unsupervised")
    ),
    "hf://open-r1/Mixture-of-Thoughts": PublicData(
        93_733,
        8_000,
        (
            {
                "messages": _turns(ASK, f"<think>\nDenim is thick.\n</think>\n{TELL}"),
                "num_tokens": 40,
                "source": "open-r1/OpenR1-Math-220k",
            },
        ),
        subsets=("all", "code", "math", "science"),
    ),
    "hf://allenai/tulu-3-sft-personas-instruction-following": PublicData(
        29_980,
        400,
        ({"id": "a1", "prompt": ASK, "messages": _turns(ASK, TELL), "constraints": ["length constraints"]},),
    ),
    "hf://allenai/olmo-2-1124-7b-preference-mix": PublicData(
        378_341,
        1_000,
        (
            {
                **_PAIR,
                "chosen_rating": 5.0,
                "rejected_rating": 2.0,
                "chosen_model": "a",
                "rejected_model": "b",
                "source": "c",
                "id": "d",
            },
        ),
    ),
    "hf://GritLM/MEDI2": PublicData(
        1_000_000,
        400,
        ({"query": ["Find it", ASK], "pos": [["", TELL]], "neg": [["", AGAIN]], "task_name": "nq"},),
    ),
    "hf://GritLM/tulu2": PublicData(326_154, 600, ({"text": [ASK, TELL, MORE, AGAIN]},)),
    **{
        f"{LONG_LLM}/gpt/{name}": PublicData(600, 50_000, _TALK)
        for name in (
            "one_detail_book.train.64K.json",
            "one_detail_paper.train.64K.json",
            "multi_detail_book.train.json",
            "multi_detail_paper_short.train.json",
            "multi_detail_paper_long.train.json",
            "bio_book.train.json",
        )
    },
    **{
        f"{LONG_LLM}/{name}": PublicData(2_000, 14_000, _TALK)
        for name in (
            "gpt/one_detail_book.train.16K.json",
            "gpt/one_detail_paper.train.16K.json",
            "booksum/train.16K.json",
            "needle/train.16K.json",
        )
    },
    f"{LONG_LLM}/longalpaca/train.json": PublicData(12_000, 9_000, _TALK),
    f"{LONG_LLM}/redpajama/train.json": PublicData(200_000, 10_000, _TEXT),
}
"""Path in a recipe -> the data. The rows and tokens of long-llm-data are rough; the paper counts about 20,000 rows of all kinds."""
