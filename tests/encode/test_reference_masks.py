"""Tokens and masks agree with an independent reference: every chat format, in the templates of 34 model families."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.examples import Encoder
from tailor.encode.formats import get_format
from tailor.encode.masks import EncodedExample
from tailor.encode.prepare import make_encoder
from tailor.encode.records import RowError
from tailor.encode.template import Template, load_template
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.spec.data import FORMAT_KINDS, PAIRS, RATED, RELEVANCE, Data
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.kto import Kto
from tailor.spec.methods.sft import Sft
from tests.encode.families import BUILT_IN, FAMILIES, PUBLISHED
from tests.encode.published import CALLING, CONVERSATIONS, FIXTURE, SYSTEM, TOOLS, TURNS, written
from tests.encode.reference_masks import Reference, Refused, Talk, disagreements, turns_of

METHODS: dict[str, Any] = {PAIRS: Dpo(name="dpo"), RATED: Kto(name="kto"), RELEVANCE: Gritlm(name="gritlm")}
ASK, SUN, MORE, RAIN = (turn["content"] for turn in TURNS)
SNOW = {"role": "assistant", "content": "Snow: -3 °C!"}
LEARNED = (*TURNS[:3], SNOW)
FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def sharegpt(messages: Any) -> list[dict[str, str]]:
    return [{"from": FROM[turn["role"]], "value": turn["content"]} for turn in messages]


ONE = Talk(TURNS)
LAST = Talk(TURNS, learned=(3,))
FIRST = Talk(TURNS[:2])
PAIR = [LAST, Talk([*TURNS[:3], SNOW], learned=(3,), is_positive=False)]
WITH_INPUT = [{"role": "user", "content": f"{ASK}\n{MORE}"}, TURNS[1]]
WORSE = replace(FIRST, messages=[TURNS[0], SNOW], is_positive=False)
CHATS: dict[str, list[tuple[dict[str, Any], list[Talk]]]] = {
    "messages": [({"messages": TURNS}, [ONE])],
    "sharegpt": [({"conversations": sharegpt(TURNS)}, [ONE])],
    "firefly": [
        ({"conversation": [{"human": ASK, "assistant": SUN}, {"human": MORE, "assistant": RAIN}]}, [ONE])
    ],
    "alpaca": [
        ({"instruction": ASK, "input": "", "output": SUN}, [FIRST]),
        ({"instruction": ASK, "input": MORE, "output": SUN}, [Talk(WITH_INPUT)]),
        ({"instruction": MORE, "output": RAIN, "history": [[ASK, SUN]]}, [ONE]),
    ],
    "completion_messages": [({"prompt": TURNS[:3], "completion": TURNS[3:]}, [LAST])],
    "turns": [({"text": [ASK, SUN, MORE, RAIN]}, [ONE])],
    "preference": [
        ({"prompt": TURNS[:3], "chosen": TURNS[3:], "rejected": [SNOW]}, PAIR),
        ({"chosen": TURNS, "rejected": [*TURNS[:3], SNOW]}, PAIR),
    ],
    "preference_sharegpt": [
        (
            {
                "conversations": sharegpt(TURNS[:3]),
                "chosen": sharegpt(TURNS[3:])[0],
                "rejected": sharegpt([SNOW])[0],
            },
            PAIR,
        )
    ],
    "preference_alpaca": [({"instruction": ASK, "chosen": SUN, "rejected": SNOW["content"]}, [FIRST, WORSE])],
    "unpaired": [({"prompt": TURNS[:3], "completion": TURNS[3:], "label": True}, [LAST])],
    "unpaired_sharegpt": [
        ({"conversations": sharegpt([TURNS[0], SNOW]), "label": False}, [WORSE]),
        ({"conversations": sharegpt(TURNS), "label": True}, [LAST]),
    ],
    "unpaired_alpaca": [({"instruction": ASK, "output": SNOW["content"], "label": "false"}, [WORSE])],
}
"""Format -> rows, with the conversations that they mean."""
WITHOUT_SYSTEM = ("turns",)
WITH_TOOLS = ("chatml", "gpt-oss", "llama-3.1", "mistral", "mistral-v3-tekken", "qwen-2.5", "qwen-3")
MORE_ROWS = [
    ({"messages": CALLING, "tools": TOOLS}, Talk(CALLING, TOOLS)),
    ({"messages": [SYSTEM, *CALLING], "tools": TOOLS}, Talk([SYSTEM, *CALLING], TOOLS)),
]
TEXTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "completion": ({"prompt": ASK, "response": SUN}, [(ASK, SUN)]),
    "text": ({"text": SUN}, [("", SUN)]),
    "preference_text": ({"prompt": ASK, "chosen": SUN, "rejected": RAIN}, [(ASK, SUN), (ASK, RAIN)]),
    "unpaired_text": ({"prompt": ASK, "completion": SUN, "label": 0}, [(ASK, SUN)]),
}
INSTRUCTED, BARE = f"<|user|>\n{MORE}\n<|embed|>\n", "<|embed|>\n"
EMBEDDED: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "gritlm": (
        {"query": [f"{MORE}:", ASK], "pos": [["", SUN]], "neg": [RAIN]},
        [(INSTRUCTED, ASK), (BARE, SUN), (BARE, RAIN)],
    ),
    "flagembedding": (
        {"query": ASK, "pos": [SUN], "neg": [RAIN], "prompt": MORE},
        [(INSTRUCTED, ASK), (BARE, SUN), (BARE, RAIN)],
    ),
    "tevatron": (
        {"query": ASK, "positive_passages": [{"title": "A", "text": SUN}], "negative_passages": [{"text": RAIN}]},
        [(BARE, ASK), (BARE, f"A {SUN}"), (BARE, RAIN)],
    ),
    "sentence_transformers": (
        {"anchor": ASK, "positive": SUN, "negative": RAIN},
        [(BARE, ASK), (BARE, SUN), (BARE, RAIN)],
    ),
}  # fmt: skip


class Subject:
    """A family's tokenizer and template: tailor's encoders, and the reference."""

    def __init__(self, folder: Path, name: str) -> None:
        family = FAMILIES[name]
        path = str(family.save(folder))
        self.tokenizer = load_tokenizer(path, template=name if name in BUILT_IN else None)
        self.rules = turn_rules(self.tokenizer)
        self.reference = Reference(path, family, family.template or load_template(name).text)
        self._encoders: dict[str, Encoder] = {}

    def encode(self, name: str, row: dict[str, Any]) -> list[EncodedExample] | RowError:
        """The examples of a row at full length."""
        kind = FORMAT_KINDS[name]
        if kind not in self._encoders:
            data = Data.model_validate({"train": [{"path": "rows.jsonl"}]})
            method = METHODS.get(kind, Sft(name="sft"))
            self._encoders[kind] = make_encoder(data, method, self.tokenizer, self.rules)
        try:
            (result,) = self._encoders[kind].encode([get_format(name).record(row, {})])
        except RowError as error:
            return error
        return result

    def check(self, name: str, row: dict[str, Any], talks: list[Talk]) -> bool:
        """Whether the template takes the row. Asserts that the reference agrees, and that it refuses what tailor does."""
        result = self.encode(name, row)
        try:
            for talk in talks:
                self.reference.turns(talk)
        except Refused:
            assert isinstance(result, RowError)
            assert result.reason == "template"
            return False
        assert not isinstance(result, RowError), result.args
        parts = [result] if len(talks) == 1 else [[one] for one in result]
        assert len(parts) == len(talks)
        for talk, examples in zip(talks, parts, strict=True):
            assert disagreements(self.reference, talk, examples) == []
        return True


def with_system(name: str, row: dict[str, Any], talks: list[Talk]) -> tuple[dict[str, Any], list[Talk]]:
    """The same row with a system text in its column."""
    longer = [
        replace(talk, messages=[SYSTEM, *talk.messages], learned=tuple(at + 1 for at in talk.at))
        for talk in talks
    ]
    return {**row, "system": SYSTEM["content"]}, longer


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return {name: Subject(tmp_path_factory.mktemp("family"), name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations(subjects: dict[str, Subject], name: str) -> None:
    subject, taken, refused = subjects[name], 0, 0
    for fmt, rows in CHATS.items():
        for row, talks in rows:
            assert subject.check(fmt, row, talks), (fmt, "a plain conversation is refused")
            if fmt not in WITHOUT_SYSTEM:
                is_taken = subject.check(fmt, *with_system(fmt, row, talks))
                taken, refused = taken + is_taken, refused + (not is_taken)
    assert not (taken and refused), "a template takes a system text in some formats, and refuses it in others"


@pytest.mark.parametrize("name", BUILT_IN)
def test_tools(subjects: dict[str, Subject], name: str) -> None:
    taken = [subjects[name].check("messages", row, [talk]) for row, talk in MORE_ROWS]
    assert taken == [name in WITH_TOOLS] * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_without_a_template(subjects: dict[str, Subject], name: str) -> None:
    subject = subjects[name]
    for fmt, (row, texts) in TEXTS.items():
        result = subject.encode(fmt, row)
        assert not isinstance(result, RowError), fmt
        expected = [subject.reference.plain(*text) for text in texts]
        if fmt == "text":  # every token is learned, BOS too
            expected = [((), before + text) for before, text in expected]
        assert turns_of(result) == expected, fmt
    for fmt, (row, texts) in EMBEDDED.items():
        result = subject.encode(fmt, row)
        assert not isinstance(result, RowError), fmt
        assert turns_of(result) == [subject.reference.embedded(*text) for text in texts], fmt


def test_all_formats_are_compared() -> None:
    assert {*CHATS, *TEXTS, *EMBEDDED} == set(FORMAT_KINDS)


@pytest.mark.parametrize("name", [name for name, family in PUBLISHED.items() if family.fixture])
def test_the_templates_write_what_the_published_ones_write(name: str) -> None:
    published = json.loads(FIXTURE.read_text())[PUBLISHED[name].fixture]["written"]
    template = Template(name, PUBLISHED[name].template)
    for case in CONVERSATIONS:
        if "tools" not in case:
            assert written(template, case) == published[case], case


def shifted(example: EncodedExample, by: int) -> EncodedExample:
    return replace(example, spans=[(start + by, stop + by) for start, stop in example.spans])


@pytest.mark.parametrize("name", ["chatml", "llama-3-published", "mistral"])
def test_control_every_kind_of_mistake_is_found(subjects: dict[str, Subject], name: str) -> None:
    subject = subjects[name]
    result = subject.encode("messages", {"messages": TURNS})
    assert not isinstance(result, RowError)
    (example,) = result
    (first, last), ids = example.spans, example.input_ids
    mistakes = {
        "shifted by one": shifted(example, 1),
        "shifted back": shifted(example, -1),
        "without its end of turn": replace(example, spans=[first, (last[0], last[1] - 1)]),
        "with the header's last token": replace(example, spans=[first, (last[0] - 1, last[1])]),
        "one turn less": replace(example, spans=[last]),
        "a token cut from the prompt": shifted(replace(example, input_ids=ids[1:]), -1),
        "a token cut from the end": replace(example, input_ids=ids[:-1]),
        "another label": replace(example, is_positive=False),
    }
    assert disagreements(subject.reference, ONE, result) == []
    for mistake, wrong in mistakes.items():
        assert disagreements(subject.reference, ONE, [wrong]), mistake


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("message['content'] | trim", "' ' + message['content'] | trim"),
        ("<|end_header_id|>\\n\\n'", "<|end_header_id|>\\n'"),
        ("bos_token if loop.first", "'' if loop.first"),
        ("message['role'] +", "message['role'] | upper +"),
    ],
)
def test_control_another_variant_of_the_template_is_found(
    subjects: dict[str, Subject], old: str, new: str
) -> None:
    subject, text = subjects["llama-3-published"], PUBLISHED["llama-3-published"].template
    assert old in text
    tokenizer = subject.tokenizer.with_template(Template("variant", text.replace(old, new)))
    data = Data.model_validate({"train": [{"path": "rows.jsonl"}]})
    encoder = make_encoder(data, Sft(name="sft"), tokenizer, subject.rules)
    (result,) = encoder.encode([get_format("messages").record({"messages": TURNS}, {})])
    assert isinstance(result, RowError) or disagreements(subject.reference, ONE, result)
