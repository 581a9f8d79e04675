"""Exact match before and after training: generated answers to held-out questions, compared with the references."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch.distributed as dist

from tailor.data.split import RowId, Split
from tailor.encode.replies.reading import read
from tailor.encode.tokenizer import Tokenizer, model_tokenizer
from tailor.errors import TailorError
from tailor.evaluate.generation import before_stop, generate
from tailor.evaluate.question import Selection, no_question, select
from tailor.layout import GENERATED
from tailor.train.session import Session, When

BATCH_SIZE, BATCH_TOKENS = 64, 32768
"""Answers generated at once by default, and their tokens together with the prompts. A step of a small model takes nearly the
same time for 16 and for 64 rows; the tokens bound the memory of the KV cache."""
FILES = {"start": GENERATED["before"], "end": GENERATED["after"]}


@dataclass(frozen=True)
class AnswerRow:
    """A prompt and its reference answer, as token ids.

    The prompt is everything before the example's last supervised span; the reference is that span without its stop token.
    """

    row: RowId
    prompt: list[int]
    reference: list[int]


def answer_rows(split: Split, selection: Selection, stop_ids: Sequence[int]) -> list[AnswerRow]:
    """The prompts and references of the selected questions."""
    rows: list[AnswerRow] = []
    for row, index in selection.asked:
        example = split.example(index)
        start, stop = (int(bound) for bound in example.spans[-1])
        ids = example.input_ids.tolist()
        rows.append(AnswerRow(row, ids[:start], before_stop(ids[start:stop], stop_ids)))
    return rows


def probe(session: Session, when: When, step: int) -> None:
    """Answer the evaluation questions and report the exact match, before and after training.

    The answers are written to `evaluation/` in the run. The questions are divided among the ranks. A run that resumes
    from a checkpoint skips the measurement before training, which was made at its first start.
    DataError when the evaluation data has no question.
    """
    host, plan = session.host, session.plan
    settings = plan.evaluate.generation
    assert settings is not None
    if when == "evaluation" or (when == "start" and host.resume() is not None):
        return
    tokenizer = model_tokenizer(plan.model)
    stop_ids = stops(tokenizer, session.tokens.template)
    split = session.tokens.split("evaluation")
    selection = select(split, tokenizer, questions=settings.limit)
    rows = answer_rows(split, selection, stop_ids)
    if not rows:
        raise no_question("evaluate.generation: ", selection.cut, "remove evaluate.generation")
    before_or_after = "before" if when == "start" else "after"
    left_out = f"; {selection.cut:,} rows cut by data.on_long are not asked" if selection.cut else ""
    session.say(
        f"generating {len(rows):,} answers {before_or_after} training{left_out}",
        phase=f"answers_{before_or_after}",
    )
    mine = rows[host.rank :: host.world]
    with session.autocast():
        answers = generate(
            session.model.network,
            [row.prompt for row in mine],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=stop_ids,
            batch_size=settings.batch_size or BATCH_SIZE,
            batch_tokens=BATCH_TOKENS if settings.batch_size is None else None,
            pad_id=pad(tokenizer),
        )
    shares: list[list[list[int]]] = [answers]
    if host.world > 1:
        shares = [[] for _ in range(host.world)]
        dist.all_gather_object(shares, answers)
    if host.rank != 0:
        return
    questions = Questions(tokenizer, session.tokens.template)
    records = [
        _record(tokenizer, questions, row, shares[i % host.world][i // host.world])
        for i, row in enumerate(rows)
    ]
    session.run.write_text(
        FILES[when], "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    )
    host.report(
        {
            "kind": "generation",
            "when": before_or_after,
            "exact_match": sum(record["exact"] for record in records) / len(records),
            "count": len(records),
            "cut": selection.cut,
            "without_question": selection.without_question,
        }
    )


def stops(tokenizer: Tokenizer, template: dict[str, Any] | None) -> list[int]:
    """The stop tokens of an answer: the template's end-of-turn tokens and the EOS."""
    ends = list(template["end_of_turn_ids"]) if template is not None else []
    return ends + [token for token in (tokenizer.eos_id,) if token is not None and token not in ends]


def pad(tokenizer: Tokenizer) -> int:
    """The padding token. The attention mask hides it, so a tokenizer without one pads with its EOS, or with token 0."""
    return next((token for token in (tokenizer.pad_id, tokenizer.eos_id) if token is not None), 0)


def _record(tokenizer: Tokenizer, questions: Questions, row: AnswerRow, answer: list[int]) -> dict[str, Any]:
    prompt = tokenizer.decode(row.prompt)
    reference, given = (read(tokenizer, row.prompt, ids) for ids in (row.reference, answer))
    return {
        **row.row._asdict(),
        "prompt": questions.last(prompt),
        "rendered": prompt,
        "reference": reference.text,
        **({"reasoning_content": given.reasoning} if given.reasoning else {}),
        "answer": given.text,
        "exact": given.text == reference.text,
    }


class Questions:
    """Finds the last user turn in a rendered prompt, by the text that the template writes before and after a user turn."""

    def __init__(self, tokenizer: Tokenizer, template: dict[str, Any] | None) -> None:
        self._before = self._after = ""
        if template is None:
            return
        from tailor.encode.template import Template

        mark = "QUESTION"
        turns = [
            {"role": "user", "content": "One."},
            {"role": "assistant", "content": "Two ¤"},  # ¤ cannot be mistaken for the end of a system turn
            {"role": "user", "content": mark},
        ]
        renderer = tokenizer.with_template(
            Template(template["name"], template["text"], date=template.get("date"))
        )
        try:
            first, later = (renderer.render(part, add_generation_prompt=True) for part in (turns[2:], turns))
        except (TailorError, jinja2.TemplateError):
            return
        (head, _, self._after), (longer, _, _) = first.partition(mark), later.partition(mark)
        common = 0
        while common < min(len(head), len(longer)) and head[-1 - common] == longer[-1 - common]:
            common += 1
        self._before = head[len(head) - common :]

    def last(self, prompt: str) -> str:
        """The last question of a rendered prompt, or the whole prompt when it cannot be found."""
        if not self._before or not self._after or not prompt.endswith(self._after):
            return prompt
        _, found, question = prompt.removesuffix(self._after).rpartition(self._before)
        return question if found else prompt
