"""Over-long prompts in `generate`, `chat` and Python: the tokens that preparation gives the model for the same prompt."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tailor
from tailor.artifacts.load import load_run
from tailor.artifacts.long_prompts import PromptRetrieval
from tailor.artifacts.passage_scorer import scorer_of
from tailor.cli.main import main
from tailor.encode.prepare import prepare
from tailor.evaluate import continuous
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.store import Publication, Store
from tests.helpers import serving
from tests.helpers.models import tiny_llama
from tests.helpers.synonyms import ASKED, DEEP, FILL, trained_embedder

RECIPE = """\
model: {{path: {run}/model}}
data:
  train: [{{path: rows.jsonl}}]
  max_length: 512
  on_long: {on_long}
{more}
method: {{name: sft}}
optim: {{learning_rate: 1e-4}}
save: {{to: {run}}}
"""
RETRIEVE = "  retrieve: {{passage: 72, question: {question}{embedder}}}"
PROMPT = f"{FILL * 6}{DEEP * 2}{FILL * 6}{ASKED}"
ANSWER = "yes"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    with Publication(Store(folder / "run"), "model") as publication:
        tiny_llama(publication.folder)
    (folder / "run" / "plan.json").write_text("{}")
    trained_embedder(folder / "embedder")
    return folder


Given = list[list[int]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """The prompts that the model is given."""
    found: Given = []

    def generate(model: Any, prompts: Given, **settings: Any) -> Given:
        found.extend(prompts)
        return [[40] for _ in prompts]

    monkeypatch.setattr(continuous, "generate", generate)
    return found


def run_with(place: Path, *, embedder: bool = False, on_long: str = "retrieve") -> str:
    run = place / "run"
    named = f", embedder: {place}/embedder" if embedder else ""
    more = RETRIEVE.format(question=len(ASKED) + 30, embedder=named) if on_long == "retrieve" else ""
    (run / "recipe.yaml").write_text(RECIPE.format(run=run, on_long=on_long, more=more))
    return str(run)


def prepared(place: Path, run: str, row: dict[str, Any], folder: Path) -> tuple[list[int], int]:
    """The tokens before the last answer of a prepared row, and the number of tokens after them."""
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = tailor.load(f"{run}/recipe.yaml", {"data.train": [{"path": str(folder / "rows.jsonl")}]}).spec.data
    tokens = prepare(
        data, Model(path=f"{run}/model"), Sft(name="sft"), str(folder / "tokens"), scorer=scorer_of(data)
    ).tokens
    example = tokens.split("train").example(0)
    start = int(example.spans[-1][0])
    return example.input_ids[:start].tolist(), len(example.input_ids) - start


def conversation(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": content} for at, content in enumerate(turns)]}


@pytest.mark.parametrize("embedder", [False, True])
def test_a_server_gives_the_model_the_prepared_tokens(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], embedder: bool
) -> None:
    run = run_with(place, embedder=embedder)
    row = conversation(PROMPT, ANSWER)
    expected, answer = prepared(place, run, row, tmp_path)
    prompts: list[list[int]] = []

    def start(batch: continuous.ContinuousBatch, answer: continuous.Answer) -> None:
        prompts.append(list(answer.prompt))
        plain(batch, answer)

    plain = continuous.ContinuousBatch.start
    with pytest.MonkeyPatch.context() as patch, serving.local({"red": run}) as served:
        patch.setattr(continuous.ContinuousBatch, "start", start)
        for messages in (row["messages"][:1], conversation("Hi")["messages"]):
            reply = served.chat("", messages=messages, max_tokens=answer)
            assert reply.json()["usage"]["prompt_tokens"] == len(prompts[-1])
    assert prompts[0] == expected
    assert len(prompts) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "over-long" in line]
    assert line.startswith("red: the prompt of ")


@pytest.mark.parametrize("embedder", [False, True])
def test_generate_gives_the_model_the_prepared_tokens(
    place: Path, tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str], embedder: bool
) -> None:
    run = run_with(place, embedder=embedder)
    row = conversation(PROMPT, ANSWER)
    expected, answer = prepared(place, run, row, tmp_path)
    options = ["--max-new-tokens", str(answer)]
    assert main(["generate", run, "--prompt", PROMPT, "--prompt", "Hi", *options, "--json"]) == 0
    shown = capsys.readouterr()
    assert given[0] == expected
    assert len(expected) + answer <= 512 < len(load_run(run).prompt_ids(row["messages"][:1]))
    (entry,) = json.loads(shown.out)["shortened"]
    assert (entry["row"], entry["kept_tokens"]) == (1, len(expected))
    left_out = entry["passages"] - entry["kept_passages"]
    assert left_out > 0
    assert f"row 1: the prompt of {entry['tokens']:,} tokens is over-long: {left_out} of its" in shown.err
    given.clear()
    assert main(["generate", run, "--prompt", PROMPT, *options, "--whole-prompt"]) == 0
    assert len(given[0]) == entry["tokens"], "the control"
    assert "over-long" not in capsys.readouterr().err
    given.clear()
    other = run_with(place, embedder=not embedder)
    assert main(["generate", other, "--prompt", PROMPT, *options]) == 0
    assert given[0] != expected, "the control: the other scores choose other passages"


def test_plain_text_and_python(
    place: Path, tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(place)
    expected, answer = prepared(place, run, {"prompt": PROMPT, "response": ANSWER}, tmp_path)
    assert main(["generate", run, "--plain", "--prompt", PROMPT, "--max-new-tokens", str(answer)]) == 0
    assert given == [expected]
    given.clear()
    capsys.readouterr()
    (tmp_path / "chat").mkdir()
    expected, answer = prepared(place, run, conversation(PROMPT, ANSWER), tmp_path / "chat")
    opened = tailor.Run(run)
    opened.generate(["Hi", PROMPT], max_new_tokens=answer)
    assert given[1] == expected
    assert "prompt 2: the prompt of " in capsys.readouterr().err
    opened.generate(PROMPT, max_new_tokens=answer, whole_prompt=True)
    assert len(given[2]) > 512
    assert "over-long" not in capsys.readouterr().err


def test_the_last_question_of_a_chat_selects_among_all_turns_before_it(
    place: Path,
    tmp_path: Path,
    given: Given,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_with(place, embedder=True)
    turns = [(FILL * 3 + DEEP).strip(), "A", (FILL * 7).strip(), "A", ASKED.strip()]
    expected, answer = prepared(place, run, conversation(*turns, ANSWER), tmp_path)
    letters = load_run(run).tokenizer.encode("A")
    monkeypatch.setattr(continuous, "generate", _answering(given, letters))
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{turn}\n" for turn in turns[::2])))
    assert main(["chat", run, "--max-new-tokens", str(answer)]) == 0
    assert given[-1] == expected
    assert len(given[0]) < 512, "the first turn fits"
    err = capsys.readouterr().err
    assert err.count("is over-long") == 2, "the second turn is too long with the first, and so is the third"


def _answering(given: Given, ids: list[int]) -> Callable[..., Given]:
    def generate(model: Any, prompts: Given, *, on_token: Callable[[int], None], **settings: Any) -> Given:
        given.extend(prompts)
        for token in ids:
            on_token(token)
        return [ids]

    return generate


@pytest.mark.parametrize("on_long", ["drop", "truncate", "chunk"])
def test_other_settings_leave_prompts_whole(place: Path, given: Given, on_long: str) -> None:
    run = run_with(place, on_long=on_long)
    assert main(["generate", run, "--prompt", PROMPT]) == 0
    assert len(given[0]) > 512


def test_a_prompt_is_shortened_if_no_room_for_the_answer_remains(place: Path) -> None:
    """The answer reserves its tokens, but leaves two passages and the question their room."""
    tokenizer = load_run(str(place / "run" / "model")).tokenizer
    data = Data(
        train=[{"path": "x"}],  # type: ignore[list-item]
        max_length=512,
        on_long="retrieve",
        retrieve={"passage": 64, "question": 60},  # type: ignore[arg-type]
    )
    retrieval = PromptRetrieval(data)

    def kept(length: int, answer: int) -> int:
        found = retrieval.shorten([50 + at % 40 for at in range(length)], tokenizer, answer)
        return length if found is None else len(found.ids)

    assert [kept(412, 100), kept(413, 100)] == [412, 60 + 5 * 64]
    assert kept(188, 9999) == 188
    assert kept(189, 9999) <= 188


def test_a_damaged_recipe_and_a_lost_embedder_are_reported(
    place: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(place, embedder=True)
    recipe = place / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("/embedder", "/nowhere"))
    assert main(["generate", run, "--prompt", "Hi"]) == 2
    assert "data.retrieve.embedder: " in capsys.readouterr().err
    recipe.write_text("data: [")
    assert main(["generate", run, "--prompt", "Hi"]) == 2
    assert "recipe.yaml:2:1: not YAML" in capsys.readouterr().err
    assert main(["generate", run, "--prompt", "Hi", "--whole-prompt"]) == 0
