"""What answers say, in the forms of tags and of Harmony: whole, as they grow, and in figures of evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.replies.harmony import HARMONY
from tailor.encode.replies.reading import ReplyReader, read
from tailor.encode.replies.reply import EMPTY, Reply, ReplyFormat, ToolCall
from tailor.encode.replies.tags import TAGS
from tailor.encode.template import load_template
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tests.encode import harmony
from tests.encode.families import BUILT_IN
from tests.helpers.marked_rows import OPENS_THINK
from tests.helpers.models import byte_tokenizer

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
LOOK = ToolCall("look", '{"at": "é"}')
FINAL, ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
TO = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
NEXT = "<|end|><|start|>assistant"
CASES: list[tuple[ReplyFormat, str, str, Reply]] = [
    (TAGS, "", "Four.", Reply("Four.")),
    (TAGS, "", "", EMPTY),
    (TAGS, "", "<think>\ntwo twice\n</think>\n\nFour.", Reply("Four.", "two twice")),
    (TAGS, "", "<think>\n\n</think>\n\nFour.", Reply("Four.")),
    (TAGS, "", "<think>\ntwo tw", Reply("", "two tw")),
    (TAGS, "", "The tag <think> opens.", Reply("The tag <think> opens.")),
    (TAGS, "", "<thin", Reply("<thin")),
    (TAGS, "<|im_start|>assistant\n<think>\n", "two twice\n</think>\n\nFour.", Reply("Four.", "two twice")),
    (TAGS, "<think>\n", "<think>\ntwo twice\n</think>\n\nFour.", Reply("Four.", "two twice")),
    (TAGS, "<think>\n", "two tw", Reply("", "two tw")),
    (TAGS, "<think>\n\n</think>\n\n", "Four.", Reply("Four.")),
    (TAGS, "", f"I look. {CALL}\n{CALL}", Reply("I look.", calls=(LOOK, LOOK))),
    (TAGS, "", f"<think>Hm.</think>{CALL}", Reply("", "Hm.", (LOOK,))),
    (TAGS, "", f"<think>{CALL}</think>No.", Reply("No.", CALL)),
    (TAGS, "", "So <tool_call>{broken}</tool_call>", Reply("So <tool_call>{broken}</tool_call>")),
    (TAGS, "", '<tool_call>{"name": 3}</tool_call>', Reply('<tool_call>{"name": 3}</tool_call>')),
    (TAGS, "", "<tool_call>", Reply("<tool_call>")),
    (TAGS, "", f"Use <tool_call> so: {CALL} after", Reply("Use <tool_call> so:", calls=(LOOK,))),
    (TAGS, "", f'{CALL}\n<tool_call>{{"name": "look", "arg', Reply(f'{CALL}\n<tool_call>{{"name": "look", "arg')),
    (TAGS, "", f"{CALL}\n<tool_call>", Reply(f"{CALL}\n<tool_call>")),
    (TAGS, "", CALL.replace("é", "{} </tool_call>"), Reply(calls=(ToolCall("look", '{"at": "{} </tool_call>"}'),))),
    (TAGS, "", CALL.replace("arguments", "parameters"), Reply(calls=(LOOK,))),
    (TAGS, "", CALL.replace('"é"', "NaN"), Reply(CALL.replace('"é"', "NaN"))),
    (TAGS, "", CALL.replace("é", r"\ud83d"), Reply(CALL.replace("é", r"\ud83d"))),
    (TAGS, "", CALL.replace("look", ""), Reply(CALL.replace("look", ""))),
    (TAGS, "", "<tool_call>" + '{"a":' * 5000, Reply("<tool_call>" + '{"a":' * 5000)),
    (HARMONY, "", f"{FINAL}Four.", Reply("Four.")),
    (HARMONY, "", f"{ANALYSIS}two twice{NEXT}{FINAL}Four.", Reply("Four.", "two twice")),
    (HARMONY, "", f"{ANALYSIS}two{NEXT}{ANALYSIS}twice{NEXT}{FINAL}Four.", Reply("Four.", "two\ntwice")),
    (HARMONY, "", f"{ANALYSIS}two tw", Reply("", "two tw")),
    (HARMONY, "", f"{ANALYSIS}two{NEXT}<|channel|>fin", Reply("", "two")),
    (HARMONY, "", f"{ANALYSIS}two{NEXT}", Reply("", "two")),
    (HARMONY, "", f"{ANALYSIS}Hm.{NEXT}{TO}" + '{"at": "é"}', Reply("", "Hm.", (LOOK,))),
    (HARMONY, "", f"<|channel|>commentary<|message|>I look.{NEXT}{TO}" + '{"at": "é"}<|call|>', Reply("I look.", "", (LOOK,))),
    (HARMONY, "", ' to=functions.look<|channel|>commentary json<|message|>{"at": "é"}', Reply(calls=(LOOK,))),
    (HARMONY, "", "<|channel|>analysis to=python code<|message|>1+1", Reply(calls=(ToolCall("python", "1+1"),))),
    (HARMONY, "", "Four, said to=you.", Reply("Four, said to=you.")),
    (HARMONY, "", f"{FINAL}Four.<|end|>Five.", Reply("Four.\nFive.")),
    (HARMONY, "", f"{FINAL}Four.{NEXT}{FINAL}Five.", Reply("Four.\nFive.")),
    (HARMONY, "", f"{ANALYSIS}two<|start|>assistant{FINAL}Four.", Reply("Four.", "two")),
    (HARMONY, "", f"{FINAL}Write <|message|>, <|channel|> or <|start|> x.", Reply("Write <|message|>, <|channel|> or <|start|> x.")),
    (HARMONY, "", f"{FINAL}Four.<|end|><|start|>user<|message|>3+3?{NEXT}{FINAL}Six.", Reply("Four.")),
    (HARMONY, "", TO + '{"at": "é"}<|call|><|start|>functions.look to=assistant<|channel|>commentary<|message|>x', Reply(calls=(LOOK,))),
    (HARMONY, "", f"{ANALYSIS}Hm.{NEXT}{TO}" + '{"at": "', Reply('{"at": "', "Hm.")),
    (HARMONY, "", f"{ANALYSIS}Hm.{NEXT}{TO}", Reply("", "Hm.")),
    (HARMONY, "", f"{ANALYSIS}Hm.{NEXT} to=functions.lo", Reply("", "Hm.")),
    (HARMONY, "", " to=functions.lo", EMPTY),
    (HARMONY, "", f"{TO}[1]<|call|>", Reply("[1]")),
    (HARMONY, "", TO.replace("look", "") + "{}<|call|>", Reply("{}")),
    (HARMONY, "", f'{TO}{{"at": "é"}}<|call|><|start|>assistant{TO}{{"at": "é"}}', Reply(calls=(LOOK, LOOK))),
    (HARMONY, "", "<|channel|>other<|message|>Four.", Reply("Four.")),
    (HARMONY, "", "<|channel|>final <|constrain|>json<|message|>{}", Reply("{}")),
    (HARMONY, f"<|start|>assistant{ANALYSIS}", f"two{NEXT}{FINAL}Four.", Reply("Four.", "two")),
    (HARMONY, f"{NEXT}{FINAL}", "Four, said to=you.", Reply("Four, said to=you.")),
    (HARMONY, f"<|start|>assistant{FINAL}Two.{NEXT}", f"{FINAL}Four.", Reply("Four.")),
    (HARMONY, "", f"{FINAL}", EMPTY),
    (HARMONY, "", "", EMPTY),
]  # fmt: skip


@pytest.mark.parametrize(("fmt", "prompt", "text", "expected"), CASES, ids=lambda one: repr(one)[:40])
def test_a_reply(fmt: ReplyFormat, prompt: str, text: str, expected: Reply) -> None:
    assert fmt.read(text, prompt, ended=True, tools=True) == expected


@pytest.mark.parametrize("size", [1, 3, 7])
def test_parts_joined_are_the_reply(size: int) -> None:
    for fmt, prompt, text, expected in CASES:
        reads, parts = ReplyReader(fmt, prompt, tools=True), []
        for at in range(0, len(text), size):
            parts.append(reads.take(text[at : at + size]))
        assert all(not part.calls for part in parts)
        assert sum([*parts, reads.take("", ended=True)], EMPTY) == expected, (text, parts)


def test_reasoning_is_not_held_back() -> None:
    reads = ReplyReader(HARMONY, "", tools=False)
    assert reads.take(f"{ANALYSIS}two tw") == Reply("", "two tw")
    assert reads.take(f"ice{NEXT}{FINAL}Fo") == Reply("Fo", "ice")


def test_without_tools_tags_of_calls_are_text() -> None:
    assert TAGS.read(f"I look. {CALL}", "", ended=True, tools=False) == Reply(f"I look. {CALL}")


def test_without_tools_calls_of_harmony_are_text() -> None:
    """Clients that name no tools expect none, and evaluations score the text."""
    text = f'{ANALYSIS}Hm.{NEXT}{TO}{{"at": "é"}}<|call|>'
    reply, reads = Reply(LOOK.text, "Hm."), ReplyReader(HARMONY, "", tools=False)
    assert HARMONY.read(text, "", ended=True, tools=False) == reply
    assert sum([*map(reads.take, text), reads.take("", ended=True)], EMPTY) == reply
    assert json.loads(LOOK.text) == {"name": "look", "arguments": '{"at": "é"}'}


def test_a_reply_as_a_text() -> None:
    assert (
        Reply("I look.", "Hm.", (LOOK,)).text
        == 'I look.\n{"name": "look", "arguments": "{\\"at\\": \\"é\\"}"}'
    )
    assert Reply("", "Hm.").text == ""


def test_harmony_reads_what_the_template_writes(tmp_path: Path) -> None:
    BUILT_IN["gpt-oss"].save(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), template="gpt-oss")
    for conversation in harmony.conversations()[:12]:
        tools = conversation.get("tools")
        for number, message in enumerate(conversation["messages"]):
            if message["role"] != "assistant" or len(message.get("tool_calls", ())) > 1:
                continue
            prompt = tokenizer.render([conversation["messages"][0]], tools, add_generation_prompt=True)
            whole = tokenizer.render([conversation["messages"][0], message], tools)
            answer = tokenizer.encode(whole.removeprefix(prompt))[:-1]
            reply = read(tokenizer, tokenizer.encode(prompt), answer, tools=True)
            assert (reply.content, reply.reasoning) == (message["content"], _reasoning(message)), number
            calls = [one["function"] for one in message.get("tool_calls", ())]
            assert [(one.name, json.loads(one.arguments)) for one in reply.calls] == [
                (one["name"], one["arguments"]) for one in calls
            ]


def _reasoning(message: dict[str, Any]) -> str:
    return next(
        (message[key] for key in ("reasoning_content", "reasoning", "thinking") if key in message), ""
    )


def told(folder: Path, template: str | None) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(folder, chat_template=template)))


def test_the_template_decides(tmp_path: Path) -> None:
    """Its form, and what the prompt has begun. Without a template an answer is a text."""
    text = "<think>a</think>b"
    plain, opens = told(tmp_path / "a", None), told(tmp_path / "b", OPENS_THINK)
    assert read(plain, plain.encode("x"), plain.encode(text)) == Reply(text)
    prompt = opens.render([{"role": "user", "content": "x"}], add_generation_prompt=True)
    assert read(opens, opens.encode(prompt), opens.encode("a</think>b")) == Reply("b", "a")
    channels = plain.with_template(load_template("gpt-oss"))
    assert read(channels, [], plain.encode(f"{ANALYSIS}a{NEXT}{FINAL}b")) == Reply("b", "a")
