"""The supervised tokens of every turn are the assistant's text and its end of turn: in every built-in template."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tailor.encode.masks import ChatEncoder, EncodedExample
from tailor.encode.records import Chat, RowError
from tailor.encode.template import Template, builtin_templates, load_template
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import TemplateError
from tests.helpers.tokenizers import bpe_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Weather of a city.", "parameters": {}},
    }
]
TALK = [
    {"role": "user", "content": "Hello, what is the weather?"},
    {"role": "assistant", "content": "It is sunny.\n\nReally; naïve 日本 🙂"},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Rain, 22 degrees."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
CALLING = [
    {"role": "system", "content": "You may look things up."},
    {"role": "user", "content": "Hello, what is the weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"degrees": 22}'},
    {"role": "assistant", "content": "It is 22 degrees."},
    {"role": "user", "content": "Thank you."},
    {"role": "assistant", "content": "You are welcome."},
]
WITH_TOOLS = ("chatml", "llama-3.1", "mistral", "mistral-v3-tekken", "qwen-2.5")
REWRITES = ("gpt-oss", "qwen-3")
"""Templates that change earlier turns, so that a conversation becomes several examples."""
MARKED = [name for name in builtin_templates() if name not in REWRITES]
CALL_TEXTS = {
    "chatml": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "qwen-2.5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama-3.1": '{"name": "weather", "parameters": {"city": "Paris"}}',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]',
    "mistral-v3-tekken": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]',
}
SPACES = {
    "deepseek-v2": (" ", ""),
    "llama-2": (" ", " "),
    "mistral": (" ", ""),
    "mistral-v7": (" ", ""),
    "vicuna": (" ", ""),
    "xverse": (" ", ""),
}
KINDS = ("bpe", "gpt2", "sentencepiece", "stripping")
# The same texts as the built-in chatml, without markers: the ranges come from prefix differences.
UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen 3's: an answer loses its thoughts as soon as the next question comes.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(folder: Path, template: str | Template) -> Tokenizer:
    chosen = template if isinstance(template, Template) else load_template(template)
    return load_tokenizer(str(folder)).with_template(chosen)


def encode(tokenizer: Tokenizer, chat: Chat, train_on: str = "assistant") -> list[EncodedExample]:
    (result,) = ChatEncoder(tokenizer, turn_rules(tokenizer), train_on)([chat])
    if isinstance(result, RowError):
        raise result
    return result


def supervised_texts(tokenizer: Tokenizer, example: EncodedExample, shift: int = 0) -> list[str]:
    return [tokenizer.decode(example.input_ids[a + shift : b + shift]) for a, b in example.spans]


def are_answers(tokenizer: Tokenizer, texts: list[str], answers: list[str]) -> bool:
    """Exactly the answers, each with one end-of-turn token, and the spaces that some families put there."""
    (end,) = turn_rules(tokenizer).end_texts
    lead, tail = SPACES.get(tokenizer.require_template().name, ("", ""))
    if tokenizer.adds_space:
        lead = ""  # A SentencePiece decoder takes one leading space away.
    return texts == [lead + answer + tail + end for answer in answers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("talk", [TALK, SYSTEM], ids=["plain", "system"])
def test_supervised_tokens_are_the_answers(tokenizer_folders, kind, name, talk):
    tokenizer = tokenizer_of(tokenizer_folders[kind], name)
    (example,) = encode(tokenizer, Chat(talk))
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    texts = supervised_texts(tokenizer, example)
    assert are_answers(tokenizer, texts, answers), texts
    # The control: a mask shifted by one token, either way, fails the same check.
    for shift in (-1, 1):
        assert not are_answers(tokenizer, supervised_texts(tokenizer, example, shift), answers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MARKED)
def test_prompts_equal_those_of_generation(tokenizer_folders, kind, name):
    tokenizer = tokenizer_of(tokenizer_folders[kind], name)
    (example,) = encode(tokenizer, Chat(SYSTEM))
    for turn, (start, _) in zip((2, 4), example.spans, strict=True):
        prompt = tokenizer.encode(tokenizer.render(SYSTEM[:turn], add_generation_prompt=True))
        assert example.input_ids[:start].tolist() == prompt
        if kind == "gpt2" and name.startswith("llama-3"):
            # GPT-2's pattern looks ahead after two newlines: the first border is cut, and stays so in the history.
            assert tokenizer.encode(tokenizer.render(SYSTEM))[: len(prompt)] != prompt
            break


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools(tokenizer_folders, kind, name):
    tokenizer = tokenizer_of(tokenizer_folders[kind], name)
    (example,) = encode(tokenizer, Chat(CALLING, TOOLS))
    expected = [CALL_TEXTS[name], "It is 22 degrees.", "You are welcome."]
    texts = supervised_texts(tokenizer, example)
    # A SentencePiece decoder drops or adds a space around special tokens in the text.
    assert [t.replace(" ", "") for t in texts] == [
        (answer + turn_rules(tokenizer).end_texts[0]).replace(" ", "") for answer in expected
    ]
    assert "degrees" in tokenizer.decode(example.input_ids[: example.spans[1][0]])


@pytest.mark.parametrize("name", sorted(set(MARKED) - set(WITH_TOOLS)))
def test_families_without_tools_reject_them(tokenizer_folders, name):
    tokenizer = tokenizer_of(tokenizer_folders["bpe"], name)
    with pytest.raises(RowError, match=f"the built-in template {name} does not support tool"):
        encode(tokenizer, Chat(CALLING, TOOLS))


def test_a_template_that_drops_tool_calls_is_rejected(tokenizer_folders):
    tokenizer = tokenizer_of(tokenizer_folders["bpe"], Template("t", UNMARKED))
    with pytest.raises(RowError, match="silently drops the tools"):
        encode(tokenizer, Chat(CALLING, TOOLS))
    with pytest.raises(RowError, match="silently drops tool calls"):
        encode(tokenizer, Chat(CALLING))


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_differences_give_what_markers_give(tokenizer_folders, kind):
    marked = encode(tokenizer_of(tokenizer_folders[kind], "chatml"), Chat(SYSTEM))
    unmarked = encode(tokenizer_of(tokenizer_folders[kind], Template("t", UNMARKED)), Chat(SYSTEM))
    assert marked[0].spans == unmarked[0].spans
    assert np.array_equal(marked[0].input_ids, unmarked[0].input_ids)


def test_train_on(tokenizer_folders):
    for template in ("chatml", Template("t", UNMARKED)):
        tokenizer = tokenizer_of(tokenizer_folders["bpe"], template)
        (all_turns,) = encode(tokenizer, Chat(TALK))
        (last,) = encode(tokenizer, Chat(TALK), "last_assistant")
        (everything,) = encode(tokenizer, Chat(TALK), "everything")
        assert last.spans == all_turns.spans[-1:]
        assert everything.spans == [(0, len(everything.input_ids))]
        weighted = [{**m, "weight": 0} if m["content"].startswith("It is") else m for m in TALK]
        (without_first,) = encode(tokenizer, Chat(weighted))
        assert without_first.spans == all_turns.spans[1:]


def test_rewritten_turns_get_examples_of_their_own(tokenizer_folders):
    tokenizer = tokenizer_of(tokenizer_folders["bpe"], Template("t", REWRITING))
    examples = encode(tokenizer, Chat(TALK))
    texts = [supervised_texts(tokenizer, example) for example in examples]
    assert sorted(texts) == sorted(
        [["<think></think>Rain, 22 degrees.<|im_end|>"], [f"<think></think>{TALK[1]['content']}<|im_end|>"]]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_qwen_3_learns_each_answer_with_its_reasoning(tokenizer_folders, kind):
    """Every answer once, in the text that it is written in: with its reasoning, which later turns don't see."""
    tokenizer = tokenizer_of(tokenizer_folders[kind], "qwen-3")
    thought = [
        {**m, "content": f"<think>\nHm {at}.\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m
        for at, m in enumerate(TALK)
    ]
    for talk, thoughts in ((thought, ("Hm 1.", "Hm 3.")), (TALK, ("", ""))):
        examples = encode(tokenizer, Chat(talk))
        texts = sorted(text for example in examples for text in supervised_texts(tokenizer, example))
        answers = [m["content"] for m in TALK if m["role"] == "assistant"]
        expected = [
            f"<think>\n{t}\n</think>\n\n{a}<|im_end|>" for t, a in zip(thoughts, answers, strict=True)
        ]
        assert [t.replace(" ", "") for t in texts] == sorted(t.replace(" ", "") for t in expected)
        last = max(examples, key=lambda example: len(example.input_ids))
        whole = tokenizer.decode(last.input_ids)
        assert "Hm 1." not in whole, "an earlier answer has lost its reasoning"
    (example,) = [
        e
        for e in encode(tokenizer, Chat(CALLING, TOOLS))
        if len(e.spans) == 1 and "22 degrees." in supervised_texts(tokenizer, e)[0]
    ]
    assert "tool_response" in tokenizer.decode(example.input_ids[: example.spans[0][0]])


def test_newline_inside_the_markers_is_not_supervised(tokenizer_folders):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of(tokenizer_folders["bpe"], Template("t", text))
    (example,) = encode(tokenizer, Chat(TALK))
    assert supervised_texts(tokenizer, example)[1] == "Rain, 22 degrees.<|im_end|>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            UNMARKED.replace("<|im_end|>", ""),
            "an assistant turn has no end-of-turn token; the model would never learn to stop",
        ),
        (UNMARKED.replace("<|im_end|>", "<|fin|>"), "not a single token of this tokenizer"),
        (
            (
                "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}"
                "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
            ),
            "markers enclose 4 of 2 assistant turns",
        ),
        (
            (
                "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
                "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
            ),
            "move the end-of-turn token inside",
        ),
        (
            (
                "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
                "{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
                "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
            ),
            "starts before the answer: it includes",
        ),
        (UNMARKED.split("{% if add")[0], "there is no generation prompt"),
        (
            UNMARKED.replace("assistant\n{% endif", "assistant\n<plan>{% endif"),
            "does not start where the generation prompt ends",
        ),
        ("<s><s>" + UNMARKED, "two BOS tokens"),
        ("{{ raise_exception('no') }}", "rendering a plain conversation fails: no"),
        ("{{ bos_token }}\n{% if %}", "line 2: not valid Jinja: .*; fix this line"),
        (
            "{{ messages[99].content.no }}",
            "rendering a plain conversation fails: .*; set data.template to a built-in",
        ),
        (
            "{% for m in messages %}{{ m.role }}: <|im_end|>{% endfor %}",
            "the text of assistant messages is missing from the result",
        ),
    ],
)
def test_templates_that_cannot_be_trained_on_are_rejected(tokenizer_folders, text, problem):
    with pytest.raises(TemplateError, match=problem):
        turn_rules(tokenizer_of(tokenizer_folders["bpe"], Template("t", text)))
    # The control: the sound template passes.
    turn_rules(tokenizer_of(tokenizer_folders["bpe"], Template("t", UNMARKED)))


