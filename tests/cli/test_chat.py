"""`tailor generate` and `tailor chat` on a model folder: through `main`, and as a process of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tailor.artifacts.load import load_run
from tailor.cli.main import main
from tailor.encode.prompts import answer_text
from tests.helpers.models import tiny_llama

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tailor"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("model") / "shop", max_position_embeddings=200))


def test_prompts_are_answered_in_order(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--max-new-tokens", "6"]
    alone = []
    for prompt in ("Hello there", "Hi"):
        assert main(["generate", model, "--prompt", prompt, *settings]) == 0
        alone.append(capsys.readouterr().out)
    assert main(["generate", model, "--prompt", "Hello there", "--prompt", "Hi", *settings]) == 0
    assert capsys.readouterr().out == "".join(alone)
    assert main(["generate", model, "--prompt", "Hi", "--system", "Be brief.", *settings]) == 0
    assert capsys.readouterr().out != alone[1]


def test_a_file_is_answered_row_by_row(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"role": "user", "content": "Hi"}
    rows = [
        {"prompt": "Hi", "number": 1},
        {"messages": [asked]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"messages": [asked, {"role": "assistant", "content": "the reference"}]},
        {"messages": [{"role": "system", "content": "Be brief."}, asked]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out" / "answers.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert (
        main(["generate", model, "--input", str(source), "--output", str(target), "--max-new-tokens", "6"])
        == 0
    )
    assert capsys.readouterr().out == ""
    out = [json.loads(line) for line in target.read_text().splitlines()]
    assert [{key: value for key, value in row.items() if key != "answer"} for row in out] == rows
    answers = [row["answer"] for row in out]
    assert answers[0] == answers[1] == answers[2] == answers[3] != answers[4]


def test_the_system_prompt_beside_a_rows_own(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same one stands once; another one is refused, as in training data."""
    asked = {"role": "user", "content": "Hi"}
    rows = [{"messages": [asked]}, {"messages": [{"role": "system", "content": "Be brief."}, asked]}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["generate", model, "--input", str(source), "--max-new-tokens", "6", "--system"]
    assert main([*command, "Be brief."]) == 0
    first, second = (json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert main([*command, "Be long."]) == 2
    assert "--system: row 2 has a system message of its own" in capsys.readouterr().err


def test_plain_text_is_continued_without_a_template(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for options in ([], ["--plain"]):
        assert main(["generate", model, "--prompt", "Once", "--max-new-tokens", "6", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "in.jsonl:2: not valid JSON"),
        ('{"question": "a"}', "in.jsonl:1: missing key `messages`"),
        ('{"messages": []}', "in.jsonl:1: the conversation is empty"),
        ("[1]", "in.jsonl:1: a row must be an object"),
        ("\n", "in.jsonl has no rows"),
    ],
)
def test_rows_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    assert main(["generate", "nowhere", "--input", str(tmp_path / "in.jsonl")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def talk(
    model: str,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *options: str,
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", model, "--max-new-tokens", "6", *options]) == 0
    return capsys.readouterr().out


def test_a_conversation_is_remembered_and_forgotten(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(model)
    from tailor.evaluate.generation import generate

    def expected(messages: list[dict[str, str]]) -> str:
        ids = loaded.prompt_ids(messages)
        (answer,) = generate(
            loaded.model,
            [ids],
            max_new_tokens=6,
            stop_ids=loaded.stop_ids,
            batch_size=1,
            pad_id=loaded.pad_id,
        )
        return answer_text(loaded.tokenizer, answer)

    first = [{"role": "user", "content": "Hi"}]
    answer = expected(first)
    again = expected([*first, {"role": "assistant", "content": answer}, *first])
    assert answer != again, "the control: the second turn is answered otherwise"
    shown = talk(model, ["Hi", "", "Hi", "/reset", "Hi", "/quit", "Hi"], capsys, monkeypatch)
    assert shown == f"{answer}\n{again}\n{answer}\n"


def test_a_conversation_over_the_models_length(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal, _, rest = talk(model, ["x" * 400, "Hi"], capsys, monkeypatch).partition("\n")
    assert refusal.endswith("the model's maximum is 200; /reset starts a new one")
    assert rest == talk(model, ["Hi"], capsys, monkeypatch)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_process_prints_the_answer_and_nothing_else(model: str, command: str, tmp_path: Path) -> None:
    options = ["--max-new-tokens", "5"] + (["--prompt", "Hi"] if command == "generate" else [])
    done = subprocess.run(
        [*COMMAND, command, model, *options],
        input="Hi\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_a_run_that_is_not_there(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = f"{model}x"
    for arguments in (["chat", wrong], ["generate", wrong, "--prompt", "Hi"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == (f"tailor: {wrong} does not exist\n  hint: did you mean {model}?\n")
