"""Answers with reasoning and tool calls: what `serve`, `chat`, `generate` and evaluations make of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tailor.cli.main import main
from tailor.cli.reply_printer import ReplyPrinter
from tailor.encode.replies.reply import Reply, ToolCall
from tailor.encode.template import load_template
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.evaluate import continuous
from tailor.evaluate.batches import SAMPLE, generating
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import Collected, answer_fields
from tailor.serve.engine import Engine, Token
from tests.helpers import serving
from tests.helpers.models import tiny_llama
from tests.helpers.serving import Served

HARMONY = "<|channel|>analysis<|message|>Hm, {}.<|end|><|start|>assistant<|channel|>final<|message|>Four."
CALLING = '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 2}'
TAGS = "<think>\nHm, {}.\n</think>\n\nFour."
ADD = {"name": "add", "arguments": '{"a": 2}'}
TOOL: Any = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
ASKED: Any = [{"role": "user", "content": "2+2?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model with the template of gpt-oss, and one with ChatML."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: tiny_llama(folder / name, max_position_embeddings=2048) for name in ("gpt-oss", "chatml")}
    for name, path in made.items():
        config = json.loads((path / "tokenizer_config.json").read_text())
        config["chat_template"] = load_template(name).text
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what every model answers."""

    def answer(tokenizer_of: Path, text: str) -> None:
        ids = load_tokenizer(str(tokenizer_of)).encode(text)

        def generate(model: Any, prompts: Any, *, on_token: Any = None, **_: Any) -> list[list[int]]:
            for token in ids if on_token else ():
                on_token(token)
            return [ids for _ in prompts]

        def submit(self: Engine, run: Any, asked: Any, sampling: Any, number: int, deliver: Any) -> Any:
            for at, token in enumerate(ids):
                deliver(Token(token, "length" if at == len(ids) - 1 else None, 0.0, ()))
            return type("Ticket", (), {"cancel": lambda self: None})()

        monkeypatch.setattr(continuous, "generate", generate)
        monkeypatch.setattr(Engine, "submit", submit)

    return answer


@pytest.fixture(scope="module")
def served(models: dict[str, Path]) -> Iterator[Served]:
    with serving.local({name: str(path) for name, path in models.items()}) as one:
        yield one


CASES = [("gpt-oss", HARMONY), ("chatml", TAGS)]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_reasoning_of_a_response_and_of_a_stream(
    served: Served, models: dict[str, Path], says: Any, name: str, text: str
) -> None:
    says(models[name], text.format("two"))
    client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
    whole = client.chat.completions.create(model=name, messages=ASKED).choices[0].message
    assert (whole.content, whole.model_extra) == ("Four.", {"reasoning_content": "Hm, two."})
    parts = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(model=name, messages=ASKED, stream=True)
    ]
    assert "".join(part.content or "" for part in parts) == "Four."
    thoughts = [(part.model_extra or {}).get("reasoning_content", "") for part in parts]
    assert "".join(thoughts) == "Hm, two."
    assert sum(map(bool, thoughts)) > 1, "as it comes"
    plain = client.completions.create(model=name, prompt="2+2?").choices[0].text
    assert plain == text.format("two"), "the control: a completion is not read"


def test_a_call_of_gpt_oss(served: Served, models: dict[str, Path], says: Any) -> None:
    says(models["gpt-oss"], CALLING)
    client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
    (choice,) = client.chat.completions.create(model="gpt-oss", messages=ASKED, tools=[TOOL]).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert call.function.model_dump() == ADD  # type: ignore[union-attr]
    for asked in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        (none,) = client.chat.completions.create(model="gpt-oss", messages=ASKED, **asked).choices  # type: ignore[call-overload]
        assert (none.message.content, none.message.tool_calls) == (json.dumps(ADD), None)
    # The client sends the message back: its reasoning is in the prompt until an answer follows.
    said = choice.message.model_dump(exclude_none=True)
    turns: Any = [*ASKED, said, {"role": "tool", "tool_call_id": call.id, "content": "4"}]

    def tokens(messages: Any) -> int:
        reply = client.chat.completions.create(model="gpt-oss", messages=messages, tools=[TOOL])
        assert reply.usage is not None
        return reply.usage.prompt_tokens

    bare = {key: value for key, value in said.items() if key != "reasoning_content"}
    assert tokens(turns) > tokens([ASKED[0], bare, turns[2]])