def test_tags_unknown_to_the_tokenizer(tmp_path):
    """Tags in plain text are fine as long as the turn ends with a token; else the hint names templates that work."""
    folder = bpe_tokenizer(tmp_path, tags=())
    tokenizer = tokenizer_of(folder, "zephyr")
    (example,) = encode(tokenizer, Chat(TALK))
    assert supervised_texts(tokenizer, example)[1] == "Rain, 22 degrees.</s>"
    with pytest.raises(TemplateError) as caught:
        turn_rules(tokenizer_of(folder, "chatml"))
    assert "`<|im_end|>`, which is not a single token" in caught.value.message
    assert caught.value.hint == (
        "use a template whose end-of-turn token this tokenizer has: data.template: alpaca, baichuan, baichuan2, chatglm2, chatglm3, deepseek-v2, gritlm, internlm, llama-2, minicpm, mistral, mistral-v3-tekken, mistral-v7, orion, vicuna, xverse, zephyr, ziya2"
    )


def test_a_row_with_two_bos_tokens_is_rejected(tokenizer_folders):
    tokenizer = tokenizer_of(
        tokenizer_folders["bpe"], Template("t", "{{ messages[0].content }}\n" + UNMARKED)
    )
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    encode(tokenizer, Chat(plain))
    with pytest.raises(RowError, match="two BOS"):
        encode(tokenizer, Chat([{"role": "user", "content": "<s><s>Hi"}, plain[1]]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_crosses_the_boundary(tokenizer_folders, kind):
    """Answers that begin with what a tokenizer merges with the prompt's end: the prompt stays as generation sees it."""
    for name in ("alpaca", "chatml", "gemma", "phi-3", "vicuna", "zephyr"):
        template = load_template(name)
        # Without trimming, so that the answers below keep their first characters.
        template = Template(name, template.text.replace("message.content | trim", "message.content"))
        tokenizer = tokenizer_of(tokenizer_folders[kind], template)
        for answer in ("\n\nhouse", "  the house", " a", "\ta\n", "(a)", "s answer"):
            talk = [TALK[0], {"role": "assistant", "content": answer}, *TALK[2:]]
            (example,) = encode(tokenizer, Chat(talk))
            start, _stop = example.spans[0]
            prompt = tokenizer.encode(tokenizer.render(talk[:1], add_generation_prompt=True))
            assert example.input_ids[:start].tolist() == prompt, (name, answer)
            end = turn_rules(tokenizer).end_texts[0]
            assert supervised_texts(tokenizer, example)[0].replace(" ", "") == (answer + end).replace(" ", "")
    # The control: encoded at once, a token does straddle.
    tokenizer = tokenizer_of(tokenizer_folders["gpt2"], "zephyr")
    talk = [TALK[0], {"role": "assistant", "content": "\n\nhouse"}]
    at_once = tokenizer.encode(tokenizer.render(talk))
    prompt = tokenizer.encode(tokenizer.render(talk[:1], add_generation_prompt=True))
    assert at_once[: len(prompt)] != prompt


def test_random_conversations_agree_with_generation(tokenizer_folders):
    random.seed(0)
    words = ["the", " weather", "\n", "  ", "in Paris", "日本", "is", "s", ".", "?", "{", "</", "é"]
    for kind in KINDS:
        tokenizer = tokenizer_of(tokenizer_folders[kind], "zephyr")
        for _ in range(60):
            talk = [
                {"role": role, "content": "".join(random.choices(words, k=random.randint(1, 8))) + end}
                for role, end in (("user", ""), ("assistant", "s"), ("user", ""), ("assistant", "is"))
            ]
            (example,) = encode(tokenizer, Chat(talk), "last_assistant")
            ((start, stop),) = example.spans
            prompt = tokenizer.encode(tokenizer.render(talk[:3], add_generation_prompt=True))
            assert example.input_ids[:start].tolist() == prompt
            answer = tokenizer.decode(example.input_ids[start:stop])
            assert answer.replace(" ", "") == (talk[3]["content"] + "</s>").replace(" ", "")


def test_equal_to_transformers(tokenizer_folders):
    """Ids as `apply_chat_template` gives them, for templates with and without markers."""
    from transformers import PreTrainedTokenizerFast

    # GPT-2's splitting pattern is left out: with it Llama 3's prompt ends in another token than the whole text has there.
    for kind in ("bpe", "sentencepiece", "stripping"):
        folder = str(tokenizer_folders[kind])
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        for name in ("llama-3.1", "qwen-2.5", "mistral", "chatml"):
            ours = tokenizer_of(tokenizer_folders[kind], name)
            assert ours.template is not None
            (example,) = encode(ours, Chat(CALLING, TOOLS))
            expected = theirs.apply_chat_template(
                json.loads(json.dumps(CALLING)),
                tools=TOOLS,
                chat_template=ours.template.text,
                return_dict=False,
            )
            assert example.input_ids.tolist() == expected
