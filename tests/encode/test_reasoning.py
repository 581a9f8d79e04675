"""Reasoning is learned where the template writes it, and a row whose reasoning would be lost is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.sft import Sft
from tests.helpers.marked_rows import LAST_THINKS, MARKS_ALL, OPENS_THINK, Rows, chat

DROPS = "! reasoning_dropped: the chat template drops the reasoning"
FORMS: list[dict[str, Any]] = [
    {"content": "4", "reasoning_content": "two twice"},
    {"content": "4", "reasoning": "two twice"},
    {"content": "4", "thinking": "two twice"},
    {"content": "4", "reasoning_content": "two twice", "thinking": "two twice"},
    {"content": [{"type": "thinking", "thinking": "two twice"}, {"type": "text", "text": "4"}]},
    {"content": [{"type": "reasoning", "value": "two twice"}, {"type": "text", "value": "4"}]},
]
TAGGED = {"content": "<think>\ntwo twice\n</think>\n\n4"}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_is_written_or_refused(tmp_path: Path, form: dict[str, Any]) -> None:
    rows = Rows(tmp_path)
    row = [chat("2+2?", form)]
    assert rows.marked(row)[0][0].startswith(DROPS)
    assert "«<think>two twice</think>4<|im_end|>»" in rows.marked(row, template=MARKS_ALL)[0][0]
    assert "«<think>\ntwo twice\n</think>\n\n4<|im_end|>»" in rows.marked(row, template=LAST_THINKS)[0][0]
    assert "<think>\n«two twice\n</think>\n\n4<|im_end|>»" in rows.marked(row, template=OPENS_THINK)[0][0]
    dropped = rows.marked(row, reasoning="drop")[0][0]
    assert "«4<|im_end|>»" in dropped
    assert "twice" not in dropped


def test_reasoning_in_the_content(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    assert "«<think>\ntwo twice\n</think>\n\n4<|im_end|>»" in rows.marked([chat("2+2?", TAGGED)])[0][0]
    assert "«4<|im_end|>»" in rows.marked([chat("2+2?", TAGGED)], reasoning="drop")[0][0]
    shut = OPENS_THINK.replace("<think>\n{% endif", "{% endif")
    assert rows.marked([chat("2+2?", TAGGED)], template=shut)[0][0].startswith(DROPS)
    # The control: an answer without reasoning is fine with the same template.
    assert "«4<|im_end|>»" in rows.marked([chat("2+2?", "4")], template=shut)[0][0]


def test_a_generation_prompt_that_opens_think(tmp_path: Path) -> None:
    """Each turn is learned behind the opened tag, and closes it; earlier turns are without reasoning, as in a chat."""
    ((last, middle, first),) = Rows(tmp_path).marked(
        [chat("a", FORMS[0], "b", TAGGED, "c", "none")], template=OPENS_THINK
    )
    assert first.endswith("<|im_start|>assistant\n<think>\n«two twice\n</think>\n\n4<|im_end|>»\n")
    assert middle.endswith("<|im_start|>assistant\n<think>\n«two twice\n</think>\n\n4<|im_end|>»\n")
    assert last.endswith("<|im_start|>assistant\n<think>\n«\n</think>\n\nnone<|im_end|>»\n")
    assert "twice" not in last
    assert middle.count("twice") == 1


def test_a_template_that_drops_earlier_reasoning_learns_each_turn_as_the_last(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    ((last, first),) = rows.marked([chat("a", FORMS[0], "b", FORMS[2])], template=LAST_THINKS)
    assert all("«<think>\ntwo twice\n</think>\n\n4<|im_end|>»" in text for text in (first, last))
    assert first.count("twice") == last.count("twice") == 1
    marked = MARKS_ALL.replace("{% if m.thinking", "{% if loop.last and m.thinking")
    texts = rows.marked([chat("a", FORMS[0], "b", FORMS[2])], template=marked)[0]
    assert sum(text.count("«<think>two twice</think>4<|im_end|>»") for text in texts) == 2


def test_unlearned_turns_may_lose_their_reasoning(tmp_path: Path) -> None:
    row = chat("a", {**FORMS[0], "weight": 0}, "b", "5")
    assert "4<|im_end|>" in Rows(tmp_path).marked([row])[0][0]
    # The control: as learned turns they may not, and neither when everything is learned.
    rows = Rows(tmp_path)
    assert rows.marked([chat("a", FORMS[0], "b", "5")])[0][0].startswith(DROPS)
    everything = Sft(name="sft", train_on="everything")
    assert rows.marked([chat("a", FORMS[0], "b", "5")], method=everything)[0][0].startswith(DROPS)


def test_two_reasonings_are_refused(tmp_path: Path) -> None:
    row = chat("a", {"content": "4", "reasoning": "one", "thinking": "two"})
    assert Rows(tmp_path).marked([row])[0][0].startswith("! two_reasonings")


def test_the_setting_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    names = [
        rows.prepared([chat("a", "b")], reasoning=reasoning).tokens.manifest["fingerprint"]
        for reasoning in ("keep", "drop", "keep")
    ]
    assert names[0] == names[2] != names[1]


def test_pairs_that_differ_only_in_dropped_reasoning_are_equal(tmp_path: Path) -> None:
    def answer(reasoning: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": "4", "reasoning_content": reasoning}]

    row = {"prompt": "2+2?", "chosen": answer("good"), "rejected": answer("bad")}
    rows, dpo = Rows(tmp_path), Dpo(name="dpo")
    assert rows.marked([row], method=dpo)[0][0].startswith("! same_answers")
    assert rows.marked([row], method=dpo, reasoning="drop")[0][0].startswith("! same_answers")
    # The control: a template that writes the reasoning keeps the pair.
    chosen, rejected = rows.marked([row], method=dpo, template=MARKS_ALL)[0]
    assert "«<think>good</think>4" in chosen
    assert "«<think>bad</think>4" in rejected