def test_a_call_that_is_cut_is_none(served: Served, models: dict[str, Path], says: Any) -> None:
    client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
    for name, text, rest in (
        ("gpt-oss", CALLING[:-3], '{"a":'),
        ("chatml", f"<tool_call>{json.dumps(ADD)[:-1]}", f"<tool_call>{json.dumps(ADD)[:-1]}"),
    ):
        says(models[name], text)
        (choice,) = client.chat.completions.create(model=name, messages=ASKED, tools=[TOOL]).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
        assert choice.message.content == rest


@pytest.mark.parametrize(("name", "text"), CASES)
def test_generate(
    models: dict[str, Path],
    says: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    text: str,
) -> None:
    says(models[name], text.format("two"))
    assert main(["generate", str(models[name]), "--prompt", "2+2?"]) == 0
    assert capsys.readouterr().out == "Four.\n"
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": ASKED}) + "\n")
    assert main(["generate", str(models[name]), "--input", str(source)]) == 0
    row = {"messages": ASKED, "answer": "Four.", "reasoning_content": "Hm, two."}
    assert json.loads(capsys.readouterr().out) == row
    # Another model answers the output: nothing of the first answer stays.
    source.write_text(json.dumps({**row, "tool_calls": []}) + "\n")
    says(models[name], "<think>\n\n</think>\n\nFive." if name == "chatml" else "Five.")
    assert main(["generate", str(models[name]), "--input", str(source)]) == 0
    assert json.loads(capsys.readouterr().out) == {"messages": ASKED, "answer": "Five."}


def test_generate_a_call_and_reasoning_without_an_answer(
    models: dict[str, Path], says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(models["gpt-oss"]), "--prompt", "2+2?"]
    says(models["gpt-oss"], CALLING)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == ADD
    says(models["gpt-oss"], "<|channel|>analysis<|message|>Hm, tw")
    assert main(command) == 0
    shown = capsys.readouterr()
    assert (shown.out, "row 1: the answer ends within its reasoning" in shown.err) == ("\n", True)


@pytest.mark.parametrize("name", ["gpt-oss", "chatml"])
def test_chat(
    served: Served,
    models: dict[str, Path],
    says: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    says(models[name], dict(CASES)[name].format("two"))
    thinking = "<think>\nHm, two.\n</think>\n\nFour.\n"
    for command in (["chat", str(models[name])], ["chat", name, "--url", served.url]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("2+2?\nAgain?\n"))
        assert main(command) == 0
        assert capsys.readouterr().out == thinking * 2


def test_chat_prints_a_call_and_continues(
    models: dict[str, Path], says: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(models["gpt-oss"], CALLING)
    monkeypatch.setattr(sys, "stdin", io.StringIO("2+2?\nAgain?\n"))
    assert main(["chat", str(models["gpt-oss"])]) == 0
    assert capsys.readouterr().out == f"<think>\nHm.\n</think>\n\n{json.dumps(ADD)}\n" * 2


def test_reasoning_behind_a_preamble_is_printed_in_tags(capsys: pytest.CaptureFixture[str]) -> None:
    printer = ReplyPrinter()
    pieces = [
        Reply("", "a"),
        Reply("", "b"),
        Reply("I look."),
        Reply("", "\nc"),
        Reply("", "d"),
        Reply("\nFour."),
    ]
    for piece in [*pieces, Reply(" It is."), Reply(calls=(ToolCall("add", "{}"),))]:
        printer.take(piece)
    call = '{"name": "add", "arguments": "{}"}'
    assert capsys.readouterr().out == (
        f"<think>\nab\n</think>\n\nI look.\n\n<think>\ncd\n</think>\n\nFour. It is.\n{call}"
    )
    assert printer.reply.reasoning == "ab\ncd"


def test_figures_compare_what_is_said(models: dict[str, Path]) -> None:
    """Two answers that differ in reasoning alone are the same; two calls that differ are not."""
    tokenizer: Tokenizer = load_tokenizer(str(models["gpt-oss"]))
    questions, collected = [Question({}, tokenizer.encode("x"), "", "")] * 2, Collected()
    (batch,) = generating("m", "p", [one.prompt for one in questions], 2)
    first = [HARMONY.format("two"), CALLING]
    second = [HARMONY.format("three"), CALLING.replace("2", "3")]
    collected.add(batch, [tokenizer.encode(text) for text in first])
    for at, text in enumerate(second):
        collected.of("p")[at + SAMPLE] = tokenizer.encode(text)
    (one, other), (call, another) = collected.replies("p", questions, tokenizer)
    assert (one.text, other.text) == ("Four.", "Four.")
    assert call.text != another.text
    assert answer_fields([one, other]) == {
        "reasoning_content": "Hm, two.",
        "answer": "Four.",
        "samples": ["Four.", "Four."],
    }
    assert answer_fields([Reply("a")]) == {"answer": "a"}
