"""The server as OpenAI's Python client sees it, and its answers beside those of `tailor generate`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tailor.artifacts.load import load_run
from tailor.cli.main import main
from tailor.encode.prompts import answer_text
from tailor.encode.replies.reading import ReplyReader
from tailor.encode.replies.tags import TAGS
from tailor.encode.template import load_template
from tailor.serve.calls import Call, Piece
from tests.helpers import serving
from tests.helpers.serving import Served

PROMPTS = ["Hi", "Hello there", "x" * 40, "What is it?", "y"]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def generated(run: str, prompts: list[str], folder: Path, *options: str) -> list[str]:
    """The answers of `tailor generate`."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    command = ["generate", run, "--input", str(source), "--output", str(target), "--max-new-tokens", "12"]
    assert main([*command, *options]) == 0
    return [json.loads(line)["answer"] for line in target.read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_under_load_are_those_of_generate(dtype: str, tmp_path: Path) -> None:
    """Requests of two adapters and the base at the same time, streamed and not."""
    runs = serving.two_adapters(tmp_path / "runs", dtype)
    expected = {name: generated(run, PROMPTS, tmp_path) for name, run in runs.items()}
    assert expected["red"] != expected["blue"]
    with serving.local(runs) as served:
        client = openai.OpenAI(base_url=served.url, api_key="unused")

        def answer(job: tuple[str, str, bool]) -> str:
            name, text, stream = job
            reply = client.chat.completions.create(
                model=name, messages=asked(text), max_tokens=12, stream=stream
            )
            if not stream:
                return reply.choices[0].message.content or ""
            return "".join(chunk.choices[0].delta.content or "" for chunk in reply)

        jobs = [
            (name, text, stream) for stream in (False, True) for text in PROMPTS for name in (*runs, "base")
        ]
        with ThreadPoolExecutor(len(jobs)) as pool:
            answers = dict(zip(jobs, pool.map(answer, jobs), strict=True))
    for name, texts in expected.items():
        for stream in (False, True):
            assert [answers[name, text, stream] for text in PROMPTS] == texts
    loaded = load_run(runs["red"])
    with loaded.without_adapter():
        from tailor.evaluate.continuous import generate

        ids = [loaded.prompt_ids(asked(text)) for text in PROMPTS]
        plain = generate(
            loaded.model, ids, max_new_tokens=12, stop_ids=loaded.stop_ids, batch_size=1, pad_id=loaded.pad_id
        )
    assert [answers["base", text, False] for text in PROMPTS] == [
        answer_text(loaded.tokenizer, one) for one in plain
    ]


def test_sampled_answers_are_those_of_generate(
    client: openai.OpenAI, adapters: dict[str, str], tmp_path: Path
) -> None:
    options = ("--temperature", "0.8", "--top-p", "0.9", "--seed", "7")
    (expected,) = generated(adapters["red"], ["Hi"], tmp_path, *options)
    reply = client.chat.completions.create(
        model="red", messages=asked("Hi"), max_tokens=12, temperature=0.8, top_p=0.9, seed=7, n=2
    )
    first, second = (choice.message.content for choice in reply.choices)
    assert first == expected != second


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["red", "blue", "base"]
    assert client.models.retrieve("blue").id == "blue"
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.models.retrieve("green")


def test_usage_of_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="red", messages=asked("Hi"), max_tokens=8)
    chunks = list(
        client.chat.completions.create(
            model="red",
            messages=asked("Hi"),
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="red", prompt="Hi", max_tokens=12).choices[0].text
    stop = whole[4:6]
    reply = client.completions.create(model="red", prompt="Hi", max_tokens=12, stop=[stop, "\0never"])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].text == whole[: whole.index(stop)]
    stream = client.completions.create(model="red", prompt="Hi", max_tokens=12, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_a_prompt_may_be_token_ids(client: openai.OpenAI, adapters: dict[str, str]) -> None:
    ids = load_run(adapters["red"]).tokenizer.encode_prompt("Hi")
    by_text = client.completions.create(model="red", prompt=["Hi", "Hello"], max_tokens=8)
    by_ids = client.completions.create(
        model="red", prompt=ids, max_tokens=8, extra_body={"return_token_ids": True}
    )
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert len(by_ids.choices[0].token_ids) == 8
    twice = client.completions.create(model="red", prompt=["Hi", "Hello"], max_tokens=8, n=2)
    assert by_text.usage is not None
    assert twice.usage is not None
    assert twice.usage.prompt_tokens == by_text.usage.prompt_tokens == len("HiHello")
    assert len(twice.choices) == 4
    with pytest.raises(openai.BadRequestError, match="size of the vocabulary"):
        client.completions.create(model="red", prompt=[100_000])


def test_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="red", messages=asked("Hi"), max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content or []
    assert len(content) == 4
    for token in content:
        first, second = token.top_logprobs
        assert 0 >= token.logprob == first.logprob >= second.logprob, "greedy decoding takes the first"


def test_tools_reach_the_template(client: openai.OpenAI, tmp_path: Path) -> None:
    """The template of the tiny model has no tools, which is an error and not a silent loss."""
    with pytest.raises(openai.BadRequestError, match="silently drops the tools"):
        client.chat.completions.create(model="red", messages=asked("Hi"), tools=[TOOL])


def test_tools_with_a_template_that_has_them(tmp_path: Path) -> None:
    """The tools and the calls of earlier turns are in the prompt, as in training data."""
    run = Path(serving.two_adapters(tmp_path, positions=2048)["red"])
    config = json.loads((run / "tokenizer_config.json").read_text())
    config["chat_template"] = load_template("chatml").text
    (run / "tokenizer_config.json").write_text(json.dumps(config))
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    turns: list[Any] = [
        *asked("Hi"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    with serving.local({"run": str(run)}) as served:
        client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)

        def prompt_tokens(**fields: Any) -> int:
            reply = client.chat.completions.create(model="run", max_tokens=2, **fields)
            assert reply.usage is not None
            return reply.usage.prompt_tokens

        plain = prompt_tokens(messages=asked("Hi"))
        assert prompt_tokens(messages=asked("Hi"), tools=[TOOL]) > plain
        assert prompt_tokens(messages=asked("Hi"), tools=[TOOL], tool_choice="none") == plain
        assert prompt_tokens(messages=turns, tools=[TOOL]) > prompt_tokens(messages=turns[:1], tools=[TOOL])


def test_tool_calls_of_a_stream() -> None:
    """As OpenAI's client joins them, whatever the pieces are."""
    calls = [
        f'<tool_call>\n{{"name": "look", "arguments": {{"at": "é{at}"}}}}\n</tool_call>' for at in (1, 2)
    ]

    class Scripted:
        async def answer(self, call: Call) -> AsyncIterator[Piece]:
            yield Piece(prompt_tokens=3)
            text, reads = (
                f"<think>Hm.</think>I look. {calls[0]}\n{calls[1]}",
                ReplyReader(TAGS, "", tools=bool(call.tools)),
            )
            for at in range(0, len(text), 7):
                ended = at + 7 >= len(text)
                new = reads.take(text[at : at + 7], ended=ended)
                finish = "stop" if ended else None
                yield Piece(new.content, finish, 3, at // 7 + 1, reasoning=new.reasoning, calls=new.calls)

    with serving.http(Scripted()) as served:  # type: ignore[arg-type]
        client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
        fields: Any = {"model": "m", "messages": asked("Hi"), "tools": [TOOL]}
        whole = client.chat.completions.create(**fields)
        with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
            list(stream)
            joined = stream.get_final_completion()
    assert joined.usage == whole.usage
    for reply in (whole, joined):
        (choice,) = reply.choices
        assert (choice.finish_reason, (choice.message.content or "").strip()) == ("tool_calls", "I look.")
        assert choice.message.model_extra == {"reasoning_content": "Hm."}
        found = [json.loads(one.function.arguments) for one in choice.message.tool_calls or []]  # type: ignore[union-attr]
        assert found == [{"at": "é1"}, {"at": "é2"}]


def test_a_full_context_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="512 tokens") as caught:
        client.chat.completions.create(model="red", messages=asked("x" * 600))
    assert caught.value.code == "context_length_exceeded"
    reply = client.chat.completions.create(model="red", messages=asked("x" * 480), max_tokens=100)
    assert reply.choices[0].finish_reason == "length"


def test_embeddings_of_a_model_without_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support embeddings"):
        client.embeddings.create(model="red", input="Hi")
