"""Which rows are asked: random mixtures of sources, files, splits and cuts, compared with a count over the files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tailor.data.split import RowId, Split
from tailor.encode.prepare import prepare_all
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.evaluate.in_training.exact_match import answer_rows, stops
from tailor.evaluate.question import Selection, select
from tailor.evaluate.rows import questions
from tailor.evaluate.tasks.perplexity import passages
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.models import tiny_llama

MAX_LENGTH = 96
Rows = dict[RowId, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def chat(draw: random.Random, number: int) -> dict[str, Any]:
    """A conversation of one or two questions, sometimes longer than MAX_LENGTH: in its question, its answer or both."""
    turns = []
    for turn in range(draw.choice([1, 1, 2])):
        question, answer = (draw.choice([3, 3, 9, 140]) for _ in range(2))
        turns.append({"role": "user", "content": f"{number}.{turn} " + "q" * question})
        turns.append({"role": "assistant", "content": "a" * answer})
    return {"messages": turns}


def text(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": f"{number} " + "t" * draw.choice([5, 140])}


def write(folder: Path, draw: random.Random) -> tuple[list[dict[str, Any]], Rows]:
    """Two or three evaluation sources, each a file or a folder of files with the same names, and all their rows."""
    sources, rows, number = [], Rows(), 0
    for source in range(draw.choice([2, 3])):
        place = folder / f"source{source}"
        place.mkdir()
        kind = draw.choice([chat, chat, text])
        for file in range(draw.choice([1, 3])):
            lines = []
            for row in range(1, draw.choice([2, 4, 7])):
                number += 1
                lines.append(kind(draw, number))
                rows[RowId(source, f"part-{file}.jsonl", row)] = lines[-1]
            (place / f"part-{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources.append({"path": str(place)})
    return sources, rows


def token_count(row: dict[str, Any], tokenizer: Tokenizer) -> int:
    """Tokens of the row at its full length."""
    if "text" in row:
        return len(tokenizer.prefix) + len(tokenizer.encode(row["text"])) + 1
    return len(tokenizer.encode(tokenizer.render(row["messages"]).rstrip("\n")))


def of_files(split: Split) -> set[RowId]:
    """The data rows that have an example, with the file's name without its folder."""
    return {short(split.row_id(at)) for at in range(len(split))}


def short(row: RowId) -> RowId:
    return row._replace(file=Path(row.file).name)


@pytest.mark.parametrize("on_long", ["drop", "truncate", "chunk", "retrieve"])
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_asked_or_counted(tmp_path: Path, model: Path, seed: int, on_long: str) -> None:
    draw = random.Random(seed)
    sources, rows = write(tmp_path, draw)
    (tmp_path / "train.jsonl").write_text(json.dumps(chat(random.Random(1), 0)) + "\n")
    settings = {"retrieve": {"passage": 8, "question": 16}} if on_long == "retrieve" else {}
    data = Data.model_validate(
        {
            "train": [{"path": str(tmp_path / "train.jsonl")}],
            "evaluation": sources,
            "max_length": MAX_LENGTH,
            "on_long": on_long,
            "budget": {"dropped": 1.0, "unreadable": 1.0},
            **settings,
        }
    )
    tokens = prepare_all(data, Model(path=str(model)), Sft(name="sft"), str(tmp_path / "tokens")).tokens
    split, tokenizer = tokens.split("evaluation"), load_tokenizer(str(model))
    long = {row for row, content in rows.items() if token_count(content, tokenizer) > MAX_LENGTH}
    plain = {row for row, content in rows.items() if "text" in content}
    kept = of_files(split)
    assert split.row_count == len(kept)
    if on_long == "drop":
        assert kept == set(rows) - long
    cut = long & kept if on_long in ("truncate", "chunk") else set()

    during, final = select(split, tokenizer), questions(split, None, tokenizer, tokens.template).selection
    for found in (during, final):
        assert {short(row) for row, _ in found.asked} == kept - cut - plain
        assert (found.rows, found.cut, found.without_question) == (
            len(kept - cut - plain),
            len(cut),
            len(kept & plain - cut),
        )
    check_content(split, during, rows, tokenizer, stops(tokenizer, tokens.template))
    assert {short(RowId(**one.location)) for one in passages(split, None)} == kept
    assert len(passages(split, None)) == len(kept)
    for limit in range(1, len(kept)):
        first = select(split, tokenizer, rows=limit)
        assert first.rows + first.cut + first.without_question == limit


def check_content(
    split: Split, found: Selection, rows: Rows, tokenizer: Tokenizer, stop_ids: list[int]
) -> None:
    """The prompt and the reference of every question are those of the row with this source, file and number.

    The prompt of a row from which passages were left out ends as the whole one does.
    """
    for one, (_, index) in zip(answer_rows(split, found, stop_ids), found.asked, strict=True):
        turns = rows[short(one.row)]["messages"]
        assert tokenizer.decode(one.reference) == turns[-1]["content"]
        prompt, whole = tokenizer.decode(one.prompt), tokenizer.render(turns[:-1], add_generation_prompt=True)
        assert prompt[-16:] == whole[-16:] if split.missing[index] else prompt == whole


def test_without_the_file_rows_fall_together(tmp_path: Path, model: Path) -> None:
    """The control: source and row number alone take the rows of several files for one."""
    sources, rows = write(tmp_path, random.Random(1))
    data = Data.model_validate({"train": sources, "max_length": 512})
    split = prepare_all(data, Model(path=str(model)), Sft(name="sft"), str(tmp_path / "tokens")).tokens.split(
        "train"
    )
    assert of_files(split) == set(rows)
    pairs = {*zip(split.source.tolist(), split.row.tolist(), strict=True)}
    assert len(pairs) < len(rows) == split.row_count
