"""Checks that need other kinds of rows, templates or tokenizers than chats: KTO, embeddings, BOS, generation prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.doctor import examine as examine_module
from tailor.encode.doctor.examine import Diagnosis, examine
from tailor.encode.doctor.finding import excerpt
from tailor.printable import printable
from tailor.spec.data import Data
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.kto import Kto
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tests.helpers.models import CHATML, byte_tokenizer
from tests.helpers.preparation import talk, write

SFT = Sft(name="sft")
KTO = Kto(name="kto")
EMBEDDING = Gritlm(name="gritlm", mode="embedding")


def examined(
    folder: Path,
    rows: list[Any],
    method: Method = SFT,
    *,
    bos: bool = False,
    template: str = CHATML,
    **data: Any,
) -> Diagnosis:
    model = byte_tokenizer(folder / "model", bos=bos, chat_template=template)
    path = write(folder / "rows.jsonl", rows)
    return examine(Data(train=[{"path": path}], **data), Model(path=str(model)), method)


def found(diagnosis: Diagnosis) -> dict[str, tuple[str, int]]:
    return {one.check: (one.severity, one.count) for one in diagnosis.findings}


def rated(number: int, label: bool) -> dict[str, Any]:
    return {"prompt": f"{number} + 1 =", "completion": f" {number + 1}", "label": label}


def test_label_balance(tmp_path: Path) -> None:
    balanced = [rated(n, n % 2 == 0) for n in range(20)]
    assert "label_balance" not in found(examined(tmp_path, balanced, KTO))
    few = examined(tmp_path, [rated(n, n < 2) for n in range(20)], KTO)
    assert found(few)["label_balance"] == ("warning", 2)
    (fix,) = [one.fix for one in few.findings if one.check == "label_balance"]
    assert fix == "method:\n  desirable_weight: 9"
    weighted = Kto(name="kto", desirable_weight=9.0)
    assert "label_balance" not in found(examined(tmp_path, [rated(n, n < 2) for n in range(20)], weighted))
    assert found(examined(tmp_path, [rated(n, True) for n in range(20)], KTO))["label_balance"] == (
        "error",
        20,
    )


def test_contradictory_labels_are_no_duplicates(tmp_path: Path) -> None:
    rows = [rated(n, n % 2 == 0) for n in range(10)]
    diagnosis = examined(tmp_path, [*rows, {**rows[4], "label": False}], KTO)
    assert found(diagnosis) == {"contradictory_labels": ("warning", 2)}


def passages(number: int, *negatives: str) -> dict[str, Any]:
    return {
        "query": ["", f"Which needle sews number {number}?"],
        "pos": [["", f"The needle of size {number} sews it."]],
        "neg": [["", text] for text in negatives],
    }


def test_negatives(tmp_path: Path) -> None:
    rows = [passages(n, f"A needle of size {n + 100} breaks.") for n in range(30)]
    assert "false_negatives" not in found(examined(tmp_path, rows, EMBEDDING))
    rows[3] = passages(3, "the needle of size 3 sews it")
    rows[5] = passages(5, "A needle bends.", "A needle bends!")
    rows[7] = passages(7, "Rome was built slowly.")
    rows[8] = passages(9, "A needle hides.")
    rows[10] = passages(9, "A needle hides too.")
    rows[10]["pos"][0][1] = "It is sewn by hand."
    rows[8]["neg"].append(["", "It is sewn by hand."])
    kinds = found(examined(tmp_path, rows, EMBEDDING))
    assert kinds["false_negatives"] == ("error", 1)
    assert kinds["repeated_negatives"] == ("warning", 1)
    assert kinds["easy_negatives"] == ("info", 1)
    # The row's own false negative counts here too.
    assert kinds["contradictory_negatives"] == ("warning", 2)
    assert "shared_negatives" not in kinds


def test_a_negative_of_many_rows(tmp_path: Path) -> None:
    rows = [passages(n, "A needle breaks." if n % 2 else f"A needle of size {n} bends.") for n in range(60)]
    assert found(examined(tmp_path, rows, EMBEDDING))["shared_negatives"] == ("warning", 30)


def test_double_bos(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} =", "completion": f" {n}"} for n in range(5)] + [
        {"prompt": "<s>6 =", "completion": " 6"}
    ]
    kinds = found(examined(tmp_path, rows, bos=True))
    assert kinds["double_bos"] == ("error", 1)
    assert "double_bos" not in found(examined(tmp_path, rows[:5], bos=True))


def test_a_template_with_two_bos_tokens_or_no_generation_prompt(tmp_path: Path) -> None:
    rows = [talk(n) for n in range(5)]
    assert found(examined(tmp_path, rows)) == {}
    doubled = examined(tmp_path, rows, template="{{ bos_token }}{{ bos_token }}" + CHATML)
    assert found(doubled)["template"] == ("error", 1)
    assert "two BOS tokens" in doubled.findings[0].message
    other = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>bot\n{% endif")
    differs = examined(tmp_path, rows, template=other)
    assert found(differs)["template"] == ("error", 1)


def test_a_generation_prompt_that_differs_in_some_rows(tmp_path: Path) -> None:
    """A template with markers that writes a default system text only for a chat."""
    template = (
        "{% if add_generation_prompt and messages|length > 1 %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n{% else %}"
        "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("messages|length > 1", "messages[0]['role'] == 'system'")
    rows = [talk(n) for n in range(4)]
    assert found(examined(tmp_path, rows, template=template)) == {}
    rows[2]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    diagnosis = examined(tmp_path, rows, template=template)
    assert found(diagnosis)["generation_prompt"] == ("error", 1)
    assert diagnosis.findings[0].rows[0][0].endswith("rows.jsonl:3")


def test_answers_that_a_length_limit_cut(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(400)]
    rows = [{"prompt": f"{n}?", "completion": " " + " ".join(words[n : n + 5 + n]) + "."} for n in range(30)]
    cut = [{"prompt": f"{n}!", "completion": (" " + " ".join(words[n:]))[:300] + "."} for n in range(8)]
    kinds = found(examined(tmp_path, [*rows, *cut]))
    assert kinds["truncated_answers"] == ("warning", 8)
    assert "truncated_answers" not in found(examined(tmp_path, rows))


def test_unreadable_rows_and_the_budget(tmp_path: Path) -> None:
    rows = [*(talk(n) for n in range(9)), "{broken"]
    assert found(examined(tmp_path, rows))["unreadable"] == ("error", 1)
    assert found(examined(tmp_path, rows, budget={"unreadable": 0.1}))["unreadable"] == ("info", 1)


def test_only_unreadable_rows(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user"}]}] * 3
    diagnosis = examine(
        Data(train=[{"path": write(tmp_path / "rows.jsonl", rows), "format": "messages"}]),
        Model(path=str(byte_tokenizer(tmp_path / "model"))),
        SFT,
    )
    assert found(diagnosis)["unreadable"] == ("error", 3)


def test_without_datasketch_near_duplicates_are_named_as_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine_module, "is_installed", lambda: False)
    (finding,) = examined(tmp_path, [talk(n) for n in range(5)]).findings
    assert (finding.check, finding.severity, finding.count) == ("near_duplicates", "info", 0)
    assert "pip install 'tailor[doctor]'" in finding.message


REAL = [
    {
        "messages": [
            {"role": "user", "content": "Convert 3 °F to °C, please – it's for a “test”."},
            {"role": "assistant", "content": "−16.1 °C."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Translate: ça va très bien, naïve Zoë."},
            {"role": "assistant", "content": "It's going very well, naive Zoë."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Write a loop."},
            {"role": "assistant", "content": "```python\nfor i in range(3):\n\tprint(i)\n```"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Name two fruits"},
            {"role": "assistant", "content": "- Apple\n- Pear"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "用中文回答：你好吗？"},
            {"role": "assistant", "content": "我很好，谢谢你。"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Emoji 👩‍👩‍👧 ok?"},
            {"role": "assistant", "content": "Sure 🙂👍🏽"},
        ]
    },
    {"messages": [{"role": "user", "content": "Is 2 + 2 = 4?"}, {"role": "assistant", "content": "Yes"}]},
    {"messages": [{"role": "user", "content": "Is 2 - 2 = 4?"}, {"role": "assistant", "content": "No"}]},
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "Rain."},
        ]
    },
]


def test_real_rows_have_no_finding(tmp_path: Path) -> None:
    """Accents, typographic quotes, code, lists, Chinese, joined emoji and formulas are no faults."""
    assert found(examined(tmp_path, REAL)) == {}


def test_texts_of_rows_are_safe_to_print() -> None:
    hostile = "a\x1b]0;x\x07\u202eb\ud800\n\u2028c\x9b<b>"
    assert printable(hostile) == "a\\x1b]0;x\\x07\\u202eb\\ud800\\n\\u2028c\\u009b<b>"
    assert printable("naïve 中文 🙂") == "naïve 中文 🙂"
    shown = excerpt("x" * 300 + "\x1b" + "y" * 300, 300)
    assert shown.startswith("…x")
    assert "\\x1b" in shown
    assert len(shown) < 110
